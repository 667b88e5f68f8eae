"""The model under test, the clauses of the contract, and the description of violations."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

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

MAX_SHOWN_CHARACTERS = 120  # of a prediction in a message

Check = Callable[["ModelUnderTest"], Iterator[str]]


class ViolationFound(Exception):
    """A violation that a helper of a check found; its text is the sentence."""


class ModelRaised(Exception):
    """An exception of the model, with a phrase that says when it was raised: "before load, "."""

    def __init__(self, context: str, error: BaseException) -> None:
        super().__init__(context, error)
        self.context = context
        self.error = error


@dataclass(frozen=True)
class Clause:
    """One clause of the contract.

    Attributes:
        name: Short name, shown in the report.
        requirement: What the contract requires, in one sentence.
        check: Yields a sentence for each violation; an exception is a violation as well.
        is_prerequisite: The clauses after it can only be checked if this one is kept.
    """

    name: str
    requirement: str
    check: Check
    is_prerequisite: bool


@dataclass(frozen=True)
class Violation:
    """One violation: the clause, a sentence, and the exception if the model raised one."""

    clause: Clause
    sentence: str
    error: BaseException | None = None


@dataclass(frozen=True)
class ClauseResult:
    """What became of one clause.

    Attributes:
        clause: The clause.
        violations: How the model breaks it.
        skipped: Why it could not be checked, None if it was.
    """

    clause: Clause
    violations: tuple[Violation, ...] = ()
    skipped: str | None = None

    @property
    def state(self) -> Literal["passed", "failed", "skipped"]:
        """Return what became of it in one word."""
        return "failed" if self.violations else "passed" if self.skipped is None else "skipped"


@dataclass
class ModelUnderTest:
    """A model under test and the tasks that it is tested with.

    The checks of prerequisite clauses set the attributes from `model` on for the clauses after them.

    Attributes:
        spec: The model.
        config: The label config that it has to fill.
        tasks: The tasks that it has to predict.
        device: Where it runs.
        media_root: Folder of the tasks' media.
        tolerance: Difference up to which numbers in predictions are equal.
        timeout: Seconds for all predictions in a process of the model's own.
        examples: Annotated tasks to train on.
        folder: Folder for what `fit` writes.
        model: The loaded model.
        binding: The model bound to the label config.
        inputs: What `encode` returned for each task.
        outputs: What `forward` returned for all inputs.
        predictions: What `decode` returned for each output.
        changes: Sentences about tasks and inputs that the model changed.
        states: What `fit` returned, by name of its folder.
        needs_training: The model has to be trained before it can load.
        media_cache: Bytes of the media by the value of the task.
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
        """Return the positions of all tasks."""
        return range(len(self.tasks))

    @cached_property
    def model_class(self) -> type[Model]:
        """Return the model's class."""
        return self.spec.model_class()

    @cached_property
    def media(self) -> Media | None:
        """Return what fetches the tasks' media, None without a folder for them."""
        return Media(self.media_root) if self.media_root is not None else None

    def copy_task(self, position: int) -> Task:
        """Return a copy of a task, so that a model that changes it does not affect other checks."""
        return copy.deepcopy(self.tasks[position])

    def encode(self, task: Task, model: Model | None = None, binding: Binding | None = None) -> Any:
        """Fetch the media of a task and encode it.

        Raises:
            ViolationFound: The task has media, and there is no `media_root`.
        """
        model, binding = model or self.model, binding or self.binding
        refs = model.media_refs(task, binding)
        if refs and self.media is None:
            raise ViolationFound(
                f"{describe_task(task)} points to {refs[0]}, and check_model was given no media_root to read it from"
            )
        for ref in refs:
            if self.media is not None and ref not in self.media_cache:
                self.media_cache[ref] = self.media.fetch(ref)
        return model.encode(task, binding, {ref: self.media_cache[ref] for ref in refs})

    def forward(self, inputs: list[Any], model: Model | None = None, binding: Binding | None = None) -> Sequence[Any]:
        """Run `forward`.

        Raises:
            ViolationFound: The number of outputs is not that of the inputs.
        """
        outputs: Any = (model or self.model).forward(inputs, binding or self.binding)
        if not hasattr(outputs, "__len__"):
            raise ViolationFound(
                f"forward returned {describe_json_type(outputs)}; "
                f"it has to be a list or an array of {len(inputs)} outputs"
            )
        if len(outputs) != len(inputs):
            raise ViolationFound(f"forward returned {len(outputs)} outputs for {len(inputs)} inputs")
        checked: Sequence[Any] = outputs
        return checked

    def predict(
        self, positions: Sequence[int], model: Model | None = None, binding: Binding | None = None
    ) -> list[Prediction]:
        """Predict these tasks as one batch."""
        model, binding = model or self.model, binding or self.binding
        tasks = [self.copy_task(position) for position in positions]
        outputs = self.forward([self.encode(task, model, binding) for task in tasks], model, binding)
        return [model.decode(output, task, binding) for output, task in zip(outputs, tasks, strict=True)]

    def compare(self, condition: str, positions: Sequence[int], predictions: Sequence[Any]) -> Iterator[str]:
        """Yield a sentence if predictions differ from those of one batch with all tasks."""
        pairs = list(zip(positions, predictions, strict=True))
        differing = [pair for pair in pairs if not self.is_same_prediction(pair[1], self.predictions[pair[0]])]
        if differing:
            position, prediction = differing[0]
            yield (
                f"{condition}, {len(differing)} of {len(pairs)} predictions are others: "
                f"{describe_task(self.tasks[position])} gets {format_prediction(prediction)}, "
                f"and {format_prediction(self.predictions[position])} when all tasks are one batch"
            )

    def is_same_prediction(self, left_prediction: Any, right_prediction: Any) -> bool:
        """Tell whether two predictions are equal except for their versions, which have a clause of their own."""
        if not isinstance(left_prediction, Prediction):
            return False
        left = {**left_prediction.to_json(), "model_version": None}
        right = {**right_prediction.to_json(), "model_version": None}
        return _is_close(left, right, self.tolerance)


