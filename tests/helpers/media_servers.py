"""Servers for the tests of media: a web site that does what a test says, and a Label Studio with its two kinds of key.

They remember what they were asked. The slow suite has a real Label Studio.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LEGACY_KEY = "0123456789abcdef0123456789abcdef01234567"
IMAGE_BYTES = b"the bytes of a picture"


@dataclass(frozen=True)
class StubResponse:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedRequest:
    """A request. `key` is its Authorization header."""

    path: str
    authorization: str | None
    cookie: str | None


class StubSite:
    """What it answers is in `answers`: by path, without the query. A function does what it wants with the handler."""

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        self.url = f"http://{host}:{port}"
        self.responses: dict[str, StubResponse | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[RecordedRequest] = []
        self.posted_bodies: list[Any] = []
        self.connection_count = 0

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.requests]

    @property
    def authorizations(self) -> list[str | None]:
        return [asked.authorization for asked in self.requests]

    def respond(
        self, path: str, authorization: str | None, body: Any
    ) -> StubResponse | Callable[[BaseHTTPRequestHandler], None]:
        return self.responses.get(path.partition("?")[0], StubResponse(404))

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        self.responses[path] = StubResponse(
            status, headers={"Location": location, "Set-Cookie": "sessionid=secret; Path=/"}
        )


class StubLabelStudio(StubSite):
    """A Label Studio below /ls: uploads, local files and presigned ones, for either kind of key."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.url += "/ls"
        self.personal_token = make_jwt("refresh", 1000, 10_000)
        self.legacy_allowed = True
        self.token_lifetime = 300  # seconds
        self.valid_tokens: set[str] = set()  # access tokens
        self.presigned_urls: dict[str, str] = {}  # "s3://bucket/key" -> where it is presigned to
        self.responses["/ls/data/upload/3/a é.png"] = StubResponse(body=IMAGE_BYTES)
        self.responses["/ls/data/local-files/"] = StubResponse(body=b"a local file")

    def respond(
        self, path: str, authorization: str | None, body: Any
    ) -> StubResponse | Callable[[BaseHTTPRequestHandler], None]:
        where = urlsplit(path)
        if where.path == "/ls/api/token/refresh/":
            return self.refresh_token(body)
        legacy = self.legacy_allowed and authorization == f"Token {LEGACY_KEY}"
        if not (legacy or (authorization or "").removeprefix("Bearer ") in self.valid_tokens):
            return StubResponse(401, b'{"detail": "no"}')
        if "/presign/" in where.path:
            uri = base64.urlsafe_b64decode(parse_qs(where.query)["fileuri"][0]).decode()
            found = self.presigned_urls.get(uri) if where.path == "/ls/tasks/7/presign/" else None
            return StubResponse(404) if found is None else StubResponse(303, headers={"Location": found})
        return self.responses.get(unquote(where.path), StubResponse(404))

    def refresh_token(self, body: Any) -> StubResponse | Callable[[BaseHTTPRequestHandler], None]:
        self.posted_bodies.append(body)
        if "/ls/api/token/refresh/" in self.responses:
            return self.responses["/ls/api/token/refresh/"]
        if body != {"refresh": self.personal_token}:
            return StubResponse(401)
        token = make_jwt("access", len(self.valid_tokens), len(self.valid_tokens) + self.token_lifetime)
        self.valid_tokens.add(token)
        return StubResponse(200, json.dumps({"access": token}).encode())


def make_jwt(kind: str, issued_at: int, expires_at: int) -> str:
    """A token in the shape of Label Studio's, whose signature nobody checks."""
    parts = [{"alg": "HS256"}, {"token_type": kind, "iat": issued_at, "exp": expires_at}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "signature"])


@contextlib.contextmanager
def run_stub_server(
    server_class: Callable[[str, int], Any] = StubSite, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[Any]:
    """A running `Site` or `Studio`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            site.connections += 1

        def do_GET(self) -> None:
            headers = self.headers
            site.asked.append(RecordedRequest(self.path, headers.get("Authorization"), headers.get("Cookie")))
            length = int(headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            answer = site.answer(self.path, headers.get("Authorization"), body)
            if not isinstance(answer, StubResponse):
                answer(self)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_POST = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 100

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that hang up are what these tests are about."""

    with Server((host, 0), Handler) as httpd:
        if tls is not None:
            httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
        site = server_class(host, httpd.server_address[1])
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield site
        httpd.shutdown()
        thread.join()


def drip_response(
    first: bytes, drop: bytes, pause: float, times: int = 1000
) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that begins at once and then comes in drops; raw, with its header."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):  # the other side had enough
            handler.wfile.write(first)
            for _ in range(times):
                handler.wfile.write(drop)
                time.sleep(pause)

    return answer
