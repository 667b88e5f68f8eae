"""Two models that keep the contract, and one for each way to break it."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lsml_cli import AnnotatedTask, Binding, LabelConfig, Model, ModelSpec, Parameter, Prediction, Task
from lsml_cli.errors import ModelError


class Lengths(Model):
    """Keep the contract: call texts of more than `limit` characters long."""

    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = {"Choices": ("Text",)}
    params: ClassVar[Any] = {"limit": 10}

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Any:
        return task.data["text"]

    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return [len(text) for text in inputs]

    def decode(self, output: Any, task: Task, binding: Binding) -> Any:
        label = "long" if output > self.param("limit") else "short"
        return self.make_prediction(label, 1 / (1 + output), task, binding)

    def make_prediction(self, label: str, score: float, task: Task, binding: Binding) -> Prediction:
        region = binding.config.only("Choices").region(task, {"choices": [label]}, score=score)
        return Prediction.of((region,), self.version)


class UnknownParallelism(Lengths):
    parallelism = "gpu"  # type: ignore[assignment]


class DevicesAreText(Lengths):
    devices = "cpu"  # type: ignore[assignment]


class UnsupportedControlTag(Lengths):
    supported_controls: ClassVar = {"Choice": ("Text",)}


class DefaultIsNoJson(Lengths):
    params: ClassVar = {"limit": 10, "folder": Path("/tmp")}


class DefaultIsOutOfRange(Lengths):
    params: ClassVar = {"limit": Parameter(10, maximum=5)}


class ChoiceIsNoJson(Lengths):
    params: ClassVar = {"limit": 10, "folder": Parameter(None, choices=(Path("/tmp"),))}  # type: ignore[arg-type]


class HelpIsNoText(Lengths):
    params: ClassVar = {"limit": Parameter(10, help=["letters"])}  # type: ignore[arg-type]


class RangeOfText(Lengths):
    params: ClassVar = {"limit": Parameter("10", minimum=1)}


class ParameterIsNoName(Lengths):
    params: ClassVar = {"limit": 10, 3: 1}


class ParamsAreAList(Lengths):
    params: ClassVar = ["limit"]


class BuildFails(Lengths):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.words = spec.params["words"]


class BindNeedsLoad(Lengths):
    def load(self, device: str) -> None:
        self.classes = ["short", "long"]

    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> Binding:
        assert config.only("Choices").labels[0].name in self.classes
        return super().bind(config, label_map, project)


class BindGivesNothing(Lengths):
    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> Any:
        super().bind(config, label_map, project)


class TakesAnyConfig(Lengths):
    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> Binding:
        return Binding(config, label_map, project)


class MismatchIsKeyError(Lengths):
    def bind(self, config: LabelConfig, label_map: Mapping[str, str], project: str | None) -> Binding:
        assert config.controls["size"]
        return Binding(config, label_map, project)


class LoadFails(Lengths):
    def load(self, device: str) -> None:
        (Path(__file__).parent / "no such weights").read_bytes()


class EncodeFails(Lengths):
    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Any:
        return task.data["text"].split(maxsplit=1)[1]


class ForwardFails(Lengths):
    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return [1 / (len(text) - 1) for text in inputs]


class LosesOne(Lengths):
    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return super().forward(inputs, binding)[: len(inputs) - 1]


class ForwardIsGenerator(Lengths):
    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return (len(text) for text in inputs)


class DecodeFails(Lengths):
    def decode(self, output: Any, task: Task, binding: Binding) -> Any:
        return self.make_prediction({1: "short"}[output], 0.5, task, binding)


class DecodeGivesDict(Lengths):
    def decode(self, output: Any, task: Task, binding: Binding) -> Any:
        return super().decode(output, task, binding).to_json()


class UnknownLabel(Lengths):
    def decode(self, output: Any, task: Task, binding: Binding) -> Any:
        return self.make_prediction("huge", 0.5, task, binding)


class EncodePops(Lengths):
    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Any:
        return task.data.pop("text")  # type: ignore[attr-defined]


class ForwardSorts(Lengths):
    def forward(self, inputs: Any, binding: Binding) -> Any:
        original = list(inputs)
        inputs.sort()
        return [len(text) for text in original]


class DecodeMarks(Lengths):
    def decode(self, output: Any, task: Task, binding: Binding) -> Any:
        task.data["seen"] = True  # type: ignore[index]
        return super().decode(output, task, binding)


class VersionEmpty(Lengths):
    version = ""


class VersionChanges(Lengths):
    @property
    def version(self) -> str:
        return f"lengths@{time.time_ns()}"


class OtherVersionInPredictions(Lengths):
    def decode(self, output: Any, task: Task, binding: Binding) -> Any:
        return Prediction(super().decode(output, task, binding).result, None, "my model")


class EmptyFails(Lengths):
    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        longest = max(map(len, inputs))
        return [len(text.ljust(longest).rstrip()) for text in inputs]


class EmptyGivesOne(Lengths):
    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return super().forward(inputs, binding) or [0]


class NormalisesOverBatch(Lengths):
    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        longest = max(map(len, inputs), default=1)
        return [20 * len(text) / longest for text in inputs]


class SortsOutputs(Lengths):
    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return sorted(map(len, inputs))


class Chance(Lengths):
    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return [random.randint(0, 1_000) for _ in inputs]


class InstanceMatters(Lengths):
    made = 0

    def load(self, device: str) -> None:
        InstanceMatters.made += 1
        self.number = InstanceMatters.made

    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return [len(text) + 20 * self.number for text in inputs]


class EncodeShares(Lengths):
    """Keep the text of a thread in `self`, where other threads overwrite it."""

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Any:
        self.text = task.data["text"]
        time.sleep(0.001)
        return self.text


class EncodeInOneThread(Lengths):
    busy = False

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Any:
        if self.busy:
            raise RuntimeError("already encoding")
        self.busy = True
        time.sleep(0.001)
        self.busy = False
        return super().encode(task, binding, media)


class HashedLabels(Lengths):
    """Use `hash` of a text, which is different in every process."""

    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return [hash(text) % 1_000 for text in inputs]


class DiesElsewhere(Lengths):
    parent = os.environ.setdefault("LSML_TEST_PARENT", str(os.getpid()))

    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        if str(os.getpid()) != self.parent:
            os._exit(9)
        return super().forward(inputs, binding)


class PredictionIsNotPicklable(Lengths):
    """Return a prediction that cannot be sent from one process to another."""

    def decode(self, output: Any, task: Task, binding: Binding) -> Any:
        prediction = super().decode(output, task, binding)
        prediction.result[0].extra["meta"] = _Stubborn()
        return prediction


class _Stubborn(dict[str, Any]):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("not me")


# --- models that can be trained


class Learner(Lengths):
    """Keep the contract: learn the mean length of the texts."""

    def load(self, device: str) -> None:
        if self.spec.path is None:
            raise ModelError("Learner is not trained.", "lsml fit trains it.")
        self.mean = json.loads((self.spec.path / "mean.json").read_text())

    def forward(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return [100 if len(text) > self.mean else 0 for text in inputs]

    def fit(
        self,
        train: Sequence[AnnotatedTask],
        validation: Sequence[AnnotatedTask],
        binding: Binding,
        out_dir: Path,
        progress: Any,
    ) -> Any:
        progress(f"Looking at {len(train)} texts.")
        mean = sum(len(example.task.data["text"]) for example in train) / len(train)
        (out_dir / "mean.json").write_text(json.dumps(mean))
        return {"classes": ["short", "long"]}


class FitFails(Learner):
    def fit(self, train: Any, validation: Any, binding: Binding, out_dir: Path, progress: Any) -> Any:
        return super().fit(train[:0], validation, binding, out_dir, progress)


class FitNeedsHoldout(Learner):
    def fit(self, train: Any, validation: Any, binding: Binding, out_dir: Path, progress: Any) -> Any:
        assert validation[0]
        return super().fit(train, validation, binding, out_dir, progress)


class FitShuffles(Learner):
    def fit(self, train: Any, validation: Any, binding: Binding, out_dir: Path, progress: Any) -> Any:
        train.reverse()
        return super().fit(train, validation, binding, out_dir, progress)


class FitGivesNothing(Learner):
    def fit(self, train: Any, validation: Any, binding: Binding, out_dir: Path, progress: Any) -> Any:
        super().fit(train, validation, binding, out_dir, progress)


class StateIsNoJson(Learner):
    def fit(self, train: Any, validation: Any, binding: Binding, out_dir: Path, progress: Any) -> Any:
        return super().fit(train, validation, binding, out_dir, progress) | {"classes": {"short", "long"}}


class SavesNothing(Learner):
    def fit(self, train: Any, validation: Any, binding: Binding, out_dir: Path, progress: Any) -> Any:
        return {}


class LearnsByChance(Learner):
    def fit(self, train: Any, validation: Any, binding: Binding, out_dir: Path, progress: Any) -> Any:
        state = super().fit(train, validation, binding, out_dir, progress)
        (out_dir / "mean.json").write_text(str(-1 if out_dir.name == "again" else 1000))
        return state


class RemembersPath(Learner):
    def fit(self, train: Any, validation: Any, binding: Binding, out_dir: Path, progress: Any) -> Any:
        return super().fit(train, validation, binding, out_dir, progress) | {"file": str(out_dir / "mean.json")}

    def load(self, device: str) -> None:
        super().load(device)
        self.mean = json.loads(Path(self.spec.state["file"]).read_text())  # type: ignore[arg-type]


class WrongOnceTrained(Learner):
    def decode(self, output: Any, task: Task, binding: Binding) -> Any:
        return self.make_prediction("huge", 0.5, task, binding)
