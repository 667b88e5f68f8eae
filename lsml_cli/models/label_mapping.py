"""Map model classes to a control's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.schema.label_config import Control


def map_label(class_name: str, control: Control, label_map: Mapping[str, str]) -> str | None:
    """Return the label that a model class stands for, None if there is none.

    The first rule that matches any label decides: the label's name (its alias if it has one), its value, its
    `predicted_values`, the label map. A control whose labels come from the tasks takes every class.
    """
    for matches in (
        lambda label: class_name == label.name,
        lambda label: class_name == label.value,
        lambda label: class_name in label.predicted_values,
        lambda label: label_map.get(class_name) in (label.name, label.value),
    ):
        for label in control.labels:
            if matches(label):
                return label.name
    return label_map.get(class_name, class_name) if control.has_dynamic_labels else None


def map_labels(classes: Sequence[str], control: Control, label_map: Mapping[str, str]) -> dict[str, str]:
    """Return the label of each class that has one, in the order of the classes."""
    return {name: label for name in classes if (label := map_label(name, control, label_map)) is not None}
