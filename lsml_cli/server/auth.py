"""ASGI middleware in front of the app: secret path, basic auth, cross-origin check, overload, request metrics."""

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
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lsml_cli.server.connections import MAX_REQUESTS
from lsml_cli.server.error_responses import error_response
from lsml_cli.server.metrics import ServerMetrics
from lsml_cli.server.rejection_log import shorten_line

log = logging.getLogger("lsml.serve")


@dataclass(frozen=True)
class AuthConfig:
    """Access rules of a server.

    Attributes:
        basic_auth: "USER:PASS", None to admit everyone.
        secret_path: Prefix that every path must have, like "/s3cret"; "" for none.
    """

    basic_auth: str | None = None
    secret_path: str = ""


class AuthMiddleware:
    """Check and count requests; admitted ones carry `state.credentials` and `state.started_at`.

    `state.credentials` says whether the credentials are valid, `state.started_at` is a time of the event loop.
    Label Studio sends annotation events without credentials. With a secret path, knowing the path admits POST /webhook;
    every other request needs the credentials too, and so does START_TRAINING, which the app checks.
    """

    def __init__(
        self, app: ASGIApp, auth: AuthConfig, metrics: ServerMetrics, paths: Sequence[str], verbose: bool
    ) -> None:
        """Wrap an app.

        Args:
            paths: Paths of the app's routes; requests for any other path are counted together as "other".
            verbose: Log each request.
        """
        self._app = app
        self._secret_path = auth.secret_path
        self._credentials_digest = None if auth.basic_auth is None else _digest(auth.basic_auth.encode())
        self._metrics = metrics
        self._paths = frozenset(paths)
        self._verbose = verbose
        self._running_count = 0  # requests in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        status = 500

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = self._strip_secret_path(scope["path"])
        self._running_count += 1
        try:
            has_credentials = self._has_valid_credentials(scope)
            # Read by `Connection` too, which makes room for whoever has the password.
            scope["state"] = {
                "credentials": has_credentials,
                "has_password": has_credentials and self._credentials_digest is not None,
                "started_at": asyncio.get_running_loop().time(),
            }
            rejection = self._reject(scope, path)
            if rejection is not None:
                await rejection(scope, receive, send_and_record)
                return
            scope["root_path"] = self._secret_path
            await self._app(scope, receive, send_and_record)
        except Exception:
            log.exception("This is a bug in lsml: %s %s", scope["method"], path or "")
        finally:
            self._running_count -= 1
            seconds = time.perf_counter() - started
            self._metrics.observe_request(path if path in self._paths else "other", status, seconds)
            if self._verbose:
                log.info("%s %s: %d, %.1f ms", scope["method"], shorten_line(path or ""), status, 1000 * seconds)

    def _reject(self, scope: Scope, path: str | None) -> JSONResponse | None:
        """Return the error response to a request that must not reach the app.

        Args:
            path: The request's path below the secret path, None when it is outside of it.
        """
        if path is None:
            return error_response(404, "not found")
        if _is_cross_origin(scope, allow_hostnames=self._credentials_digest is not None):
            return error_response(403, "requests from pages of other sites are not allowed")
        may_be_anonymous = self._secret_path and path == "/webhook" and scope["method"] == "POST"
        if not may_be_anonymous and not scope["state"]["credentials"]:
            challenge = {"WWW-Authenticate": 'Basic realm="lsml", charset="UTF-8"'}
            return error_response(401, "user and password are missing or wrong", challenge)
        if self._running_count > MAX_REQUESTS and path != "/health" and not scope["state"]["has_password"]:
            return error_response(503, "too many requests at once; try again later", {"Retry-After": "1"})
        return None

    def _strip_secret_path(self, path: str) -> str | None:
        """Return the path below the secret path, None when it is not below; in constant time."""
        prefix, rest = path[: len(self._secret_path)], path[len(self._secret_path) :]
        is_equal = hmac.compare_digest(_digest(prefix.encode()), _digest(self._secret_path.encode()))
        return rest if is_equal and rest.startswith("/") else None

    def _has_valid_credentials(self, scope: Scope) -> bool:
        """Compare the credentials in constant time, so that the time does not tell how much of them is right."""
        if self._credentials_digest is None:
            return True
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, encoded = authorization.partition(b" ")
        try:
            decoded = base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == b"basic" else b""
        except binascii.Error:
            decoded = b""
        return hmac.compare_digest(_digest(decoded), self._credentials_digest)


def _is_cross_origin(scope: Scope, allow_hostnames: bool) -> bool:
    """Tell whether a browser sends this for a page of another site, which could otherwise use a server on loopback.

    Args:
        allow_hostnames: Whether a page of this server may address it by a host name. Anyone can point the host name of
            their own site at this machine (DNS rebinding): that page and this server then share one origin, and only a
            password tells them apart.
    """
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    if origin is None:
        return False
    netloc = origin.partition(b"://")[2]
    return netloc != headers.get(b"host") or not (allow_hostnames or _is_address(netloc.decode("latin-1")))


def _is_address(netloc: str) -> bool:
    """Tell whether this is localhost or an IP address, with or without a port: nothing that DNS can point elsewhere."""
    try:
        host = urlsplit(f"//{netloc}").hostname or ""
        return host == "localhost" or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()
