"""Small models of every kind that lsml supports. Named by file in tests: `tests/helpers/models.py:Words`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lsml_cli.errors import TransientError
from lsml_cli.models.base import Binding, Model
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import Task

TEXT_CONFIG = """<View><Text name="text" value="$text"/>
  <Choices name="size" toName="text"><Choice value="short"/><Choice value="long"/></Choices></View>"""
IMAGE_CONFIG = """<View><Image name="image" value="$image"/>
  <Choices name="light" toName="image"><Choice value="dark"/><Choice value="bright"/></Choices></View>"""
OCR_CONFIG = """<View><Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image"><Label value="word"/><Label value="number"/></RectangleLabels></View>"""


def make_choice_prediction(model: Model, task: Task, binding: Binding, label: str, score: float) -> Prediction:
    """Make a prediction with one label of the only <Choices>."""
    control = binding.config.only("Choices")
    return Prediction.of((control.region(task, {"choices": [label]}, score=score),), model.version)


class Words(Model):
    """Classify texts by their number of words; like a text model, which holds the GIL, it runs in processes."""

    parallelism = "process"
    batch_size = 16
    params: ClassVar = {"pause": 0.0}

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[int]:
        time.sleep(self.param("pause"))
        return [len(task.data["text"].split()) for task in inputs]

    def decode(self, output: int, task: Task, binding: Binding) -> Prediction:
        return make_choice_prediction(self, task, binding, "long" if output > 5 else "short", 1 / (1 + output))


class Brightness(Model):
    """Classify grey PNM images by their brightness; like an image model it fetches and decodes in threads."""

    parallelism = "threads"
    batch_size = 8

    def load(self, device: str) -> None:
        self.device = device
        self.encoding_threads: set[int] = set()
        self.forward_threads: set[int] = set()

    def media_refs(self, task: Task, binding: Binding) -> list[str]:
        return [task.data["image"]]

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> bytes:
        self.encoding_threads.add(threading.get_ident())
        magic, size, _depth, pixels = media[task.data["image"]].split(b"\n", 3)
        if magic != b"P5" or len(pixels) != int(size.split()[0]) * int(size.split()[1]):
            raise ValueError("not a whole grey PNM image")
        return pixels

    def forward(self, inputs: Sequence[bytes], binding: Binding) -> list[float]:
        self.forward_threads.add(threading.get_ident())
        return [sum(pixels) / len(pixels) / 255 for pixels in inputs]

    def decode(self, output: float, task: Task, binding: Binding) -> Prediction:
        return make_choice_prediction(
            self, task, binding, "bright" if output > 0.5 else "dark", max(output, 1 - output)
        )


class TwoStage(Model):
    """Find words and label them; like OCR it finds boxes per image, then reads the crops of the whole batch."""

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[list[tuple[int, str]]]:
        boxes_of_tasks = [list(enumerate(task.data["image"].split())) for task in inputs]
        crops = [word for boxes in boxes_of_tasks for _, word in boxes]
        sorted_labels = iter(["number" if crop.isdigit() else "word" for crop in sorted(crops, key=len)])
        label_of = {
            position: next(sorted_labels) for position in sorted(range(len(crops)), key=lambda i: len(crops[i]))
        }
        labels = iter([label_of[position] for position in range(len(crops))])
        return [[(x, next(labels)) for x, _ in boxes] for boxes in boxes_of_tasks]

    def decode(self, output: list[tuple[int, str]], task: Task, binding: Binding) -> Prediction:
        control = binding.config.only("RectangleLabels")
        regions = tuple(
            control.region(
                task,
                {"x": x, "y": 0, "width": 1, "height": 10, "rotation": 0, "rectanglelabels": [label]},
                score=0.5,
                ordinal=x,
                original_width=100,
                original_height=20,
                image_rotation=0,
            )
            for x, label in output
        )
        return Prediction.of(regions, self.version)


