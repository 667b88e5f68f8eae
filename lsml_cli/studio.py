"""Label Studio over its API; besides models/scripts the only importer of label_studio_sdk.

Importing that package and making its client takes two seconds and 150 MB, so `connect` does it and nothing before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from lsml_cli.errors import LsmlError, OutputError, UsageError

if TYPE_CHECKING:
    import httpx
    from label_studio_sdk import LabelStudio

API_KEY = "LABEL_STUDIO_API_KEY"  # the environment variable; the key stands in no file and in no argument

CONNECT_WITHIN = 10.0  # seconds
ANSWER_WITHIN = 60.0  # seconds, for what a server knows at once
EXPORT_WITHIN = 3600.0  # seconds; Label Studio writes about 500 tasks a second, and sends nothing before the last
CHUNK = 1 << 16  # bytes


class Studio:
    """One Label Studio, as the user that the key belongs to. Every question raises LsmlError with a sentence.

    Use it in a `with`, or `close` it.
    """

    def __init__(self, url: str, client: LabelStudio, http: httpx.Client) -> None:
        self.url = url
        self._client = client
        self._http = http

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def label_config(self, project: int) -> str:
        """The labelling XML of a project."""
        with explained(self.url, f"project {project}"):
            found: object = getattr(self._client.projects.get(project), "label_config", None)
        if not isinstance(found, str) or not found.strip():
            raise LsmlError(
                f"Project {project} at {self.url} has no label config.",
                "Set one up in Label Studio: Settings -> Labeling Interface.",
            )
        return found

    def download_annotated(self, project: int, path: Path) -> None:
        """Write the tasks of a project that have annotations to a file, as Label Studio's JSON export has them.

        What the file holds is whole: a download that broke off is an error.
        """
        options = {"timeout_in_seconds": EXPORT_WITHIN, "chunk_size": CHUNK, "max_retries": 0}
        try:
            with explained(self.url, f"the annotations of project {project}"), path.open("wb") as file:
                exports = self._client.projects.exports
                for chunk in exports.download_sync(project, export_type="JSON", request_options=options):  # type: ignore[arg-type]
                    file.write(chunk)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.", "Is there room on the disk?") from error
        if not _ends_as_a_list(path):
            raise LsmlError(
                f"{self.url} has sent the annotations of project {project} only in part.",
                "Try again; what was there before is unchanged.",
            )


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
    try:
        import label_studio_sdk
    except ModuleNotFoundError as error:
        if error.name != "label_studio_sdk":
            raise
        raise LsmlError(
            "Talking to Label Studio needs the package label-studio-sdk.", "pip install 'lsml[studio]'"
        ) from None
    import httpx

    http = httpx.Client(timeout=httpx.Timeout(ANSWER_WITHIN, connect=CONNECT_WITHIN), follow_redirects=True)
    with explained(url, "its API"):
        client: LabelStudio = label_studio_sdk.LabelStudio(  # type: ignore[no-untyped-call]
            base_url=f"{url.rstrip('/')}/",  # with a slash, or a sub-path is lost when a token is refreshed
            api_key=key.strip(),
            httpx_client=http,
        )
    return Studio(url, client, http)


@contextmanager
def explained(url: str, what: str) -> Iterator[None]:
    """Whatever the SDK raises inside becomes an LsmlError; `what` was asked for, "project 3"."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    try:
        yield
    except ApiError as error:
        _refused(url, what, error)
    except httpx.ConnectError as error:
        raise LsmlError(
            f"Label Studio at {url} cannot be reached: {error}.", "Is that its address, and is it up?"
        ) from error
    except httpx.TimeoutException as error:
        raise LsmlError(f"Label Studio at {url} gave no answer about {what} in time.", "Try again later.") from error
    except httpx.HTTPError as error:
        raise LsmlError(
            f"The connection to Label Studio at {url} broke off over {what}: {str(error).rstrip('.')}.", "Try again."
        ) from error


def _refused(url: str, what: str, error: Exception) -> NoReturn:
    status = getattr(error, "status_code", None)
    body = getattr(error, "body", None)
    if status == 401:
        raise LsmlError(
            f"Label Studio at {url} does not accept the API key.",
            f"Set {API_KEY} to a token that is valid there; {url} shows them under Account & Settings.",
        ) from error
    if status == 403:
        raise LsmlError(
            f"Label Studio at {url} refuses {what} to the user of the API key.",
            f"Set {API_KEY} to a token of somebody who may export the project.",
        ) from error
    if status == 404:
        raise LsmlError(
            f"Label Studio at {url} knows nothing of {what}.",
            "Does the project exist there, and may the user of the API key see it?",
        ) from error
    detail = body.get("detail") if isinstance(body, dict) else body
    said = " ".join(str(detail or "").split())[:200].rstrip(".")
    raise LsmlError(
        f"Label Studio at {url} answered {status} when asked for {what}{f': {said}' if said else ''}.",
        "Try again later; its log may say more."
        if isinstance(status, int) and status >= 500
        else "Is that its address?",
    ) from error


def _ends_as_a_list(path: Path) -> bool:
    """Whether the last sign of a file is the end of a JSON array."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - CHUNK))
        return file.read().rstrip().endswith(b"]")
