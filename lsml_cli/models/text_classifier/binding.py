"""Bind the text classifier to a label config; an untrained one predicts from the names of the labels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lsml_cli.errors import ModelError
from lsml_cli.models.choices.heads import (
    ChoicesBinding,
    Head,
    HeadBinding,
    ScorerInput,
    bind_head,
    find_choices_controls,
    set_heads,
)
from lsml_cli.models.text_classifier import texts
from lsml_cli.models.text_classifier.label_names import LabelNameScorer, NamedHead
from lsml_cli.schema.label_config import Control, LabelConfig, Object

MAX_UNTRAINED_LABELS = 200_000  # a text is scored for all of them; half a gigabyte and seconds a batch at this number


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
        untrained_scorers: The scorers of an untrained model, built from this config's labels for the first batch.
    """

    untrained_scorers: list[LabelNameScorer] | None = None


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
    """Bind an untrained model: one head for each control with labels, its classes the labels themselves.

    Raises:
        ModelError: There are more labels than `MAX_UNTRAINED_LABELS`.
    """
    count = sum(len(control.labels) for control, _ in pairs)
    if count > MAX_UNTRAINED_LABELS:
        raise ModelError(
            f"An untrained text classifier compares each text with at most {MAX_UNTRAINED_LABELS:,} labels, and the "
            f"label config has {count:,}.",
            "Train a version with `lsml fit`, which learns only the labels that annotations use, or split the config.",
        )
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


def build_untrained_scorers(binding: TextBinding, settings: Mapping[str, Any]) -> list[LabelNameScorer]:
    """Build one scorer per object from the names of the labels, once per binding."""
    if binding.untrained_scorers is None:
        binding.untrained_scorers = []
        for index in range(len(binding.scorer_inputs)):
            heads = [
                NamedHead([(label.value, label.name) for label in bound.control.labels], bound.head.multi)
                for bound in binding.head_bindings
                if bound.input_index == index
            ]
            binding.untrained_scorers.append(LabelNameScorer.build(heads, settings))
    return binding.untrained_scorers
