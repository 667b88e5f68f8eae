"""Turn records into tasks before the model, and outcomes into records after it, in the process where the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from lsml_cli.io.json_records import MAX_OUTPUT_RECORD_BYTES, Record
from lsml_cli.io.task_reader import parse_task
from lsml_cli.models.base import Binding, Model
from lsml_cli.schema.json_codec import dumps, has_rounded_integers, loads_exactly
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import (
    ExistingPrediction,
    Failure,
    Outcome,
    OutputShape,
    Prediction,
    prediction_record,
    region_id,
    stored_predictions,
    task_record,
)
from lsml_cli.schema.tasks import MissingDataError, Task, UnreadableRecord

MISSING_ID_REASON = "this task has no id, and --shape predictions names tasks by id"
INVALID_ID_REASON = "the id of this task is no whole number of 64 bits, and --shape predictions names tasks by id"


class OutputRecord(NamedTuple):
    """A record of the output that is more than a new prediction.

    Attributes:
        body: The bytes to write, empty for nothing.
        task_id: The id of the task, for the error file.
        failure: Why there is no prediction.
        is_kept: The task keeps the prediction of this version that it had.
        dropped_predictions: Older predictions that do not fit the label config and were left out.
    """

    body: bytes
    task_id: int | None = None
    failure: Failure | None = None
    is_kept: bool = False
    dropped_predictions: int = 0


RenderedRecord = bytes | OutputRecord  # bytes: a new prediction, and nothing else to count


@dataclass(frozen=True)
class BulkCodec:
    """Bytes in, bytes out: only they cross the process boundary, not object trees. A picklable `RecordCodec`.

    Args:
        config: The label config that older predictions must fit.
        model_version: The version under which predictions are written.
        id_column: See `read_tasks`.
        output_shape: "tasks" for whole tasks, "predictions" for predictions that name their task.
        keep_annotations: Keep annotations and drafts in whole tasks.
        skip_predicted: Keep a valid prediction of this version instead of predicting again.
    """

    config: LabelConfig
    model_version: str
    id_column: str | None
    output_shape: OutputShape
    keep_annotations: bool
    skip_predicted: bool

    def read(self, record: Record) -> tuple[Task | None, Outcome | None]:
        """Parse a record; an outcome beside the task means that the model is not needed."""
        try:
            task = parse_task(record, self._controls, self.id_column)
        except MissingDataError as error:
            return error.task, Failure("encode", str(error))
        except ValueError as error:
            return None, Failure("read", str(error))
        if self.output_shape == "predictions" and task.id is None:
            return task, Failure("read", MISSING_ID_REASON if task.raw.get("id") is None else INVALID_ID_REASON)
        if self.skip_predicted:
            for stored in _read_predictions(task):
                if stored["model_version"] == self.model_version and self._is_valid_prediction(stored, task):
                    return task, ExistingPrediction(stored)
        return task, None

    def write(self, record: Record, task: Task | None, outcome: Outcome) -> RenderedRecord:
        """Render the record of the output for an outcome.

        A failure without a task that was read is one of a task that a model left in a state that cannot be written: the
        record is read again, so that it keeps its place.
        """
        if task is None and isinstance(outcome, Failure) and outcome.stage != "read":
            task, _ = self.read(record)
        if self.output_shape == "predictions":
            body, dropped = dumps(prediction_record(task, outcome)), 0
        elif task is None:  # an unreadable record is no task: nothing could be imported in its place
            body, dropped = b"", 0
        else:
            other_predictions, dropped = self._other_predictions(task)
            body = self._render_task(record, task, outcome, other_predictions)
        if isinstance(outcome, Prediction) and len(body) > MAX_OUTPUT_RECORD_BYTES:
            return self.write(record, task, Failure("check", _too_large_message(len(body))))
        if isinstance(outcome, Failure):
            return OutputRecord(body, task.id if task else None, outcome, dropped_predictions=dropped)
        if isinstance(outcome, ExistingPrediction) or dropped:
            return OutputRecord(body, is_kept=isinstance(outcome, ExistingPrediction), dropped_predictions=dropped)
        return body

    @cached_property
    def _controls(self) -> frozenset[str]:
        return frozenset(self.config.controls)

    def _other_predictions(self, task: Task) -> tuple[list[dict[str, Any]], int]:
        """Return the predictions of other versions that fit the label config, and how many do not."""
        others = [stored for stored in _read_predictions(task) if stored["model_version"] != self.model_version]
        valid = [stored for stored in others if self._is_valid_prediction(stored, task)]
        return valid, len(others) - len(valid)

    def _is_valid_prediction(self, stored: Mapping[str, Any], task: Task) -> bool:
        try:
            return self.config.check(Prediction.from_json(stored), task.data) is None
        except (KeyError, TypeError, ValueError):
            return False

    def _render_task(
        self, record: Record, task: Task, outcome: Outcome, other_predictions: Sequence[Mapping[str, Any]]
    ) -> bytes:
        body = dumps(task_record(task, outcome, other_predictions, self.keep_annotations))
        if has_rounded_integers(record.body, body):
            try:
                exact = parse_task(record, self._controls, self.id_column, loads=loads_exactly)
            except MissingDataError as error:  # as when it was read; it is a failure, which keeps its place
                exact = error.task
            body = dumps(task_record(exact, outcome, other_predictions, self.keep_annotations))
        return body


def _read_predictions(task: Task) -> list[dict[str, Any]]:
    """Return the predictions that a task holds; regions without an id get one, as the editor gives them."""
    predictions = stored_predictions(task.raw)
    for prediction in predictions:
        if any(isinstance(region, dict) and region.get("id") is None for region in prediction["result"]):
            prediction["result"] = [
                _give_id(region, task, ordinal) for ordinal, region in enumerate(prediction["result"])
            ]
    return predictions


def _give_id(region: Any, task: Task, ordinal: int) -> Any:
    """Return a region with an id, if it is one that lacks it; a relation has none."""
    if not isinstance(region, dict) or region.get("id") is not None or region.get("type") == "relation":
        return region
    return {**region, "id": region_id(task, f"stored {region.get('from_name')}", ordinal)}


def _too_large_message(size: int) -> str:
    return (
        f"the record with this prediction has {size:,} bytes, and {MAX_OUTPUT_RECORD_BYTES:,} is the most that lsml "
        "reads again"
    )


@dataclass(frozen=True)
class BindingKey:
    """What a model is bound to; picklable. A replica caches one `Binding` for each.

    Args:
        config: The label config.
        label_map: {class of the model: label of the config}, where the names differ.
        project: The Label Studio project, None outside of one.
        threshold: Drop regions that score below this probability.
    """

    config: LabelConfig
    label_map: Mapping[str, str] = field(default_factory=dict)
    project: str | None = None
    threshold: float | None = None

    def cache_key(self) -> tuple[object, ...]:
        return self.config.digest, tuple(sorted(self.label_map.items())), self.project, self.threshold

    def bind(self, model: Model) -> Binding:
        """Bind a model; raise LabelMismatch where it cannot fill the label config."""
        binding: Binding = model.bind(self.config, self.label_map, self.project)
        binding.threshold = self.threshold
        return binding


class RecordCodec(Protocol):
    """Converts items to tasks before the model, and outcomes to results after it, in the replica's process."""

    def read(self, item: Any) -> tuple[Task | None, Outcome | None]:
        """Return the task in an item; an outcome beside it means that the model is not needed."""
        ...

    def write(self, item: Any, task: Task | None, outcome: Outcome) -> Any:
        """Return the result for the caller of `predict_stream`."""
        ...


class TaskCodec:
    """Tasks in, `(task, outcome)` out; an `UnreadableRecord` becomes a failure without a task."""

    def read(self, item: Task | UnreadableRecord) -> tuple[Task | None, Outcome | None]:
        return (None, Failure("read", item.reason)) if isinstance(item, UnreadableRecord) else (item, None)

    def write(self, item: Any, task: Task | None, outcome: Outcome) -> tuple[Any, Outcome]:
        return item, outcome
