"""A connection to one Label Studio: what is asked, what comes back, and what may have happened when nothing does."""

from __future__ import annotations

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
from lsml_cli.runtime import Retrier

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT = 10.0  # seconds
RESPONSE_TIMEOUT = 60.0  # seconds, for what a server knows at once
EXPORT_TIMEOUT = 3600.0  # seconds; Label Studio writes about 500 tasks a second, and sends nothing before the last
CHUNK_BYTES = 1 << 16  # bytes
KEEPALIVE_IDLE = 30  # seconds of silence after which the other end of a connection is asked whether it is there
RETRY_DELAYS = (0.5, 2.0, 5.0)  # seconds before a question is asked again that changed nothing
MAX_RATE_LIMIT_WAIT = 900.0  # seconds; a server that asks for more of them (429) is not waited for
TRANSIENT_STATUSES = frozenset({502, 503, 504})  # of a proxy, mostly: Label Studio itself may not have answered yet


class OutcomeUnknown(LsmlError):
    """A request that changes something was sent, and whether it did is not known.

    over  whether Label Studio is certainly done with it: it has answered itself, with an error
    """

    def __init__(self, message: str, hint: str | None = None, is_server_done: bool = False) -> None:
        super().__init__(message, hint)
        self.is_server_done = is_server_done

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint, self.is_server_done)


class RequestRejected(LsmlError):
    """Label Studio said no, and has done nothing. `status` is that of HTTP."""

    def __init__(self, message: str, hint: str | None = None, status: int = 400) -> None:
        super().__init__(message, hint)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint, self.status)


