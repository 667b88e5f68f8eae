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
from lsml_cli.media.credentials import KEY_VARIABLE, Access, Login

if TYPE_CHECKING:
    import httpx

API_KEY = KEY_VARIABLE  # the environment variable; the key stands in no file and in no argument

CONNECT_WITHIN = 10.0  # seconds
ANSWER_WITHIN = 60.0  # seconds, for what a server knows at once
EXPORT_WITHIN = 3600.0  # seconds; Label Studio writes about 500 tasks a second, and sends nothing before the last
CHUNK = 1 << 16  # bytes
ALIVE_AFTER = 30  # seconds of silence after which the other end of a connection is asked whether it is there
PAUSES = (0.5, 2.0, 5.0)  # seconds before a question is asked again that changed nothing
PATIENCE = 900.0  # seconds; a server that asks for more of them (429) is not waited for
PASSING = frozenset({502, 503, 504})  # of a proxy, mostly: Label Studio itself may not have answered yet


class Unclear(LsmlError):
    """A request that changes something was sent, and whether it did is not known.

    over  whether Label Studio is certainly done with it: it has answered itself, with an error
    """

    def __init__(self, message: str, hint: str | None = None, over: bool = False) -> None:
        super().__init__(message, hint)
        self.over = over

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint, self.over)


class Refused(LsmlError):
    """Label Studio said no, and has done nothing. `status` is that of HTTP."""

    def __init__(self, message: str, hint: str | None = None, status: int = 400) -> None:
        super().__init__(message, hint)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint, self.status)


