"""What is done to a record where the model is: parsed before, rendered after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from lsml_cli.io.json_records import Record
from lsml_cli.io.task_reader import has_large_numbers, parse_task
from lsml_cli.models.base import Binding, Model
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import (
    ExistingPrediction,
    Failure,
    Outcome,
    OutputShape,
    Prediction,
    dumps,
    dumps_exactly,
    prediction_record,
    stored_predictions,
    task_record,
)
from lsml_cli.schema.tasks import MissingDataError, Task, UnreadableRecord

MISSING_ID_REASON = "this task has no id, and --shape predictions names tasks by id"


class OutputRecord(NamedTuple):
    """A record of the output that is not simply a new prediction."""

    body: bytes
    task_id: int | None = None
    failure: Failure | None = None
    is_kept: bool = False  # the task keeps the prediction of this version that it had
    dropped_predictions: int = 0  # older predictions that do not fit the label config and were left out


RenderedRecord = bytes | OutputRecord


@dataclass(frozen=True)
class BulkCodec:
    """Bytes to bytes, where the replica is: parse the record before the model, render its outcome after it."""

    config: LabelConfig
    model_version: str
    id_column: str | None
    output_shape: OutputShape
    keep_annotations: bool
    skip_predicted: bool

    def read(self, record: Record) -> tuple[Task | None, Outcome | None]:
        try:
            task = parse_task(record, self._controls, self.id_column)
        except MissingDataError as error:
            return error.task, Failure("encode", str(error))
        except ValueError as error:
            return None, Failure("read", str(error))
        if self.output_shape == "predictions" and task.id is None:
            return task, Failure("read", MISSING_ID_REASON)
        if self.skip_predicted:
            for old in stored_predictions(task.raw):
                if old["model_version"] == self.model_version and self._is_valid_prediction(old):
                    return task, ExistingPrediction(old)
        return task, None

    def write(self, record: Record, task: Task | None, outcome: Outcome) -> RenderedRecord:
        if self.output_shape == "predictions":
            body, dropped = dumps(prediction_record(task, outcome)), 0
        elif task is None:  # something unreadable is no task: nothing could be imported in its place
            body, dropped = b"", 0
        else:
            older, dropped = self._other_predictions(task)
            body = self._render_task(record, task, outcome, older)
        if isinstance(outcome, Failure):
            return OutputRecord(body, task.id if task else None, outcome, dropped_predictions=dropped)
        if isinstance(outcome, ExistingPrediction) or dropped:
            return OutputRecord(body, is_kept=isinstance(outcome, ExistingPrediction), dropped_predictions=dropped)
        return body

    @cached_property
    def _controls(self) -> frozenset[str]:
        return frozenset(self.config.controls)

    def _other_predictions(self, task: Task) -> tuple[list[dict[str, Any]], int]:
        """The predictions of other versions that stay, and how many do not fit the label config."""
        stored = [old for old in stored_predictions(task.raw) if old["model_version"] != self.model_version]
        fitting = [old for old in stored if self._is_valid_prediction(old)]
        return fitting, len(stored) - len(fitting)

    def _is_valid_prediction(self, stored: Mapping[str, Any]) -> bool:
        try:
            return self.config.check(Prediction.from_json(stored)) is None
        except (KeyError, TypeError, ValueError):
            return False

    def _render_task(
        self, record: Record, task: Task, outcome: Outcome, other_predictions: Sequence[Mapping[str, Any]]
    ) -> bytes:
        try:
            body = dumps(task_record(task, outcome, other_predictions, self.keep_annotations))
        except TypeError:  # nested deeper than orjson writes, though not deeper than it reads
            return dumps_exactly(task_record(task, outcome, other_predictions, self.keep_annotations))
        if b"e+" in body and has_large_numbers(record.body):  # whole numbers beyond 64 bits became floats
            exact = parse_task(record, self._controls, self.id_column, loads=json.loads)
            return dumps_exactly(task_record(exact, outcome, other_predictions, self.keep_annotations))
        return body


@dataclass(frozen=True)
class BindingKey:
    """What a model is bound to. Picklable; a replica keeps one `Binding` for each."""

    config: LabelConfig
    label_map: Mapping[str, str] = field(default_factory=dict)
    project: str | None = None
    threshold: float | None = None

    def cache_key(self) -> tuple[object, ...]:
        return self.config.digest, tuple(sorted(self.label_map.items())), self.project, self.threshold

    def bind(self, model: Model) -> Binding:
        binding: Binding = model.bind(self.config, self.label_map, self.project)
        binding.threshold = self.threshold
        return binding


class RecordCodec(Protocol):
    """What is done to an item where the replica is, before and after the model."""

    def read(self, item: Any) -> tuple[Task | None, Outcome | None]:
        """The task in an item. An outcome beside it means that the model need not be asked."""
        ...

    def write(self, item: Any, task: Task | None, outcome: Outcome) -> Any:
        """What goes back to the caller of `predict_stream`."""
        ...


class TaskCodec:
    """The job of a notebook: tasks go in, `(task, outcome)` comes out. What was unreadable is a failure already."""

    def read(self, item: Task | UnreadableRecord) -> tuple[Task | None, Outcome | None]:
        return (None, Failure("read", item.reason)) if isinstance(item, UnreadableRecord) else (item, None)

    def write(self, item: Any, task: Task | None, outcome: Outcome) -> tuple[Any, Outcome]:
        return item, outcome
