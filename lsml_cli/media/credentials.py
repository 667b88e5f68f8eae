"""The Label Studio that tasks belong to, and the key to it."""

from __future__ import annotations

import base64
import binascii
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote, urlsplit

import orjson

from lsml_cli.errors import TransientError, UsageError
from lsml_cli.media.hosts import normalize_host

API_KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
TOKEN_REFRESH_PATH = "/api/token/refresh/"
RENEWAL_MARGIN = 30.0  # seconds before its end in which an access token is renewed
DEFAULT_TOKEN_LIFETIME = 300.0  # seconds that an access token lasts, where it does not say
FAILURE_TTL = {True: 1.0, False: 60.0}  # seconds that a failed exchange is not tried again; True: it may pass

# What Label Studio serves to browsers as media. The key opens its whole API, so it is sent to nothing else.
_MEDIA_PATH = re.compile(r"/(data|storage-data)/|/(tasks|projects)/\d+/(presign|resolve)/")


@dataclass(frozen=True)
class LabelStudioCredentials:
    """A Label Studio: its address and, where there is one, the key to it.

    url  "https://label.example.com", with the path that it lives below, if any
    key  a personal access token or a legacy token. Not in the repr, and written nowhere; it travels to replica
         processes through their pipe

    Raises UsageError when `url` is no address, or `key` no key.
    """

    url: str
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.strip().rstrip("/"))
        object.__setattr__(self, "key", (self.key or "").strip() or None)
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                f"{self.url!r} is no address of a Label Studio.", "Write --label-studio-url https://label.example.com."
            )
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise UsageError(
                f"{API_KEY_VARIABLE} holds characters that no key has.", "Copy it from Account & Settings."
            )

    @classmethod
    def from_env(cls, url: str) -> Self:
        """The Label Studio at `url`, opened with LABEL_STUDIO_API_KEY where that is set."""
        return cls(url, os.environ.get(API_KEY_VARIABLE))

    @property
    def host_and_port(self) -> tuple[str, int]:
        """In the spelling that hosts are compared in; the port is that of the scheme where none is given."""
        parts = urlsplit(self.url)
        return normalize_host(parts.hostname or ""), parts.port or {"http": 80, "https": 443}[parts.scheme]

    @property
    def netloc(self) -> str:
        """Its host and port as `Hosts` names them."""
        host, port = self.host_and_port
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def relative_path(self, path: str) -> str | None:
        """What is left of the path of a URL below this Label Studio when its own prefix is taken off."""
        prefix = urlsplit(self.url).path
        return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else None

    def is_media_url(self, scheme: str, host: str, port: int, path: str) -> bool:
        """Whether a URL is a file that this Label Studio serves: the only kind of URL that the key is sent to.

        path  decoded
        """
        inner = self.relative_path(path)
        same = (scheme, (normalize_host(host), port)) == (urlsplit(self.url).scheme, self.host_and_port)
        return same and inner is not None and ".." not in inner.split("/") and bool(_MEDIA_PATH.match(inner))

    def presign_url(self, uri: str, task_id: int) -> str:
        """Where this Label Studio leads to a file of a storage that is connected to the task's project."""
        encoded = base64.urlsafe_b64encode(uri.encode()).decode()
        return f"{self.url}/tasks/{task_id}/presign/?fileuri={quote(encoded)}"


class AuthorizationProvider:
    """The header that opens a Label Studio. One for all threads of a process.

    A legacy token is sent as it is. A personal access token opens nothing itself: it is exchanged for an access token,
    which lasts five minutes, and again before that one ends or when the server does not want it any more.
    """

    def __init__(self, credentials: LabelStudioCredentials, post_json: Callable[[str, Mapping[str, str]], Any]) -> None:
        """post: sends JSON to a URL, returns the JSON of the answer; raises ValueError or TransientError."""
        self._credentials = credentials
        self._post_json = post_json
        self._lock = threading.Lock()
        self._header: str | None = None
        self._expires_at = 0.0
        self._last_failure: tuple[Exception, float] | None = None
        self.token_type = _token_type(credentials.key)

    def authorization_header(self) -> str | None:
        """The Authorization header, None without a key. Raises ValueError or TransientError when it cannot be had."""
        if self.token_type is None:
            return None
        if self.token_type != "refresh":
            return f"{'Bearer' if self.token_type == 'access' else 'Token'} {self._credentials.key}"
        with self._lock:  # so that one thread exchanges and the others wait for what it gets
            if self._header is None or time.monotonic() >= self._expires_at:
                self._exchange_token()
            return self._header

    def invalidate(self, rejected_header: str) -> bool:
        """The server refused this header. Whether `header` will give another one."""
        with self._lock:
            if self._header == rejected_header:
                self._header = None
        return self.token_type == "refresh"

    def _exchange_token(self) -> None:
        if self._last_failure is not None and time.monotonic() < self._last_failure[1]:
            raise self._last_failure[0]
        try:
            answer = self._post_json(
                self._credentials.url + TOKEN_REFRESH_PATH, {"refresh": self._credentials.key or ""}
            )
            access = answer.get("access") if isinstance(answer, dict) else None
            if not isinstance(access, str) or not access.isascii():
                raise ValueError("the server gives no access token for the one in " + API_KEY_VARIABLE)
        except (ValueError, TransientError) as error:
            passing = isinstance(error, TransientError)
            self._last_failure = error, time.monotonic() + FAILURE_TTL[passing]
            raise
        lasts = _token_lifetime(access)
        self._header = f"Bearer {access}"
        self._expires_at = time.monotonic() + max(lasts - RENEWAL_MARGIN, lasts / 2)
        self._last_failure = None


def _token_type(key: str | None) -> str | None:
    """ "legacy", or what a JWT says that it is: "refresh" (a personal access token) or "access"; None without a key."""
    if key is None:
        return None
    claims = _jwt_claims(key)
    return "legacy" if claims is None else "access" if claims.get("token_type") == "access" else "refresh"


def _token_lifetime(token: str) -> float:
    """Seconds from its making to its end: only their difference counts, for clocks that do not agree."""
    claims = _jwt_claims(token) or {}
    begin, end = claims.get("iat"), claims.get("exp")
    if isinstance(begin, int | float) and isinstance(end, int | float) and end > begin:
        return float(end - begin)
    return DEFAULT_TOKEN_LIFETIME


def _jwt_claims(token: str) -> dict[str, Any] | None:
    """What a JWT says, unverified; None when the token is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
