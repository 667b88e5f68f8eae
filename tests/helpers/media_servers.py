"""Servers for the tests of media: a web site that answers as a test says, and a Label Studio with both kinds of key.

They record every request. The slow suite has a real Label Studio.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.stub_http import KEY, StubHandler, make_jwt, run_server

IMAGE_BYTES = b"the bytes of an image"


@dataclass(frozen=True)
class StubResponse:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


RespondWith = StubResponse | Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class RecordedRequest:
    path: str
    authorization: str | None
    cookie: str | None


class StubSite:
    """A web site.

    `responses` holds the response by path, without the query; a function gets the handler and writes what it wants.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = urlsplit(url).port
        self.responses: dict[str, RespondWith] = {}
        self.requests: list[RecordedRequest] = []
        self.connection_count = 0

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    @property
    def authorizations(self) -> list[str | None]:
        return [request.authorization for request in self.requests]

    def respond(self, path: str, authorization: str | None, body: Any) -> RespondWith:
        return self.responses.get(path.partition("?")[0], StubResponse(404))

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        self.responses[path] = StubResponse(
            status, headers={"Location": location, "Set-Cookie": "sessionid=secret; Path=/"}
        )


class StubLabelStudio(StubSite):
    """A Label Studio below /ls that serves uploads, local files and presigned ones, for both kinds of key."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url += "/ls"
        self.personal_token = make_jwt("refresh", 1000, 10_000)
        self.legacy_allowed = True
        self.token_lifetime = 300  # seconds
        self.valid_tokens: set[str] = set()  # access tokens
        self.presigned_urls: dict[str, str] = {}  # "s3://bucket/key" -> where it is presigned to
        self.refresh_bodies: list[Any] = []  # bodies of the requests for an access token
        self.responses["/ls/data/upload/3/a é.png"] = StubResponse(body=IMAGE_BYTES)
        self.responses["/ls/data/local-files/"] = StubResponse(body=b"a local file")

    def respond(self, path: str, authorization: str | None, body: Any) -> RespondWith:
        url = urlsplit(path)
        if url.path == "/ls/api/token/refresh/":
            return self.refresh_token(body)
        legacy = self.legacy_allowed and authorization == f"Token {KEY}"
        if not (legacy or (authorization or "").removeprefix("Bearer ") in self.valid_tokens):
            return StubResponse(401, b'{"detail": "no"}')
        if "/presign/" in url.path:
            uri = base64.urlsafe_b64decode(parse_qs(url.query)["fileuri"][0]).decode()
            location = self.presigned_urls.get(uri) if url.path == "/ls/tasks/7/presign/" else None
            return StubResponse(404) if location is None else StubResponse(303, headers={"Location": location})
        return self.responses.get(unquote(url.path), StubResponse(404))

    def refresh_token(self, body: Any) -> RespondWith:
        self.refresh_bodies.append(body)
        if "/ls/api/token/refresh/" in self.responses:
            return self.responses["/ls/api/token/refresh/"]
        if body != {"refresh": self.personal_token}:
            return StubResponse(401)
        token = make_jwt("access", len(self.valid_tokens), len(self.valid_tokens) + self.token_lifetime)
        self.valid_tokens.add(token)
        return StubResponse(200, json.dumps({"access": token}).encode())


class _SiteHandler(StubHandler[StubSite]):
    def setup(self) -> None:
        super().setup()
        self.state.connection_count += 1

    def handle_request(self) -> None:
        self.state.requests.append(RecordedRequest(self.path, self.authorization, self.headers.get("Cookie")))
        body = self.read_body()
        response = self.state.respond(self.path, self.authorization, json.loads(body) if body else None)
        if isinstance(response, StubResponse):
            self.send_body(response.status, response.body, response.headers)
        else:
            response(self)
            self.close_connection = True


SiteT = TypeVar("SiteT", bound=StubSite)


def run_site(
    site_class: type[SiteT], host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> contextlib.AbstractContextManager[SiteT]:
    """Run a site of this class."""
    return run_server(_SiteHandler, site_class, host, tls)  # type: ignore[arg-type]  # a subclass of StubSite


def run_stub_server(
    host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> contextlib.AbstractContextManager[StubSite]:
    """Run a `StubSite`."""
    return run_site(StubSite, host, tls)


def run_stub_label_studio() -> contextlib.AbstractContextManager[StubLabelStudio]:
    """Run a `StubLabelStudio`."""
    return run_site(StubLabelStudio)


def drip_response(
    first: bytes, piece: bytes, pause: float, times: int = 1000
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return a response that begins at once and then arrives in small pieces, `pause` seconds apart.

    The bytes are raw: `first` includes the header.
    """

    def respond(handler: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):  # the client has closed the connection
            handler.wfile.write(first)
            for _ in range(times):
                handler.wfile.write(piece)
                time.sleep(pause)

    return respond
