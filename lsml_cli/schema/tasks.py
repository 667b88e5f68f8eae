"""Tasks, annotations, and records that are no task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

DATA_PREFIX = "_data_"  # what the CSV export puts before a key of the data that is also the name of a control
# Columns of the exports JSON_MIN and CSV beside the data and the results of one annotation.
EXPORT_ROW_FIELDS = frozenset(
    {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
)


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        index: Position in the input, from 0.
        id: Id in Label Studio, None for a task that is not there yet.
        data: What the `$variables` of the label config refer to.
        raw: The whole object as it was read.
        project: Id of the project.
        context: What an interactive editor sent with the task, {"result": [regions that were just drawn]}; None for a
            task that nobody draws on.

    Example:
        >>> task = next(read_tasks("tasks.json"))
        >>> task.data["text"]
        'Shares fell on Monday'
    """

    index: int
    id: int | None
    data: Mapping[str, Any]
    raw: Mapping[str, Any]
    project: str | None = None
    context: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation of a task.

    Attributes:
        id: Id in Label Studio.
        result: Label Studio's region objects.
        ground_truth: Marked as ground truth in Label Studio.
        cancelled: The annotator skipped the task.
    """

    id: int | None
    result: Sequence[Mapping[str, Any]]
    ground_truth: bool = False
    cancelled: bool = False


_REGION_NAMES = ("id", "from_name", "to_name", "type")


def parse_regions(result: object) -> list[Mapping[str, Any]]:
    """Return the regions of a stored result, safe to look up by their names and ids.

    A name or an id that is not a text is dropped. An item that is no region keeps its place as an empty one, which
    belongs to no control: without it, the result might look like the answer that nothing is there.
    """
    return [_parse_region(region) for region in result] if isinstance(result, list) else []


def _parse_region(region: object) -> Mapping[str, Any]:
    if not isinstance(region, Mapping):
        return {}
    invalid = {name for name in _REGION_NAMES if not isinstance(region.get(name, ""), str)}
    return {name: field for name, field in region.items() if name not in invalid} if invalid else region


class AnnotatedTask(NamedTuple):
    """A task and its selected annotation.

    Attributes:
        task: The task, without its annotations and predictions.
        annotation: The annotation to learn from.

    Example:
        >>> for task, annotation in train:
        ...     labels = [label for region in annotation.result for label in region["value"]["choices"]]
    """

    task: Task
    annotation: Annotation


class MissingDataError(ValueError):
    """A task without data to predict from; it keeps its place in the output."""

    def __init__(self, message: str, task: Task) -> None:
        super().__init__(message)
        self.task = task


class UnreadableRecord(NamedTuple):
    """A record of the input that is no task.

    Attributes:
        index: Position in the input, from 0.
        location: Where it stands: "line 12".
        reason: Why it is no task.
        truncated: Whether the input cannot be read any further, so that all later tasks are lost.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    location: str
    reason: str
    truncated: bool = False


def parse_id(value: object) -> int | None:
    """Return an id, which in CSV is text; None for anything but a whole number."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) else as_id(value)


def as_id(value: object) -> int | None:
    """Return an id as JSON holds it: a whole number of 64 bits; None for anything else."""
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def describe_json_type(value: object) -> str:
    """Describe the type of a JSON value: "a list", "null", "a number (5)"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"a number ({value})"
    return {"str": "a string", "list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)


def is_export_row(item: Mapping[str, Any]) -> bool:
    """Return whether this is a row of the CSV export or of JSON_MIN: an annotation beside the data of its task."""
    return "annotation_id" in item and "annotator" in item and not isinstance(item.get("data"), dict)
