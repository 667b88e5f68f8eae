"""Query and delete the predictions that a project holds of one model version."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from lsml_cli.errors import LsmlError
from lsml_cli.label_studio.client import LabelStudioClient, OutcomeUnknown, RequestRejected
from lsml_cli.label_studio.task_pages import Condition, condition, list_tasks

MAX_DELETE_ATTEMPTS = 3  # requests to delete a version before the deletion is given up


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

    def delete(self, prediction: Mapping[str, Any], description: str) -> None:
        """Delete one stored prediction; it does not matter if it is gone already."""
        try:
            self._client.mutate_idempotent("DELETE", f"/api/predictions/{prediction['id']}/", description)
        except RequestRejected as error:
            if error.status != 404:
                raise

    def delete_all(self, count: int) -> int:
        """Delete every prediction of this version in one request.

        Args:
            count: How many there are; the server gets time in proportion.

        Returns:
            How many were deleted.

        Raises:
            LsmlError: The server did not finish; the deletion may be repeated.
        """
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

    @property
    def _version_condition(self) -> Condition:
        return condition("predictions_model_versions", "contains", "List", [self._version])
