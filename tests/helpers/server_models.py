"""Models for server tests, which name them by file: `tests/helpers/server_models.py:Patient`."""

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
    """Take the seconds that each task has in "seconds", and write a line with the task ids of each batch to `diary`.

    For a task with "child", a file name, start another process and write its pid into that file.
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
    """Start a process that inherits all open files, as processes of a library may."""
    if os.fork() == 0:
        pid.write_text(str(os.getpid()))
        time.sleep(1000)
        os._exit(0)


class Attentive(Words):
    """Predict the label that the context of an interactive editor names."""

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[Any]:
        return [(task.context or {}).get("size", "short") for task in inputs]

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        return make_choice_prediction(self, task, binding, output, 1.0)


class Anything(Words):
    """Fill every <Choices> with its first label, and no other control."""

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[Any]:
        return [None] * len(inputs)

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        controls = [control for control in binding.config.controls.values() if control.type == "choices"]
        return Prediction.of(
            tuple(control.region(task, {"choices": [control.labels[0].name]}, score=0.9) for control in controls),
            self.version,
        )
