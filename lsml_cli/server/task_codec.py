"""What is done to a task of a request where the model is: parsed before, rendered after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lsml_cli.io.json_records import Record
from lsml_cli.schema.predictions import Failure, Outcome, Prediction, Stored, dumps
from lsml_cli.schema.tasks import NoData, Task, parse_task


class Asked(NamedTuple):
    """One task of a request: its position, its JSON, and what an interactive editor sent along."""

    position: int
    body: bytes
    context: Mapping[str, Any] | None = None


class Failed(NamedTuple):
    """A task that has no prediction; its id, if it has one, for the log."""

    id: int | None
    failure: Failure


@dataclass(frozen=True)
class AnswerJob:
    """JSON to JSON, where the replica is. `version` is what every prediction carries: what /setup has promised."""

    version: str
    controls: frozenset[str]

    def read(self, asked: Asked) -> tuple[Task | None, Outcome | None]:
        record = Record(asked.position, f"task {asked.position + 1} of the request", asked.body)
        try:
            task = parse_task(record, self.controls)
        except NoData as error:
            return error.task, Failure("encode", str(error))
        except ValueError as error:
            return None, Failure("read", str(error))
        return (task if asked.context is None else replace(task, context=asked.context)), None

    def write(self, asked: Asked, task: Task | None, outcome: Outcome) -> bytes | Failed:
        if isinstance(outcome, Failure):
            return Failed(task.id if task else None, outcome)
        assert isinstance(outcome, Prediction | Stored)
        body = outcome.to_json() if isinstance(outcome, Prediction) else dict(outcome.prediction)
        return dumps(body | {"model_version": self.version})
