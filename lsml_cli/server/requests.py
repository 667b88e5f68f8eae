"""What Label Studio sends, taken apart. Nothing in a body is trusted to be what it should be."""

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
        "ANNOTATION_DELETED",  # what older servers and the documentation say
        "ANNOTATIONS_DELETED",  # what Label Studio 1.23 sends
    }
)
START_TRAINING = "START_TRAINING"

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a character, or a whole one in two halves
_PROJECT_ID = re.compile(r"(\d{1,12})(?:\.\d+)?")  # "2.1795192449": the id, and when the project was made


class BadRequest(Exception):
    """A sentence for whoever sent it."""


@dataclass(frozen=True)
class PredictRequest:
    """A body of /predict. `config` is labelling XML, None where the request has none."""

    tasks: list[RequestTask]
    label_config_xml: str | None
    project: int | None
    is_interactive: bool


@dataclass(frozen=True)
class WebhookEvent:
    """A body of /webhook. `annotations` were created, changed or deleted."""

    action: str
    project: int | None
    annotation_count: int


def parse_predict_request(body: bytes, max_tasks: int) -> tuple[PredictRequest, int]:
    """The request, and how many tasks it has; those beyond `most_tasks` are left out of it. Raises BadRequest."""
    found = parse_json_object(body)
    tasks = found.get("tasks")
    if not isinstance(tasks, list):
        raise BadRequest(f'"tasks" is {describe_json_type(tasks)}, expected a list of tasks')
    params = found.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    if context is not None and not isinstance(context, dict):
        raise BadRequest(f'"params.context" is {describe_json_type(context)}, expected an object')
    config = parse_label_config_xml(found, "label_config")
    asked = [RequestTask(position, _encode_task(task), context) for position, task in enumerate(tasks[:max_tasks])]
    return PredictRequest(asked, config or None, parse_project_id(found.get("project")), context is not None), len(
        tasks
    )


def parse_label_config_xml(body: Mapping[str, Any], key: str) -> str | None:
    """The labelling XML that a body has under a key. Raises BadRequest."""
    config = body.get(key)
    if config is not None and not isinstance(config, str):
        raise BadRequest(f'"{key}" is {describe_json_type(config)}, expected labelling XML')
    return None if config is None else _replace_surrogates(config)


def parse_event(body: bytes) -> WebhookEvent:
    """Raises BadRequest."""
    found = parse_json_object(body)
    action = found.get("action")
    if not isinstance(action, str):
        raise BadRequest(f'"action" is {describe_json_type(action)}, expected the name of an event')
    project = found.get("project")
    number = parse_project_id(project.get("id") if isinstance(project, dict) else project)
    annotations = 0
    if action in ANNOTATION_EVENTS:
        several = found.get("annotations", found.get("annotation"))
        annotations = len(several) if isinstance(several, list) else 1
    return WebhookEvent(action, number, annotations)


def parse_project_id(value: Any) -> int | None:
    """The id in "2.1795192449", "2" or 2; None for nothing. Raises BadRequest."""
    if value is None or value == "":
        return None
    match = _PROJECT_ID.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if match is None:
        raise BadRequest(f'"project" is {describe_json_type(value)}, expected a project\'s id')
    return int(match[1])


def parse_json_object(body: bytes) -> Mapping[str, Any]:
    """Raises BadRequest when a body is not a JSON object. A text in it may hold halves of characters, see `_text`."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        found = _parse_with_surrogates(body, error)
    if not isinstance(found, dict):
        raise BadRequest(f"the body is {describe_json_type(found)}, expected an object")
    return found


def _parse_with_surrogates(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """A body that orjson refuses, as Python reads it. A text that was cut in the middle of an emoji ends in half of it:
    Label Studio sends that as it is, and one such task must not cost all others their predictions.
    """
    if not _SURROGATE.search(body):
        raise BadRequest(f"the body is not JSON: {error}") from None
    try:
        return json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as other:
        raise BadRequest(f"the body is not JSON: {other}") from None


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _encode_task(task: Any) -> bytes:
    """A task as it travels. What cannot be written down becomes null, and fails in its place as whatever is no task.

    A half of a character becomes a question mark, so that everything after it stays where it is in the text.
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
    """A text without halves of characters, which nothing could write down."""
    return text.encode("utf-8", "replace").decode()
