"""Talk to a Label Studio through its SDK, with errors that say whether a request may have had an effect.

Lists of tasks and imports go through the SDK's raw client, without its models: reading 1,000 tasks into these takes 43
ms instead of 1, and what is imported waits on the disk as bytes. So does what the SDK has no call for: model versions.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from lsml_cli.errors import LsmlError, OutputError, UsageError
from lsml_cli.label_studio.request_errors import OutcomeUnknown, RequestRejected, translate_errors
from lsml_cli.media.credentials import API_KEY_ENV_VAR, LabelStudioCredentials
from lsml_cli.runtime import Retrier, install_hint, open_for_writing

if TYPE_CHECKING:
    from label_studio_sdk.base_client import LabelStudioBase
    from label_studio_sdk.core.http_response import HttpResponse
    from label_studio_sdk.core.request_options import RequestOptions

    from lsml_cli.label_studio.http_client import LabelStudioHttpClient

RESPONSE_TIMEOUT = 60.0  # seconds, for requests that a server answers at once
EXPORT_TIMEOUT = 3600.0  # seconds; Label Studio writes 500 tasks a second and sends nothing before the last one
PAGE_TIMEOUT = 600.0  # seconds, for a page of tasks
LIST_TIMEOUT = 10.0  # seconds, for a page of the projects, or a project's backends
ACTIVATION_TIMEOUT = 300.0  # seconds
CHUNK_BYTES = 1 << 16  # bytes
RETRY_DELAYS = (0.5, 2.0, 5.0)  # seconds before each retry of a request that may be repeated
MAX_PROJECT_PAGES = 1000

T = TypeVar("T")


class LabelStudioClient:
    """A client for one Label Studio, acting as the user that the API key belongs to.

    Every method that sends a request raises LsmlError if it fails. Imports, and the deletion of a version, are sent
    once: they raise OutcomeUnknown if they may have had an effect, RequestRejected if they have none. The others are
    sent again if the connection or a proxy fails.
    """

    def __init__(self, url: str, sdk: LabelStudioBase, http_client: LabelStudioHttpClient) -> None:
        self.url = url
        self._sdk = sdk
        self._http_client = http_client

    def get_project(self, project_id: int) -> dict[str, Any]:
        """Return the JSON description of a project."""
        get = self._sdk.projects.with_raw_response.get
        description = f"project {project_id}"
        return self._call(description, lambda options: _parse(get(project_id, request_options=options), "id"))

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

    def list_project_ids(self) -> list[int]:
        """Return the ids of all projects."""
        ids: list[int] = []
        for page in itertools.count(1):  # the SDK's own pages end only after one that is empty, or missing

            def list_page(options: RequestOptions, page: int = page) -> tuple[list[int], bool]:
                answer = self._sdk.projects.list(page=page, page_size=100, include="id", request_options=options)
                return [project.id for project in answer.items], bool(answer.response.next)

            page_ids, has_next = self._call("its projects", list_page, LIST_TIMEOUT)
            ids += page_ids
            if not has_next or page == MAX_PROJECT_PAGES:
                break
        return ids

    def list_backend_urls(self, project_id: int) -> list[str]:
        """Return the addresses of the backends that are connected to a project; none if there is no such project.

        Label Studio asks each of them for its health first, and introduces the project.
        """

        def list_urls(options: RequestOptions) -> list[str]:
            return [backend.url for backend in self._sdk.ml.list(project=project_id, request_options=options)]

        try:
            return self._call(f"the models of project {project_id}", list_urls, LIST_TIMEOUT)
        except RequestRejected as error:
            if error.status == 404:
                return []
            raise

    def get_view(self, view_id: int) -> dict[str, Any]:
        """Return a tab of the Data Manager."""
        get = self._sdk.views.with_raw_response.get
        return self._call(f"view {view_id}", lambda options: _parse(get(str(view_id), request_options=options)))

    def list_tasks(self, project_id: int, params: Mapping[str, str | int]) -> tuple[list[dict[str, Any]], int]:
        """Return a page of a project's tasks, by the parameters of the API, and how many tasks all pages have."""

        def list_page(options: RequestOptions) -> tuple[list[dict[str, Any]], int]:
            query = {"project": project_id, **params}
            answer = self._send_raw("GET", "api/tasks/", options, params=query)
            return list(answer["tasks"]), int(answer["total"])

        return self._call(f"the tasks of project {project_id}", list_page, PAGE_TIMEOUT)

    def export_tasks(self, project_id: int, task_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return tasks as in Label Studio's JSON export, in no order; those that do not exist are left out."""

        def export(options: RequestOptions) -> list[dict[str, Any]]:
            options["additional_query_parameters"] = {"ids[]": list(task_ids)}  # Label Studio ignores the SDK's `ids`
            download = self._sdk.projects.exports.download_sync
            chunks = download(project_id, export_type="JSON", download_all_tasks=True, request_options=options)
            return list(orjson.loads(self._http_client.read_bounded(chunks)))

        return self._call(f"the tasks of project {project_id}", export, EXPORT_TIMEOUT)

    def download_annotated(self, project_id: int, path: Path) -> None:
        """Write Label Studio's JSON export of the annotated tasks of a project to a file, as it comes.

        Raises:
            LsmlError: The download is incomplete, or failed.
            OutputError: The file cannot be written.
        """
        description = f"the annotations of project {project_id}"
        options: RequestOptions = {"timeout": EXPORT_TIMEOUT, "chunk_size": CHUNK_BYTES}
        try:
            with open_for_writing(path) as file, translate_errors(self.url, description, is_mutation=False):
                download = self._sdk.projects.exports.download_sync
                file.writelines(download(project_id, export_type="JSON", request_options=options))
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.", "Is there room on the disk?") from error
        if not _is_complete_json_array(path):
            raise LsmlError(
                f"{self.url} has sent the annotations of project {project_id} only in part.",
                "Try again; what was there before is unchanged.",
            )

    def count_versions(self, project_id: int) -> dict[str, int]:
        """Return how many predictions of each model version a project has."""

        def count(options: RequestOptions) -> dict[str, int]:
            path = f"api/projects/{project_id}/model-versions/"
            answer = self._send_raw("GET", path, options, params={"extended": "true"})
            return {str(entry["model_version"]): int(entry["count"]) for entry in answer.get("static") or ()}

        return self._call(f"the versions in project {project_id}", count)

    def import_predictions(self, project_id: int, body: bytes, count: int, timeout: float) -> int | None:
        """Import a JSON array of `count` predictions; return how many were created, None if that is not said."""
        path = f"api/projects/{project_id}/import/predictions"
        return self._change_once("POST", path, f"the import of {count:,} predictions", body, timeout, "created")

    def import_tasks(self, project_id: int, body: bytes, count: int, timeout: float) -> int | None:
        """Import a JSON array of `count` tasks; return how many were created, None if that is not said."""
        path = f"api/projects/{project_id}/import"
        return self._change_once("POST", path, f"the import of {count:,} tasks", body, timeout, "task_count")

    def delete_version(self, project_id: int, version: str, timeout: float) -> int | None:
        """Delete the predictions of a model version; return how many there were, None if that is not said."""
        path, body = f"api/projects/{project_id}/model-versions/", orjson.dumps({"model_version": version})
        return self._change_once("DELETE", path, f"the predictions of {version}", body, timeout, "deleted_predictions")

    def delete_prediction(self, prediction_id: int) -> bool:
        """Delete a prediction; return whether it was still there."""
        description, delete = f"prediction {prediction_id}", self._sdk.predictions.delete
        try:
            self._call(description, lambda options: delete(prediction_id, request_options=options), is_mutation=True)
        except RequestRejected as error:
            if error.status != 404:
                raise
            return False
        return True

    def show_version(self, project_id: int, version: str) -> None:
        """Make a project show the predictions of a version, or of the ML backend with that title."""
        update = self._sdk.projects.update
        self._call(
            f"the version that project {project_id} shows",
            lambda options: update(project_id, model_version=version, request_options=options),
            ACTIVATION_TIMEOUT,
            is_mutation=True,
        )

    def _call(
        self,
        description: str,
        send: Callable[[RequestOptions], T],
        timeout: float = RESPONSE_TIMEOUT,
        *,
        is_mutation: bool = False,
        is_repeatable: bool = True,
    ) -> T:
        """Send a request through the SDK, again if the connection or a proxy fails and it may be repeated.

        Args:
            description: What is requested, for messages: "project 3".
            send: Sends it with these options. What it finds unexpected in the answer is a KeyError, TypeError, ….
            timeout: Seconds to wait for the answer.
            is_mutation: Whether it changes something.
            is_repeatable: Whether sending it twice does no harm.
        """

        def send_once() -> T:
            with translate_errors(self.url, description, is_mutation):
                return send({"timeout": timeout})

        if not is_repeatable:
            return send_once()
        try:
            return Retrier(RETRY_DELAYS, lambda error: isinstance(error, OutcomeUnknown)).call(send_once)
        except OutcomeUnknown as error:
            raise LsmlError(error.message, error.hint) from error

    def _change_once(
        self, method: str, path: str, description: str, body: bytes, timeout: float, count_key: str
    ) -> int | None:
        """Send a request that must not be repeated; return a count in its answer, None if there is none."""

        def change(options: RequestOptions) -> int | None:
            headers = {"Content-Type": "application/json"}
            answer = self._send_raw(method, path, options, content=body, headers=headers)
            count = answer.get(count_key) if isinstance(answer, dict) else None
            return count if isinstance(count, int) else None

        return self._call(description, change, timeout, is_mutation=True, is_repeatable=False)

    def _send_raw(self, method: str, path: str, options: RequestOptions, **request: Any) -> Any:
        """Send a request by the SDK's raw client, without its models; return the answer's JSON, None without."""
        raw_client = self._sdk._client_wrapper.httpx_client
        response = raw_client.request(path, method=method, request_options=options, **request)
        return orjson.loads(response.content) if response.content else None


@contextmanager
def connect(url: str, key: str | None = None) -> Iterator[LabelStudioClient]:
    """Provide a client for the Label Studio at `url` in a `with` statement. No request is sent yet.

    Args:
        url: Address, with http:// or https://.
        key: A legacy token or a personal access token; by default the environment's LABEL_STUDIO_API_KEY.

    Raises:
        UsageError: `url` is not an address.
        LsmlError: There is no key, or the SDK is not installed.
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
    require_sdk()

    # What `label_studio_sdk.LabelStudio` adds to its base is not used here (tables, label interfaces, pages that end at
    # any 404), and costs a second to import instead of 0.3: pandas, among others.
    from label_studio_sdk.base_client import LabelStudioBase

    from lsml_cli.label_studio.http_client import LabelStudioHttpClient

    with LabelStudioHttpClient(credentials, RESPONSE_TIMEOUT) as http_client:
        sdk = LabelStudioBase(
            base_url=credentials.url,
            api_key="set by the HTTP client",
            httpx_client=http_client,
            timeout=RESPONSE_TIMEOUT,
            max_retries=0,  # it would send a POST again whose connection broke
        )
        yield LabelStudioClient(url, sdk, http_client)


def require_sdk() -> None:
    """Raise LsmlError if the SDK is not installed."""
    try:
        import label_studio_sdk  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "label_studio_sdk":
            raise
        message = "Talking to Label Studio needs the package label-studio-sdk."
        raise LsmlError(message, install_hint("lsml[studio]")) from None


def _parse(answer: HttpResponse[Any], *required_keys: str) -> dict[str, Any]:
    """Return the JSON object of an answer as it came; raise KeyError if it lacks a key, TypeError if it is none."""
    content = dict(orjson.loads(answer.response.content))
    for key in required_keys:
        content[key]
    return content


def _is_complete_json_array(path: Path) -> bool:
    """Return whether a file ends like a JSON array."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - CHUNK_BYTES))
        return file.read().rstrip().endswith(b"]")
