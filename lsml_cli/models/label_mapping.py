"""A model's classes meet the labels of a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.schema.label_config import Control


def meet(name: str, control: Control, label_map: Mapping[str, str]) -> str | None:
    """The label that a model's class stands for: by name, by predicted_values, or by the label map."""
    for fits in (
        lambda label: name == label.name,
        lambda label: name == label.value,
        lambda label: name in label.predicted_values,
        lambda label: label_map.get(name) in (label.name, label.value),
    ):
        for label in control.labels:
            if fits(label):
                return label.name
    return label_map.get(name, name) if control.dynamic else None


def met(classes: Sequence[str], control: Control, label_map: Mapping[str, str]) -> dict[str, str]:
    """The classes that have a label, each with it, in the order of the classes."""
    return {name: label for name in classes if (label := meet(name, control, label_map)) is not None}
