"""Fetch files from servers over HTTP: where credentials go, which redirects are followed, size and time limits."""

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
from lsml_cli.media.credentials import API_KEY_ENV_VAR, AuthorizationProvider, LabelStudioCredentials
from lsml_cli.media.hosts import DEFAULT_PORTS, AllowedHosts, HostNotAllowed
from lsml_cli.media.resolver import abbreviate

MAX_CONNECTIONS = 64  # at a time; idle ones are kept open
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 16  # bytes
MAX_TOKEN_RESPONSE_BYTES = 1 << 16  # bytes of the response to a token exchange
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})  # a retry may succeed


class HttpFetcher:
    """Fetches media over HTTP with a pool of connections: one per process, for all of its threads.

    Files of Label Studio come this way as well, although its API is used through its SDK. The SDK has no call for them,
    and knows nothing of allowed hosts, redirects to buckets, and limits of size and time.

    Args:
        allowed_hosts: Hosts that requests may go to, also after a redirect.
        credentials: The Label Studio whose files are requested with its key.
        max_bytes: Bytes of one file.
        total_timeout: Seconds for one file, from the request to the last byte.
        read_timeout: Seconds without a byte.
    """

    def __init__(
        self,
        allowed_hosts: AllowedHosts,
        credentials: LabelStudioCredentials | None,
        *,
        max_bytes: int,
        total_timeout: float,
        read_timeout: float,
    ) -> None:
        self._credentials = credentials
        self._allowed_hosts = allowed_hosts
        self._authorization = AuthorizationProvider(credentials, self._post_json) if credentials else None
        self._max_bytes = max_bytes
        self._total_timeout = total_timeout
        # Cookies that one response sets are not sent with other requests.
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
        self._client = httpx.Client(
            transport=None if allowed_hosts.allow_any else ssrf_guard.SafeTransport(allowed_hosts, MAX_CONNECTIONS),
            trust_env=allowed_hosts.allow_any,  # proxies
            limits=limits,
            timeout=httpx.Timeout(read_timeout, pool=total_timeout),
            headers={"User-Agent": f"lsml/{__version__}", "Accept-Encoding": "identity"},
            cookies=no_cookies,
        )

    def get(self, url: str, value: str, hints: Mapping[int, str] | None = None) -> bytes:
        """Return the bytes at a URL.

        Args:
            url: Where to fetch; not shown in messages, because it may hold a signature.
            value: What the task holds, for messages.
            hints: What a status of the response means for this file.

        Raises:
            ValueError: The file cannot be had.
            TransientError: The file may be had later.
        """
        deadline = time.monotonic() + self._total_timeout
        content = bytearray()
        with self._open_response(url, value, deadline, hints or {}) as response:
            for piece in _iter_content(response, value):
                content += piece
                if len(content) > self._max_bytes:
                    raise ValueError(f"{abbreviate(value)} has more than {self._max_bytes:,} bytes")
                if time.monotonic() > deadline:
                    raise TransientError(f"{abbreviate(value)} had not arrived after {self._total_timeout:.0f} s")
        return bytes(content)

    def check_available(self, url: str, value: str, hints: Mapping[int, str] | None = None) -> None:
        """Raise what `get` would raise by the time the response begins."""
        with self._open_response(url, value, time.monotonic() + self._total_timeout, hints or {}):
            pass

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _open_response(
        self, url: str, value: str, deadline: float, hints: Mapping[int, str]
    ) -> Iterator[httpx.Response]:
        """Yield a successful response; raise ValueError or TransientError for anything else."""
        try:
            with ssrf_guard.deadline_scope(deadline), self._follow_redirects(url, value) as response:
                if not response.is_success:
                    host = response.request.url.host  # after a redirect; its URL may be presigned, so it is not shown
                    server_name = "the server" if host == httpx.URL(url).host else host
                    hint = hints.get(response.status_code) or self._auth_hint(response)
                    raise _status_error(response, value, hint, server_name)
                length = response.headers.get("Content-Length", "")
                if length.isdigit() and int(length) > self._max_bytes:
                    raise ValueError(f"{abbreviate(value)} has more than {self._max_bytes:,} bytes")
                yield response
        except HostNotAllowed as error:
            raise ValueError(f"{abbreviate(value)}: {error}") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpcore.UnsupportedProtocol) as error:
            raise ValueError(f"{abbreviate(value)}: {error}") from None
        except (httpx.TransportError, *_TRANSPORT_ERRORS) as error:
            raise TransientError(f"{abbreviate(value)}: {str(error) or type(error).__name__}") from None

    @contextmanager
    def _follow_redirects(self, url: str, value: str) -> Iterator[httpx.Response]:
        """Yield the response after all redirects.

        httpx could follow them, too, but every request has to be checked, and gets its own credentials.
        """
        target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            with ExitStack() as stack:
                response = self._request(target, stack)
                if not response.has_redirect_location or response.next_request is None:
                    yield response
                    return
                target = response.next_request.url
                if response.headers.get("Content-Length") == "0":
                    response.read()  # so that the connection can be reused
        raise ValueError(f"{abbreviate(value)}: more than {MAX_REDIRECTS} redirects")

    def _request(self, target: httpx.URL, stack: ExitStack) -> httpx.Response:
        """Send one request, with the key if it is for Label Studio; `stack` closes the response."""
        if target.scheme not in ("http", "https") or not target.host:
            raise httpx.UnsupportedProtocol(f"{target.scheme}://{target.host} is not the address of a web server")
        self._allowed_hosts.require_allowed(target.raw_host.decode(), _port(target))
        if self._authorization is None or not self._is_label_studio_media(target):
            return self._send(target, None, stack)
        header = self._authorization.authorization_header()
        response = self._send(target, header, stack)
        if response.status_code == 401 and header is not None and self._authorization.invalidate(header):
            response.close()  # the token expired early; the server may have been restarted
            response = self._send(target, self._authorization.authorization_header(), stack)
        return response

    def _send(self, target: httpx.URL, header: str | None, stack: ExitStack) -> httpx.Response:
        headers = {"Authorization": header} if header is not None else None
        response = self._client.send(self._client.build_request("GET", target, headers=headers), stream=True)
        stack.callback(response.close)
        return response

    def _is_label_studio_media(self, url: httpx.URL) -> bool:
        return self._credentials is not None and self._credentials.is_media_url(
            url.scheme, url.raw_host.decode(), _port(url), url.path
        )

    def _auth_hint(self, response: httpx.Response) -> str:
        """Return what to do about a response of 401 from Label Studio, "" for any other."""
        if response.status_code != 401 or self._credentials is None or self._authorization is None:
            return ""
        if not self._is_label_studio_media(response.request.url):
            is_same_host = response.request.url.host == self._credentials.host_and_port[0]
            return f" (the key goes only to what {self._credentials.url} serves)" if is_same_host else ""
        if self._authorization.token_type is None:
            return f" ({API_KEY_ENV_VAR} is not set)"
        legacy = "; the organization may have switched legacy tokens off: use a personal access token"
        return f" to the key in {API_KEY_ENV_VAR}{legacy if self._authorization.token_type == 'legacy' else ''}"

    def _post_json(self, url: str, body: Mapping[str, str]) -> Any:
        """Post JSON to Label Studio to exchange a token. No message shows the request or the response."""
        content = bytearray()
        try:
            with self._client.stream("POST", url, json=body) as response:
                if response.has_redirect_location:
                    raise ValueError(f"{url} leads somewhere else; give that address with --label-studio-url")
                if not response.is_success:
                    is_rejected = response.status_code in (400, 401, 403)
                    hint = f" to the personal access token in {API_KEY_ENV_VAR}" if is_rejected else ""
                    raise _status_error(response, url, hint)
                for piece in _iter_content(response, url):
                    content += piece
                    if len(content) > MAX_TOKEN_RESPONSE_BYTES:
                        break
        except (httpx.TransportError, *_TRANSPORT_ERRORS) as error:
            raise TransientError(f"{url}: {str(error) or type(error).__name__}") from None
        try:
            return orjson.loads(content)
        except ValueError:
            raise ValueError(f"{url}: the response is not JSON") from None


