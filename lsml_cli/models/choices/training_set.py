"""Annotated tasks -> what each head should learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lsml_cli.errors import ModelError, listed
from lsml_cli.models.base import Progress
from lsml_cli.models.choices.logistic import Wanted
from lsml_cli.schema.annotations import chosen
from lsml_cli.schema.label_config import Control, Object
from lsml_cli.schema.tasks import Annotation, Labelled, Task

T = TypeVar("T")

_SHOWN = 5  # reasons that are told


@dataclass
class Lesson(Generic[T]):
    """Everything to learn about one object: what the tasks show that teach something, a head for each control.

    The rows of each head are positions in `inputs`.
    """

    source: Object
    inputs: list[T] = field(default_factory=list)
    heads: dict[str, Wanted] = field(default_factory=dict)


def lessons(
    examples: Iterable[Labelled],
    pairs: Sequence[tuple[Control, Object]],
    read: Callable[[Object, Task], T],
    progress: Progress,
) -> list[Lesson[T]]:
    """One lesson for each object that some control with usable answers is about.

    read  what is learned from an object of a task; raises ValueError with a sentence when there is nothing

    `progress` hears about what had to be left out. Raises ModelError when nothing is left.
    """
    drafts: dict[str, _Draft[T]] = {}
    for control, source in pairs:
        drafts.setdefault(source.name, _Draft(source)).add(control)
    unreadable: Counter[str] = Counter()
    for example in examples:
        for draft in drafts.values():
            try:
                found = read(draft.source, example.task)
            except ValueError as error:
                unreadable[str(error)] += 1
            else:
                draft.learn(found, example.annotation)
    for reason, count in unreadable.most_common(_SHOWN):
        progress(f"{count} annotated tasks are not learned from: {reason}.")
    reasons = [reason for draft in drafts.values() for reason in draft.left_out()]
    taught = [lesson for draft in drafts.values() if (lesson := draft.lesson()).heads]
    if not taught:
        raise ModelError(
            f"There is nothing to learn: {' '.join(reasons)}",
            "Annotate more tasks, or check that the label config is the one of this project.",
        )
    for reason in reasons:
        progress(f"{reason} It is left out.")
    return taught


class _Answers:
    """What the annotators answered for one control, by position of the input."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.rows: list[int] = []
        self.chosen: list[tuple[str, ...]] = []
        self.unknown: Counter[str] = Counter()

    def add(self, row: int, annotation: Annotation) -> bool:
        """Whether this annotation teaches the control anything."""
        given = chosen(self.control, annotation.result)
        known = tuple(dict.fromkeys(self._known(given)))
        # Nothing chosen is an answer where several labels, and so none, may apply, but not where one has to.
        if (self.control.single and len(known) != 1) or (given and not known):
            return False
        self.rows.append(row)
        self.chosen.append(known)
        return True

    def _known(self, given: Iterable[str]) -> Iterable[str]:
        for name in given:
            if self.control.dynamic or name in self.control.name_of:
                yield name
            else:
                self.unknown[name] += 1

    def wanted(self) -> Wanted:
        # Sorted once, here, and stored with the weights from then on.
        classes = sorted({name for names in self.chosen for name in names})
        return Wanted(self.rows, self.chosen, classes, multi=not self.control.single)

    def problem(self) -> str | None:
        """Why this control cannot be learned."""
        classes = self.wanted().classes
        unknown = [f'"{name}"' for name, _ in self.unknown.most_common()]
        told = f" They choose {listed(unknown)}, which it no longer has." if unknown else ""
        if not classes:
            return f"No annotation has a usable answer for {self.control}.{told}"
        if len(classes) == 1 and all(self.chosen):
            same = f'All {len(self.rows)} answers for {self.control} are "{classes[0]}"'
            return f"{same}; two different ones are needed.{told}"
        return None


class _Draft(Generic[T]):
    def __init__(self, source: Object) -> None:
        self.source = source
        self.inputs: list[T] = []
        self.answers: list[_Answers] = []

    def add(self, control: Control) -> None:
        self.answers.append(_Answers(control))

    def learn(self, found: T, annotation: Annotation) -> None:
        if any([answers.add(len(self.inputs), annotation) for answers in self.answers]):
            self.inputs.append(found)

    def left_out(self) -> list[str]:
        return [problem for answers in self.answers if (problem := answers.problem())]

    def lesson(self) -> Lesson[T]:
        heads = {answers.control.name: answers.wanted() for answers in self.answers if not answers.problem()}
        return Lesson(self.source, self.inputs, heads)
