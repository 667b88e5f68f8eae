"""Which hosts media may come from."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from lsml_cli.errors import UsageError

BUCKETS = frozenset({"s3", "gs", "azure-blob"})  # schemes, as Label Studio spells them


class HostRefused(ValueError):
    """This host may not be asked, or not at the address that it has."""


Trust = Literal["named", "wildcard"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(r"(\*|\*\.[\w.-]+|[\w.-]+|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*)(?<!\.)(:\d{1,5})?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address on its way through IPv6
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")


@dataclass(frozen=True)
class Hosts:
    """The hosts that may be asked for media, and again on every redirect.

    names     "images.example.com", "images.example.com:8080", "127.0.0.1", "[::1]:8080": exactly this host, on this
              port or on any. Whoever wrote it down knows it, so its addresses may be private ones
              "*.example.com", "*.example.com:443", "*": what only such a pattern covers must have public addresses
              "s3://bucket" (gs://, azure-blob://): this bucket, with the credentials of this machine. Those may open
              every bucket of their owner, so a bucket that is not named is reached only through Label Studio, which
              presigns what its own storages hold
    anywhere  everything may be asked: for somebody who runs a command by hand, on data of their own

    The Label Studio that media belong to need not be named. Raises UsageError for a name that is none.
    """

    names: tuple[str, ...] = ()
    anywhere: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(map(_normal_entry, self.names)))

    def also(self, *names: str) -> Hosts:
        return self if self.anywhere else Hosts((*self.names, *names))

    def trust(self, host: str, port: int) -> Trust | None:
        """How far a host is trusted; None: it may not be asked.

        host  in ASCII, an IPv6 address without its brackets
        """
        if self.anywhere:
            return "named"
        host = normal_host(host)
        found: Trust | None = None
        for name in self.names:
            wanted, wanted_port = _split(name)
            if wanted_port not in (None, port):
                continue
            if wanted == host:
                return "named"
            if wanted == "*" or (wanted.startswith("*.") and host.endswith(wanted[1:])):
                found = "wildcard"
        return found

    def require(self, host: str, port: int) -> None:
        """Raises HostRefused when this host may not be asked at all."""
        if self.trust(host, port) is None:
            raise HostRefused(f"{host} is not among the hosts that media may come from (--allow-host {host} adds it)")

    def names_bucket(self, bucket: str) -> bool:
        """Whether "s3://bucket" may be read with the credentials of this machine."""
        return self.anywhere or bucket in self.names


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large: not to this machine, its network or a cloud's inside."""
    ip: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local or ip in _NAT64_LOCAL:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _normal_entry(entry: str) -> str:
    """An entry in the spelling that it is compared in."""
    text = entry.strip()
    scheme, colon, bucket = text.partition("://")
    if colon and scheme in BUCKETS and bucket.strip("/") and "/" not in bucket.strip("/"):
        return f"{scheme}://{bucket.strip('/')}"
    if not _HOST.fullmatch(text.removesuffix(".")):
        raise UsageError(
            f"{entry!r} is no host that media could come from.",
            "Write a host, host:port, *.host, * for every public one, or s3://bucket.",
        )
    host, port = _split(text.removesuffix("."))
    host = normal_host(host)
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _split(name: str) -> tuple[str, int | None]:
    """Host and port of an entry. An IPv6 address without brackets has no port."""
    if name.startswith("["):
        host, _, port = name[1:].partition("]")
        port = port.removeprefix(":")
    elif name.count(":") > 1:
        host, port = name, ""
    else:
        host, _, port = name.partition(":")
    return host, int(port) if port.isdigit() else None


def normal_host(host: str) -> str:
    """A host in the spelling that it is compared in: ASCII, lower case, addresses in their short form."""
    host = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        pass
    if not host.isascii():
        import httpx  # which takes names of all scripts for what it will look up in the end

        wildcard = "*." if host.startswith("*.") else ""
        host = wildcard + httpx.URL(f"http://{host.removeprefix('*.')}/").raw_host.decode()
    return host


ANYWHERE = Hosts(anywhere=True)