@dataclass
class ScriptBinding(Binding):
    """A binding that holds the state of a backend between calls."""

    calls: list[int] = field(default_factory=list)

    def predict(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.calls.append(len(tasks))
        choice = [{"from_name": "size", "to_name": "text", "type": "choices", "value": {"choices": ["short"]}}]
        return [{"result": choice, "score": 0.5} for _ in tasks]


class Script(Model[ScriptBinding]):
    """Predict dicts from whole tasks as dicts, like a script for an older SDK."""

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> ScriptBinding:
        return ScriptBinding(config, label_map, project)

    def encode(self, task: Task, binding: ScriptBinding, media: Mapping[str, bytes]) -> dict[str, Any]:
        return dict(task.raw)

    def forward(self, inputs: Sequence[dict[str, Any]], binding: ScriptBinding) -> list[dict[str, Any]]:
        return binding.predict(list(inputs))

    def decode(self, output: dict[str, Any], task: Task, binding: ScriptBinding) -> Prediction:
        regions = tuple(
            binding.config.controls[region["from_name"]].region(task, region["value"], score=output["score"])
            for region in output["result"]
        )
        return Prediction.of(regions, self.version)


class Fragile(Words):
    """Fail in the way and in the step that the task's "do" names."""

    retry_delays = (0.01, 0.01)
    params: ClassVar = {"pause": 0.0, "marker": ""}

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Task:
        if task.data.get("do") == "raise in encode":
            raise ValueError("this one cannot be encoded")
        if task.data.get("do") == "recover" and self._first_time():
            raise TransientError("not now")
        if task.data.get("do") == "stay away":
            raise ConnectionError("nobody there")
        return task

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[int]:
        actions = {task.data.get("do") for task in inputs}
        if "raise in forward" in actions:
            raise RuntimeError("out of luck")
        if "die" in actions:
            os.kill(os.getpid(), signal.SIGKILL)
        if "print" in actions:
            print("a model that talks")
            os.write(1, b"and one that talks below Python\n")
        return super().forward(inputs, binding)[: -1 if "lose one" in actions else None]

    def decode(self, output: int, task: Task, binding: Binding) -> Any:
        if task.data.get("do") == "raise in decode":
            raise KeyError("label")
        if task.data.get("do") == "return a dict":
            return {"result": []}
        if task.data.get("do") == "unknown label":
            return make_choice_prediction(self, task, binding, "huge", 0.5)
        if task.data.get("do") == "nothing":
            return Prediction.of((), self.version)
        return super().decode(output, task, binding)

    def _first_time(self) -> bool:
        marker = self.param("marker")
        if os.path.exists(marker):  # noqa: PTH110
            return False
        open(marker, "w").close()  # noqa: PTH123
        return True


class Stored(Words):
    """Have a parameter that names a file, which may name another one."""

    params: ClassVar = {"pause": 0.0, "weights": "none.bin"}
    file_params = ("weights",)

    @classmethod
    def referenced_files(cls, path: Path) -> list[Path]:
        return [path.parent / path.read_text().strip()]


class NeverLoads(Words):
    """Raise an error of its own in `load`."""

    def load(self, device: str) -> None:
        raise RuntimeError("the weights are in another castle")


class LoadsSlowly(Words):
    """Write the file "loading", then take 30 seconds to load."""

    def load(self, device: str) -> None:
        open("loading", "w").close()  # noqa: PTH123
        time.sleep(30)


class DiesLoading(Words):
    """End the process in `load`."""

    def load(self, device: str) -> None:
        os._exit(7)


class Flaky(Words):
    """Fail tasks with "do" with a transient error as long as the file `outage` exists."""

    retry_delays = (0.001,)
    params: ClassVar = {"pause": 0.0, "outage": ""}

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Task:
        if task.data.get("do") and os.path.exists(self.param("outage")):  # noqa: PTH110
            raise TransientError("the service is down")
        return task
