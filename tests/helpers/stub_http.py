"""What the fake servers share: an HTTP server in a thread, a request handler, and the keys of Label Studio."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Generic, TypeVar

KEY = "0123456789abcdef0123456789abcdef01234567"  # the legacy token that every fake Label Studio accepts

StateT = TypeVar("StateT")


def make_jwt(kind: str, issued_at: int | None = None, expires_at: int | None = None) -> str:
    """Return a token like those of Label Studio, with a signature that nobody checks; valid for hours by default."""
    now = int(time.time())
    claims = {
        "token_type": kind,
        "iat": now if issued_at is None else issued_at,
        "exp": now + 10_000 if expires_at is None else expires_at,
    }
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in [*parts, b"unsigned" * 4])


class StubServer(ThreadingHTTPServer):
    """A server whose clients may be killed or hang up at any time."""

    request_queue_size = 100
    state: Any = None

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up: that is what the tests are about."""


class StubHandler(BaseHTTPRequestHandler, Generic[StateT]):
    """Answer every method through `handle_request`, from the state that `run_server` created."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms: its body for the client's delayed ACK of its head
    server: StubServer

    @property
    def state(self) -> StateT:
        state: StateT = self.server.state
        return state

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")

    def handle_request(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.handle_request()

    do_POST = do_PATCH = do_DELETE = do_HEAD = do_GET

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send_body(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def run_server(
    handler: type[StubHandler[StateT]],
    create_state: Callable[[str], StateT],
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> Iterator[StateT]:
    """Run a server in a thread and yield its state, which `create_state` makes from the URL of the server."""
    with StubServer((host, 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        state = server.state = create_state(f"http://{host}:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
