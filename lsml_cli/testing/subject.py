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
from lsml_cli.models import spec
from lsml_cli.models.base import Binding, Model
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry.code_digest import source_files
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task, describe_json_type

MAX_SHOWN_CHARACTERS = 120  # characters of a prediction in a sentence


Check = Callable[["ModelUnderTest"], Iterator[str]]


class ViolationFound(Exception):
    """A breach that was found deep down; its text is the sentence."""


class ModelRaised(Exception):
    """What a model raised, with when it did."""

    def __init__(self, context: str, error: BaseException) -> None:
        super().__init__(context, error)
        self.context = context
        self.error = error


@dataclass(frozen=True)
class Clause:
    """`asks` is one sentence; without a `basic` clause those after it cannot be looked at.

    A check yields one sentence for each breach that it finds; what it raises is one more.
    """

    name: str
    requirement: str
    check: Check
    is_prerequisite: bool


@dataclass(frozen=True)
class Violation:
    """One breach: the clause, a sentence, and what the model raised, if it was that."""

    clause: Clause
    sentence: str
    error: BaseException | None = None


@dataclass
class ModelUnderTest:
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
    timeout: float
    examples: Sequence[AnnotatedTask]
    folder: Path

    model: Model = field(init=False)
    binding: Binding = field(init=False)
    inputs: list[Any] = field(init=False)
    outputs: Sequence[Any] = field(init=False)
    predictions: list[Prediction] = field(init=False)
    changes: list[str] = field(init=False, default_factory=list)
    states: dict[str, Mapping[str, Any]] = field(init=False, default_factory=dict)
    needs_training: bool = field(init=False, default=False)
    media_cache: dict[str, bytes] = field(init=False, default_factory=dict)

    @property
    def positions(self) -> range:
        return range(len(self.tasks))

    @cached_property
    def model_class(self) -> type[Model]:
        return self.spec.model_class()

    def copy_task(self, position: int) -> Task:
        """A task of the model's own to spoil."""
        return copy.deepcopy(self.tasks[position])

    def encode(self, task: Task, model: Model | None = None, binding: Binding | None = None) -> Any:
        model, binding = model or self.model, binding or self.binding
        sources = model.media_refs(task, binding)
        if sources and self.media_root is None:
            raise ViolationFound(
                f"{describe_task(task)} points to {sources[0]}, and check_model was given no media_root to read it from"
            )
        for source in sources:
            if source not in self.media_cache:
                self.media_cache[source] = Media(self.media_root or Path()).fetch(source)
        return model.encode(task, binding, {source: self.media_cache[source] for source in sources})

    def forward(self, inputs: list[Any], model: Model | None = None, binding: Binding | None = None) -> Sequence[Any]:
        """As many outputs as inputs, or a Breach."""
        outputs: Any = (model or self.model).forward(inputs, binding or self.binding)
        if not hasattr(outputs, "__len__"):
            raise ViolationFound(
                f"forward returned {describe_json_type(outputs)}; it has to be a list or an array of {len(inputs)} outputs"
            )
        if len(outputs) != len(inputs):
            raise ViolationFound(f"forward returned {len(outputs)} outputs for {len(inputs)} inputs")
        checked: Sequence[Any] = outputs
        return checked

    def predict(
        self, positions: Sequence[int], model: Model | None = None, binding: Binding | None = None
    ) -> list[Prediction]:
        """The predictions of these tasks as one batch."""
        model, binding = model or self.model, binding or self.binding
        tasks = [self.copy_task(position) for position in positions]
        outputs = self.forward([self.encode(task, model, binding) for task in tasks], model, binding)
        return [model.decode(output, task, binding) for output, task in zip(outputs, tasks, strict=True)]

    def compare(self, condition: str, positions: Sequence[int], predictions: Sequence[Any]) -> Iterator[str]:
        """A sentence when predictions differ from those of the whole batch."""
        pairs = list(zip(positions, predictions, strict=True))
        differing = [(i, each) for i, each in pairs if not self.is_same_prediction(each, self.predictions[i])]
        if differing:
            first, other = differing[0]
            yield (
                f"{condition}, {len(differing)} of {len(pairs)} predictions are others: {describe_task(self.tasks[first])} gets "
                f"{format_prediction(other)}, and {format_prediction(self.predictions[first])} when all tasks are one batch"
            )

    def is_same_prediction(self, left_prediction: Any, right_prediction: Any) -> bool:
        """Whether two predictions say the same. Versions have a clause of their own."""
        if not isinstance(left_prediction, Prediction):
            return False
        left, right = ({**each.to_json(), "model_version": None} for each in (left_prediction, right_prediction))
        return _is_close(left, right, self.tolerance)


def clause(clauses: list[Clause], name: str, *, is_prerequisite: bool = False) -> Callable[[Check], Check]:
    """Append the check below to a list of clauses; its docstring says what the clause asks."""

    def add(check: Check) -> Check:
        clauses.append(Clause(name, (check.__doc__ or "").strip(), check, is_prerequisite))
        return check

    return add


def run_clauses(clauses: Sequence[Clause], subject: ModelUnderTest) -> list[Violation]:
    """What is broken, up to the first basic clause that is."""
    broken: list[Violation] = []
    for clause in clauses:
        before = len(broken)
        try:
            broken += [Violation(clause, sentence) for sentence in clause.check(subject)]
        except ViolationFound as breach:
            broken.append(Violation(clause, str(breach)))
        except ModelRaised as noted:
            broken.append(_violation_from_error(clause, noted.error, subject.model_class, noted.context))
        except (Exception, SystemExit) as error:
            broken.append(_violation_from_error(clause, error, subject.model_class))
        if subject.needs_training or (clause.is_prerequisite and len(broken) > before):
            break
    return broken


def _violation_from_error(
    clause: Clause, error: BaseException, model_class: type[Model], context: str = ""
) -> Violation:
    """A breach that is an exception: the model's own, where lsml has made a sentence about the model of it."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ModelError) and error.__cause__ is not None and frames[-1].filename == spec.__file__:
        error = error.__cause__
    return Violation(clause, context + describe_error(error, model_class), error)


def describe_error(error: BaseException, model_class: type[Model]) -> str:
    """An exception as one sentence: type, message, and the line of the model's own code that it came from."""
    own = {str(path) for path in source_files(model_class).values()}
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename in own), frames[-1])
    where = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: {frame.line}"
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}{': ' + text if text else ''} ({where})"


def describe_task(task: Task) -> str:
    return f"task {task.index}" + (f" (id {task.id})" if task.id is not None else "")


def format_prediction(prediction: Any) -> str:
    """What a prediction says, as short JSON."""
    if not isinstance(prediction, Prediction):
        return describe_json_type(prediction)
    said = [[dict(region.value), region.to_json().get("score")] for region in prediction.result]
    text = orjson.dumps(said, default=repr).decode()
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def is_json(value: Any) -> bool:
    try:
        return bool(orjson.loads(orjson.dumps(value)) == value)
    except (orjson.JSONEncodeError, TypeError):
        return False


def _is_close(left: Any, right: Any, tolerance: float) -> bool:
    """Whether two JSON values are equal, numbers up to `tolerance`."""
    if isinstance(left, float | int) and isinstance(right, float | int) and not isinstance(left, bool):
        return abs(left - right) <= tolerance
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_is_close(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(_is_close(a, b, tolerance) for a, b in zip(left, right, strict=True))
    return bool(left == right)
