"""Small models that can be trained. Named by file in tests: `tests/helpers/trainable_models.py:Counting`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from lsml_cli.models.base import Binding, Model, Progress
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task


class Counting(Model):
    """Count how often each word occurs with each choice; `lsml fit --init-from` goes on counting."""

    supports_warm_start = True
    params: ClassVar = {"weight": 1}

    def load(self, device: str) -> None:
        assert self.spec.path is not None
        self.counts = {word: Counter(by_choice) for word, by_choice in _read(self.spec.path).items()}

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[str]:
        totals = [sum((self.counts.get(word, Counter()) for word in _task_words(task)), Counter()) for task in inputs]
        return [max(sorted(total), key=total.__getitem__, default="?") for total in totals]

    def decode(self, output: str, task: Task, binding: Binding) -> Prediction:
        control = next(iter(binding.config.controls.values()))
        if output == "?":
            return Prediction.of((), self.version)
        return Prediction.of((control.region(task, {"choices": [output]}, score=0.5),), self.version)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Any]:
        init_from = self.spec.init_from
        assert self.spec.path is None, "a model in training has no weights of its own yet"
        counts: dict[str, Counter[str]] = {}
        if init_from is not None:
            initial = init_from.open("cpu")
            assert isinstance(initial, Counting)
            counts = {word: Counter(by_choice) for word, by_choice in initial.counts.items()}
        for example in train:
            assert "annotations" not in example.task.raw
            for region in example.annotation.result:
                for word in _task_words(example.task):
                    counts.setdefault(word, Counter())[region["value"]["choices"][0]] += self.param("weight")
        (out_dir / "counts.json").write_text(json.dumps(counts, sort_keys=True))
        rounds = int(init_from.state["rounds"]) if init_from else 0  # type: ignore[arg-type]
        return {"rounds": rounds + 1, "saw": len(train), "held_out": len(validation)}


class Stumbling(Counting):
    """Fail in `fit` in the way that the parameter `how` names."""

    params: ClassVar = {"how": ""}

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        if self.param("how") == "raise":
            raise RuntimeError("out of patience")
        return {"classes": {1, 2}} if self.param("how") == "return a set" else None


class Waiting(Counting):
    """Take as long as a test wants: train until the file `until` exists, predict for the "seconds" of a task."""

    params: ClassVar = {"weight": 1, "until": ""}
    MESSAGE = "Waiting for a sign."

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[str]:
        time.sleep(sum(task.data.get("seconds", 0) for task in inputs))
        return super().forward(inputs, binding)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Any]:
        progress(self.MESSAGE)
        while not Path(self.param("until")).exists():
            time.sleep(0.02)
        return super().fit(train, validation, binding, out_dir, progress)


class Hanging(Counting):
    """Never end training, and ignore every exception that is raised in it, as code outside of Python does."""

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Any]:
        progress(Waiting.MESSAGE)
        while True:
            with suppress(BaseException):
                time.sleep(0.02)


class Shades(Model):
    """Learn how bright the grey PNM images of each choice are, and record the device of the training."""

    def media_refs(self, task: Task, binding: Binding) -> list[str]:
        return [task.data["image"]]

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> float:
        return _brightness(media[task.data["image"]])

    def forward(self, inputs: Sequence[float], binding: Binding) -> list[str]:
        shades: Any = self.spec.state.get("shades", {})
        return [min(shades, key=lambda choice: abs(shades[choice] - brightness)) for brightness in inputs]

    def decode(self, output: str, task: Task, binding: Binding) -> Prediction:
        control = binding.config.only("Choices")
        return Prediction.of((control.region(task, {"choices": [output]}, score=0.5),), self.version)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Any]:
        assert binding.media is not None
        brightness_of: dict[str, list[float]] = {}
        for task, annotation in train:
            content = binding.media.fetch(task.data["image"], task.id)
            brightness_of.setdefault(annotation.result[0]["value"]["choices"][0], []).append(_brightness(content))
        shades = {choice: sum(values) / len(values) for choice, values in brightness_of.items()}
        return {"shades": shades, "device": binding.device}


def _brightness(image: bytes) -> float:
    magic, _size, _depth, pixels = image.split(b"\n", 3)
    assert magic == b"P5"
    return sum(pixels) / len(pixels)


def _task_words(task: Task) -> list[str]:
    return str(task.data["text"]).split()


def _read(folder: Path) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((folder / "counts.json").read_bytes())
    return counts


class Names(Model):
    """Remember the label of each labelled span, and find these texts again."""

    supported_controls: ClassVar = {"Labels": ("Text",)}

    def load(self, device: str) -> None:
        assert self.spec.path is not None
        self.labels: Mapping[str, str] = json.loads((self.spec.path / "labels.json").read_text("utf-8"))

    def forward(self, inputs: Sequence[Task], binding: Binding) -> list[list[str]]:
        return [[name for name in self.labels if name in task.data["text"]] for task in inputs]

    def decode(self, output: list[str], task: Task, binding: Binding) -> Prediction:
        control, text = binding.config.only("Labels"), task.data["text"]
        regions = [
            control.region(
                task,
                {
                    "start": text.index(name),
                    "end": text.index(name) + len(name),
                    "text": name,
                    "labels": [self.labels[name]],
                },
                score=0.5,
                ordinal=ordinal,
            )
            for ordinal, name in enumerate(output)
        ]
        return Prediction.of(tuple(regions), self.version)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Any]:
        values = [region["value"] for example in train for region in example.annotation.result]
        (out_dir / "labels.json").write_text(json.dumps({value["text"]: value["labels"][0] for value in values}))
        return {}


class MeanBox(Model):
    """Learn the mean box of each label from regions on images, and predict them all for every image it can read."""

    supported_controls: ClassVar = {"RectangleLabels": ("Image",)}

    def media_refs(self, task: Task, binding: Binding) -> list[str]:
        return [task.data["image"]]

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> int:
        return len(media[task.data["image"]])

    def forward(self, inputs: Sequence[int], binding: Binding) -> list[Any]:
        return [self.spec.state["boxes"]] * len(inputs)

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        control = binding.config.only("RectangleLabels")
        regions = [
            control.region(
                task,
                dict(zip(("x", "y", "width", "height"), box, strict=True))
                | {"rotation": 0, "rectanglelabels": [label]},
                score=0.5,
                ordinal=ordinal,
                image_size=(100, 50),
            )
            for ordinal, (label, box) in enumerate(sorted(output.items()))
        ]
        return Prediction.of(tuple(regions), self.version)

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Progress,
    ) -> Mapping[str, Any]:
        boxes: dict[str, list[list[float]]] = {}
        for task, annotation in train:
            assert binding.media is not None
            assert binding.media.fetch(task.data["image"], task.id)
            for region in annotation.result:
                value = region["value"]
                sides = [value[key] for key in ("x", "y", "width", "height")]
                boxes.setdefault(value["rectanglelabels"][0], []).append(sides)
        return {
            "boxes": {
                label: [sum(side) / len(side) for side in zip(*found, strict=True)] for label, found in boxes.items()
            }
        }
