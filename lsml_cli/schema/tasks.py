"""Tasks and annotations, and how they come out of records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# What the exports JSON_MIN and CSV put beside the data and the results of one annotation.
EXPORT_ROW_FIELDS = frozenset(
    {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
)


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    index    position in the input, from 0
    data     what the label config's `$variables` refer to
    raw      the whole object as it was read
    context  what an interactive editor sent along
    """

    index: int
    id: int | None
    data: Mapping[str, Any]
    raw: Mapping[str, Any]
    project: str | None = None
    context: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation of a task. `result` holds Label Studio's region objects as they were stored."""

    id: int | None
    result: Sequence[Mapping[str, Any]]
    ground_truth: bool = False
    cancelled: bool = False


class AnnotatedTask(NamedTuple):
    """A task and the annotation that counts."""

    task: Task
    annotation: Annotation


class MissingDataError(ValueError):
    """A task that has no data to predict from, and yet is there: it keeps its place."""

    def __init__(self, message: str, task: Task) -> None:
        super().__init__(message)
        self.task = task


class UnreadableRecord(NamedTuple):
    """A place in the input where a task was expected: position from 0, "line 12", and why there is none.

    `torn` when the input cannot be read any further from there, so that whatever followed is lost.
    """

    index: int  # type: ignore[assignment]  # the method of tuples goes, nobody misses it
    location: str
    reason: str
    truncated: bool = False


def parse_id(value: object) -> int | None:
    """An id: a whole number, in CSV written as text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    return value if type(value) is int else None


def describe_json_type(value: object) -> str:
    """What a JSON value is, in words: "a list", "null", "a number (5)"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"a number ({value})"
    return {"str": "a string", "list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)


def is_export_row(item: Mapping[str, Any]) -> bool:
    """Whether this is a row of the CSV export or of JSON_MIN: one annotation, flattened beside the data of its task."""
    return "annotation_id" in item and "annotator" in item and not isinstance(item.get("data"), dict)
