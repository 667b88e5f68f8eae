"""Which hosts media may come from."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from lsml_cli.errors import UsageError

DEFAULT_PORTS = {"http": 80, "https": 443}
BUCKET_SCHEMES = frozenset({"s3", "gs", "azure-blob"})  # schemes, as Label Studio spells them


class HostNotAllowed(ValueError):
    """Requests to this host are not allowed, or not at its address."""


TrustLevel = Literal["named", "wildcard"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST_PATTERN = re.compile(
    r"(\*|\*\.[\w.-]+|[\w.-]+|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*)(?<!\.)(:\d{1,5})?"
)
_NAT64_NETWORK = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address on its way through IPv6
_NAT64_LOCAL_NETWORK = ipaddress.ip_network("64:ff9b:1::/48")


@dataclass(frozen=True)
class AllowedHosts:
    """The hosts and buckets that media may come from; checked again on every redirect.

    The Label Studio that the tasks belong to need not be listed.

    Attributes:
        patterns: Each entry is one of
            "images.example.com", "images.example.com:8080", "127.0.0.1", "[::1]:8080": exactly this host, on this port
            or on any. The user knows a host that is listed by name, so its addresses may be private.
            "*.example.com", "*.example.com:443", "*": every host that matches, if all its addresses are public.
            "s3://bucket" (gs://, azure-blob://): this bucket, with the credentials of this machine. These may open
            every bucket of their owner, so a bucket that is not listed is reached only through Label Studio, which
            presigns the files of its own storages.
        allow_any: Whether requests may go anywhere: for users who run a command on their own data.

    Raises:
        UsageError: An entry is neither a host, a pattern nor a bucket.
    """

    patterns: tuple[str, ...] = ()
    allow_any: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", tuple(map(_normalize_pattern, self.patterns)))

    def extended_with(self, *patterns: str) -> AllowedHosts:
        """Return the same hosts and these."""
        return self if self.allow_any else AllowedHosts((*self.patterns, *patterns))

    def trust_level(self, host: str, port: int) -> TrustLevel | None:
        """Return how a host is allowed: by name, by a wildcard, or None if it is not.

        Args:
            host: In ASCII, an IPv6 address without its brackets.
            port: Port of the request.
        """
        if self.allow_any:
            return "named"
        host = normalize_host(host)
        level: TrustLevel | None = None
        for entry in self.patterns:
            pattern, pattern_port = _split_port(entry)
            if pattern_port not in (None, port):
                continue
            if pattern == host:
                return "named"
            if pattern == "*" or (pattern.startswith("*.") and host.endswith(pattern[1:])):
                level = "wildcard"
        return level

    def require_allowed(self, host: str, port: int) -> None:
        """Raise HostNotAllowed if no entry allows this host."""
        if self.trust_level(host, port) is None:
            raise HostNotAllowed(
                f"{host} is not among the hosts that media may come from (--allow-host {host} adds it)"
            )

    def is_bucket_allowed(self, bucket: str) -> bool:
        """Return whether "s3://bucket" may be read with the credentials of this machine."""
        return self.allow_any or bucket in self.patterns


def is_public(address: str) -> bool:
    """Return whether an IP address is on the public internet: not this machine, its network or a cloud's inside."""
    ip: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = (
            ip.ipv4_mapped
            or ip.sixtofour
            or (ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in _NAT64_NETWORK else None)
        )
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local or ip in _NAT64_LOCAL_NETWORK:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _normalize_pattern(pattern: str) -> str:
    """Return an entry in the spelling that it is compared in; raise UsageError if it is none."""
    text = pattern.strip()
    scheme, colon, bucket = text.partition("://")
    if colon and scheme in BUCKET_SCHEMES and bucket.strip("/") and "/" not in bucket.strip("/"):
        return f"{scheme}://{bucket.strip('/')}"
    if not _HOST_PATTERN.fullmatch(text.removesuffix(".")):
        raise UsageError(
            f"{pattern!r} is not a host that media can come from.",
            "Write a host, host:port, *.host, * for every public one, or s3://bucket.",
        )
    host, port = _split_port(text.removesuffix("."))
    host = normalize_host(host)
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


def _split_port(pattern: str) -> tuple[str, int | None]:
    """Split an entry into host and port. An IPv6 address without brackets has no port."""
    if pattern.startswith("["):
        host, _, port = pattern[1:].partition("]")
        port = port.removeprefix(":")
    elif pattern.count(":") > 1:
        host, port = pattern, ""
    else:
        host, _, port = pattern.partition(":")
    return host, int(port) if port.isdigit() else None


def normalize_host(host: str) -> str:
    """Return a host in the spelling that it is compared in: ASCII, lower case, addresses in their short form."""
    host = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        pass
    if not host.isascii():
        import httpx  # which encodes names of all scripts as it will look them up

        wildcard = "*." if host.startswith("*.") else ""
        host = wildcard + httpx.URL(f"http://{host.removeprefix('*.')}/").raw_host.decode()
    return host


ANY_HOST = AllowedHosts(allow_any=True)
