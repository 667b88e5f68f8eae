"""What a task's value points to -> its bytes on this machine."""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

from lsml_cli.errors import TransientError

if TYPE_CHECKING:
    import httpx

LARGEST_FILE = 256 << 20  # bytes of one remote file
SLOWEST_FILE = 120.0  # seconds for one remote file from the first byte asked for to the last one there
PATIENCE = 15.0  # seconds without a byte
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP answers that may be another one next time


@dataclass(frozen=True)
class Media:
    """Files below one folder, `http(s)://` and `data:` URIs. Picklable, so that every replica fetches for itself.

    No credentials are sent anywhere.
    """

    root: Path
    _clients: _Clients = field(default_factory=lambda: _Clients(), compare=False, repr=False)

    def fetch(self, value: str) -> bytes:
        """The bytes that `value` points to: a path below `root` or relative to it, or a URI.

        Raises ValueError when it cannot be had, OSError when a file cannot be read, TransientError when the server
        or the way to it fails for the moment.
        """
        scheme = _scheme(value)
        if scheme == "data":
            return _data_uri(value)
        if scheme in ("http", "https"):
            return _download(self._clients.get(), value)
        return self._path(value).read_bytes()

    def problem(self, value: str, *, ask_remote: bool = False) -> str | None:
        """Why `fetch` would fail, without reading the file; None when it would not, or when that is not known.

        A server is asked whether it has the file only if `ask_remote`.
        """
        scheme = _scheme(value)
        try:
            if scheme == "data":
                _data_uri(value)
            elif scheme in ("http", "https"):
                if ask_remote:
                    _ask(self._clients.get(), value)
            elif not (path := self._path(value)).is_file():
                return f"there is no file {path}"
        except (ValueError, TransientError) as error:
            return str(error)
        return None

    def close(self) -> None:
        """Close the connections to servers; the next `fetch` would open new ones."""
        self._clients.close()

    def _path(self, value: str) -> Path:
        if _scheme(value):
            raise ValueError(f"{value} is neither a file on this machine nor an http(s) or data: URI")
        root = self.root.resolve()
        path = (root / value).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"{value} lies outside of {root}")
        return path


def _scheme(value: str) -> str:
    try:
        scheme = urlsplit(value).scheme
    except ValueError as error:
        raise ValueError(f"{value} is no address: {error}") from None
    return scheme if len(scheme) > 1 else ""  # one letter is a drive


def _data_uri(value: str) -> bytes:
    header, comma, body = value.partition(",")
    if not comma:
        raise ValueError("the data: URI has no comma before its data")
    try:
        return base64.b64decode(body, validate=True) if header.endswith(";base64") else unquote_to_bytes(body)
    except binascii.Error as error:
        raise ValueError(f"the data: URI is not base64: {error}") from None


class _Clients:
    """One HTTP client, with its pool of connections, per process; made when the first remote file is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def get(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._client is None:
                self._client = httpx.Client(timeout=PATIENCE, follow_redirects=True, max_redirects=5)
            return self._client

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return _Clients, ()


def _download(client: httpx.Client, url: str) -> bytes:
    begun = time.monotonic()
    content = bytearray()
    with _answer(client, "GET", url) as response:
        for piece in response.iter_bytes():
            content += piece
            if len(content) > LARGEST_FILE:
                raise ValueError(f"{url} has more than {LARGEST_FILE:,} bytes")
            if time.monotonic() - begun > SLOWEST_FILE:
                raise TransientError(f"{url} was not there after {SLOWEST_FILE:.0f} s")
    return bytes(content)


def _ask(client: httpx.Client, url: str) -> None:
    """Raises what fetching the file would raise as soon as the server's answer begins."""
    with _answer(client, "GET", url):
        pass


@contextmanager
def _answer(client: httpx.Client, method: str, url: str) -> Iterator[httpx.Response]:
    """A server's good answer; any other, and whatever goes wrong on the way, raises a sentence."""
    import httpx

    try:
        with client.stream(method, url) as response:
            if response.is_success:
                yield response
                return
            sentence = f"{url}: the server answers {response.status_code} {response.reason_phrase}"
            raise TransientError(sentence) if response.status_code in PASSING else ValueError(sentence)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise ValueError(f"{url}: {error}") from None
    except httpx.TransportError as error:  # no connection, a time-out, a connection that broke
        raise TransientError(f"{url}: {str(error) or type(error).__name__}") from None
