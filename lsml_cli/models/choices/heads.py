"""A classifier meets a label config: which head fills which <Choices>, which class is which label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from lsml_cli.errors import LabelMismatch, ModelError, format_list
from lsml_cli.models.base import Binding, LabelMapping
from lsml_cli.models.choices.probabilities import sigmoid, softmax
from lsml_cli.models.label_mapping import map_labels
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.tasks import Task

if TYPE_CHECKING:
    from lsml_cli.models.choices.probabilities import Floats
    from lsml_cli.models.choices.training_set import TrainingSet

BindingT = TypeVar("BindingT", bound="ChoicesBinding")

MULTI_LABEL_THRESHOLD = 0.5  # probability from which a label of choice="multiple" is given, without --threshold


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
class ScorerInput:
    """An object of the label config that one scorer looks at."""

    object: Object
    scorer: int


@dataclass(frozen=True)
class HeadBinding:
    """How one head fills one control: column `columns[i]` of the scores stands for `labels[i]`."""

    control: Control
    to_name: str
    input_index: int
    head: Head
    columns: tuple[int, ...]
    labels: tuple[str, ...]

    @cached_property
    def is_single(self) -> bool:
        return self.control.is_single_choice

    def label_mapping(self) -> LabelMapping:
        label_of = {self.head.classes[column]: label for column, label in zip(self.columns, self.labels, strict=True)}
        labels = [label.name for label in self.control.labels]
        return LabelMapping(self.control.name, labels, self.head.classes, label_of)

    def probabilities(self, scores: Floats) -> list[Any]:
        """Per task: (index of the best label, its probability), or for choice="multiple" all probabilities."""
        head = self.head
        mine = scores[:, head.first : head.first + len(head.classes)]
        found = (sigmoid(mine) if head.multi else softmax(mine))[:, self.columns]
        if self.is_single:
            return list(zip(found.argmax(axis=1).tolist(), found.max(axis=1).tolist(), strict=True))
        every: list[Any] = found.tolist()
        return every

    def region(self, task: Task, head_output: Any, threshold: float | None) -> Region | None:
        """What `probabilities` said about one task; None when it said nothing."""
        if self.is_single:
            best, score = head_output
            if threshold is not None and score < threshold:
                return None
            chosen = {self.labels[best]: score}
        else:
            least = MULTI_LABEL_THRESHOLD if threshold is None else threshold
            chosen = {label: score for label, score in zip(self.labels, head_output, strict=True) if score >= least}
            if not chosen:
                return None
            score = min(chosen.values())
        return self.control.region(task, {"choices": list(chosen)}, score=score, to_name=self.to_name)


@dataclass
class ChoicesBinding(Binding):
    """What the scorers look at, and how each head fills its control."""

    scorer_inputs: tuple[Any, ...] = ()
    head_bindings: tuple[HeadBinding, ...] = ()

    @property
    def can_predict(self) -> bool:
        return bool(self.head_bindings)

    @property
    def output_controls(self) -> frozenset[str]:
        return frozenset(each.control.name for each in self.head_bindings)

    def make_regions(self, task: Task, head_outputs: Sequence[Any]) -> tuple[Region, ...]:
        """The regions of one task, of what `Answer.probabilities` says for each answer."""
        regions = (
            answer.region(task, each, self.threshold)
            for answer, each in zip(self.head_bindings, head_outputs, strict=True)
        )
        return tuple([region for region in regions if region is not None])


def find_choices_controls(
    config: LabelConfig, object_tags: Sequence[str], model_name: str
) -> list[tuple[Control, Object]]:
    """The <Choices> about objects of these tags, each with its object.

    who  "The text classifier", for the sentence

    Raises LabelMismatch when there is none.
    """
    pairs = [(control, source) for control, source in config.find_pairs("Choices", object_tags) if not control.per_item]
    if pairs:
        return pairs
    there = [
        f"{control} about {', '.join(map(str, _objects_of(control, config)))}" for control in config.controls.values()
    ]
    wanted = [f"<{tag}>" for tag in object_tags]
    about = f"{', '.join(wanted[:-1])} or {wanted[-1]}" if len(wanted) > 1 else wanted[0]
    raise LabelMismatch(
        f"{model_name} fills <Choices> that are about {about}, but the label config has "
        f"{format_list(there) or 'no control at all'}.",
        "Choose a model that fills these controls: `lsml models` lists them.",
    )


def _objects_of(control: Control, config: LabelConfig) -> list[Object]:
    return [config.objects[name] for name in control.to_names]


def bind_trained_heads(
    binding: BindingT,
    pairs: Sequence[tuple[Control, Object]],
    heads: Sequence[Head],
    make_input: Callable[[Object, int], Any] = ScorerInput,
) -> BindingT:
    """Let the heads of a trained model meet the controls of a label config.

    source_of  what the binding keeps for an object that a scorer looks at

    Raises LabelMismatch that shows both lists when nothing meets.
    """
    met_heads = _match_heads(heads, pairs)
    answers, sources, notes = [], [], []
    for head, control, source in met_heads:
        known = map_labels(head.classes, control, binding.label_map)
        if not known:
            continue
        if (read := make_input(source, head.scorer)) not in sources:
            sources.append(read)
        answers.append(bind_head(head, control, source, sources.index(read), known))
        notes += _mapping_notes(head, control, known)
    if not answers:
        raise _no_match_error(heads, [control for control, _ in pairs], bool(met_heads))
    filled = {answer.control.name for answer in answers}
    lost = [str(control) for control, _ in pairs if control.name not in filled]
    if lost:
        notes.append(f"The model was not trained for {format_list(lost)}: no predictions there.")
    binding.label_mappings = tuple(answer.label_mapping() for answer in answers)
    binding.scorer_inputs, binding.head_bindings, binding.notes = tuple(sources), tuple(answers), tuple(notes)
    return binding


def bind_head(
    head: Head, control: Control, object_tag: Object, input_index: int, label_of: Mapping[str, str]
) -> HeadBinding:
    place = {label.name: i for i, label in enumerate(control.labels)}
    order = sorted(label_of, key=lambda name: place.get(label_of[name], len(place)))  # as the config lists them
    columns = tuple(head.classes.index(name) for name in order)
    return HeadBinding(control, object_tag.name, input_index, head, columns, tuple(label_of[name] for name in order))


def _match_heads(heads: Sequence[Head], pairs: Sequence[tuple[Control, Object]]) -> list[tuple[Head, Control, Object]]:
    """Heads and controls meet by name; what is left over on both sides meets when it is one and one."""
    by_name = {control.name: (control, source) for control, source in pairs}
    met = [(head, *by_name[head.control]) for head in heads if head.control in by_name]
    taken = {head.control for head, _, _ in met}
    left_heads = [head for head in heads if head.control not in taken]
    left_pairs = [pair for pair in pairs if pair[0].name not in taken]
    if len(left_heads) == len(left_pairs) == 1:
        met.append((left_heads[0], *left_pairs[0]))
    return met


def _mapping_notes(head: Head, control: Control, label_of: Mapping[str, str]) -> list[str]:
    notes = []
    if lost := [name for name in head.classes if name not in label_of]:
        count = f"{len(lost)} of the model's {len(head.classes)} classes"
        notes.append(f"Dropped {count}, for which {control} has no label: {format_list(lost)}.")
    if new := [label.name for label in control.labels if label.name not in label_of.values()]:
        notes.append(f"Never predicted, because the model does not know them, of {control}: {format_list(new)}.")
    return notes


def _no_match_error(heads: Sequence[Head], controls: Sequence[Control], has_matched_heads: bool) -> LabelMismatch:
    classes = "; ".join(f'"{head.control}": {format_list(head.classes)}' for head in heads)
    labels = "; ".join(
        f'"{control.name}": {format_list([label.name for label in control.labels])}' for control in controls
    )
    if has_matched_heads:
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


def heads_from_state(spec: ModelSpec) -> list[Head]:
    """The heads in a trained version's state; none for an untrained model. Raises ModelError when they are damaged."""
    state: Any = spec.state
    try:
        return [Head(**(head | {"classes": tuple(head["classes"])})) for head in state.get("heads", ())]
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"The state of {spec.model_version} is not that of a classifier.") from error


def heads_to_state(training_set: TrainingSet[Any], scorer: int) -> list[Json]:
    """The heads that were learned from one lesson, as a version stores them: side by side, in the lesson's order."""
    heads: list[Json] = []
    first = 0
    for control, wanted in training_set.targets.items():
        heads.append(
            {
                "control": control,
                "object": training_set.object_tag.name,
                "scorer": scorer,
                "first": first,
                "classes": list(wanted.classes),
                "multi": wanted.is_multi_label,
            }
        )
        first += len(wanted.classes)
    return heads
