"""A model's classes meet the labels of a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.schema.label_config import Control


def map_label(class_name: str, control: Control, label_map: Mapping[str, str]) -> str | None:
    """The label that a model's class stands for: by name, by predicted_values, or by the label map."""
    for fits in (
        lambda label: class_name == label.name,
        lambda label: class_name == label.value,
        lambda label: class_name in label.predicted_values,
        lambda label: label_map.get(class_name) in (label.name, label.value),
    ):
        for label in control.labels:
            if fits(label):
                return label.name
    return label_map.get(class_name, class_name) if control.has_dynamic_labels else None


def map_labels(classes: Sequence[str], control: Control, label_map: Mapping[str, str]) -> dict[str, str]:
    """The classes that have a label, each with it, in the order of the classes."""
    return {name: label for name in classes if (label := map_label(name, control, label_map)) is not None}
