"""Tasks and annotations, and how they come out of records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from lsml_cli.records import Record
from lsml_cli.source import Source

# What a JSON_MIN export puts beside the data and the results of one annotation.
JSON_MIN_FIELDS = frozenset({"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"})


_LARGE_NUMBER = re.compile(rb"[\[:,\s]-?\d{19,}\s*[,}\]]")


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


class Labelled(NamedTuple):
    """A task and the annotation that counts."""

    task: Task
    annotation: Annotation


class Unreadable(NamedTuple):
    """A place in the input where a task was expected: position from 0, "line 12", and why there is none."""

    index: int  # type: ignore[assignment]  # the method of tuples goes, nobody misses it
    place: str
    reason: str


def read_tasks(
    source: str, *, controls: Iterable[str] = (), id_column: str | None = None
) -> Iterator[Task | Unreadable]:
    """The tasks of a file or of standard input ("-"), one at a time, in any form that `Source` recognises.

    controls   names of the label config's controls: JSON_MIN puts their results beside the data
    id_column  the column (CSV) or key (items without `data`) that holds the task's id
    """
    names = frozenset(controls)
    with Source(source, id_column) as records:
        for record in records:
            try:
                yield parse_task(record, names, id_column)
            except ValueError as error:
                yield Unreadable(record.index, record.place, str(error))


def parse_task(record: Record, controls: frozenset[str] = frozenset(), id_column: str | None = None) -> Task:
    """The task in a record: a whole task, a row of JSON_MIN, or a bare item that is nothing but data.

    Raises ValueError with a sentence when there is none.
    """
    if record.problem:
        raise ValueError(record.problem)
    try:
        raw = orjson.loads(record.body)
    except orjson.JSONDecodeError as error:
        raise ValueError(_not_json(record.body, error)) from None
    if not isinstance(raw, dict):
        raise ValueError(f"expected a task, an object, found {kind(raw)}")
    if "data" in raw:
        data = raw["data"]
        if not isinstance(data, dict):
            raise ValueError(f'"data" is {kind(data)}, expected an object')
    elif "annotation_id" in raw and "annotator" in raw:
        data = {key: value for key, value in raw.items() if key not in JSON_MIN_FIELDS and key not in controls}
    else:
        data = raw
    task_id = data.get(id_column) if id_column and data is raw else raw.get("id") if data is not raw else None
    project = raw.get("project") if data is not raw else None
    return Task(
        record.index,
        task_id if type(task_id) is int else None,
        data,
        raw,
        str(project) if project is not None else None,
    )


def has_large_numbers(body: bytes) -> bool:
    """Whether there may be whole numbers beyond 64 bits in a record, which orjson reads as floats."""
    return _LARGE_NUMBER.search(body) is not None


def kind(value: object) -> str:
    """What a JSON value is, in words: "a list", "null", "a number (5)"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"a number ({value})"
    return {"str": "a string", "list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    """orjson's complaint as a sentence; the two that people meet in exports get a better one."""
    text = str(error).split(":")[0]
    if "surrogate" in text and b"\\u" in body:
        return "not JSON: it holds one half of a surrogate pair (\\ud800 to \\udfff), which is no Unicode text"
    if "UTF-8" in text or "surrogate" in text:
        return "not UTF-8 text: convert the file first, for example with iconv -f LATIN1 -t UTF-8"
    if "depth" in text or "recursion" in text:
        return "not usable: brackets are nested more than 1,000 deep"
    if any(word in body for word in (b"NaN", b"Infinity")):
        return "not JSON: NaN and Infinity are no JSON numbers, write null instead"
    return f"not JSON: {text}, {error.pos:,} characters into the task"
