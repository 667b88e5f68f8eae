"""Query and delete the predictions that a project holds of one model version.

Label Studio 1.23.2 has no request that deletes several given predictions: its bulk deletions take a whole version, or
all predictions of a task (the action `delete_tasks_predictions`), those of other models included. Measured there
(sqlite, 2 cores): single deletions 10 a second one at a time, 20 with two at a time, 11 with four or eight; a whole
version 108 a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from lsml_cli.errors import LsmlError
from lsml_cli.label_studio.client import LabelStudioClient, OutcomeUnknown, RequestRejected
from lsml_cli.label_studio.task_pages import PAGE_SIZE, Condition, condition, list_tasks

MAX_DELETE_ATTEMPTS = 3  # requests to delete a version before the deletion is given up
ACTIVATION_TIMEOUT = 300.0  # seconds
PARALLEL_DELETIONS = 2  # single predictions that are deleted at a time; more bring nothing


class ProjectPredictions:
    """The predictions of one version in one project. Every method sends requests; nothing is cached."""

    def __init__(self, client: LabelStudioClient, project: int, version: str) -> None:
        self._client = client
        self._project = project
        self._version = version

    def count_versions(self) -> dict[str, int]:
        """Return how many predictions of each version the project has."""
        path = f"/api/projects/{self._project}/model-versions/"
        response = self._client.get(path, f"the versions in project {self._project}", {"extended": "true"})
        return {str(entry["model_version"]): int(entry["count"]) for entry in response.get("static") or ()}

    def count(self) -> int:
        """Return how many predictions of this version the project has."""
        return self.count_versions().get(self._version, 0)

    def task_ids(self) -> array[int]:
        """Return the ids of the tasks that have a prediction of this version, ascending."""
        ids = array("q")
        # The task list finds versions by a part of their names and ignores case.
        has_similar = any(
            self._version.lower() in version.lower() and version != self._version for version in self.count_versions()
        )
        if has_similar:
            ids.extend(task_id for task_id, _ in self.iter_stored())
            return ids
        for page in list_tasks(self._client, self._project, [self._version_condition]):
            ids.extend(task["id"] for task in page.tasks)
        return ids

    def iter_stored(
        self, task_ids: array[int] | None = None, *, only_multiple: bool = False
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield the id of each task that has predictions of this version, and these in full.

        Args:
            task_ids: Only tasks from the first of these ids to the last; ascending.
            only_multiple: Only tasks with more than one prediction of any version.
        """
        conditions = [self._version_condition]
        if only_multiple:
            conditions.append(condition("total_predictions", "greater", "Number", 1))
        if task_ids:
            conditions.append(condition("id", "in", "Number", {"min": task_ids[0], "max": task_ids[-1]}))
        for page in list_tasks(self._client, self._project, conditions, include=None):
            for task in page.tasks:
                stored = [
                    prediction for prediction in task["predictions"] if prediction.get("model_version") == self._version
                ]
                if stored:
                    yield task["id"], stored

    def delete(self, prediction_ids: Iterable[int]) -> Iterator[bool]:
        """Delete exactly these predictions, a few at a time; yield for each whether it was still there."""
        remaining = iter(prediction_ids)
        executor = ThreadPoolExecutor(PARALLEL_DELETIONS, "delete")
        try:
            while chunk := list(islice(remaining, PAGE_SIZE)):
                yield from executor.map(self._delete_one, chunk)
        finally:
            executor.shutdown(cancel_futures=True)

    def _delete_one(self, prediction_id: int) -> bool:
        try:
            self._client.mutate_idempotent(
                "DELETE", f"/api/predictions/{prediction_id}/", f"prediction {prediction_id} of {self._version}"
            )
        except RequestRejected as error:
            if error.status != 404:
                raise
            return False  # another push has deleted it
        return True

    def delete_all(self, count: int) -> int:
        """Delete every prediction of this version in one request.

        Label Studio also forgets which version the project shows if that is a connected ML backend; it is set again.

        Args:
            count: How many there are; the server gets time in proportion.

        Returns:
            How many were deleted.

        Raises:
            LsmlError: The server did not finish; the deletion may be repeated.
        """
        shown = self._shown_version()
        deleted = self._delete_version(count)
        if shown not in ("", self._version) and self._shown_version() != shown:
            show_version(self._client, self._project, shown)
        return deleted

    def _delete_version(self, count: int) -> int:
        path = f"/api/projects/{self._project}/model-versions/"
        description = f"the predictions of {self._version}"
        body = {"model_version": self._version}
        for _ in range(MAX_DELETE_ATTEMPTS):
            try:
                response = self._client.mutate("DELETE", path, description, body, timeout=600 + 0.1 * count)
                return int(response["deleted_predictions"]) if isinstance(response, dict) else count
            except OutcomeUnknown as error:
                problem = error
                if not self.count():
                    return count
        raise LsmlError(problem.message, "Run the same again: it deletes what is left.") from problem

    def _shown_version(self) -> str:
        return self._client.get_project(self._project).get("model_version") or ""

    @property
    def _version_condition(self) -> Condition:
        return condition("predictions_model_versions", "contains", "List", [self._version])


def show_version(client: LabelStudioClient, project: int, version: str) -> None:
    """Make a project show the predictions of a version, or of the ML backend with that title."""
    client.mutate_idempotent(
        "PATCH",
        f"/api/projects/{project}/",
        f"the version that project {project} shows",
        {"model_version": version},
        timeout=ACTIVATION_TIMEOUT,
    )
