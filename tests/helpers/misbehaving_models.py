"""Models that try to end the run, its processes or its threads at a task with "do": only this task may fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from lsml_cli.errors import LsmlError
from lsml_cli.models.base import Binding
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import Task
from tests.helpers.models import Words, make_choice_prediction


class Exits(Words):
    """Exit in `forward`."""

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[int]:
        if any(task.data.get("do") for task in inputs):
            sys.exit(0)
        return super().forward(inputs, binding)


class ExitsInEncode(Words):
    """Exit in `encode`."""

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Task:
        if task.data.get("do"):
            sys.exit(0)
        return task


class Unpicklable(Words):
    """Return a region with a lock, which neither JSON nor pickle supports."""

    def decode(self, output: int, task: Task, binding: Binding) -> Any:
        prediction = make_choice_prediction(self, task, binding, "short", 0.5)
        if not task.data.get("do"):
            return prediction
        control = binding.config.only("Choices")
        region = control.region(task, {"choices": ["short"], "lock": threading.Lock()}, score=0.5)
        return Prediction.of((region, "not a region"), self.version)  # type: ignore[arg-type]


class Spoiling(Words):
    """Put a lock into the task with the id 2, which then cannot be written."""

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Task:
        if task.id == 2:
            task.data["lock"] = threading.Lock()  # type: ignore[index]
        return task


class ExitsLoading(Words):
    """Exit in `load`."""

    def load(self, device: str) -> None:
        sys.exit(0)


class OwnError(LsmlError):
    """An error whose constructor differs from that of its base class."""

    def __init__(self, one: str, two: str, three: str) -> None:
        super().__init__(f"{one} {two} {three}")


class RaisesItsOwnError(Words):
    """Raise an `OwnError` in `load`."""

    def load(self, device: str) -> None:
        raise OwnError("a", "b", "c")


class MessagelessError(Exception):
    """An error that cannot be formatted."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class SaysOddThings(Words):
    """Raise errors whose text cannot be encoded or formatted."""

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[int]:
        actions = {task.data.get("do") for task in inputs}
        if "surrogate" in actions:
            raise ValueError("bad \ud800 surrogate")
        if "no text" in actions:
            raise MessagelessError
        return super().forward(inputs, binding)
