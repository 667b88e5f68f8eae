"""Map model classes to a control's labels, and say which of them do not fit together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from lsml_cli.errors import MAX_LISTED_NAMES, format_list
from lsml_cli.schema.label_config import Control


def map_label(class_name: str, control: Control, label_map: Mapping[str, str]) -> str | None:
    """Return the label that one model class stands for, None if there is none; see `map_labels`."""
    return map_labels([class_name], control, label_map).get(class_name)


def map_labels(classes: Sequence[str], control: Control, label_map: Mapping[str, str]) -> dict[str, str]:
    """Return the label of each class that has one, in the order of the classes.

    The first rule that matches any label decides: the label's name (its alias if it has one), its value, its
    `predicted_values`, the label map. A control whose labels come from the tasks takes every class. The time grows with
    the number of classes and labels, not with their product.
    """
    names: dict[str, str] = {}
    values: dict[str, str] = {}
    predicted_values: dict[str, str] = {}
    names_or_values: dict[str, str] = {}  # of two labels with the same one, the first counts
    for label in control.labels:
        names.setdefault(label.name, label.name)
        values.setdefault(label.value, label.name)
        for predicted_value in label.predicted_values:
            predicted_values.setdefault(predicted_value, label.name)
        for name in (label.name, label.value):
            names_or_values.setdefault(name, label.name)
    label_of: dict[str, str] = {}
    for name in classes:
        mapped = label_map.get(name)
        label_name = next((table[name] for table in (names, values, predicted_values) if name in table), None)
        if label_name is None and mapped is not None:
            label_name = names_or_values.get(mapped)
        if label_name is None and control.has_dynamic_labels:
            label_name = name if mapped is None else mapped
        if label_name is not None:
            label_of[name] = label_name
    return label_of


def describe_unmapped(
    classes: Sequence[str], control: Control, label_of: Mapping[str, str], effect: str | None = None
) -> list[str]:
    """Return sentences about classes without a label, and about labels that no class stands for.

    Args:
        classes: The model's classes.
        control: The control.
        label_of: What `map_labels` returned.
        effect: A sentence about what it means that classes are dropped.
    """
    notes = []
    if dropped := [name for name in classes if name not in label_of]:
        count = f"{len(dropped)} of the model's {len(classes)} classes"
        sentences = (
            f"Dropped {count}, for which {control} has no label: {format_list(dropped)}.",
            effect,
            suggest_label_map(dropped, [control]),
        )
        notes.append(" ".join(sentence for sentence in sentences if sentence))
    known = set(label_of.values())
    if unknown := [label.name for label in control.labels if label.name not in known]:
        notes.append(f"Never predicted, because the model does not know them, of {control}: {format_list(unknown)}.")
    return notes


def suggest_label_map(classes: Iterable[str], controls: Iterable[Control]) -> str | None:
    """Return a sentence with the label map for classes that are spelled like a label, up to case and spaces.

    Args:
        classes: Classes of a model that have no label.
        controls: The controls whose labels they could stand for.

    Returns:
        None if no class is spelled like a label.
    """
    by_spelling: dict[str, str] = {}
    for control in controls:
        for label in control.labels:
            by_spelling.setdefault(_fold_spelling(label.value), label.name)
            by_spelling.setdefault(_fold_spelling(label.name), label.name)
    by_spelling.pop("", None)  # a name of nothing but hyphens
    label_map = {name: by_spelling[folded] for name in classes if (folded := _fold_spelling(name)) in by_spelling}
    if not label_map:
        return None
    listed = dict(list(label_map.items())[:MAX_LISTED_NAMES])
    more = f" and {len(label_map) - len(listed):,} more" if len(label_map) > len(listed) else ""
    return (
        f"{'Some are' if len(label_map) > 1 else 'One is'} only spelled differently: save "
        f"{json.dumps(listed, ensure_ascii=False)}{more} as labels.json, and add --label-map labels.json."
    )


def _fold_spelling(name: str) -> str:
    """Return a name without what people write differently: case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", "", name.casefold())
