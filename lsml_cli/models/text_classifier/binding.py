"""The text classifier meets a label config: trained, by its heads; untrained, by the names of the labels alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lsml_cli.models.choices.heads import ChoicesBinding, Head, Source, answer_of, choices_about
from lsml_cli.models.choices.logistic import Wanted
from lsml_cli.models.text_classifier import linear, texts
from lsml_cli.schema.label_config import Control, LabelConfig, Object


@dataclass(frozen=True)
class TextSource(Source):
    """An object of the label config whose texts one scorer reads."""

    @cached_property
    def _plain_key(self) -> str | None:
        return self.object.key if self.object.tag.lower() == "text" else None

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

    cold: list[linear.Scorer] | None = None


def text_pairs(config: LabelConfig) -> list[tuple[Control, Object]]:
    """The controls this family fills, each with the object it is about.

    Raises LabelMismatch when there is none, or when the text would have to be fetched from an address.
    """
    for _, source in (pairs := choices_about(config, texts.TAGS, "The text classifier")):
        texts.refuse_urls(source)
    return pairs


def cold_binding(binding: TextBinding, pairs: Sequence[tuple[Control, Object]]) -> TextBinding:
    """An untrained model: one head for each control that has labels, its classes the labels themselves."""
    notes = ["The model is untrained and goes by the names of the labels alone; `lsml fit` trains it."]
    sources: list[TextSource] = []
    answers = []
    width = [0] * len(pairs)
    for control, source in pairs:
        names = tuple(label.name for label in control.labels)
        if not names:
            notes.append(f"{control} has no labels of its own, so there is nothing to go by: no predictions there.")
            continue
        number = next((i for i, known in enumerate(sources) if known.object == source), len(sources))
        if number == len(sources):
            sources.append(TextSource(source, number))
        head = Head(control.name, source.name, number, width[number], names, not control.single)
        width[number] += len(names)
        answers.append(answer_of(head, control, source, number, {name: name for name in names}))
    binding.meetings = tuple(answer.meeting() for answer in answers)
    binding.sources, binding.answers, binding.notes = tuple(sources), tuple(answers), tuple(notes)
    return binding


def cold_scorers(binding: TextBinding, settings: Mapping[str, Any]) -> list[linear.Scorer]:
    """Fitted on the label names, each a text of its own class, and an empty text of no class."""
    if binding.cold is None:
        binding.cold = []
        for number in range(len(binding.sources)):
            names: list[str] = [""]
            heads = []
            for answer in binding.answers:
                if answer.source != number:
                    continue
                first, classes = len(names), answer.head.classes
                names += [_in_words(label.value, label.name) for label in answer.control.labels]
                rows = list(range(first, len(names)))
                chosen: list[tuple[str, ...]] = [(name,) for name in classes]
                if answer.head.multi:
                    rows, chosen = [0, *rows], [(), *chosen]
                heads.append(Wanted(rows, chosen, classes, answer.head.multi))
            binding.cold.append(linear.fit(names, heads, settings)[0])
    return binding.cold


def _in_words(*names: str) -> str:
    """ "OrderStatus", "order_status" -> "Order Status order status"."""
    return " ".join(re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|[_/-]+", " ", name) for name in dict.fromkeys(names))
