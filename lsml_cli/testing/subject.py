"""A model under test, what the clauses of the contract are, and how a breach is told."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from lsml_cli.errors import ModelError
from lsml_cli.media.fetcher import Media
from lsml_cli.models import base
from lsml_cli.models.base import Binding, Model, ModelSpec
from lsml_cli.registry.resolve import source_files
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import Labelled, Task, kind

SHOWN = 120  # characters of a prediction in a sentence


Check = Callable[["Subject"], Iterator[str]]


class Breach(Exception):
    """A breach that was found deep down; its text is the sentence."""


class Noted(Exception):
    """What a model raised, with when it did."""

    def __init__(self, when: str, error: BaseException) -> None:
        super().__init__(when, error)
        self.when = when
        self.error = error


@dataclass(frozen=True)
class Clause:
    """`asks` is one sentence; without a `basic` clause those after it cannot be looked at.

    A check yields one sentence for each breach that it finds; what it raises is one more.
    """

    name: str
    asks: str
    check: Check
    basic: bool


@dataclass(frozen=True)
class Broken:
    """One breach: the clause, a sentence, and what the model raised, if it was that."""

    clause: Clause
    sentence: str
    error: BaseException | None = None


@dataclass
class Subject:
    """A model under test, with what it is tested on. Checks of basic clauses fill in the lower half for those after.

    tolerance  up to which numbers in predictions count as equal
    patience   seconds that a process of its own has to answer
    folder     for what `fit` writes
    changes    sentences about tasks and inputs that the model changed
    untrained  the model said that it has to be trained first, which is an answer
    """

    spec: ModelSpec
    config: LabelConfig
    tasks: Sequence[Task]
    device: str
    media_root: Path | None
    tolerance: float
    patience: float
    examples: Sequence[Labelled]
    folder: Path

    model: Model = field(init=False)
    binding: Binding = field(init=False)
    inputs: list[Any] = field(init=False)
    outputs: Sequence[Any] = field(init=False)
    predictions: list[Prediction] = field(init=False)
    changes: list[str] = field(init=False, default_factory=list)
    states: dict[str, Mapping[str, Any]] = field(init=False, default_factory=dict)
    untrained: bool = field(init=False, default=False)
    fetched: dict[str, bytes] = field(init=False, default_factory=dict)

    @property
    def every(self) -> range:
        return range(len(self.tasks))

    @cached_property
    def family(self) -> type[Model]:
        return self.spec.family()

    def copy(self, position: int) -> Task:
        """A task of the model's own to spoil."""
        return copy.deepcopy(self.tasks[position])

    def encode(self, task: Task, model: Model | None = None, binding: Binding | None = None) -> Any:
        model, binding = model or self.model, binding or self.binding
        sources = model.sources(task, binding)
        if sources and self.media_root is None:
            raise Breach(
                f"{named(task)} points to {sources[0]}, and check_model was given no media_root to read it from"
            )
        for source in sources:
            if source not in self.fetched:
                self.fetched[source] = Media(self.media_root or Path()).fetch(source)
        return model.encode(task, binding, {source: self.fetched[source] for source in sources})

    def forward(self, inputs: list[Any], model: Model | None = None, binding: Binding | None = None) -> Sequence[Any]:
        """As many outputs as inputs, or a Breach."""
        outputs: Any = (model or self.model).forward(inputs, binding or self.binding)
        if not hasattr(outputs, "__len__"):
            raise Breach(f"forward returned {kind(outputs)}; it has to be a list or an array of {len(inputs)} outputs")
        if len(outputs) != len(inputs):
            raise Breach(f"forward returned {len(outputs)} outputs for {len(inputs)} inputs")
        checked: Sequence[Any] = outputs
        return checked

    def predict(
        self, positions: Sequence[int], model: Model | None = None, binding: Binding | None = None
    ) -> list[Prediction]:
        """The predictions of these tasks as one batch."""
        model, binding = model or self.model, binding or self.binding
        tasks = [self.copy(position) for position in positions]
        outputs = self.forward([self.encode(task, model, binding) for task in tasks], model, binding)
        return [model.decode(output, task, binding) for output, task in zip(outputs, tasks, strict=True)]

    def compare(self, where: str, positions: Sequence[int], found: Sequence[Any]) -> Iterator[str]:
        """A sentence when predictions differ from those of the whole batch."""
        pairs = list(zip(positions, found, strict=True))
        differing = [(i, each) for i, each in pairs if not self.same(each, self.predictions[i])]
        if differing:
            first, other = differing[0]
            yield (
                f"{where}, {len(differing)} of {len(pairs)} predictions are others: {named(self.tasks[first])} gets "
                f"{shown(other)}, and {shown(self.predictions[first])} when all tasks are one batch"
            )

    def same(self, one: Any, other: Any) -> bool:
        """Whether two predictions say the same. Versions have a clause of their own."""
        if not isinstance(one, Prediction):
            return False
        left, right = ({**each.to_json(), "model_version": None} for each in (one, other))
        return _close(left, right, self.tolerance)


def clause(into: list[Clause], name: str, *, basic: bool = False) -> Callable[[Check], Check]:
    """Append the check below to a list of clauses; its docstring says what the clause asks."""

    def add(check: Check) -> Check:
        into.append(Clause(name, (check.__doc__ or "").strip(), check, basic))
        return check

    return add


def look(clauses: Sequence[Clause], subject: Subject) -> list[Broken]:
    """What is broken, up to the first basic clause that is."""
    broken: list[Broken] = []
    for clause in clauses:
        before = len(broken)
        try:
            broken += [Broken(clause, sentence) for sentence in clause.check(subject)]
        except Breach as breach:
            broken.append(Broken(clause, str(breach)))
        except Noted as noted:
            broken.append(_raised(clause, noted.error, subject.family, noted.when))
        except (Exception, SystemExit) as error:
            broken.append(_raised(clause, error, subject.family))
        if subject.untrained or (clause.basic and len(broken) > before):
            break
    return broken


def _raised(clause: Clause, error: BaseException, family: type[Model], when: str = "") -> Broken:
    """A breach that is an exception: the model's own, where lsml has made a sentence about the model of it."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ModelError) and error.__cause__ is not None and frames[-1].filename == base.__file__:
        error = error.__cause__
    return Broken(clause, when + told(error, family), error)


def told(error: BaseException, family: type[Model]) -> str:
    """An exception as one sentence: type, message, and the line of the model's own code that it came from."""
    own = {str(path) for path in source_files(family).values()}
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename in own), frames[-1])
    where = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: {frame.line}"
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}{': ' + text if text else ''} ({where})"


def named(task: Task) -> str:
    return f"task {task.index}" + (f" (id {task.id})" if task.id is not None else "")


def shown(prediction: Any) -> str:
    """What a prediction says, as short JSON."""
    if not isinstance(prediction, Prediction):
        return kind(prediction)
    said = [[dict(region.value), region.to_json().get("score")] for region in prediction.result]
    text = orjson.dumps(said, default=repr).decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def is_json(value: Any) -> bool:
    try:
        return bool(orjson.loads(orjson.dumps(value)) == value)
    except (orjson.JSONEncodeError, TypeError):
        return False


def _close(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two JSON values are equal, numbers up to `tolerance`."""
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return abs(one - other) <= tolerance
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_close(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_close(a, b, tolerance) for a, b in zip(one, other, strict=True))
    return bool(one == other)