# httpx does not translate what a SafeTransport raises.
_TRANSPORT_ERRORS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ProxyError)


def _status_error(response: httpx.Response, value: str, hint: str, server_name: str = "the server") -> Exception:
    message = f"{abbreviate(value)}: {server_name} answers {response.status_code} {response.reason_phrase}{hint}"
    return TransientError(message) if response.status_code in TRANSIENT_STATUSES else ValueError(message)


def _port(url: httpx.URL) -> int:
    return url.port or DEFAULT_PORTS[url.scheme]


def _iter_content(response: httpx.Response, value: str) -> Iterator[bytes]:
    """Yield the body in small pieces, unpacked if it is gzip: a few packed bytes may become very many.

    No compression is requested, but buckets send files that are stored compressed as they are. httpx would unpack whole
    pieces, and bodies that are packed several times.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        yield from response.iter_raw()
        return
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError(f"{abbreviate(value)}: the server sends it packed with {encoding}, which was not requested")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        for piece in response.iter_raw():
            while piece:
                yield unpacker.decompress(piece, CHUNK_BYTES)
                piece = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as error:
        raise ValueError(f"{abbreviate(value)}: the server sends damaged gzip ({error})") from None
    if not unpacker.eof:
        raise TransientError(f"{abbreviate(value)}: the response ends too early")
