"""The text classifier meets a label config: trained, by its heads; untrained, by the names of the labels alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lsml_cli.models.choices.heads import ChoicesBinding, Head, ScorerInput, bind_head, find_choices_controls
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
        """Raises ValueError with a sentence when the task has no such text."""
        if self._plain_key is not None:  # nearly always, and ten times as quick as the general way
            value = data.get(self._plain_key)
            if isinstance(value, str):
                return value
        return texts.read_text(self.object, data)


@dataclass
class TextBinding(ChoicesBinding):
    """`cold` are the scorers of an untrained model, made of this config's labels when the first text comes."""

    untrained_scorers: list[linear.Scorer] | None = None


def find_text_controls(config: LabelConfig) -> list[tuple[Control, Object]]:
    """The controls this family fills, each with the object it is about.

    Raises LabelMismatch when there is none, or when the text would have to be fetched from an address.
    """
    for _, source in (pairs := find_choices_controls(config, texts.TEXT_TAGS, "The text classifier")):
        texts.reject_url_values(source)
    return pairs


def bind_untrained(binding: TextBinding, pairs: Sequence[tuple[Control, Object]]) -> TextBinding:
    """An untrained model: one head for each control that has labels, its classes the labels themselves."""
    notes = ["The model is untrained and goes by the names of the labels alone; `lsml fit` trains it."]
    sources: list[TextInput] = []
    answers = []
    width = [0] * len(pairs)
    for control, source in pairs:
        names = tuple(label.name for label in control.labels)
        if not names:
            notes.append(f"{control} has no labels of its own, so there is nothing to go by: no predictions there.")
            continue
        number = next((i for i, known in enumerate(sources) if known.object == source), len(sources))
        if number == len(sources):
            sources.append(TextInput(source, number))
        head = Head(control.name, source.name, number, width[number], names, not control.is_single_choice)
        width[number] += len(names)
        answers.append(bind_head(head, control, source, number, {name: name for name in names}))
    binding.label_mappings = tuple(answer.label_mapping() for answer in answers)
    binding.scorer_inputs, binding.head_bindings, binding.notes = tuple(sources), tuple(answers), tuple(notes)
    return binding


def fit_untrained_scorers(binding: TextBinding, settings: Mapping[str, Any]) -> list[linear.Scorer]:
    """Fitted on the label names, each a text of its own class, and an empty text of no class."""
    if binding.untrained_scorers is None:
        binding.untrained_scorers = []
        for number in range(len(binding.scorer_inputs)):
            names: list[str] = [""]
            heads = []
            for answer in binding.head_bindings:
                if answer.input_index != number:
                    continue
                first, classes = len(names), answer.head.classes
                names += [_split_identifiers(label.value, label.name) for label in answer.control.labels]
                rows = list(range(first, len(names)))
                chosen: list[tuple[str, ...]] = [(name,) for name in classes]
                if answer.head.multi:
                    rows, chosen = [0, *rows], [(), *chosen]
                heads.append(HeadTargets(rows, chosen, classes, answer.head.multi))
            binding.untrained_scorers.append(linear.fit(names, heads, settings)[0])
    return binding.untrained_scorers


def _split_identifiers(*names: str) -> str:
    """ "OrderStatus", "order_status" -> "Order Status order status"."""
    return " ".join(re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|[_/-]+", " ", name) for name in dict.fromkeys(names))
