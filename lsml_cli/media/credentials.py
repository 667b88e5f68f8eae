"""The Label Studio that tasks belong to, its API key, and the header that authorizes requests."""

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
from lsml_cli.media.hosts import DEFAULT_PORTS, normalize_host

API_KEY_ENV_VAR = "LABEL_STUDIO_API_KEY"
TOKEN_REFRESH_PATH = "/api/token/refresh/"
RENEWAL_MARGIN = 30.0  # seconds before its expiry at which an access token is renewed
DEFAULT_TOKEN_LIFETIME = 300.0  # seconds, for an access token that does not say
FAILURE_TTL = {True: 1.0, False: 60.0}  # seconds before a failed exchange is tried again; True: transient failures

# What Label Studio serves to browsers as media. The key opens its whole API, so it is sent only to these paths.
_MEDIA_PATH = re.compile(r"/(data|storage-data)/|/(tasks|projects)/\d+/(presign|resolve)/")


@dataclass(frozen=True)
class LabelStudioCredentials:
    """The address of a Label Studio and its API key.

    Attributes:
        url: "https://label.example.com", including the path that it is served below, if any.
        key: A personal access token or a legacy token; None without one. It is not in the repr and written nowhere;
            it travels to replica processes through their pipe.

    Raises:
        UsageError: `url` is not an address, or `key` holds characters that no key has.
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
                f"{self.url!r} is not the address of a Label Studio.",
                "Write --label-studio-url https://label.example.com.",
            )
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise UsageError(f"{API_KEY_ENV_VAR} holds characters that no key has.", "Copy it from Account & Settings.")

    @classmethod
    def from_env(cls, url: str) -> Self:
        """Return the Label Studio at `url` with the key in LABEL_STUDIO_API_KEY, if that is set."""
        return cls(url, os.environ.get(API_KEY_ENV_VAR))

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Host, in the spelling that hosts are compared in, and port; by default that of the scheme."""
        parts = urlsplit(self.url)
        return normalize_host(parts.hostname or ""), parts.port or DEFAULT_PORTS[parts.scheme]

    @property
    def netloc(self) -> str:
        """Host and port in the form of an entry of `AllowedHosts`."""
        host, port = self.host_and_port
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def relative_path(self, path: str) -> str | None:
        """Strip the path that Label Studio is served below from the path of a URL; None for paths outside of it."""
        prefix = urlsplit(self.url).path
        return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else None

    def is_media_url(self, scheme: str, host: str, port: int, path: str) -> bool:
        """Return whether a URL is a media file of this Label Studio: the only URLs that the key is sent to.

        Args:
            scheme: "http" or "https".
            host: Host of the URL.
            port: Port of the URL.
            path: Path of the URL, decoded.
        """
        relative = self.relative_path(path)
        is_same_server = (scheme, (normalize_host(host), port)) == (urlsplit(self.url).scheme, self.host_and_port)
        if not is_same_server or relative is None or ".." in relative.split("/"):
            return False
        return bool(_MEDIA_PATH.match(relative))

    def presign_url(self, uri: str, task_id: int) -> str:
        """Return the URL that redirects to a presigned file of a storage of the task's project."""
        encoded = base64.urlsafe_b64encode(uri.encode()).decode()
        return f"{self.url}/tasks/{task_id}/presign/?fileuri={quote(encoded)}"


class AuthorizationProvider:
    """The Authorization header for a Label Studio, shared by all threads of a process.

    A legacy token is sent as it is. A personal access token is exchanged for an access token, which lasts five minutes,
    and exchanged again before that expires or when the server rejects it.

    Args:
        credentials: Address and key.
        post_json: Sends JSON to a URL and returns the JSON of the response; raises ValueError or TransientError.
    """

    def __init__(self, credentials: LabelStudioCredentials, post_json: Callable[[str, Mapping[str, str]], Any]) -> None:
        self._credentials = credentials
        self._post_json = post_json
        self._lock = threading.Lock()
        self._header: str | None = None
        self._expires_at = 0.0
        self._last_failure: tuple[Exception, float] | None = None
        self.token_type = _token_type(credentials.key)

    def authorization_header(self) -> str | None:
        """Return the header, None without a key.

        Raises:
            ValueError: The key cannot be exchanged for an access token.
            TransientError: The exchange fails for the moment.
        """
        if self.token_type is None:
            return None
        if self.token_type != "refresh":
            return f"{'Bearer' if self.token_type == 'access' else 'Token'} {self._credentials.key}"
        with self._lock:  # one thread exchanges the token, the others wait for it
            if self._header is None or time.monotonic() >= self._expires_at:
                self._exchange_token()
            return self._header

    def invalidate(self, rejected_header: str) -> bool:
        """Forget a header that the server rejected; return whether another one can be had."""
        with self._lock:
            if self._header == rejected_header:
                self._header = None
        return self.token_type == "refresh"

    def _exchange_token(self) -> None:
        if self._last_failure is not None and time.monotonic() < self._last_failure[1]:
            raise self._last_failure[0]
        try:
            response = self._post_json(
                self._credentials.url + TOKEN_REFRESH_PATH, {"refresh": self._credentials.key or ""}
            )
            access = response.get("access") if isinstance(response, dict) else None
            if not isinstance(access, str) or not access.isascii():
                raise ValueError("the server gives no access token for the one in " + API_KEY_ENV_VAR)
        except (ValueError, TransientError) as error:
            is_transient = isinstance(error, TransientError)
            self._last_failure = error, time.monotonic() + FAILURE_TTL[is_transient]
            raise
        lifetime = _token_lifetime(access)
        self._header = f"Bearer {access}"
        self._expires_at = time.monotonic() + max(lifetime - RENEWAL_MARGIN, lifetime / 2)
        self._last_failure = None


def _token_type(key: str | None) -> str | None:
    """Return "legacy", "refresh" (a personal access token) or "access" for a key, None without one."""
    if key is None:
        return None
    claims = _jwt_claims(key)
    return "legacy" if claims is None else "access" if claims.get("token_type") == "access" else "refresh"


def _token_lifetime(token: str) -> float:
    """Return the seconds from issue to expiry: only their difference counts, because clocks may differ."""
    claims = _jwt_claims(token) or {}
    issued_at, expires_at = claims.get("iat"), claims.get("exp")
    if isinstance(issued_at, int | float) and isinstance(expires_at, int | float) and expires_at > issued_at:
        return float(expires_at - issued_at)
    return DEFAULT_TOKEN_LIFETIME


def _jwt_claims(token: str) -> dict[str, Any] | None:
    """Return the claims of a JWT, unverified; None if the token is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
