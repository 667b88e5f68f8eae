"""Who may ask what: the path that the server lives below, and basic auth. Plain ASGI, in front of the app."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lsml_cli.server.metrics import ServerMetrics

log = logging.getLogger("lsml.serve")


@dataclass(frozen=True)
class AuthConfig:
    """basic_auth: "USER:PASS", None for everybody; secret_path: "" or what every path has to begin with, "/s3cret"."""

    basic_auth: str | None = None
    secret_path: str = ""


class AuthMiddleware:
    """Lets requests through, counts them, and puts `credentials` (were they right?) into the state of each.

    Label Studio sends annotation events without credentials. With a secret path, knowing the path lets such an event
    in; everything else needs the credentials as well, START_TRAINING too (the app sees to that one).
    """

    def __init__(
        self, app: ASGIApp, auth: AuthConfig, metrics: ServerMetrics, routes: Sequence[str], verbose: bool
    ) -> None:
        self._app = app
        self._secret_path = auth.secret_path
        self._credentials_digest = None if auth.basic_auth is None else _digest(auth.basic_auth.encode())
        self._metrics = metrics
        self._routes = frozenset(routes)
        self._verbose = verbose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = time.perf_counter()
        status = 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path: str = scope["path"]
        inside = self._has_secret_path(path)
        route = path[len(self._secret_path) :] if inside else ""
        try:
            if not inside:
                await _send_error(sent, 404, "not found")
                return
            if _is_cross_origin(scope, allow_hostnames=self._credentials_digest is not None):
                await _send_error(sent, 403, "a page of another site may not use this server")
                return
            known = self._has_valid_credentials(scope)
            if not known and not (self._secret_path and route == "/webhook" and scope["method"] == "POST"):
                await _send_error(sent, 401, "user and password are missing or wrong")
                return
            scope["state"] = {"credentials": known, "started_at": asyncio.get_running_loop().time()}
            scope["root_path"] = self._secret_path
            await self._app(scope, receive, sent)
        except Exception:
            log.exception("This is a bug in lsml: %s %s", scope["method"], route)
        finally:
            took = time.perf_counter() - begun
            self._metrics.observe_request(route if route in self._routes else "other", status, took)
            if self._verbose:
                log.info("%s %s: %d, %.1f ms", scope["method"], route, status, 1000 * took)

    def _has_secret_path(self, path: str) -> bool:
        begin, rest = path[: len(self._secret_path)], path[len(self._secret_path) :]
        return hmac.compare_digest(_digest(begin.encode()), _digest(self._secret_path.encode())) and rest.startswith(
            "/"
        )

    def _has_valid_credentials(self, scope: Scope) -> bool:
        """Whether the credentials are right, in a time that does not tell how wrong they are."""
        if self._credentials_digest is None:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, encoded = given.partition(b" ")
        try:
            decoded = base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == b"basic" else b""
        except binascii.Error:
            decoded = b""
        return hmac.compare_digest(_digest(decoded), self._credentials_digest)


def _is_cross_origin(scope: Scope, allow_hostnames: bool) -> bool:
    """Whether a browser sends this for a page of another site, which could otherwise ask a server on loopback.

    named  whether a page may know the server by a name. Anybody can give his own site the address of this machine: then
           his page and this server have one name, and only a password tells them apart
    """
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    if origin is None:
        return False
    at = origin.partition(b"://")[2]
    return at != headers.get(b"host") or not (allow_hostnames or _is_address(at.decode("latin-1")))


def _is_address(netloc: str) -> bool:
    """Whether this is localhost or an IP address, with a port or without, which nobody can give to another machine."""
    try:
        host = urlsplit(f"//{netloc}").hostname or ""
        return host == "localhost" or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()


async def _send_error(send: Send, status: int, detail: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="lsml", charset="UTF-8"'))
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": b'{"detail":"' + detail.encode() + b'"}'})
