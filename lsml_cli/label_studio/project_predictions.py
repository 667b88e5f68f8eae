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
from lsml_cli.label_studio.client import LabelStudioClient
from lsml_cli.label_studio.request_errors import OutcomeUnknown
from lsml_cli.label_studio.task_pages import PAGE_SIZE, Condition, condition, list_tasks

MAX_DELETE_ATTEMPTS = 3  # requests to delete a version before the deletion is given up
PARALLEL_DELETIONS = 2  # single predictions that are deleted at a time; more bring nothing


class ProjectPredictions:
    """The predictions of one version in one project. Every method sends requests; nothing is cached."""

    def __init__(self, client: LabelStudioClient, project: int, version: str) -> None:
        self._client = client
        self._project = project
        self._version = version

    def count(self) -> int:
        """Return how many predictions of this version the project has."""
        return self._client.count_versions(self._project).get(self._version, 0)

    def task_ids(self) -> array[int]:
        """Return the ids of the tasks that have a prediction of this version, ascending."""
        ids = array("q")
        # The task list finds versions by a part of their names and ignores case.
        others = self._client.count_versions(self._project).keys() - {self._version}
        if any(self._version.lower() in version.lower() for version in others):
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
                yield from executor.map(self._client.delete_prediction, chunk)
        finally:
            executor.shutdown(cancel_futures=True)

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
            self._client.show_version(self._project, shown)
        return deleted

    def _delete_version(self, count: int) -> int:
        for _ in range(MAX_DELETE_ATTEMPTS):
            try:
                deleted = self._client.delete_version(self._project, self._version, timeout=600 + 0.1 * count)
                return count if deleted is None else deleted
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
