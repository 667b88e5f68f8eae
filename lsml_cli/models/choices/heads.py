"""A classifier meets a label config: which head fills which <Choices>, which class is which label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from lsml_cli.errors import LabelMismatch, ModelError, listed
from lsml_cli.models.base import Binding, Json, Meeting, ModelSpec
from lsml_cli.models.choices.probabilities import sigmoid, softmax
from lsml_cli.models.label_mapping import met
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.tasks import Task

if TYPE_CHECKING:
    from lsml_cli.models.choices.probabilities import Floats
    from lsml_cli.models.choices.training_set import Lesson

Bound = TypeVar("Bound", bound="ChoicesBinding")

MULTI_THRESHOLD = 0.5  # probability from which a label of choice="multiple" is given, without --threshold


@dataclass(frozen=True)
class Head:
    """One control as the model learned it. Its K classes are the scorer's columns `first` to `first + K`."""

    control: str
    object: str
    scorer: int
    first: int
    classes: tuple[str, ...]
    multi: bool


@dataclass(frozen=True)
class Source:
    """An object of the label config that one scorer looks at."""

    object: Object
    scorer: int


@dataclass(frozen=True)
class Answer:
    """How one head fills one control: column `columns[i]` of the scores stands for `labels[i]`."""

    control: Control
    to_name: str
    source: int
    head: Head
    columns: tuple[int, ...]
    labels: tuple[str, ...]

    @cached_property
    def single(self) -> bool:
        return self.control.single

    def meeting(self) -> Meeting:
        label_of = {self.head.classes[column]: label for column, label in zip(self.columns, self.labels, strict=True)}
        labels = [label.name for label in self.control.labels]
        return Meeting(self.control.name, labels, self.head.classes, label_of)

    def probabilities(self, scores: Floats) -> list[Any]:
        """Per task: (index of the best label, its probability), or for choice="multiple" all probabilities."""
        head = self.head
        mine = scores[:, head.first : head.first + len(head.classes)]
        found = (sigmoid(mine) if head.multi else softmax(mine))[:, self.columns]
        if self.single:
            return list(zip(found.argmax(axis=1).tolist(), found.max(axis=1).tolist(), strict=True))
        every: list[Any] = found.tolist()
        return every

    def region(self, task: Task, found: Any, threshold: float | None) -> Region | None:
        """What `probabilities` said about one task; None when it said nothing."""
        if self.single:
            best, score = found
            if threshold is not None and score < threshold:
                return None
            chosen = {self.labels[best]: score}
        else:
            least = MULTI_THRESHOLD if threshold is None else threshold
            chosen = {label: score for label, score in zip(self.labels, found, strict=True) if score >= least}
            if not chosen:
                return None
            score = min(chosen.values())
        return self.control.region(task, {"choices": list(chosen)}, score=score, to_name=self.to_name)


@dataclass
class ChoicesBinding(Binding):
    """What the scorers look at, and how each head fills its control."""

    sources: tuple[Any, ...] = ()
    answers: tuple[Answer, ...] = ()

    @property
    def silent(self) -> bool:
        return not self.answers

    @property
    def filled(self) -> frozenset[str]:
        return frozenset(each.control.name for each in self.answers)

    def fill(self, task: Task, found: Sequence[Any]) -> tuple[Region, ...]:
        """The regions of one task, of what `Answer.probabilities` says for each answer."""
        regions = (answer.region(task, each, self.threshold) for answer, each in zip(self.answers, found, strict=True))
        return tuple([region for region in regions if region is not None])


def choices_about(config: LabelConfig, tags: Sequence[str], who: str) -> list[tuple[Control, Object]]:
    """The <Choices> about objects of these tags, each with its object.

    who  "The text classifier", for the sentence

    Raises LabelMismatch when there is none.
    """
    pairs = [(control, source) for control, source in config.pairs("Choices", tags) if not control.per_item]
    if pairs:
        return pairs
    there = [
        f"{control} about {', '.join(map(str, _objects(control, config)))}" for control in config.controls.values()
    ]
    wanted = [f"<{tag}>" for tag in tags]
    about = f"{', '.join(wanted[:-1])} or {wanted[-1]}" if len(wanted) > 1 else wanted[0]
    raise LabelMismatch(
        f"{who} fills <Choices> that are about {about}, but the label config has "
        f"{listed(there) or 'no control at all'}.",
        "Choose a model that fills these controls: `lsml models` lists them.",
    )


def _objects(control: Control, config: LabelConfig) -> list[Object]:
    return [config.objects[name] for name in control.to_names]