class Studio:
    """One Label Studio, as the user that the key belongs to. Every question raises LsmlError with a sentence.

    Use it in a `with`, or `close` it.
    """

    def __init__(self, url: str, login: Login, http: httpx.Client) -> None:
        self.url = url
        self._login = login
        self._http = http
        self._access = Access(login, self._exchange)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        path: str,
        what: str,
        params: Mapping[str, str | int] | None = None,
        within: float = 0,
        kind: type = dict,
    ) -> Any:
        """What a GET answers, parsed, which is of this kind. `what` is asked for, in words: "project 3".

        within  seconds in which the answer must come; 0 for what is known at once

        It is asked again where the connection or a proxy fails: a question changes nothing.
        """
        found = self._again("GET", path, what, params=params, within=within)
        if not isinstance(found, kind):
            raise self.no_label_studio(what)
        return found

    def change(self, method: str, path: str, what: str, content: bytes | object = b"", within: float = 0) -> Any:
        """What a request that changes something answers, parsed; None where nothing is said.

        content  JSON as bytes, or what becomes JSON

        Raises Unclear where it may have worked: then it must not simply be sent again. Raises Refused where it has not.
        """
        body = content if isinstance(content, bytes) else orjson.dumps(content)
        return self._send(method, path, what, body=body, within=within)

    def settle(self, method: str, path: str, what: str, content: object = None, within: float = 0) -> Any:
        """The same for what may be done twice without harm: it is sent again where the answer was lost."""
        body = orjson.dumps(content) if content is not None else b""
        return self._again(method, path, what, body=body, within=within)

    def project(self, project: int) -> Mapping[str, Any]:
        """Everything that Label Studio says about a project."""
        found = self.ask(f"/api/projects/{project}/", f"project {project}")
        if "id" not in found:
            raise self.no_label_studio(f"project {project}")
        return found  # type: ignore[no-any-return]

    def label_config(self, project: int) -> str:
        """The labelling XML of a project."""
        return self.label_config_of(self.project(project))

    def label_config_of(self, project: Mapping[str, Any]) -> str:
        found = project.get("label_config")
        if not isinstance(found, str) or not found.strip() or found.split() == ["<View></View>"]:
            raise LsmlError(
                f"Project {project.get('id')} at {self.url} has no label config.",
                "Set one up in Label Studio: Settings -> Labeling Interface.",
            )
        return found

    def download_annotated(self, project: int, path: Path) -> None:
        """Write the tasks of a project that have annotations to a file, as Label Studio's JSON export has them.

        What the file holds is whole: a download that broke off is an error.
        """
        what = f"the annotations of project {project}"
        try:
            with path.open("wb") as file:
                self._download(f"/api/projects/{project}/export?export_type=JSON", what, file.write)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.", "Is there room on the disk?") from error
        if not _ends_as_a_list(path):
            raise LsmlError(
                f"{self.url} has sent the annotations of project {project} only in part.",
                "Try again; what was there before is unchanged.",
            )

    def _download(self, path: str, what: str, write: Callable[[bytes], object]) -> None:
        for _ in range(2):  # the second time with another access token
            header = self._header()
            with (
                _explained(self.url, what, changes=False),
                self._http.stream(
                    "GET", self._at(path), headers=_authorized(header), timeout=_timeout(EXPORT_WITHIN)
                ) as answer,
            ):
                if answer.status_code < 300:
                    for chunk in answer.iter_bytes(CHUNK):
                        write(chunk)
                    return
                answer.read()
            if not (answer.status_code == 401 and header and self._access.renew(header)):
                break
        self._refused(answer, what, changes=False)

    def _again(self, method: str, path: str, what: str, **request: Any) -> Any:
        """`_send`, several times where the connection or a proxy fails."""
        for pause in PAUSES:
            try:
                return self._send(method, path, what, **request)
            except Unclear:
                time.sleep(pause)
        try:
            return self._send(method, path, what, **request)
        except Unclear as error:
            raise LsmlError(error.message, error.hint) from error

    def _send(
        self,
        method: str,
        path: str,
        what: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        within: float = 0,
    ) -> Any:
        changes = method != "GET"
        renewed = False
        waited = 0.0
        while True:
            header = self._header()
            headers = _authorized(header) | ({"Content-Type": "application/json"} if body else {})
            with _explained(self.url, what, changes):
                answer = self._http.request(
                    method,
                    self._at(path),
                    params=params,
                    content=body or None,
                    headers=headers,
                    timeout=_timeout(within or ANSWER_WITHIN),
                )
            if answer.status_code < 300:
                return self._parsed(answer, what)
            if answer.status_code == 401 and not renewed and header and self._access.renew(header):
                renewed = True
                continue
            if answer.status_code != 429:
                self._refused(answer, what, changes)
            pause = _retry_after(answer.headers.get("Retry-After"), waited)
            if waited + pause > PATIENCE:
                raise Refused(
                    f"Label Studio at {self.url} wants fewer requests (429), for {pause:,.0f} more seconds.",
                    "Try again later; nothing was done by the last one.",
                    429,
                )
            waited += pause
            time.sleep(pause)

    def _parsed(self, answer: httpx.Response, what: str) -> Any:
        if not answer.content:
            return None
        try:
            return orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            raise self.no_label_studio(what) from None

    def no_label_studio(self, what: str) -> LsmlError:
        """What to raise for an answer that no Label Studio would give."""
        return LsmlError(f"What answers at {self.url} about {what} is no Label Studio.", "Is that its address?")

    def _at(self, path: str) -> str:
        return f"{self._login.url}{path}"

    def _header(self) -> str | None:
        try:
            return self._access.header()
        except ValueError as error:
            raise _bad_key(self.url) from error

    def _exchange(self, url: str, body: Mapping[str, str]) -> Any:
        """For a personal access token; see `Access`."""
        with _explained(self.url, "an access token", changes=False):
            answer = self._http.post(url, json=body, timeout=_timeout(ANSWER_WITHIN))
        if answer.status_code in PASSING or answer.status_code == 429:
            raise TransientError(f"Label Studio at {self.url} answered {answer.status_code}.", "Try again later.")
        if answer.status_code >= 300:
            raise ValueError(f"answered {answer.status_code}")
        return self._parsed(answer, "an access token")

    def _refused(self, answer: httpx.Response, what: str, changes: bool) -> NoReturn:
        status = answer.status_code
        if status == 401:
            raise _bad_key(self.url)
        if status == 403:
            raise Refused(
                f"Label Studio at {self.url} refuses {what} to the user of the API key.",
                f"Set {API_KEY} to a token of somebody who may {'change' if changes else 'export'} the project.",
                status,
            )
        if status == 404:
            raise Refused(
                f"Label Studio at {self.url} knows nothing of {what}.",
                "Does the project exist there, and may the user of the API key see it?",
                status,
            )
        if 300 <= status < 400:
            raise Refused(
                f"{self.url} sends {what} on to {answer.headers.get('Location', 'another address')}.",
                "Give the address that Label Studio has itself, https:// included.",
                status,
            )
        said = _said(answer)
        sentence = f"Label Studio at {self.url} answered {status} when asked for {what}{f': {said}' if said else ''}."
        if status >= 500 and (changes or status in PASSING):
            raise Unclear(sentence, "Try again later; its log may say more.", over=status not in PASSING)
        hints = {400: "Correct what it does not like; its log may say more."}
        hint = "Try again later; its log may say more." if status >= 500 else hints.get(status, "Is that its address?")
        raise Refused(sentence, hint, status)


