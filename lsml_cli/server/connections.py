"""Bound the connections of clients that send nothing, so that they take no room from those that do.

Uvicorn knows one limit, on all connections together: whoever opens that many and stays silent locks everybody out.
Here a connection is *idle* while it has no request in progress: before its first request, between two requests, and
until the headers of a request are complete. A request is in progress from there until its answer is sent.

- Idle connections are closed after `KEEP_ALIVE`, those that never had a request or have begun one after
  `HEADER_TIMEOUT`. Data that complete no headers do not prolong it. (A body has the timeouts of `request_body`.)
- One address has at most `MAX_IDLE_PER_ADDRESS` of them. The one that waits longest is closed, silent ones first.
- A client that does not read its answer loses it after `KEEP_ALIVE` without progress.
- When `max_connections` is reached, idle connections give way to new ones, then those whose client is slow.

A request with the password exempts its connection from all limits on numbers.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_REQUESTS = 1000  # requests in progress; further ones without the password get status 503
MAX_CONNECTIONS = MAX_REQUESTS + 200  # the rest is room for /health, for the password, and for sending status 503
MAX_IDLE_PER_ADDRESS = 100
RESERVED_FILES = 128  # descriptors for models, versions, jobs and outgoing requests
KEEP_ALIVE = 75.0  # seconds that a connection may be idle after an answer
HEADER_TIMEOUT = 20.0  # seconds until the headers of a request are complete
NEW_FOR = 1.0  # seconds in which a client is expected to begin its first request
SLOW_AFTER = 5.0  # seconds without progress after which a client is slow
MAX_HEADER_BYTES = 1 << 16
MAX_PIPELINED = 16  # requests of one connection that wait for the answer to the one before


class ConnectionTable:
    """The open connections of a server.

    Args:
        max_connections: Number that is kept open, within the limit on open files.
    """

    def __init__(self, max_connections: int = MAX_CONNECTIONS) -> None:
        self.max_connections = max_connections
        self._by_address: dict[str, dict[Connection, None]] = {}  # in order of arrival
        self._count = 0

    def add(self, connection: Connection) -> None:
        """Admit a new connection; close another one, or the new one itself, if there are too many."""
        same_address = self._by_address.setdefault(connection.address, {})
        same_address[connection] = None
        self._count += 1
        if len(same_address) > MAX_IDLE_PER_ADDRESS:
            idle = [other for other in same_address if other.is_idle and not other.has_password]
            if len(idle) > MAX_IDLE_PER_ADDRESS:
                min(idle, key=Connection.idle_rank).close()
        if self._count > self.max_connections:
            self._make_room(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closing or closed."""
        same_address = self._by_address.get(connection.address, {})
        if connection in same_address:
            del same_address[connection]
            self._count -= 1
            if not same_address:
                del self._by_address[connection.address]

    def close_expired(self) -> None:
        """Close the connections whose time is over; to be called every second."""
        for connection in list(self._all()):
            connection.close_if_expired()

    def _make_room(self, new: Connection) -> None:
        """Close the longest idle connection, else that of the slowest client, else the new one."""
        others = [other for other in self._all() if other is not new and not other.has_password]
        if idle := [other for other in others if other.is_idle]:
            min(idle, key=Connection.idle_rank).close()
        elif slow := [other for other in others if other.is_slow]:
            min(slow, key=lambda other: other.progressed_at).abort()
        else:
            new.abort()

    def _all(self) -> Iterable[Connection]:
        return (connection for same_address in self._by_address.values() for connection in same_address)


class Connection(HttpToolsProtocol):
    """Uvicorn's connection, registered in a table, with timeouts for everything that its client may delay.

    `HttpToolsProtocol` has no hook for that; what is overridden are the callbacks of the transport and the parser.
    """

    cycle: Any  # the last request and its answer, None before the first
    table: ConnectionTable  # of the server, set in a subclass of its own: see `bind_connections`

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self.has_password = False  # whether its last request had the password, where one is needed
        self.progressed_at = self.loop.time()  # when the client last sent something, or read some of an answer
        self._idle_since = self.progressed_at
        self._headers_since: float | None = self.progressed_at  # None between two requests
        self._header_bytes = 0
        self._unsent_bytes = 0  # of answers, as last seen
        self.table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.table.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.progressed_at = self.loop.time()
        super().data_received(data)
        if self.is_idle and self._headers_since is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.abort()

    def on_message_begin(self) -> None:
        self._headers_since, self._header_bytes = self.loop.time(), 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._headers_since = None
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.abort()

    def on_response_complete(self) -> None:
        self.has_password = bool(self.cycle.scope.get("state", {}).get("has_password"))
        self._idle_since = self.progressed_at = self.loop.time()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Tell whether no request is in progress, and every answer was sent."""
        is_answered = self.cycle is None or (self.cycle.response_complete and not self.pipeline)
        return is_answered and not self.transport.get_write_buffer_size()

    @property
    def is_slow(self) -> bool:
        """Tell whether the client lets the server wait for the rest of a body, or for reading its answer."""
        is_due = self.transport.get_write_buffer_size() > 0 or (self.cycle is not None and self.cycle.more_body)
        return is_due and self.loop.time() - self.progressed_at > SLOW_AFTER

    def idle_rank(self) -> tuple[int, float]:
        """Return the order in which idle connections give way: silent ones, then others, new ones; the oldest first."""
        if self.cycle is not None:
            return 1, self._idle_since
        return 2 if self.loop.time() - self._idle_since < NEW_FOR else 0, self._idle_since

    def close(self) -> None:
        """Close an idle connection."""
        self.table.remove(self)
        self.transport.close()

    def abort(self) -> None:
        """Close the connection without sending what is left of an answer."""
        self.table.remove(self)
        self.transport.abort()

    def close_if_expired(self) -> None:
        """Close the connection if its client has let the server wait for too long."""
        now = self.loop.time()
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes < self._unsent_bytes:
            self.progressed_at = now
        self._unsent_bytes = unsent_bytes
        if unsent_bytes:
            if now - self.progressed_at > KEEP_ALIVE:
                self.abort()
        elif self.is_idle:
            is_late = self._headers_since is not None and now - self._headers_since > HEADER_TIMEOUT
            if is_late or now - self._idle_since > KEEP_ALIVE:
                self.close()


def bind_connections(table: ConnectionTable) -> type[Connection]:
    """Return the protocol class of one server, whose connections register in `table`."""
    return type("BoundConnection", (Connection,), {"table": table})


def limit_by_open_files() -> int:
    """Return how many connections the limit on open files allows, after raising that limit as far as needed."""
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    available = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - RESERVED_FILES
    return max(16, min(MAX_CONNECTIONS, available))
