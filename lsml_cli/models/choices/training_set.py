"""Annotated tasks -> what each head should learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lsml_cli.errors import ModelError, format_list
from lsml_cli.models.base import Progress
from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.label_config import Control, Object
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task

T = TypeVar("T")

_MAX_REASONS = 5  # reasons that are told


@dataclass
class TrainingSet(Generic[T]):
    """Everything to learn about one object: what the tasks show that teach something, a head for each control.

    The rows of each head are positions in `inputs`.
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
    """One lesson for each object that some control with usable answers is about.

    read  what is learned from an object of a task; raises ValueError with a sentence when there is nothing

    `progress` hears about what had to be left out. Raises ModelError when nothing is left.
    """
    drafts: dict[str, _TrainingSetBuilder[T]] = {}
    for control, source in pairs:
        drafts.setdefault(source.name, _TrainingSetBuilder(source)).add_control(control)
    unreadable: Counter[str] = Counter()
    for example in examples:
        for draft in drafts.values():
            try:
                found = read_input(draft.object_tag, example.task)
            except ValueError as error:
                unreadable[str(error)] += 1
            else:
                draft.add_example(found, example.annotation)
    for reason, count in unreadable.most_common(_MAX_REASONS):
        progress(f"{count} annotated tasks are not learned from: {reason}.")
    reasons = [reason for draft in drafts.values() for reason in draft.problems()]
    taught = [lesson for draft in drafts.values() if (lesson := draft.build()).targets]
    if not taught:
        raise ModelError(
            f"There is nothing to learn: {' '.join(reasons)}",
            "Annotate more tasks, or check that the label config is the one of this project.",
        )
    for reason in reasons:
        progress(f"{reason} It is left out.")
    return taught


class _HeadTargetsBuilder:
    """What the annotators answered for one control, by position of the input."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.rows: list[int] = []
        self.row_classes: list[tuple[str, ...]] = []
        self.unknown_labels: Counter[str] = Counter()

    def add(self, row: int, annotation: Annotation) -> bool:
        """Whether this annotation teaches the control anything."""
        given = extract_labels(self.control, annotation.result)
        known = tuple(dict.fromkeys(self._known_labels(given)))
        # Nothing chosen is an answer where several labels, and so none, may apply, but not where one has to.
        if (self.control.is_single_choice and len(known) != 1) or (given and not known):
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
        # Sorted once, here, and stored with the weights from then on.
        classes = sorted({name for names in self.row_classes for name in names})
        return HeadTargets(self.rows, self.row_classes, classes, is_multi_label=not self.control.is_single_choice)

    def problem(self) -> str | None:
        """Why this control cannot be learned."""
        classes = self.build().classes
        unknown = [f'"{name}"' for name, _ in self.unknown_labels.most_common()]
        told = f" They choose {format_list(unknown)}, which it no longer has." if unknown else ""
        if not classes:
            return f"No annotation has a usable answer for {self.control}.{told}"
        if len(classes) == 1 and all(self.row_classes):
            same = f'All {len(self.rows)} answers for {self.control} are "{classes[0]}"'
            return f"{same}; two different ones are needed.{told}"
        return None


class _TrainingSetBuilder(Generic[T]):
    def __init__(self, object_tag: Object) -> None:
        self.object_tag = object_tag
        self.inputs: list[T] = []
        self.target_builders: list[_HeadTargetsBuilder] = []

    def add_control(self, control: Control) -> None:
        self.target_builders.append(_HeadTargetsBuilder(control))

    def add_example(self, content: T, annotation: Annotation) -> None:
        if any([answers.add(len(self.inputs), annotation) for answers in self.target_builders]):
            self.inputs.append(content)

    def problems(self) -> list[str]:
        return [problem for answers in self.target_builders if (problem := answers.problem())]

    def build(self) -> TrainingSet[T]:
        heads = {answers.control.name: answers.build() for answers in self.target_builders if not answers.problem()}
        return TrainingSet(self.object_tag, self.inputs, heads)