def connect(url: str, key: str | None = None) -> Studio:
    """The Label Studio at `url`; without `key` the environment's LABEL_STUDIO_API_KEY is used.

    A legacy token and a personal access token will both do. Raises LsmlError or UsageError with a sentence; whether the
    key is good shows with the first question.
    """
    key = key if key is not None else os.environ.get(API_KEY, "")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is not the address of a Label Studio.", "Write http:// or https:// before the host.")
    if not key.strip():
        raise LsmlError(
            f"Label Studio at {url} wants an API key, and {API_KEY} is not set here.",
            f"Set it to a token of Label Studio's Account & Settings: export {API_KEY}=…",
        )
    login = Login(url, key)

    import httpx

    # A call may take an hour in which not a byte travels. A connection that died meanwhile has to be noticed.
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ALIVE_AFTER))
    transport = httpx.HTTPTransport(proxy=_proxy(login), socket_options=options)
    # A redirect is not followed: a POST would arrive as a GET, and the key at another host.
    return Studio(url, login, httpx.Client(transport=transport))


def _proxy(login: Login) -> str | None:
    """That of the environment (HTTPS_PROXY, NO_PROXY), which a client with a transport of its own does not see."""
    from urllib.request import getproxies, proxy_bypass

    return None if proxy_bypass(login.host[0]) else getproxies().get(login.url.partition(":")[0])


@contextmanager
def _explained(url: str, what: str, changes: bool) -> Iterator[None]:
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
        raise Unclear(f"Label Studio at {url} gave no answer about {what} in time.", "Try again later.") from error
    except httpx.HTTPError as error:
        raise Unclear(
            f"The connection to Label Studio at {url} broke off over {what}: {str(error).rstrip('.')}.", "Try again."
        ) from error


def _bad_key(url: str) -> LsmlError:
    return Refused(
        f"Label Studio at {url} does not accept the API key.",
        f"Set {API_KEY} to a token that is valid there; {url} shows them under Account & Settings.",
        401,
    )


def _authorized(header: str | None) -> dict[str, str]:
    return {"Authorization": header} if header else {}


def _timeout(seconds: float) -> httpx.Timeout:
    import httpx

    return httpx.Timeout(seconds, connect=CONNECT_WITHIN)


def _retry_after(header: str | None, waited: float) -> float:
    """Seconds to wait: what the server says, or more and more where it says nothing or a date."""
    try:
        return max(0.1, float(header or ""))
    except ValueError:
        return max(1.0, waited)


def _said(answer: httpx.Response) -> str:
    """What an error says, on one line."""
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return ""  # a page for a browser
    detail = body.get("detail") if isinstance(body, dict) else body
    more = body.get("validation_errors") if isinstance(body, dict) else None
    text = f"{detail}: {more}" if detail and more else str(detail or more or "")
    return " ".join(text.split())[:300].rstrip(".")


def _ends_as_a_list(path: Path) -> bool:
    """Whether the last sign of a file is the end of a JSON array."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - CHUNK))
        return file.read().rstrip().endswith(b"]")
