"""Log lines about predictions: failed tasks, requests that were cut, and names of projects and tasks in them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import orjson

from lsml_cli.errors import format_list
from lsml_cli.schema.failure_causes import MAX_SHOWN_CAUSES, FailureCauses
from lsml_cli.schema.predictions import Failure
from lsml_cli.server.batching import TIMED_OUT
from lsml_cli.server.requests import PredictRequest
from lsml_cli.server.task_codec import FailedTask, RequestTask

log = logging.getLogger("lsml.serve")


def describe_project(project: int | str | None, none: str = "Unknown project") -> str:
    """Return "Project 3", or `none` for no project."""
    return none if project is None else f"Project {project}"


def describe_tasks(task_count: int, project: int | None) -> str:
    """Return "1,200 tasks of project 3"."""
    return f"{task_count:,} {'task' if task_count == 1 else 'tasks'} of {describe_project(project).lower()}"


def log_unpredicted_tasks(
    results: Sequence[Any], predict_request: PredictRequest, task_count: int, deadline: float, model_version: str
) -> None:
    """Log which tasks of a request have no prediction, and why.

    Args:
        results: One for each of `task_count` tasks, see `PendingRequest`; TIMED_OUT for those beyond the limit.
        task_count: Number of tasks that the request had before it was cut to the limit.
        deadline: Seconds after which the request was answered.
    """
    _log_failed_tasks(results, predict_request)
    over_limit = task_count - len(predict_request.tasks)
    if over_limit:
        log.warning(
            "A request has %s; the last %d are left for a later one. To allow larger requests: --max-tasks N.",
            describe_tasks(task_count, predict_request.project),
            over_limit,
        )
    late = sum(result is TIMED_OUT for result in results) - over_limit
    if late:
        log.warning(
            "After %.0f s, %d of %s are left for the next request. "
            "To predict all of a large project: lsml predict EXPORT.json --model MODEL (now %s).",
            deadline,
            late,
            describe_tasks(task_count, predict_request.project),
            model_version,
        )


def _log_failed_tasks(results: Sequence[Any], predict_request: PredictRequest) -> None:
    project = describe_project(predict_request.project)
    failures = [
        (position, _failed_task_id(result, predict_request.tasks[position]), _failure(result))
        for position, result in enumerate(results)
        if isinstance(result, FailedTask | Failure)
    ]
    causes = FailureCauses()
    for position, task_id, failure in failures:
        task_name = f"task {task_id}" if task_id is not None else f"task at position {position + 1}, without an id,"
        causes.add(failure.stage, failure.reason, task_name)
    for cause in causes.most_common()[:MAX_SHOWN_CAUSES]:
        tasks = cause.example if cause.count == 1 else f"{cause.count:,} tasks, such as {cause.example.rstrip(',')},"
        log.warning("%s: %s failed (%s): %s", project, tasks, cause.stage, cause.reason)
    if len(failures) > len(causes):
        ids = (str(task_id) for _, task_id, _ in failures)
        log.warning("%s: all %d tasks that failed: %s", project, len(failures), format_list(ids, 100))


def _failure(result: FailedTask | Failure) -> Failure:
    return result if isinstance(result, Failure) else result.failure


def _failed_task_id(result: FailedTask | Failure, request_task: RequestTask) -> int | None:
    return result.id if isinstance(result, FailedTask) else _parse_task_id(request_task)


def _parse_task_id(request_task: RequestTask) -> int | None:
    try:
        task = orjson.loads(request_task.body)
    except orjson.JSONDecodeError:  # integers beyond 64 bits, which Python writes and orjson does not read
        return None
    task_id = task.get("id") if isinstance(task, dict) else None
    return task_id if type(task_id) is int else None
