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
from lsml_cli.media.hosts import normal_host

KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
REFRESH = "/api/token/refresh/"
EARLY = 30.0  # seconds before its end in which an access token is renewed
SHORTEST = 300.0  # seconds that an access token lasts, where it does not say
REMEMBERED = {True: 1.0, False: 60.0}  # seconds that a failed exchange is not tried again; True: it may pass

# What Label Studio serves to browsers as media. The key opens its whole API, so it is sent to nothing else.
_MEDIA = re.compile(r"/(data|storage-data)/|/(tasks|projects)/\d+/(presign|resolve)/")


@dataclass(frozen=True)
class Login:
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
            raise UsageError(f"{KEY_VARIABLE} holds characters that no key has.", "Copy it from Account & Settings.")

    @classmethod
    def with_key_of_environment(cls, url: str) -> Self:
        """The Label Studio at `url`, opened with LABEL_STUDIO_API_KEY where that is set."""
        return cls(url, os.environ.get(KEY_VARIABLE))

    @property
    def host(self) -> tuple[str, int]:
        """In the spelling that hosts are compared in; the port is that of the scheme where none is given."""
        parts = urlsplit(self.url)
        return normal_host(parts.hostname or ""), parts.port or {"http": 80, "https": 443}[parts.scheme]

    @property
    def netloc(self) -> str:
        """Its host and port as `Hosts` names them."""
        host, port = self.host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def inner_path(self, path: str) -> str | None:
        """What is left of the path of a URL below this Label Studio when its own prefix is taken off."""
        prefix = urlsplit(self.url).path
        return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else None

    def serves(self, scheme: str, host: str, port: int, path: str) -> bool:
        """Whether a URL is a file that this Label Studio serves: the only kind of URL that the key is sent to.

        path  decoded
        """
        inner = self.inner_path(path)
        same = (scheme, (normal_host(host), port)) == (urlsplit(self.url).scheme, self.host)
        return same and inner is not None and ".." not in inner.split("/") and bool(_MEDIA.match(inner))

    def presign_url(self, uri: str, task_id: int) -> str:
        """Where this Label Studio leads to a file of a storage that is connected to the task's project."""
        encoded = base64.urlsafe_b64encode(uri.encode()).decode()
        return f"{self.url}/tasks/{task_id}/presign/?fileuri={quote(encoded)}"


class Access:
    """The header that opens a Label Studio. One for all threads of a process.

    A legacy token is sent as it is. A personal access token opens nothing itself: it is exchanged for an access token,
    which lasts five minutes, and again before that one ends or when the server does not want it any more.
    """

    def __init__(self, login: Login, post: Callable[[str, Mapping[str, str]], Any]) -> None:
        """post: sends JSON to a URL, returns the JSON of the answer; raises ValueError or TransientError."""
        self._login = login
        self._post = post
        self._lock = threading.Lock()
        self._header: str | None = None
        self._good_until = 0.0
        self._failed: tuple[Exception, float] | None = None
        self.kind = _kind(login.key)

    def header(self) -> str | None:
        """The Authorization header, None without a key. Raises ValueError or TransientError when it cannot be had."""
        if self.kind is None:
            return None
        if self.kind != "refresh":
            return f"{'Bearer' if self.kind == 'access' else 'Token'} {self._login.key}"
        with self._lock:  # so that one thread exchanges and the others wait for what it gets
            if self._header is None or time.monotonic() >= self._good_until:
                self._exchange()
            return self._header

    def renew(self, refused: str) -> bool:
        """The server refused this header. Whether `header` will give another one."""
        with self._lock:
            if self._header == refused:
                self._header = None
        return self.kind == "refresh"

    def _exchange(self) -> None:
        if self._failed is not None and time.monotonic() < self._failed[1]:
            raise self._failed[0]
        try:
            answer = self._post(self._login.url + REFRESH, {"refresh": self._login.key or ""})
            access = answer.get("access") if isinstance(answer, dict) else None
            if not isinstance(access, str) or not access.isascii():
                raise ValueError("the server gives no access token for the one in " + KEY_VARIABLE)
        except (ValueError, TransientError) as error:
            passing = isinstance(error, TransientError)
            self._failed = error, time.monotonic() + REMEMBERED[passing]
            raise
        lasts = _lifetime(access)
        self._header = f"Bearer {access}"
        self._good_until = time.monotonic() + max(lasts - EARLY, lasts / 2)
        self._failed = None


def _kind(key: str | None) -> str | None:
    """ "legacy", or what a JWT says that it is: "refresh" (a personal access token) or "access"; None without a key."""
    if key is None:
        return None
    claims = _claims(key)
    return "legacy" if claims is None else "access" if claims.get("token_type") == "access" else "refresh"


def _lifetime(token: str) -> float:
    """Seconds from its making to its end: only their difference counts, for clocks that do not agree."""
    claims = _claims(token) or {}
    begin, end = claims.get("iat"), claims.get("exp")
    if isinstance(begin, int | float) and isinstance(end, int | float) and end > begin:
        return float(end - begin)
    return SHORTEST


def _claims(token: str) -> dict[str, Any] | None:
    """What a JWT says, unverified; None when the token is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
