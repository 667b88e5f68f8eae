"""Connect to untrusted URLs: only to allowed hosts, and never longer than allowed.

A name is resolved once, all its addresses are checked, and one of these is connected to. Resolving it first and letting
the HTTP library connect by name would leave a gap: the name may resolve to another address the second time (DNS
rebinding). Checking the peer after the response is too late: the request has been sent. TLS still checks the
certificate against the name.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

from lsml_cli.media.hosts import AllowedHosts, HostNotAllowed, is_public

_DEADLINE: ContextVar[float] = ContextVar("deadline")  # of the current request of this thread, time.monotonic()


@contextmanager
def deadline_scope(deadline: float) -> Iterator[None]:
    """End what the block does through a SafeTransport at the deadline, even in the middle of a header."""
    token = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


class SafeTransport(httpx.BaseTransport):
    """A pool of connections to allowed hosts. It uses no proxy, which would hide the address that is connected to."""

    def __init__(self, hosts: AllowedHosts, max_connections: int) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            network_backend=_SafeNetworkBackend(hosts),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        response = self._pool.handle_request(
            httpcore.Request(
                request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions
            )
        )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_ResponseStream(response),
            extensions=dict(response.extensions),
        )

    def close(self) -> None:
        self._pool.close()


class _ResponseStream(httpx.SyncByteStream):
    """The body of a response of httpcore, as httpx wants it."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class _SafeNetworkBackend(httpcore.NetworkBackend):
    """Connects to the addresses that the allowed hosts permit."""

    def __init__(self, hosts: AllowedHosts) -> None:
        self._hosts = hosts
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        self._hosts.require_allowed(host, port)
        timeout = _remaining_timeout(timeout)
        if self._hosts.trust_level(host, port) == "named":
            return _DeadlineStream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options))
        last_error: Exception | None = None
        for address in _resolve_public_addresses(host, port):
            try:
                return _DeadlineStream(self._inner.connect_tcp(address, port, timeout, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last_error = error
        raise last_error or httpcore.ConnectError(f"{host} has no address")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _DeadlineStream(httpcore.NetworkStream):
    """A connection that does not wait beyond the deadline, however small the pieces are that arrive."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _remaining_timeout(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _remaining_timeout(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, _remaining_timeout(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _resolve_public_addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a name; raise HostNotAllowed, without showing it, if one is not public."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"{host}: {error}") from None
    addresses = list(dict.fromkeys(str(socket_address[0]) for *_, socket_address in infos))
    if not all(map(is_public, addresses)):
        raise HostNotAllowed(f"{host} has an address that is not public (--allow-host {host} allows it all the same)")
    return addresses


def _remaining_timeout(timeout: float | None) -> float | None:
    """Return the seconds to wait: as long as the caller wants, but not beyond the deadline."""
    deadline = _DEADLINE.get(None)
    if deadline is None:
        return timeout
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise httpcore.ReadTimeout("out of time")
    return remaining if timeout is None else min(timeout, remaining)
