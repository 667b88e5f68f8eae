"""The listening socket, and uvicorn configured to serve on it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from lsml_cli.errors import LsmlError, UsageError
from lsml_cli.server.connections import KEEP_ALIVE, ConnectionTable, bind_connections, limit_by_open_files
from lsml_cli.server.status_phrases import STATUS_PHRASES, status_line

BACKLOG = 2048  # connections that wait to be accepted
SWEEP_TICKS = 10  # of uvicorn's main loop, a tenth of a second each, between two looks for expired connections
SHUTDOWN_GRACE = 5.0  # seconds beyond the deadline that running requests get when the server stops


class HttpServer(uvicorn.Server):
    """Uvicorn with callbacks; it records the signal that stopped it.

    Args:
        deadline: Seconds that a request may take.
        on_listening: Called when connections are accepted.
        on_shutdown: Called when a signal comes, while requests are still being answered.
    """

    def __init__(
        self, app: ASGIApp, deadline: float, on_listening: Callable[[], None], on_shutdown: Callable[[], None]
    ) -> None:
        STATUS_LINE.update({status: status_line(status) for status in STATUS_PHRASES})  # else they have no phrase
        self._connections = ConnectionTable(limit_by_open_files())
        super().__init__(_uvicorn_config(app, deadline, self._connections))
        self.stop_signal: int | None = None
        self._on_listening = on_listening
        self._on_shutdown = on_shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        self._on_listening()

    async def on_tick(self, counter: int) -> bool:
        """Close expired connections every second."""
        if counter % SWEEP_TICKS == 0:
            self._connections.close_expired()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after the running requests."""
        self.stop_signal = self.stop_signal or sig
        self._on_shutdown()
        super().handle_exit(sig, frame)


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind the port, before time is spent on loading a model.

    Raises:
        UsageError: The host is not an address of this machine.
        LsmlError: The port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {host!r} is not an address of this machine: {error.strerror}.") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise LsmlError(
            f"Port {port} on {host} is not available: {error.strerror}.",
            "Another server may be using it; choose another port with --port N, or 0 for any.",
        ) from None
    sock.set_inheritable(False)
    return sock


def _uvicorn_config(app: ASGIApp, deadline: float, connections: ConnectionTable) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bind_connections(connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(KEEP_ALIVE),
        timeout_graceful_shutdown=int(deadline + SHUTDOWN_GRACE),
    )
