"""Decode the tasks of a request and encode their predictions, in the replica's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lsml_cli.io.json_records import Record
from lsml_cli.io.task_reader import parse_task
from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.predictions import ExistingPrediction, Failure, Outcome, Prediction
from lsml_cli.schema.tasks import MissingDataError, Task


class RequestTask(NamedTuple):
    """One task of a request: its position, its JSON, and the context that an interactive editor sent."""

    position: int
    body: bytes
    context: Mapping[str, Any] | None = None


class FailedTask(NamedTuple):
    """A task without a prediction; `id`, if it has one, is for the log."""

    id: int | None
    failure: Failure


@dataclass(frozen=True)
class RequestCodec:
    """Task JSON to prediction JSON, see `RecordCodec`.

    Attributes:
        version: The `model_version` of every prediction, as /setup announced it.
        controls: Names of the label config's controls.
    """

    version: str
    controls: frozenset[str]

    def read(self, item: RequestTask) -> tuple[Task | None, Outcome | None]:
        record = Record(item.position, f"task {item.position + 1} of the request", item.body)
        try:
            task = parse_task(record, self.controls)
        except MissingDataError as error:
            return error.task, Failure("encode", str(error))
        except ValueError as error:
            return None, Failure("read", str(error))
        return (task if item.context is None else replace(task, context=item.context)), None

    def write(self, item: RequestTask, task: Task | None, outcome: Outcome) -> bytes | FailedTask:
        if isinstance(outcome, Failure):
            return FailedTask(task.id if task else None, outcome)
        assert isinstance(outcome, Prediction | ExistingPrediction)
        body = outcome.to_json() if isinstance(outcome, Prediction) else dict(outcome.prediction)
        return dumps(body | {"model_version": self.version})
