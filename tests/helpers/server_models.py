"""Models that only a server has trouble with. Named by file in tests: `tests/helpers/server_models.py:Patient`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lsml_cli.models.base import Binding
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import Task
from tests.helpers.models import Words, make_choice_prediction


class Patient(Words):
    """Takes as long as each task says ("seconds"), and writes down which tasks it was given, a line for each batch.

    At a task with "child", the name of a file, it starts another process, whose number goes into that file.
    """

    params: ClassVar = {"diary": "", "pause": 0.0}

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[int]:
        if self.param("diary"):
            with open(self.param("diary"), "a") as diary:  # noqa: PTH123
                diary.write(" ".join(str(task.id) for task in inputs) + "\n")
        for task in inputs:
            if "child" in task.data:
                _start_orphan(Path(task.data["child"]))
        time.sleep(sum(task.data.get("seconds", 0) for task in inputs))
        return super().forward(inputs, binding)


def _start_orphan(pid: Path) -> None:
    """A process that has whatever this one had open, as those of a library may."""
    if os.fork() == 0:
        pid.write_text(str(os.getpid()))
        time.sleep(1000)
        os._exit(0)


class Attentive(Words):
    """Answers what the interactive editor says."""

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[Any]:
        return [(task.context or {}).get("size", "short") for task in inputs]

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        return make_choice_prediction(self, task, binding, output, 1.0)


class Mortal(Words):
    """Its process dies at a task that says so."""

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[int]:
        if any(task.data.get("do") == "die" for task in inputs):
            os._exit(9)
        return super().forward(inputs, binding)


class Anything(Words):
    """Fills every <Choices> with its first label, and finds nothing for any other control."""

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[None]:
        return [None] * len(inputs)

    def decode(self, output: None, task: Task, binding: Binding) -> Prediction:
        controls = [control for control in binding.config.controls.values() if control.type == "choices"]
        return Prediction.of(
            tuple(control.region(task, {"choices": [control.labels[0].name]}, score=0.9) for control in controls),
            self.version,
        )
