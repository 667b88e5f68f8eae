"""Which control of a label config gets the labels of a data set; without a label config, one is made for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import quoteattr

from lsml_cli.errors import LabelMismatch, UsageError, format_list, sort_by_similarity
from lsml_cli.schema.controls import Control, Object
from lsml_cli.schema.label_config import LabelConfig

# Controls whose labels are <Choice>; those of all others are <Label>.
_CHOICE_TAGS = frozenset({"Choices", "Taxonomy"})
_LABELS_SUFFIX = "Labels"
DEFAULT_NAME = "label"  # of a control that is made


@dataclass(frozen=True)
class Need:
    """A control that a data set needs.

    Attributes:
        tag: "RectangleLabels", "Choices", "Labels", ...
        labels: The classes, in their order.
        object_tag: What the control is about: "Image", "Text", "Audio".
        attrs: Attributes of the tag where it is made.
        name: Its name where it is made; the default is replaced where several controls are made.
    """

    tag: str
    labels: tuple[str, ...] = ()
    object_tag: str = "Image"
    attrs: Mapping[str, str] = field(default_factory=dict)
    name: str = DEFAULT_NAME


@dataclass(frozen=True)
class Target:
    """The control that gets the labels of a need.

    Attributes:
        control: It gets the labels.
        object: It is about this.
        label_names: Names of its labels, by class of the data set.
        shape_control: It gets the shapes, where labels and shapes have controls of their own: <Labels> and <Rectangle>.
    """

    control: Control
    object: Object
    label_names: Mapping[str, str]
    shape_control: Control | None = None


@dataclass(frozen=True)
class ConfigBinding:
    """A label config, and its controls by the tags that a data set needs.

    Attributes:
        config: Given, or made.
        targets: By `Need.tag`.
        data_key: The key of a task's data that is shown: "image".
    """

    config: LabelConfig
    targets: Mapping[str, Target]
    data_key: str


def bind_config(
    needs: Sequence[Need], config: LabelConfig | None, data_key: str | None, *, title: str
) -> ConfigBinding:
    """Find the controls that a data set needs in a label config, or make a label config.

    Args:
        needs: All are about the same object.
        config: The given label config; None: make one.
        data_key: The given key of a task's data; None: by the label config, "image" or "text" where it is made.
        title: The data set, for messages.

    Raises:
        LabelMismatch: The label config has no such control, or it lacks classes.
        UsageError: Several controls fit, or the key is not the one that is shown.
    """
    if config is None:
        config = LabelConfig.parse(make_config(needs, data_key))
    targets = {need.tag: find_target(config, need, title=title) for need in needs}
    shown = next(iter(targets.values())).object
    if shown.data_key is None:
        raise UsageError(f"{shown} shows no value of a task.", 'Write value="$image", for example.')
    if data_key is not None and data_key != shown.data_key:
        raise UsageError(f'--data-key {data_key}: {shown} shows "${shown.data_key}".', "Leave --data-key out.")
    return ConfigBinding(config, targets, shown.data_key)


def has_control(config: LabelConfig, need: Need) -> bool:
    """Return whether a label config has a control for a need, whatever its labels are."""
    return bool(_find_candidates(config, need))


def find_target(config: LabelConfig, need: Need, *, title: str) -> Target:
    """Return the control that gets the labels of a need.

    Raises:
        LabelMismatch: There is none, or it lacks classes.
        UsageError: Several fit.
    """
    candidates = _find_candidates(config, need)
    if not candidates:
        raise LabelMismatch(
            f"{title} needs a <{need.tag}> about an <{need.object_tag}>, and the label config has none: "
            f"it has {format_list(map(str, config.controls.values())) or 'no control at all'}.",
            "Leave --label-config out to get one that fits; --label-config-out writes it.",
        )
    complete = [target for target in candidates if not _missing_labels(target, need)]
    if not complete:
        target = candidates[0]
        missing = _missing_labels(target, need)
        known = [label.name for label in target.control.labels]
        raise LabelMismatch(
            f"{title} has classes that {target.control} lacks: {format_list(missing)}.",
            f"It has: {format_list(sort_by_similarity(missing[0], known))}.",
        )
    if len(complete) > 1:
        names = format_list(str(target.control) for target in complete)
        raise UsageError(
            f"{title} could be for several controls: {names}.", "Give a label config with one of them alone."
        )
    return complete[0]


def _find_candidates(config: LabelConfig, need: Need) -> list[Target]:
    candidates = [
        Target(control, obj, _map_labels(control, need.labels))
        for control, obj in config.find_pairs(need.tag, [need.object_tag])
    ]
    if need.tag.endswith(_LABELS_SUFFIX) and need.tag != _LABELS_SUFFIX:  # <Rectangle> and <Labels> do as well
        tools = config.find_pairs(need.tag.removesuffix(_LABELS_SUFFIX), [need.object_tag])
        candidates += [
            Target(control, obj, _map_labels(control, need.labels), tool)
            for control, obj in config.find_pairs(_LABELS_SUFFIX, [need.object_tag])
            for tool, other in tools
            if other == obj
        ]
    return candidates


def _map_labels(control: Control, classes: Iterable[str]) -> dict[str, str]:
    """Return the names of labels by class: by name or value, else by the model's names for it (predicted_values)."""
    known = {value: label.name for label in control.labels for value in label.predicted_values}
    known |= control.label_names
    if control.has_dynamic_labels:
        known |= {name: name for name in classes if name not in known}
    return {name: known[name] for name in classes if name in known}


def _missing_labels(target: Target, need: Need) -> list[str]:
    return [name for name in need.labels if name not in target.label_names]


def make_config(needs: Sequence[Need], data_key: str | None = None) -> str:
    """Return labelling XML with a control for each need, all about one object."""
    object_tag = needs[0].object_tag
    name = object_tag.lower()
    lines = ["<View>", f"  <{object_tag} name={quoteattr(name)} value={quoteattr('$' + (data_key or name))}/>"]
    for need in needs:
        control_name = need.name
        if control_name == DEFAULT_NAME and len(needs) > 1:
            control_name = need.tag.removesuffix(_LABELS_SUFFIX).lower() or DEFAULT_NAME
        attrs = "".join(f" {key}={quoteattr(value)}" for key, value in need.attrs.items())
        start = f"  <{need.tag} name={quoteattr(control_name)} toName={quoteattr(name)}{attrs}"
        if not need.labels:
            lines.append(f"{start}/>")
            continue
        label_tag = "Choice" if need.tag in _CHOICE_TAGS else "Label"
        lines.append(f"{start}>")
        lines += [f"    <{label_tag} value={quoteattr(label)}/>" for label in dict.fromkeys(need.labels)]
        lines.append(f"  </{need.tag}>")
    return "\n".join([*lines, "</View>", ""])
