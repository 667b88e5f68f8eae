"""What is done to a record where the model is: parsed before, rendered after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from lsml_cli.io.json_records import Record
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import (
    Failure,
    Outcome,
    Prediction,
    Shape,
    Stored,
    dumps,
    dumps_exactly,
    prediction_record,
    stored_predictions,
    task_record,
)
from lsml_cli.schema.tasks import NoData, Task, has_large_numbers, parse_task

NO_ID = "this task has no id, and --shape predictions names tasks by id"


class Exceptional(NamedTuple):
    """A record of the output that is not simply a new prediction."""

    body: bytes
    id: int | None = None
    failure: Failure | None = None
    kept: bool = False  # the task keeps the prediction of this version that it had
    dropped: int = 0  # older predictions that do not fit the label config and were left out


Written = bytes | Exceptional


@dataclass(frozen=True)
class BulkJob:
    """Bytes to bytes, where the replica is: parse the record before the model, render its outcome after it."""

    config: LabelConfig
    version: str
    id_column: str | None
    shape: Shape
    keep_annotations: bool
    skip_predicted: bool

    def read(self, record: Record) -> tuple[Task | None, Outcome | None]:
        try:
            task = parse_task(record, self._controls, self.id_column)
        except NoData as error:
            return error.task, Failure("encode", str(error))
        except ValueError as error:
            return None, Failure("read", str(error))
        if self.shape == "predictions" and task.id is None:
            return task, Failure("read", NO_ID)
        if self.skip_predicted:
            for old in stored_predictions(task.raw):
                if old["model_version"] == self.version and self._fits(old):
                    return task, Stored(old)
        return task, None

    def write(self, record: Record, task: Task | None, outcome: Outcome) -> Written:
        if self.shape == "predictions":
            body, dropped = dumps(prediction_record(task, outcome)), 0
        elif task is None:  # something unreadable is no task: nothing could be imported in its place
            body, dropped = b"", 0
        else:
            older, dropped = self._older(task)
            body = self._whole(record, task, outcome, older)
        if isinstance(outcome, Failure):
            return Exceptional(body, task.id if task else None, outcome, dropped=dropped)
        if isinstance(outcome, Stored) or dropped:
            return Exceptional(body, kept=isinstance(outcome, Stored), dropped=dropped)
        return body

    @cached_property
    def _controls(self) -> frozenset[str]:
        return frozenset(self.config.controls)

    def _older(self, task: Task) -> tuple[list[dict[str, Any]], int]:
        """The predictions of other versions that stay, and how many do not fit the label config."""
        stored = [old for old in stored_predictions(task.raw) if old["model_version"] != self.version]
        fitting = [old for old in stored if self._fits(old)]
        return fitting, len(stored) - len(fitting)

    def _fits(self, stored: Mapping[str, Any]) -> bool:
        try:
            return self.config.check(Prediction.from_json(stored)) is None
        except (KeyError, TypeError, ValueError):
            return False

    def _whole(self, record: Record, task: Task, outcome: Outcome, older: Sequence[Mapping[str, Any]]) -> bytes:
        try:
            body = dumps(task_record(task, outcome, older, self.keep_annotations))
        except TypeError:  # nested deeper than orjson writes, though not deeper than it reads
            return dumps_exactly(task_record(task, outcome, older, self.keep_annotations))
        if b"e+" in body and has_large_numbers(record.body):  # whole numbers beyond 64 bits became floats
            exact = parse_task(record, self._controls, self.id_column, loads=json.loads)
            return dumps_exactly(task_record(exact, outcome, older, self.keep_annotations))
        return body