class LabelStudioClient:
    """One Label Studio, as the user that the key belongs to. Every question raises LsmlError with a sentence.

    Use it in a `with`, or `close` it.
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
        """What a GET answers, parsed, which is of this kind. `what` is asked for, in words: "project 3".

        within  seconds in which the answer must come; 0 for what is known at once

        It is asked again where the connection or a proxy fails: a question changes nothing.
        """
        found = self._send_with_retry("GET", path, description, params=params, timeout=timeout)
        if not isinstance(found, expected_type):
            raise self.unexpected_response_error(description)
        return found

    def mutate(
        self, method: str, path: str, description: str, content: bytes | object = b"", timeout: float = 0
    ) -> Any:
        """What a request that changes something answers, parsed; None where nothing is said.

        content  JSON as bytes, or what becomes JSON

        Raises Unclear where it may have worked: then it must not simply be sent again. Raises Refused where it has not.
        """
        body = content if isinstance(content, bytes) else orjson.dumps(content)
        return self._send(method, path, description, body=body, timeout=timeout)

    def mutate_idempotent(
        self, method: str, path: str, description: str, content: object = None, timeout: float = 0
    ) -> Any:
        """The same for what may be done twice without harm: it is sent again where the answer was lost."""
        body = orjson.dumps(content) if content is not None else b""
        return self._send_with_retry(method, path, description, body=body, timeout=timeout)

    def get_project(self, project_id: int) -> Mapping[str, Any]:
        """Everything that Label Studio says about a project."""
        found = self.get(f"/api/projects/{project_id}/", f"project {project_id}")
        if "id" not in found:
            raise self.unexpected_response_error(f"project {project_id}")
        return found  # type: ignore[no-any-return]

    def get_label_config(self, project_id: int) -> str:
        """The labelling XML of a project."""
        return self.extract_label_config(self.get_project(project_id))

    def extract_label_config(self, project: Mapping[str, Any]) -> str:
        found = project.get("label_config")
        if not isinstance(found, str) or not found.strip() or found.split() == ["<View></View>"]:
            raise LsmlError(
                f"Project {project.get('id')} at {self.url} has no label config.",
                "Set one up in Label Studio: Settings -> Labeling Interface.",
            )
        return found

    def download_annotated(self, project_id: int, path: Path) -> None:
        """Write the tasks of a project that have annotations to a file, as Label Studio's JSON export has them.

        What the file holds is whole: a download that broke off is an error.
        """
        what = f"the annotations of project {project_id}"
        try:
            with path.open("wb") as file:
                self._download(f"/api/projects/{project_id}/export?export_type=JSON", what, file.write)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.", "Is there room on the disk?") from error
        if not _is_complete_json_array(path):
            raise LsmlError(
                f"{self.url} has sent the annotations of project {project_id} only in part.",
                "Try again; what was there before is unchanged.",
            )

    def _download(self, path: str, description: str, write: Callable[[bytes], object]) -> None:
        for _ in range(2):  # the second time with another access token
            header = self._authorization_header()
            with (
                _translate_errors(self.url, description, is_mutation=False),
                self._http_client.stream(
                    "GET",
                    self._absolute_url(path),
                    headers=_authorization_headers(header),
                    timeout=_http_timeout(EXPORT_TIMEOUT),
                ) as answer,
            ):
                if answer.status_code < 300:
                    for chunk in answer.iter_bytes(CHUNK_BYTES):
                        write(chunk)
                    return
                answer.read()
            if not (answer.status_code == 401 and header and self._authorization.invalidate(header)):
                break
        self._raise_for_status(answer, description, is_mutation=False)

    def _send_with_retry(self, method: str, path: str, description: str, **request: Any) -> Any:
        """`_send`, again where the connection or a proxy fails."""
        try:
            return Retrier(RETRY_DELAYS, (OutcomeUnknown,)).call(
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
        changes = method != "GET"
        renewed = False
        waited = 0.0
        while True:
            header = self._authorization_header()
            headers = _authorization_headers(header) | ({"Content-Type": "application/json"} if body else {})
            with _translate_errors(self.url, description, changes):
                answer = self._http_client.request(
                    method,
                    self._absolute_url(path),
                    params=params,
                    content=body or None,
                    headers=headers,
                    timeout=_http_timeout(timeout or RESPONSE_TIMEOUT),
                )
            if answer.status_code < 300:
                return self._parse_response(answer, description)
            if answer.status_code == 401 and not renewed and header and self._authorization.invalidate(header):
                renewed = True
                continue
            if answer.status_code != 429:
                self._raise_for_status(answer, description, changes)
            pause = _retry_delay(answer.headers.get("Retry-After"), waited)
            if waited + pause > MAX_RATE_LIMIT_WAIT:
                raise RequestRejected(
                    f"Label Studio at {self.url} wants fewer requests (429), for {pause:,.0f} more seconds.",
                    "Try again later; nothing was done by the last one.",
                    429,
                )
            waited += pause
            time.sleep(pause)

    def _parse_response(self, response: httpx.Response, description: str) -> Any:
        if not response.content:
            return None
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise self.unexpected_response_error(description) from None

    def unexpected_response_error(self, description: str) -> LsmlError:
        """What to raise for an answer that no Label Studio would give."""
        return LsmlError(f"What answers at {self.url} about {description} is no Label Studio.", "Is that its address?")

    def _absolute_url(self, path: str) -> str:
        return f"{self._credentials.url}{path}"

    def _authorization_header(self) -> str | None:
        try:
            return self._authorization.authorization_header()
        except ValueError as error:
            raise _invalid_key_error(self.url) from error

    def _exchange_token(self, url: str, body: Mapping[str, str]) -> Any:
        """For a personal access token; see `Access`."""
        with _translate_errors(self.url, "an access token", is_mutation=False):
            answer = self._http_client.post(url, json=body, timeout=_http_timeout(RESPONSE_TIMEOUT))
        if answer.status_code in TRANSIENT_STATUSES or answer.status_code == 429:
            raise TransientError(f"Label Studio at {self.url} answered {answer.status_code}.", "Try again later.")
        if answer.status_code >= 300:
            raise ValueError(f"answered {answer.status_code}")
        return self._parse_response(answer, "an access token")

    def _raise_for_status(self, response: httpx.Response, description: str, is_mutation: bool) -> NoReturn:
        status = response.status_code
        if status == 401:
            raise _invalid_key_error(self.url)
        if status == 403:
            raise RequestRejected(
                f"Label Studio at {self.url} refuses {description} to the user of the API key.",
                f"Set {API_KEY_ENV_VAR} to a token of somebody who may {'change' if is_mutation else 'export'} the project.",
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
                f"{self.url} sends {description} on to {response.headers.get('Location', 'another address')}.",
                "Give the address that Label Studio has itself, https:// included.",
                status,
            )
        said = _error_detail(response)
        sentence = (
            f"Label Studio at {self.url} answered {status} when asked for {description}{f': {said}' if said else ''}."
        )
        if status >= 500 and (is_mutation or status in TRANSIENT_STATUSES):
            raise OutcomeUnknown(
                sentence, "Try again later; its log may say more.", is_server_done=status not in TRANSIENT_STATUSES
            )
        hints = {400: "Correct what it does not like; its log may say more."}
        hint = "Try again later; its log may say more." if status >= 500 else hints.get(status, "Is that its address?")
        raise RequestRejected(sentence, hint, status)


def connect(url: str, key: str | None = None) -> LabelStudioClient:
    """The Label Studio at `url`; without `key` the environment's LABEL_STUDIO_API_KEY is used.

    A legacy token and a personal access token will both do. Raises LsmlError or UsageError with a sentence; whether the
    key is good shows with the first question.
    """
    key = key if key is not None else os.environ.get(API_KEY_ENV_VAR, "")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is not the address of a Label Studio.", "Write http:// or https:// before the host.")
    if not key.strip():
        raise LsmlError(
            f"Label Studio at {url} wants an API key, and {API_KEY_ENV_VAR} is not set here.",
            f"Set it to a token of Label Studio's Account & Settings: export {API_KEY_ENV_VAR}=…",
        )
    login = LabelStudioCredentials(url, key)

    import httpx

    # A call may take an hour in which not a byte travels. A connection that died meanwhile has to be noticed.
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE))
    transport = httpx.HTTPTransport(proxy=_environment_proxy(login), socket_options=options)
    # A redirect is not followed: a POST would arrive as a GET, and the key at another host.
    return LabelStudioClient(url, login, httpx.Client(transport=transport))


def _environment_proxy(credentials: LabelStudioCredentials) -> str | None:
    """That of the environment (HTTPS_PROXY, NO_PROXY), which a client with a transport of its own does not see."""
    from urllib.request import getproxies, proxy_bypass

    return None if proxy_bypass(credentials.host_and_port[0]) else getproxies().get(credentials.url.partition(":")[0])


@contextmanager
def _translate_errors(url: str, description: str, is_mutation: bool) -> Iterator[None]:
    """Whatever httpx raises inside becomes a sentence; `what` was asked for. Unclear where it may have worked."""
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


def _authorization_headers(header: str | None) -> dict[str, str]:
    return {"Authorization": header} if header else {}


def _http_timeout(seconds: float) -> httpx.Timeout:
    import httpx

    return httpx.Timeout(seconds, connect=CONNECT_TIMEOUT)


def _retry_delay(header: str | None, total_waited: float) -> float:
    """Seconds to wait: what the server says, or more and more where it says nothing or a date."""
    try:
        return max(0.1, float(header or ""))
    except ValueError:
        return max(1.0, total_waited)


def _error_detail(response: httpx.Response) -> str:
    """What an error says, on one line."""
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return ""  # a page for a browser
    detail = body.get("detail") if isinstance(body, dict) else body
    more = body.get("validation_errors") if isinstance(body, dict) else None
    text = f"{detail}: {more}" if detail and more else str(detail or more or "")
    return " ".join(text.split())[:300].rstrip(".")


def _is_complete_json_array(path: Path) -> bool:
    """Whether the last sign of a file is the end of a JSON array."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - CHUNK_BYTES))
        return file.read().rstrip().endswith(b"]")
