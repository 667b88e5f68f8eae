"""Bind the heads of a classifier to the <Choices> of a label config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from lsml_cli.errors import LabelMismatch, ModelError, format_list
from lsml_cli.models.base import OTHER_MODEL_HINT, Binding, LabelMapping
from lsml_cli.models.choices.probabilities import sigmoid, softmax
from lsml_cli.models.label_mapping import describe_unmapped, map_labels, suggest_label_map
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.tasks import Task, describe_json_type
from lsml_cli.schema.value_checks import is_integer

if TYPE_CHECKING:
    from lsml_cli.models.choices.probabilities import Floats
    from lsml_cli.models.choices.training_set import TrainingSet

BindingT = TypeVar("BindingT", bound="ChoicesBinding")

MULTI_LABEL_THRESHOLD = 0.5  # probability from which a label of choice="multiple" is predicted, without --threshold


@dataclass(frozen=True)
class Head:
    """One control as the model learned it. The field names are those of the stored state.

    Attributes:
        control: Name of the control.
        object: Name of the object that it labels.
        scorer: Index of the scorer that scores this object.
        first: Column of the scorer's scores that belongs to the first class.
        classes: K class names, in the order of the columns `first` to `first + K`.
        multi: Several classes may apply to one task; their probabilities are independent.
    """

    control: str
    object: str
    scorer: int
    first: int
    classes: tuple[str, ...]
    multi: bool


@dataclass(frozen=True)
class ScorerInput:
    """An object of the label config, and the index of the scorer that scores it."""

    object: Object
    scorer: int


@dataclass(frozen=True)
class HeadBinding:
    """One head bound to one control.

    Attributes:
        control: The control that the head fills.
        to_name: Name of the object that the control labels.
        input_index: Position of the object in `ChoicesBinding.scorer_inputs`.
        head: The head.
        columns: Positions in `head.classes` of the classes that have a label.
        labels: The label of each of these classes.
    """

    control: Control
    to_name: str
    input_index: int
    head: Head
    columns: tuple[int, ...]
    labels: tuple[str, ...]

    @cached_property
    def is_single(self) -> bool:
        """Tell whether exactly one label applies."""
        return self.control.is_single_choice

    def label_mapping(self) -> LabelMapping:
        """Describe how the classes map to labels."""
        label_of = {self.head.classes[column]: label for column, label in zip(self.columns, self.labels, strict=True)}
        labels = [label.name for label in self.control.labels]
        return LabelMapping(self.control.name, labels, self.head.classes, label_of)

    def probabilities(self, scores: Floats) -> list[Any]:
        """Turn the (n, C) scores of the scorer into n outputs.

        Returns:
            For each task (index into `labels`, probability) of the best class, None if that one has no label; for
            choice="multiple" an array with the probabilities of all labels. Classes without a label keep their share of
            the probability.
        """
        head = self.head
        class_scores = scores[:, head.first : head.first + len(head.classes)]
        values = sigmoid(class_scores) if head.multi else softmax(class_scores)
        label_values = values[:, self.columns]
        if not self.is_single:
            return list(label_values.astype(float))  # of 64 bits, so that a threshold means the same for every model
        best_values = label_values.max(axis=1)
        is_best = best_values >= values.max(axis=1)
        best = zip(label_values.argmax(axis=1).tolist(), best_values.tolist(), strict=True)
        return [output if has_label else None for output, has_label in zip(best, is_best.tolist(), strict=True)]

    def region(self, task: Task, head_output: Any, threshold: float | None) -> Region | None:
        """Make a region of one output of `probabilities`, None if there is nothing to say.

        Args:
            task: The task.
            head_output: None if the model says nothing about the task.
            threshold: Score below which nothing is said, None for the model's own.
        """
        if head_output is None:
            return None
        if self.is_single:
            best, score = head_output
            if threshold is not None and score < threshold:
                return None
            score_of = {self.labels[best]: score}
        else:
            min_score = MULTI_LABEL_THRESHOLD if threshold is None else threshold
            applying = (head_output >= min_score).nonzero()[0].tolist()
            score_of = {self.labels[i]: float(head_output[i]) for i in applying}
            if not score_of:
                return None
            score = min(score_of.values())
        return self.control.region(task, {"choices": list(score_of)}, score=score, to_name=self.to_name)


@dataclass
class ChoicesBinding(Binding):
    """A classifier bound to a label config: what its scorers read, and which control each head fills."""

    scorer_inputs: tuple[Any, ...] = ()
    head_bindings: tuple[HeadBinding, ...] = ()

    @property
    def can_predict(self) -> bool:
        return bool(self.head_bindings)

    @property
    def output_controls(self) -> frozenset[str]:
        return frozenset(binding.control.name for binding in self.head_bindings)

    def make_regions(self, task: Task, head_outputs: Sequence[Any]) -> tuple[Region, ...]:
        """Make the regions of one task from its output of `HeadBinding.probabilities` for each head."""
        regions = (
            binding.region(task, head_output, self.threshold)
            for binding, head_output in zip(self.head_bindings, head_outputs, strict=True)
        )
        return tuple([region for region in regions if region is not None])


def find_choices_controls(
    config: LabelConfig, object_tags: Sequence[str], model_name: str
) -> list[tuple[Control, Object]]:
    """Find the <Choices> over objects of these tags, each with its object.

    Args:
        config: The label config.
        object_tags: Tags of the objects that the model reads: "Text", "Image".
        model_name: Begins the error message: "The text classifier".

    Raises:
        LabelMismatch: There is none.
    """
    pairs = [
        (control, object_tag)
        for control, object_tag in config.find_pairs("Choices", object_tags)
        if not control.per_item
    ]
    if pairs:
        return pairs
    available = [
        f"{control} about {', '.join(str(config.objects[name]) for name in control.to_names)}"
        for control in config.controls.values()
    ]
    tags = [f"<{tag}>" for tag in object_tags]
    objects = f"{', '.join(tags[:-1])} or {tags[-1]}" if len(tags) > 1 else tags[0]
    raise LabelMismatch(
        f"{model_name} fills <Choices> that are about {objects}, but the label config has "
        f"{format_list(available) or 'no control at all'}.",
        OTHER_MODEL_HINT,
    )


def bind_trained_heads(
    binding: BindingT,
    pairs: Sequence[tuple[Control, Object]],
    heads: Sequence[Head],
    make_input: Callable[[Object, int], Any] = ScorerInput,
) -> BindingT:
    """Bind the heads of a trained model to the controls of a label config.

    Args:
        binding: The binding to fill.
        pairs: What `find_choices_controls` returned.
        heads: The heads of the model.
        make_input: Called with an object and the index of its scorer; makes one of `scorer_inputs`.

    Raises:
        LabelMismatch: No head has a control, or none a label in common; the message shows the labels of both sides.
    """
    matches = _match_heads(heads, pairs)
    head_bindings: list[HeadBinding] = []
    scorer_inputs: list[Any] = []
    notes: list[str] = []
    for head, control, object_tag in matches:
        label_of = map_labels(head.classes, control, binding.label_map)
        if not label_of:
            continue
        scorer_input = make_input(object_tag, head.scorer)
        if scorer_input not in scorer_inputs:
            scorer_inputs.append(scorer_input)
        head_bindings.append(bind_head(head, control, object_tag, scorer_inputs.index(scorer_input), label_of))
        effect = "Where one of them is the best, nothing is predicted." if control.is_single_choice else None
        notes += describe_unmapped(head.classes, control, label_of, effect)
    if not head_bindings:
        raise _no_match_error(heads, [control for control, _ in pairs], bool(matches))
    filled = {head_binding.control.name for head_binding in head_bindings}
    if unfilled := [str(control) for control, _ in pairs if control.name not in filled]:
        notes.append(f"The model was not trained for {format_list(unfilled)}: no predictions there.")
    return set_heads(binding, scorer_inputs, head_bindings, notes)


def set_heads(
    binding: BindingT, scorer_inputs: Sequence[Any], head_bindings: Sequence[HeadBinding], notes: Sequence[str]
) -> BindingT:
    """Fill in a binding."""
    binding.label_mappings = tuple(head_binding.label_mapping() for head_binding in head_bindings)
    binding.scorer_inputs, binding.head_bindings = tuple(scorer_inputs), tuple(head_bindings)
    binding.notes = tuple(notes)
    return binding


def bind_head(
    head: Head, control: Control, object_tag: Object, input_index: int, label_of: Mapping[str, str]
) -> HeadBinding:
    """Bind one head to one control, its labels in the order of the label config."""
    position = {label.name: i for i, label in enumerate(control.labels)}
    classes = sorted(label_of, key=lambda name: position.get(label_of[name], len(position)))
    column_of = {name: column for column, name in enumerate(head.classes)}
    columns = tuple(column_of[name] for name in classes)
    return HeadBinding(control, object_tag.name, input_index, head, columns, tuple(label_of[name] for name in classes))


def heads_from_state(spec: ModelSpec) -> list[Head]:
    """Read the heads in the state of a trained version; an untrained model has none.

    Raises:
        ModelError: The state is damaged.
    """
    state: Any = spec.state
    try:
        heads = [Head(**(head | {"classes": tuple(head["classes"])})) for head in state.get("heads", ())]
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged_state_error(spec, "its heads are not those of a classifier") from error
    widths = [0] * len(heads)
    for head in heads:
        if problem := _find_head_problem(head, widths):
            raise _damaged_state_error(spec, problem)
        widths[head.scorer] += len(head.classes)
    return heads


def _find_head_problem(head: Head, widths: Sequence[int]) -> str | None:
    """Return what is wrong with a stored head, None if nothing is.

    Args:
        head: The head.
        widths: For each scorer, the number of classes of the heads before this one.
    """
    if [type(field) for field in (head.control, head.object, head.multi)] != [str, str, bool]:
        return "the control of a head, its object, or whether it is for several labels is not stored as it should be"
    classes: Sequence[object] = head.classes
    if invalid := [name for name in classes if not isinstance(name, str)]:
        return f"the classes of {head.control!r} hold {describe_json_type(invalid[0])}, which is no name of a class"
    if not head.classes or len(set(head.classes)) < len(head.classes):
        return f"the classes of {head.control!r} are missing, or one of them is there twice"
    if not is_integer(head.scorer) or not 0 <= head.scorer < len(widths) or head.first != widths[head.scorer]:
        return f"{head.control!r} is not scored by the columns that belong to it"
    return None


def _damaged_state_error(spec: ModelSpec, problem: str) -> ModelError:
    return ModelError(
        f"The state of {spec.model_version} is damaged: {problem}.",
        "Copy the version again from where it came from, or train a new one with `lsml fit`.",
    )


def heads_to_state(training_set: TrainingSet[Any], scorer: int) -> list[Json]:
    """Describe the heads that were trained on one training set, as a version stores them.

    Their classes are the columns of the scorer, head after head in the order of the training set.
    """
    heads: list[Json] = []
    first = 0
    for control, targets in training_set.targets.items():
        heads.append(
            {
                "control": control,
                "object": training_set.object_tag.name,
                "scorer": scorer,
                "first": first,
                "classes": list(targets.classes),
                "multi": targets.is_multi_label,
            }
        )
        first += len(targets.classes)
    return heads


def scorer_widths(heads: Sequence[Head]) -> list[int]:
    """Return the number of classes that each scorer scores, those of all its heads together."""
    widths = [0] * (1 + max((head.scorer for head in heads), default=-1))
    for head in heads:
        widths[head.scorer] += len(head.classes)
    return widths


def _match_heads(heads: Sequence[Head], pairs: Sequence[tuple[Control, Object]]) -> list[tuple[Head, Control, Object]]:
    """Match heads and controls by name; a single head and a single control that remain match as well."""
    by_name = {control.name: (control, object_tag) for control, object_tag in pairs}
    matches = [(head, *by_name[head.control]) for head in heads if head.control in by_name]
    matched = {head.control for head, _, _ in matches}
    remaining_heads = [head for head in heads if head.control not in matched]
    remaining_pairs = [pair for pair in pairs if pair[0].name not in matched]
    if len(remaining_heads) == len(remaining_pairs) == 1:
        matches.append((remaining_heads[0], *remaining_pairs[0]))
    return matches


def _no_match_error(heads: Sequence[Head], controls: Sequence[Control], has_matched_heads: bool) -> LabelMismatch:
    classes = "; ".join(f'"{head.control}": {format_list(head.classes)}' for head in heads)
    labels = "; ".join(
        f'"{control.name}": {format_list([label.name for label in control.labels])}' for control in controls
    )
    if has_matched_heads:
        return LabelMismatch(
            "The model and the label config have no label in common. "
            f"The model has {classes}. The label config has {labels}.",
            suggest_label_map([name for head in heads for name in head.classes], controls)
            or "Say which of the model's classes stands for which label in a file: --label-map.",
        )
    return LabelMismatch(
        "It is not clear which control of the label config the model should fill. "
        f"The model was trained for {classes}. The label config has {labels}.",
        "Name the controls as in the label config the model was trained with.",
    )
