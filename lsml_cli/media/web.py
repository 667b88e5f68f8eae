"""Files from servers, over HTTP: to whom credentials go, which redirects are followed, how much and how long."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx
import orjson

from lsml_cli._version import __version__
from lsml_cli.errors import TransientError
from lsml_cli.media import ssrf_guard
from lsml_cli.media.credentials import KEY_VARIABLE, Access, Login
from lsml_cli.media.hosts import HostRefused, Hosts
from lsml_cli.media.resolver import shown

CONNECTIONS = 64  # at a time, and kept open
REDIRECTS = 5
PIECE = 1 << 16  # bytes
LARGEST_TOKEN = 1 << 16  # bytes of the answer to an exchange
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP answers that may be another one next time


class Web:
    """HTTP for media, with its pool of connections: one per process, for all of its threads.

    hosts     who may be asked, here and after a redirect
    login     the Label Studio whose files are opened with its key
    largest   bytes of one file
    slowest   seconds for one file, from the first byte asked for to the last one there
    patience  seconds without a byte
    """

    def __init__(self, hosts: Hosts, login: Login | None, *, largest: int, slowest: float, patience: float) -> None:
        self._login = login
        self._hosts = hosts
        self._access = Access(login, self._post) if login else None
        self._largest = largest
        self._slowest = slowest
        # A task's file is no visit: what one answer sets, no other request repeats.
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        self._client = httpx.Client(
            transport=None if hosts.anywhere else ssrf_guard.Guarded(hosts, CONNECTIONS),
            trust_env=hosts.anywhere,  # proxies
            limits=limits,
            timeout=httpx.Timeout(patience, pool=slowest),
            headers={"User-Agent": f"lsml/{__version__}", "Accept-Encoding": "identity"},
            cookies=no_cookies,
        )

    def get(self, url: str, value: str, hints: Mapping[int, str] | None = None) -> bytes:
        """The bytes at a URL.

        value  what the task says, for sentences: the URL may hold a signature that is nobody's business
        hints  what a status of the answer means here

        Raises ValueError when it cannot be had, TransientError when it may be had later.
        """
        deadline = time.monotonic() + self._slowest
        content = bytearray()
        with self._answer(url, value, deadline, hints or {}) as response:
            for piece in _pieces(response, value):
                content += piece
                if len(content) > self._largest:
                    raise ValueError(f"{shown(value)} has more than {self._largest:,} bytes")
                if time.monotonic() > deadline:
                    raise TransientError(f"{shown(value)} was not there after {self._slowest:.0f} s")
        return bytes(content)

    def ask(self, url: str, value: str, hints: Mapping[int, str] | None = None) -> None:
        """Raises what `get` would raise as soon as the answer begins."""
        with self._answer(url, value, time.monotonic() + self._slowest, hints or {}):
            pass

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _answer(self, url: str, value: str, deadline: float, hints: Mapping[int, str]) -> Iterator[httpx.Response]:
        """A server's good answer; any other, and whatever goes wrong on the way, raises a sentence."""
        try:
            with ssrf_guard.until(deadline), self._followed(url, value) as response:
                if not response.is_success:
                    who = response.request.url.host  # where a redirect led; not its address, which may be presigned
                    who = "the server" if who == httpx.URL(url).host else who
                    raise _refusal(response, value, hints.get(response.status_code) or self._hint(response), who)
                length = response.headers.get("Content-Length", "")
                if length.isdigit() and int(length) > self._largest:
                    raise ValueError(f"{shown(value)} has more than {self._largest:,} bytes")
                yield response
        except HostRefused as error:
            raise ValueError(f"{shown(value)}: {error}") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpcore.UnsupportedProtocol) as error:
            raise ValueError(f"{shown(value)}: {error}") from None
        except (httpx.TransportError, *_TRANSPORT) as error:  # no connection, a time-out, a connection that broke
            raise TransientError(f"{shown(value)}: {str(error) or type(error).__name__}") from None

    @contextmanager
    def _followed(self, url: str, value: str) -> Iterator[httpx.Response]:
        """The answer at the end of all redirects. Each is a request of its own: checked, and with its own credentials.

        httpx would follow them as well, but asks nobody whether it may.
        """
        target = httpx.URL(url)
        for _ in range(REDIRECTS + 1):
            with ExitStack() as stack:
                response = self._sent(target, stack)
                if not response.has_redirect_location or response.next_request is None:
                    yield response
                    return
                target = response.next_request.url
                if response.headers.get("Content-Length") == "0":
                    response.read()  # nothing, but the connection can be used again
        raise ValueError(f"{shown(value)}: more than {REDIRECTS} redirects")

    def _sent(self, target: httpx.URL, stack: ExitStack) -> httpx.Response:
        """The answer to one request; with the key, if it is the key of who is asked. Closed by `stack`."""
        if target.scheme not in ("http", "https") or not target.host:
            raise httpx.UnsupportedProtocol(f"{target.scheme}://{target.host} is no address of a web server")
        self._hosts.require(target.raw_host.decode(), _port(target))
        header = self._access.header() if self._access and self._is_ours(target) else None
        response = self._send(target, header, stack)
        if response.status_code == 401 and header is not None and self._access and self._access.renew(header):
            response.close()  # the token ended early; perhaps the server was started anew
            response = self._send(target, self._access.header(), stack)
        return response

    def _send(self, target: httpx.URL, header: str | None, stack: ExitStack) -> httpx.Response:
        headers = {"Authorization": header} if header is not None else None
        response = self._client.send(self._client.build_request("GET", target, headers=headers), stream=True)
        stack.callback(response.close)
        return response

    def _is_ours(self, url: httpx.URL) -> bool:
        return self._login is not None and self._login.serves(url.scheme, url.raw_host.decode(), _port(url), url.path)

    def _hint(self, response: httpx.Response) -> str:
        """What to do about an answer of Label Studio that the key, or the want of one, is the reason for."""
        if response.status_code != 401 or self._login is None or self._access is None:
            return ""
        if not self._is_ours(response.request.url):
            same = response.request.url.host == self._login.host[0]
            return f" (the key goes only to what {self._login.url} serves)" if same else ""
        if self._access.kind is None:
            return f" ({KEY_VARIABLE} is not set)"
        legacy = "; the organization may have switched legacy tokens off: use a personal access token"
        return f" to the key in {KEY_VARIABLE}{legacy if self._access.kind == 'legacy' else ''}"

    def _post(self, url: str, body: Mapping[str, str]) -> Any:
        """JSON to Label Studio and back, for an exchange of tokens. Nothing of either gets into a sentence."""
        content = bytearray()
        try:
            with self._client.stream("POST", url, json=body) as response:
                if response.has_redirect_location:
                    raise ValueError(f"{url} leads somewhere else; give that address with --label-studio-url")
                if not response.is_success:
                    refused = response.status_code in (400, 401, 403)
                    raise _refusal(response, url, f" to the personal access token in {KEY_VARIABLE}" if refused else "")
                for piece in _pieces(response, url):
                    content += piece
                    if len(content) > LARGEST_TOKEN:
                        break
        except (httpx.TransportError, *_TRANSPORT) as error:
            raise TransientError(f"{url}: {str(error) or type(error).__name__}") from None
        try:
            return orjson.loads(content)
        except ValueError:
            raise ValueError(f"{url}: the answer is no JSON") from None


# What a guarded connection raises is not translated by httpx.
_TRANSPORT = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ProxyError)


def _refusal(response: httpx.Response, value: str, hint: str, who: str = "the server") -> Exception:
    sentence = f"{shown(value)}: {who} answers {response.status_code} {response.reason_phrase}{hint}"
    return TransientError(sentence) if response.status_code in PASSING else ValueError(sentence)


def _port(url: httpx.URL) -> int:
    return url.port or {"http": 80, "https": 443}[url.scheme]


def _pieces(response: httpx.Response, value: str) -> Iterator[bytes]:
    """The body, a little at a time, also when it is packed: a few packed bytes may become very many.

    Nothing packed was asked for, but buckets send what was stored packed as it is. httpx would unpack whole pieces, and
    bodies that are packed several times.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        yield from response.iter_raw()
        return
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError(f"{shown(value)}: the server sends it packed with {encoding}, which nobody asked for")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        for piece in response.iter_raw():
            while piece:
                yield unpacker.decompress(piece, PIECE)
                piece = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as error:
        raise ValueError(f"{shown(value)}: the server sends damaged gzip ({error})") from None
    if not unpacker.eof:
        raise TransientError(f"{shown(value)}: it ends too early")
