"""Parse the bodies that Label Studio sends. Every field is checked; nothing about a body is taken for granted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from lsml_cli.schema.tasks import describe_json_type
from lsml_cli.server.task_codec import RequestTask

ANNOTATION_EVENTS = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATION_DELETED",  # sent by older servers, and documented
        "ANNOTATIONS_DELETED",  # sent by Label Studio 1.23
    }
)
START_TRAINING = "START_TRAINING"

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # one half of a surrogate pair
_PROJECT_ID = re.compile(r"(\d{1,12})(?:\.\d+)?")  # "2.1795192449": the id, and the time of the project's creation


class BadRequest(Exception):
    """The body is invalid; the message is part of the answer and has no full stop."""


@dataclass(frozen=True)
class PredictRequest:
    """A body of /predict.

    Attributes:
        tasks: The tasks to predict, limited to the maximum number per request.
        label_config_xml: Labelling XML, None when the request has none.
        project: Id of the project, None when the request has none.
        is_interactive: Whether an interactive editor sent it, with a context.
    """

    tasks: list[RequestTask]
    label_config_xml: str | None
    project: int | None
    is_interactive: bool


@dataclass(frozen=True)
class WebhookEvent:
    """A body of /webhook.

    Attributes:
        annotation_count: How many annotations were created, changed or deleted.
    """

    action: str
    project: int | None
    annotation_count: int


def parse_predict_request(body: bytes, max_tasks: int) -> tuple[PredictRequest, int]:
    """Parse a body of /predict.

    Returns:
        The request with its first `max_tasks` tasks, and the number of tasks that the body has.

    Raises:
        BadRequest: The body is invalid; invalid single tasks fail later, one by one.
    """
    data = parse_json_object(body)
    tasks = data.get("tasks")
    if not isinstance(tasks, list):
        raise BadRequest(f'"tasks" is {describe_json_type(tasks)}, expected a list of tasks')
    params = data.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    if context is not None and not isinstance(context, dict):
        raise BadRequest(f'"params.context" is {describe_json_type(context)}, expected an object')
    predict_request = PredictRequest(
        [RequestTask(position, _encode_task(task), context) for position, task in enumerate(tasks[:max_tasks])],
        parse_label_config_xml(data, "label_config") or None,
        parse_project_id(data.get("project")),
        is_interactive=context is not None,
    )
    return predict_request, len(tasks)


def parse_label_config_xml(body: Mapping[str, Any], key: str) -> str | None:
    """Return the labelling XML at a key of a body, None when there is none.

    Raises:
        BadRequest: The value is no string.
    """
    config = body.get(key)
    if config is not None and not isinstance(config, str):
        raise BadRequest(f'"{key}" is {describe_json_type(config)}, expected labelling XML')
    return None if config is None else _replace_surrogates(config)


def parse_event(body: bytes) -> WebhookEvent:
    """Parse a body of /webhook.

    Raises:
        BadRequest: The body is invalid.
    """
    data = parse_json_object(body)
    action = data.get("action")
    if not isinstance(action, str):
        raise BadRequest(f'"action" is {describe_json_type(action)}, expected the name of an event')
    project = data.get("project")
    project_id = parse_project_id(project.get("id") if isinstance(project, dict) else project)
    annotation_count = 0
    if action in ANNOTATION_EVENTS:
        annotations = data.get("annotations", data.get("annotation"))
        annotation_count = len(annotations) if isinstance(annotations, list) else 1
    return WebhookEvent(action, project_id, annotation_count)


def parse_project_id(value: Any) -> int | None:
    """Return the id in "2.1795192449", "2" or 2; None for null and "".

    Raises:
        BadRequest: The value is none of these.
    """
    if value is None or value == "":
        return None
    match = _PROJECT_ID.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if match is None:
        raise BadRequest(f'"project" is {describe_json_type(value)}, expected a project\'s id')
    return int(match[1])


def parse_json_object(body: bytes) -> Mapping[str, Any]:
    """Parse a body; its strings may hold lone surrogates, see `_replace_surrogates`.

    Raises:
        BadRequest: The body is no JSON object.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        data = _parse_with_surrogates(body, error)
    if not isinstance(data, dict):
        raise BadRequest(f"the body is {describe_json_type(data)}, expected an object")
    return data


def _parse_with_surrogates(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """Parse a body that orjson rejects, with Python's parser, which accepts lone surrogates.

    A text that was cut in the middle of an emoji ends with one. Label Studio sends it unchanged, and one such task must
    not fail all others.

    Args:
        error: What orjson reported.
    """
    if not _SURROGATE.search(body):
        raise BadRequest(f"the body is not JSON: {error}") from None
    try:
        return json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as python_error:
        raise BadRequest(f"the body is not JSON: {python_error}") from None


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _encode_task(task: Any) -> bytes:
    """Serialize a task for the replica.

    A task that cannot be serialized becomes null, and fails like any other value that is no task. A lone surrogate
    becomes a question mark: one character for one, so that offsets into the text stay valid.
    """
    try:
        return orjson.dumps(task)
    except orjson.JSONEncodeError:
        pass
    try:
        return json.dumps(task, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return b"null"


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, by question marks."""
    return text.encode("utf-8", "replace").decode()
