"""A client for one Label Studio: requests, retries, and errors that say whether a request may have had an effect."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import orjson

from lsml_cli.errors import LsmlError, OutputError, TransientError, UsageError
from lsml_cli.media.credentials import API_KEY_ENV_VAR, AuthorizationProvider, LabelStudioCredentials
from lsml_cli.runtime import Retrier, open_for_writing

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT = 10.0  # seconds
RESPONSE_TIMEOUT = 60.0  # seconds, for requests that a server answers at once
EXPORT_TIMEOUT = 3600.0  # seconds; Label Studio writes 500 tasks a second and sends nothing before the last one
CHUNK_BYTES = 1 << 16  # bytes
MAX_RESPONSE_BYTES = 1 << 30  # of one response, decompressed; 1,000 tasks with brush strokes have a third of it
KEEPALIVE_IDLE = 30  # seconds of silence before a TCP keep-alive probe
RETRY_DELAYS = (0.5, 2.0, 5.0)  # seconds before each retry of a request that may be repeated
MAX_RATE_LIMIT_WAIT = 900.0  # seconds in total that responses of status 429 may ask for
GATEWAY_STATUSES = frozenset({502, 503, 504})  # of a proxy, mostly: Label Studio itself may still be working


class OutcomeUnknown(LsmlError):
    """A mutating request was sent, and its effect is not known.

    Attributes:
        is_server_done: Whether Label Studio has certainly finished it: it answered itself, with an error.
    """

    def __init__(self, message: str, hint: str | None = None, is_server_done: bool = False) -> None:
        super().__init__(message, hint)
        self.is_server_done = is_server_done

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint, self.is_server_done)


class RequestRejected(LsmlError):
    """Label Studio rejected a request and has changed nothing. `status` is the HTTP status."""

    def __init__(self, message: str, hint: str | None = None, status: int = 400) -> None:
        super().__init__(message, hint)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint, self.status)


class LabelStudioClient:
    """A client for one Label Studio, acting as the user that the API key belongs to.

    Every method that sends a request raises LsmlError if it fails. Use the client in a `with` statement, or `close` it.
    """

    def __init__(self, url: str, credentials: LabelStudioCredentials, http_client: httpx.Client) -> None:
        self.url = url
        self._credentials = credentials
        self._http_client = http_client
        self._authorization = AuthorizationProvider(credentials, self._exchange_token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self._http_client.close()

    def get(
        self,
        path: str,
        description: str,
        params: Mapping[str, str | int] | None = None,
        timeout: float = 0,
        expected_type: type = dict,
    ) -> Any:
        """Send a GET request, with retries, and return the parsed response.

        Args:
            path: Path below the address of Label Studio.
            description: What is requested, for messages: "project 3".
            params: Query parameters.
            timeout: Seconds to wait for the response; 0 for RESPONSE_TIMEOUT.
            expected_type: Type that the response must have.
        """
        response = self._send_with_retry("GET", path, description, params=params, timeout=timeout)
        if not isinstance(response, expected_type):
            raise self.unexpected_response_error(description)
        return response

    def mutate(
        self, method: str, path: str, description: str, content: bytes | object = b"", timeout: float = 0
    ) -> Any:
        """Send a mutating request once and return the parsed response, None if it is empty.

        Args:
            method: HTTP method.
            path: Path below the address of Label Studio.
            description: What is requested, for messages.
            content: JSON as bytes, or a value to be written as JSON.
            timeout: Seconds to wait for the response; 0 for RESPONSE_TIMEOUT.

        Raises:
            OutcomeUnknown: The request may have had an effect, so it must not simply be sent again.
            RequestRejected: The request had no effect.
        """
        body = content if isinstance(content, bytes) else orjson.dumps(content)
        return self._send(method, path, description, body=body, timeout=timeout)

    def mutate_idempotent(
        self, method: str, path: str, description: str, content: object = None, timeout: float = 0
    ) -> Any:
        """Like `mutate`, for a request that may be repeated without harm: it is retried if the response is lost."""
        body = orjson.dumps(content) if content is not None else b""
        return self._send_with_retry(method, path, description, body=body, timeout=timeout)

    def get_project(self, project_id: int) -> Mapping[str, Any]:
        """Return the JSON description of a project."""
        project = self.get(f"/api/projects/{project_id}/", f"project {project_id}")
        if "id" not in project:
            raise self.unexpected_response_error(f"project {project_id}")
        return project  # type: ignore[no-any-return]

    def get_label_config(self, project_id: int) -> str:
        """Return the labelling XML of a project."""
        return self.extract_label_config(self.get_project(project_id))

    def extract_label_config(self, project: Mapping[str, Any]) -> str:
        """Return the labelling XML in the description of a project; raise LsmlError if it is empty."""
        xml = project.get("label_config")
        if not isinstance(xml, str) or not xml.strip() or xml.split() == ["<View></View>"]:
            raise LsmlError(
                f"Project {project.get('id')} at {self.url} has no label config.",
                "Set one up in Label Studio: Settings -> Labeling Interface.",
            )
        return xml

    def download_annotated(self, project_id: int, path: Path) -> None:
        """Write Label Studio's JSON export of the annotated tasks of a project to a file.

        Raises:
            LsmlError: The download is incomplete, or failed.
            OutputError: The file cannot be written.
        """
        description = f"the annotations of project {project_id}"
        try:
            with open_for_writing(path) as file:
                self._download(f"/api/projects/{project_id}/export?export_type=JSON", description, file.write)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.", "Is there room on the disk?") from error
        if not _is_complete_json_array(path):
            raise LsmlError(
                f"{self.url} has sent the annotations of project {project_id} only in part.",
                "Try again; what was there before is unchanged.",
            )

    def _download(self, path: str, description: str, write: Callable[[bytes], object]) -> None:
        for _ in range(2):  # the second time with a new access token
            header = self._authorization_header()
            with (
                _translate_errors(self.url, description),
                self._http_client.stream(
                    "GET",
                    self._absolute_url(path),
                    headers=_authorization_headers(header),
                    timeout=_http_timeout(EXPORT_TIMEOUT),
                ) as response,
            ):
                if response.status_code < 300:
                    for chunk in response.iter_bytes(CHUNK_BYTES):
                        write(chunk)
                    return
                response = _read_response(response, self.url)
            if not (response.status_code == 401 and header and self._authorization.invalidate(header)):
                break
        self._raise_for_status(response, description, is_mutation=False)

    def _send_with_retry(self, method: str, path: str, description: str, **request: Any) -> Any:
        """Send a request that may be repeated, again if the connection or a proxy fails."""
        try:
            return Retrier(RETRY_DELAYS, lambda error: isinstance(error, OutcomeUnknown)).call(
                lambda: self._send(method, path, description, **request)
            )
        except OutcomeUnknown as error:
            raise LsmlError(error.message, error.hint) from error

    def _send(
        self,
        method: str,
        path: str,
        description: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        timeout: float = 0,
    ) -> Any:
        """Send one request, waiting for rate limits and renewing an expired access token once."""
        is_mutation = method != "GET"
        is_token_renewed = False
        waited = 0.0  # seconds
        while True:
            header = self._authorization_header()
            headers = _authorization_headers(header) | ({"Content-Type": "application/json"} if body else {})
            with _translate_errors(self.url, description):
                response = self._request(
                    method,
                    self._absolute_url(path),
                    params=params,
                    content=body or None,
                    headers=headers,
                    timeout=_http_timeout(timeout or RESPONSE_TIMEOUT),
                )
            status = response.status_code
            if status < 300:
                return self._parse_response(response, description)
            if status == 401 and not is_token_renewed and header and self._authorization.invalidate(header):
                is_token_renewed = True
                continue
            if status != 429:
                self._raise_for_status(response, description, is_mutation)
            pause = _retry_delay(response.headers.get("Retry-After"), waited)
            if waited + pause > MAX_RATE_LIMIT_WAIT:
                raise RequestRejected(
                    f"Label Studio at {self.url} accepts no requests (429) for {pause:,.0f} more seconds.",
                    "Try again later; the last one had no effect.",
                    429,
                )
            waited += pause
            time.sleep(pause)

    def _request(self, method: str, url: str, **request: Any) -> httpx.Response:
        """Send one request and read its response, of which a hostile server could make no end."""
        with self._http_client.stream(method, url, **request) as response:
            return _read_response(response, self.url)

    def _parse_response(self, response: httpx.Response, description: str) -> Any:
        if not response.content:
            return None
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise self.unexpected_response_error(description) from None

    def unexpected_response_error(self, description: str) -> LsmlError:
        """Return the error for a response that no Label Studio would send."""
        return LsmlError(
            f"The server at {self.url} sent an unexpected response about {description}: it may not be a Label Studio.",
            "Is that its address?",
        )

    def _absolute_url(self, path: str) -> str:
        return f"{self._credentials.url}{path}"

    def _authorization_header(self) -> str | None:
        try:
            return self._authorization.authorization_header()
        except ValueError as error:
            raise _invalid_key_error(self.url) from error

    def _exchange_token(self, url: str, body: Mapping[str, str]) -> Any:
        """Exchange a personal access token for an access token; see `AuthorizationProvider`."""
        with _translate_errors(self.url, "an access token"):
            response = self._request("POST", url, json=body, timeout=_http_timeout(RESPONSE_TIMEOUT))
        if response.status_code in GATEWAY_STATUSES or response.status_code == 429:
            raise TransientError(f"Label Studio at {self.url} answered {response.status_code}.", "Try again later.")
        if response.status_code >= 300:
            raise ValueError(f"answered {response.status_code}")
        return self._parse_response(response, "an access token")

    def _raise_for_status(self, response: httpx.Response, description: str, is_mutation: bool) -> NoReturn:
        """Raise the error for a status of 300 or more."""
        status = response.status_code
        action = "change" if is_mutation else "export"
        if status == 401:
            raise _invalid_key_error(self.url)
        if status == 403:
            raise RequestRejected(
                f"Label Studio at {self.url} does not allow the user of the API key to access {description}.",
                f"Set {API_KEY_ENV_VAR} to a token of a user who may {action} the project.",
                status,
            )
        if status == 404:
            raise RequestRejected(
                f"Label Studio at {self.url} knows nothing of {description}.",
                "Does the project exist there, and may the user of the API key see it?",
                status,
            )
        if 300 <= status < 400:
            raise RequestRejected(
                f"{self.url} redirects {description} to {response.headers.get('Location', 'another address')}.",
                "Give the address that Label Studio has itself, https:// included.",
                status,
            )
        detail = _error_detail(response)
        message = f"Label Studio at {self.url} answered {status} when asked for {description}"
        message += f": {detail}." if detail else "."
        if status >= 500 and (is_mutation or status in GATEWAY_STATUSES):
            raise OutcomeUnknown(
                message, "Try again later; its log may say more.", is_server_done=status not in GATEWAY_STATUSES
            )
        hints = {400: "Correct what it complains about; its log may say more."}
        hint = "Try again later; its log may say more." if status >= 500 else hints.get(status, "Is that its address?")
        raise RequestRejected(message, hint, status)


def connect(url: str, key: str | None = None) -> LabelStudioClient:
    """Return a client for the Label Studio at `url`. No request is sent yet.

    Args:
        url: Address, with http:// or https://.
        key: A legacy token or a personal access token; by default the environment's LABEL_STUDIO_API_KEY.

    Raises:
        UsageError: `url` is not an address.
        LsmlError: There is no key.
    """
    key = key if key is not None else os.environ.get(API_KEY_ENV_VAR, "")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is not the address of a Label Studio.", "Write http:// or https:// before the host.")
    if not key.strip():
        raise LsmlError(
            f"Label Studio at {url} needs an API key, and {API_KEY_ENV_VAR} is not set here.",
            f"Set it to a token of Label Studio's Account & Settings: export {API_KEY_ENV_VAR}=…",
        )
    credentials = LabelStudioCredentials(url, key)

    import httpx

    # A request may take an hour without a byte on the wire; keep-alive probes notice a connection that died.
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE))
    transport = httpx.HTTPTransport(proxy=_environment_proxy(credentials), socket_options=options)
    # Redirects are not followed: a POST would arrive as a GET, and the key at another host.
    return LabelStudioClient(url, credentials, httpx.Client(transport=transport))


def _environment_proxy(credentials: LabelStudioCredentials) -> str | None:
    """Return the proxy of the environment, which httpx ignores for a client with its own transport."""
    from urllib.request import getproxies, proxy_bypass

    return None if proxy_bypass(credentials.host_and_port[0]) else getproxies().get(credentials.url.partition(":")[0])


@contextmanager
def _translate_errors(url: str, description: str) -> Iterator[None]:
    """Translate errors of httpx in the block to LsmlError; to OutcomeUnknown if the request may have been handled."""
    import httpx

    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        reason = str(error).rstrip(".") or "no answer"
        raise LsmlError(
            f"Label Studio at {url} cannot be reached: {reason}.", "Is that its address, and is it up?"
        ) from error
    except httpx.TimeoutException as error:
        raise OutcomeUnknown(
            f"Label Studio at {url} gave no answer about {description} in time.", "Try again later."
        ) from error
    except httpx.HTTPError as error:
        raise OutcomeUnknown(
            f"The connection to Label Studio at {url} broke off over {description}: {str(error).rstrip('.')}.",
            "Try again.",
        ) from error


def _invalid_key_error(url: str) -> LsmlError:
    return RequestRejected(
        f"Label Studio at {url} does not accept the API key.",
        f"Set {API_KEY_ENV_VAR} to a token that is valid there; {url} shows them under Account & Settings.",
        401,
    )


def _read_response(response: httpx.Response, url: str) -> httpx.Response:
    """Return a streamed response with its decompressed body, which may have MAX_RESPONSE_BYTES."""
    import httpx

    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise LsmlError(
                f"The server at {url} sent a response of more than {MAX_RESPONSE_BYTES:,} bytes.",
                "Is that the address of Label Studio? If it is, ask for less at a time: --view, --only or --fields.",
            )
    names = ("Location", "Retry-After")  # the others describe the body as it was sent
    headers = {name: response.headers[name] for name in names if name in response.headers}
    return httpx.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)


def _authorization_headers(header: str | None) -> dict[str, str]:
    return {"Authorization": header} if header else {}


def _http_timeout(seconds: float) -> httpx.Timeout:
    import httpx

    return httpx.Timeout(seconds, connect=CONNECT_TIMEOUT)


def _retry_delay(header: str | None, total_waited: float) -> float:
    """Return the seconds to wait: what the server says, else as long as it has been waited already."""
    try:
        seconds = float(header or "")
    except ValueError:
        seconds = math.nan
    return max(0.1, seconds) if math.isfinite(seconds) else max(1.0, total_waited)


def _error_detail(response: httpx.Response) -> str:
    """Return the detail of an error response on one line, "" without one."""
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return ""  # an HTML page
    detail = body.get("detail") if isinstance(body, dict) else body
    errors = body.get("validation_errors") if isinstance(body, dict) else None
    text = f"{detail}: {errors}" if detail and errors else str(detail or errors or "")
    return " ".join(text.split())[:300].rstrip(".")


def _is_complete_json_array(path: Path) -> bool:
    """Return whether a file ends like a JSON array."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - CHUNK_BYTES))
        return file.read().rstrip().endswith(b"]")
