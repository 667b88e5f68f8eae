"""Bind the text classifier to a label config; an untrained one predicts from the names of the labels alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lsml_cli.models.choices.heads import (
    ChoicesBinding,
    Head,
    HeadBinding,
    ScorerInput,
    bind_head,
    find_choices_controls,
    set_heads,
)
from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.models.text_classifier import linear, texts
from lsml_cli.schema.label_config import Control, LabelConfig, Object


@dataclass(frozen=True)
class TextInput(ScorerInput):
    """An object of the label config whose texts one scorer reads."""

    @cached_property
    def _plain_key(self) -> str | None:
        return self.object.data_key if self.object.tag.lower() == "text" else None

    def text(self, data: Mapping[str, Any]) -> str:
        """Read the text of a task.

        Raises:
            ValueError: The task has no such text, with a sentence that says why.
        """
        if self._plain_key is not None:  # the usual case, ten times faster than the general one
            value = data.get(self._plain_key)
            if isinstance(value, str):
                return value
        return texts.read_text(self.object, data)


@dataclass
class TextBinding(ChoicesBinding):
    """The text classifier bound to a label config.

    Attributes:
        untrained_scorers: The scorers of an untrained model, fitted to this config's labels for the first batch.
    """

    untrained_scorers: list[linear.Scorer] | None = None


def find_text_controls(config: LabelConfig) -> list[tuple[Control, Object]]:
    """Find the controls that the text classifier fills, each with the object that it labels.

    Raises:
        LabelMismatch: There is none, or the text would have to be fetched from an address.
    """
    pairs = find_choices_controls(config, texts.TEXT_TAGS, "The text classifier")
    for _, object_tag in pairs:
        texts.reject_url_values(object_tag)
    return pairs


def bind_untrained(binding: TextBinding, pairs: Sequence[tuple[Control, Object]]) -> TextBinding:
    """Bind an untrained model: one head for each control with labels, its classes the labels themselves."""
    notes = ["The model is untrained and goes by the names of the labels alone; `lsml fit` trains it."]
    scorer_inputs: list[TextInput] = []
    head_bindings: list[HeadBinding] = []
    widths = [0] * len(pairs)
    for control, object_tag in pairs:
        names = tuple(label.name for label in control.labels)
        if not names:
            notes.append(f"{control} has no labels of its own, so there is nothing to go by: no predictions there.")
            continue
        if len(names) == 1 and control.is_single_choice:
            notes.append(f"{control} has a single label, so there is nothing to choose from: no predictions there.")
            continue
        index = next((i for i, known in enumerate(scorer_inputs) if known.object == object_tag), len(scorer_inputs))
        if index == len(scorer_inputs):
            scorer_inputs.append(TextInput(object_tag, index))
        head = Head(control.name, object_tag.name, index, widths[index], names, not control.is_single_choice)
        widths[index] += len(names)
        head_bindings.append(bind_head(head, control, object_tag, index, {name: name for name in names}))
    return set_heads(binding, scorer_inputs, head_bindings, notes)


def fit_untrained_scorers(binding: TextBinding, settings: Mapping[str, Any]) -> list[linear.Scorer]:
    """Fit one scorer per object to the names of the labels, each a text of its own class, and an empty text of none.

    They are fitted once per binding.
    """
    if binding.untrained_scorers is None:
        binding.untrained_scorers = []
        for index in range(len(binding.scorer_inputs)):
            names: list[str] = [""]
            targets = []
            for head_binding in binding.head_bindings:
                if head_binding.input_index != index:
                    continue
                head = head_binding.head
                first = len(names)
                names += [_split_identifiers(label.value, label.name) for label in head_binding.control.labels]
                rows = list(range(first, len(names)))
                row_classes: list[tuple[str, ...]] = [(name,) for name in head.classes]
                if head.multi:
                    rows, row_classes = [0, *rows], [(), *row_classes]
                targets.append(HeadTargets(rows, row_classes, head.classes, head.multi))
            binding.untrained_scorers.append(linear.fit(names, targets, settings)[0])
    return binding.untrained_scorers


def _split_identifiers(*names: str) -> str:
    """Split names into words: "OrderStatus", "order_status" -> "Order Status order status"."""
    return " ".join(re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|[_/-]+", " ", name) for name in dict.fromkeys(names))
