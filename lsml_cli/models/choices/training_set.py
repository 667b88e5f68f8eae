"""Collect from annotated tasks what each head of a classifier learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lsml_cli.errors import ModelError, format_list
from lsml_cli.models.base import Progress
from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.models.media_refs import format_task_name
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.failure_causes import FailureCauses, not_learned_lines
from lsml_cli.schema.label_config import Control, Object
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task

T = TypeVar("T")


@dataclass
class TrainingSet(Generic[T]):
    """The examples for one object of the label config, and the targets of each control over it.

    Attributes:
        object_tag: The object.
        inputs: What was read from the object in each task that is learned from.
        targets: The targets by control name; their rows are positions in `inputs`.
    """

    object_tag: Object
    inputs: list[T] = field(default_factory=list)
    targets: dict[str, HeadTargets] = field(default_factory=dict)


def build_training_sets(
    examples: Iterable[AnnotatedTask],
    pairs: Sequence[tuple[Control, Object]],
    read_input: Callable[[Object, Task], T],
    progress: Progress,
) -> list[TrainingSet[T]]:
    """Build a training set for each object that a control with usable answers labels.

    Args:
        examples: The annotated tasks.
        pairs: The controls to learn, each with its object.
        read_input: Reads what is learned from an object of a task; raises ValueError with a sentence if it cannot.
        progress: Is told which tasks and controls are left out, and why.

    Raises:
        ModelError: No control can be learned.
    """
    builders: dict[str, _TrainingSetBuilder[T]] = {}
    for control, object_tag in pairs:
        builders.setdefault(object_tag.name, _TrainingSetBuilder(object_tag)).add_control(control)
    unreadable = FailureCauses()
    for example in examples:
        for builder in builders.values():
            try:
                content = read_input(builder.object_tag, example.task)
            except ValueError as error:
                task_name = format_task_name(example.task.id, example.task.index)
                unreadable.add("encode", str(error), task_name)
            else:
                builder.add_example(content, example.annotation)
    for line in not_learned_lines(unreadable, "task"):
        progress(line)
    problems = [problem for builder in builders.values() for problem in builder.problems()]
    training_sets = [built for builder in builders.values() if (built := builder.build()).targets]
    if not training_sets:
        reasons = list(not_learned_lines(unreadable, "task"))[:1]
        raise ModelError(
            f"There is nothing to learn. {' '.join([*reasons, *problems])}",
            "Annotate more tasks, or check that the label config is the one of this project.",
        )
    for problem in problems:
        progress(f"{problem} It is left out.")
    return training_sets


class _HeadTargetsBuilder:
    """Collect the annotators' answers for one control, each with the position of its input."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.rows: list[int] = []
        self.row_classes: list[tuple[str, ...]] = []
        self.unknown_labels: Counter[str] = Counter()

    def add(self, row: int, annotation: Annotation) -> bool:
        """Add the answer of an annotation; tell whether there is one that the control can learn from."""
        labels = extract_labels(self.control, annotation.result)
        known = tuple(dict.fromkeys(self._known_labels(labels)))
        # No label at all is an answer where several, and so none, may apply, but not where exactly one has to.
        if (self.control.is_single_choice and len(known) != 1) or (labels and not known):
            return False
        self.rows.append(row)
        self.row_classes.append(known)
        return True

    def _known_labels(self, labels: Iterable[str]) -> Iterable[str]:
        for name in labels:
            if self.control.has_dynamic_labels or name in self.control.label_names:
                yield name
            else:
                self.unknown_labels[name] += 1

    def build(self) -> HeadTargets:
        # Sorted here alone: the order is stored with the weights.
        classes = sorted({name for names in self.row_classes for name in names})
        return HeadTargets(self.rows, self.row_classes, classes, is_multi_label=not self.control.is_single_choice)

    def problem(self) -> str | None:
        """Describe why this control cannot be learned, None if it can."""
        classes = self.build().classes
        unknown = [f'"{name}"' for name, _ in self.unknown_labels.most_common()]
        suffix = f" They choose {format_list(unknown)}, which it no longer has." if unknown else ""
        if not classes:
            return f"No annotation has a usable answer for {self.control}.{suffix}"
        if len(classes) == 1 and all(self.row_classes):
            count = len(self.rows)
            every = (
                f"The only answer for {self.control} is"
                if count == 1
                else f"All {count} answers for {self.control} are"
            )
            same = f'{every} "{classes[0]}"'
            return f"{same}; two different ones are needed.{suffix}"
        return None


class _TrainingSetBuilder(Generic[T]):
    """Collect the inputs of one object, and the answers for each control over it."""

    def __init__(self, object_tag: Object) -> None:
        self.object_tag = object_tag
        self.inputs: list[T] = []
        self.target_builders: list[_HeadTargetsBuilder] = []

    def add_control(self, control: Control) -> None:
        self.target_builders.append(_HeadTargetsBuilder(control))

    def add_example(self, content: T, annotation: Annotation) -> None:
        """Add an input unless no control can learn from its annotation."""
        if any([builder.add(len(self.inputs), annotation) for builder in self.target_builders]):
            self.inputs.append(content)

    def problems(self) -> list[str]:
        """Describe why controls cannot be learned."""
        return [problem for builder in self.target_builders if (problem := builder.problem())]

    def build(self) -> TrainingSet[T]:
        """Build the training set of the controls that can be learned."""
        targets = {builder.control.name: builder.build() for builder in self.target_builders if not builder.problem()}
        return TrainingSet(self.object_tag, self.inputs, targets)