def warm_binding(
    binding: Bound,
    pairs: Sequence[tuple[Control, Object]],
    heads: Sequence[Head],
    source_of: Callable[[Object, int], Any] = Source,
) -> Bound:
    """Let the heads of a trained model meet the controls of a label config.

    source_of  what the binding keeps for an object that a scorer looks at

    Raises LabelMismatch that shows both lists when nothing meets.
    """
    met_heads = _pair_up(heads, pairs)
    answers, sources, notes = [], [], []
    for head, control, source in met_heads:
        known = met(head.classes, control, binding.label_map)
        if not known:
            continue
        if (read := source_of(source, head.scorer)) not in sources:
            sources.append(read)
        answers.append(answer_of(head, control, source, sources.index(read), known))
        notes += _differences(head, control, known)
    if not answers:
        raise _nothing_in_common(heads, [control for control, _ in pairs], bool(met_heads))
    filled = {answer.control.name for answer in answers}
    lost = [str(control) for control, _ in pairs if control.name not in filled]
    if lost:
        notes.append(f"The model was not trained for {listed(lost)}: no predictions there.")
    binding.meetings = tuple(answer.meeting() for answer in answers)
    binding.sources, binding.answers, binding.notes = tuple(sources), tuple(answers), tuple(notes)
    return binding


def answer_of(head: Head, control: Control, source: Object, index: int, known: Mapping[str, str]) -> Answer:
    place = {label.name: i for i, label in enumerate(control.labels)}
    order = sorted(known, key=lambda name: place.get(known[name], len(place)))  # as the config lists them
    columns = tuple(head.classes.index(name) for name in order)
    return Answer(control, source.name, index, head, columns, tuple(known[name] for name in order))


def _pair_up(heads: Sequence[Head], pairs: Sequence[tuple[Control, Object]]) -> list[tuple[Head, Control, Object]]:
    """Heads and controls meet by name; what is left over on both sides meets when it is one and one."""
    by_name = {control.name: (control, source) for control, source in pairs}
    met = [(head, *by_name[head.control]) for head in heads if head.control in by_name]
    taken = {head.control for head, _, _ in met}
    left_heads = [head for head in heads if head.control not in taken]
    left_pairs = [pair for pair in pairs if pair[0].name not in taken]
    if len(left_heads) == len(left_pairs) == 1:
        met.append((left_heads[0], *left_pairs[0]))
    return met


def _differences(head: Head, control: Control, known: Mapping[str, str]) -> list[str]:
    notes = []
    if lost := [name for name in head.classes if name not in known]:
        count = f"{len(lost)} of the model's {len(head.classes)} classes"
        notes.append(f"Dropped {count}, for which {control} has no label: {listed(lost)}.")
    if new := [label.name for label in control.labels if label.name not in known.values()]:
        notes.append(f"Never predicted, because the model does not know them, of {control}: {listed(new)}.")
    return notes


def _nothing_in_common(heads: Sequence[Head], controls: Sequence[Control], met: bool) -> LabelMismatch:
    classes = "; ".join(f'"{head.control}": {listed(head.classes)}' for head in heads)
    labels = "; ".join(f'"{control.name}": {listed([label.name for label in control.labels])}' for control in controls)
    if met:
        return LabelMismatch(
            "The model and the label config have no label in common. "
            f"The model has {classes}. The label config has {labels}.",
            "Say which of the model's classes stands for which label in a file: --label-map.",
        )
    return LabelMismatch(
        "It is not clear which control of the label config the model should fill. "
        f"The model was trained for {classes}. The label config has {labels}.",
        "Name the controls as in the label config the model was trained with.",
    )


def stored_heads(spec: ModelSpec) -> list[Head]:
    """The heads in a trained version's state; none for an untrained model. Raises ModelError when they are damaged."""
    state: Any = spec.state
    try:
        return [Head(**(head | {"classes": tuple(head["classes"])})) for head in state.get("heads", ())]
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"The state of {spec.model_version} is not that of a classifier.") from error


def to_state(lesson: Lesson[Any], scorer: int) -> list[Json]:
    """The heads that were learned from one lesson, as a version stores them: side by side, in the lesson's order."""
    heads: list[Json] = []
    first = 0
    for control, wanted in lesson.heads.items():
        heads.append(
            {
                "control": control,
                "object": lesson.source.name,
                "scorer": scorer,
                "first": first,
                "classes": list(wanted.classes),
                "multi": wanted.multi,
            }
        )
        first += len(wanted.classes)
    return heads