def clause(clauses: list[Clause], name: str, *, is_prerequisite: bool = False) -> Callable[[Check], Check]:
    """Decorate a check to append it to a list of clauses; its docstring is the requirement of the clause."""

    def add(check: Check) -> Check:
        clauses.append(Clause(name, (check.__doc__ or "").strip(), check, is_prerequisite))
        return check

    return add


def run_clauses(clauses: Sequence[Clause], subject: ModelUnderTest) -> Iterator[ClauseResult]:
    """Check clauses in order and yield the result of each; those after a prerequisite that is violated are skipped."""
    skipped: str | None = None
    for clause in clauses:
        if skipped is not None:
            yield ClauseResult(clause, skipped=skipped)
            continue
        violations = tuple(_find_violations(clause, subject))
        if subject.needs_training:
            skipped = "the model has to be trained before it can predict"
            yield ClauseResult(clause, violations, None if violations else skipped)
            continue
        if violations and clause.is_prerequisite:
            skipped = needs_clause(clause.name)
        yield ClauseResult(clause, violations)


def needs_clause(name: str) -> str:
    """Say why a clause is skipped that can only be checked if another one is kept."""
    return f"it needs what the clause {name} requires"


def _find_violations(clause: Clause, subject: ModelUnderTest) -> list[Violation]:
    violations: list[Violation] = []
    try:
        for sentence in clause.check(subject):
            violations.append(Violation(clause, sentence))
    except ViolationFound as violation:
        violations.append(Violation(clause, str(violation)))
    except ModelRaised as raised:
        violations.append(_violation_from_error(clause, raised.error, subject.model_class, raised.context))
    except (Exception, SystemExit) as error:
        violations.append(_violation_from_error(clause, error, subject.model_class))
    return violations


def _violation_from_error(
    clause: Clause, error: BaseException, model_class: type[Model], context: str = ""
) -> Violation:
    """Describe an exception as a violation; `ModelSpec.build` wraps the model's own, which is unwrapped here."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ModelError) and error.__cause__ is not None and frames[-1].filename == spec.__file__:
        error = error.__cause__
    return Violation(clause, context + describe_error(error, model_class), error)


def describe_error(error: BaseException, model_class: type[Model]) -> str:
    """Describe an exception in one sentence: type, message, and the line of the model's own code that it came from."""
    own_files = {str(path) for path in source_files(model_class).values()}
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename in own_files), frames[-1])
    location = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: {frame.line}"
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}{': ' + text if text else ''} ({location})"


def describe_task(task: Task) -> str:
    """Name a task by its position, and its id if it has one: "task 0 (id 8)"."""
    return f"task {task.index}" + (f" (id {task.id})" if task.id is not None else "")


def format_prediction(prediction: Any) -> str:
    """Format a prediction as JSON of at most `MAX_SHOWN_CHARACTERS`: [value, score] of each region."""
    if not isinstance(prediction, Prediction):
        return describe_json_type(prediction)
    regions = [[dict(region.value), region.to_json().get("score")] for region in prediction.result]
    text = orjson.dumps(regions, default=repr).decode()
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def is_json(value: Any) -> bool:
    """Tell whether a value is the same after a round trip through JSON."""
    try:
        return bool(orjson.loads(orjson.dumps(value)) == value)
    except (orjson.JSONEncodeError, TypeError):
        return False


def _is_close(left: Any, right: Any, tolerance: float) -> bool:
    """Tell whether two JSON values are equal, numbers up to `tolerance`."""
    if isinstance(left, float | int) and isinstance(right, float | int) and not isinstance(left, bool):
        return abs(left - right) <= tolerance
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_is_close(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(_is_close(a, b, tolerance) for a, b in zip(left, right, strict=True))
    return bool(left == right)
