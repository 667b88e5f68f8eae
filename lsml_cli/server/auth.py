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

from lsml_cli.server.metrics import Numbers

log = logging.getLogger("lsml.serve")


@dataclass(frozen=True)
class Access:
    """basic_auth: "USER:PASS", None for everybody; secret_path: "" or what every path has to begin with, "/s3cret"."""

    basic_auth: str | None = None
    secret_path: str = ""


class Guard:
    """Lets requests through, counts them, and puts `credentials` (were they right?) into the state of each.

    Label Studio sends annotation events without credentials. With a secret path, knowing the path lets such an event
    in; everything else needs the credentials as well, START_TRAINING too (the app sees to that one).
    """

    def __init__(self, app: ASGIApp, access: Access, numbers: Numbers, routes: Sequence[str], verbose: bool) -> None:
        self._app = app
        self._path = access.secret_path
        self._wanted = None if access.basic_auth is None else _digest(access.basic_auth.encode())
        self._numbers = numbers
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
        inside = self._inside(path)
        route = path[len(self._path) :] if inside else ""
        try:
            if not inside:
                await _refuse(sent, 404, "not found")
                return
            if _from_elsewhere(scope, named=self._wanted is not None):
                await _refuse(sent, 403, "a page of another site may not use this server")
                return
            known = self._knows(scope)
            if not known and not (self._path and route == "/webhook" and scope["method"] == "POST"):
                await _refuse(sent, 401, "user and password are missing or wrong")
                return
            scope["state"] = {"credentials": known, "begun": asyncio.get_running_loop().time()}
            scope["root_path"] = self._path
            await self._app(scope, receive, sent)
        except Exception:
            log.exception("This is a bug in lsml: %s %s", scope["method"], route)
        finally:
            took = time.perf_counter() - begun
            self._numbers.request(route if route in self._routes else "other", status, took)
            if self._verbose:
                log.info("%s %s: %d, %.1f ms", scope["method"], route, status, 1000 * took)

    def _inside(self, path: str) -> bool:
        begin, rest = path[: len(self._path)], path[len(self._path) :]
        return hmac.compare_digest(_digest(begin.encode()), _digest(self._path.encode())) and rest.startswith("/")

    def _knows(self, scope: Scope) -> bool:
        """Whether the credentials are right, in a time that does not tell how wrong they are."""
        if self._wanted is None:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, encoded = given.partition(b" ")
        try:
            decoded = base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == b"basic" else b""
        except binascii.Error:
            decoded = b""
        return hmac.compare_digest(_digest(decoded), self._wanted)


def _from_elsewhere(scope: Scope, named: bool) -> bool:
    """Whether a browser sends this for a page of another site, which could otherwise ask a server on loopback.

    named  whether a page may know the server by a name. Anybody can give his own site the address of this machine: then
           his page and this server have one name, and only a password tells them apart
    """
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    if origin is None:
        return False
    at = origin.partition(b"://")[2]
    return at != headers.get(b"host") or not (named or _is_address(at.decode("latin-1")))


def _is_address(netloc: str) -> bool:
    """Whether this is localhost or an IP address, with a port or without, which nobody can give to another machine."""
    try:
        host = urlsplit(f"//{netloc}").hostname or ""
        return host == "localhost" or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()


async def _refuse(send: Send, status: int, why: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="lsml", charset="UTF-8"'))
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": b'{"detail":"' + why.encode() + b'"}'})
