"""The classifier meets a label config: which head fills which control, which class is which label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import LabelMismatch, listed
from lsml_cli.label_config import Control, LabelConfig, Object
from lsml_cli.models.base import Binding, Meeting
from lsml_cli.models.text_classifier import linear, texts
from lsml_cli.predictions import Region
from lsml_cli.tasks import Task

if TYPE_CHECKING:
    from lsml_cli.models.text_classifier.tfidf import Floats

MULTI_THRESHOLD = 0.5  # probability from which a label of choice="multiple" is given, without --threshold


@dataclass(frozen=True)
class Head:
    """One control as the model learned it. Its K classes are the scorer's columns `first` to `first + K`."""

    control: str
    object: str
    scorer: int
    first: int
    classes: tuple[str, ...]
    multi: bool


@dataclass(frozen=True)
class Source:
    """An object of the label config whose texts one scorer reads."""

    object: Object
    scorer: int

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


@dataclass(frozen=True)
class Answer:
    """How one head fills one control: column `columns[i]` of the scores stands for `labels[i]`."""

    control: Control
    to_name: str
    source: int
    head: Head
    columns: tuple[int, ...]
    labels: tuple[str, ...]

    @cached_property
    def single(self) -> bool:
        return self.control.single

    def meeting(self) -> Meeting:
        label_of = {self.head.classes[column]: label for column, label in zip(self.columns, self.labels, strict=True)}
        labels = [label.name for label in self.control.labels]
        return Meeting(self.control.name, labels, self.head.classes, label_of)

    def probabilities(self, scores: Floats) -> list[Any]:
        """Per text: (index of the best label, its probability), or for choice="multiple" all probabilities."""
        head = self.head
        mine = scores[:, head.first : head.first + len(head.classes)]
        found = (linear.sigmoid(mine) if head.multi else linear.softmax(mine))[:, self.columns]
        if self.single:
            return list(zip(found.argmax(axis=1).tolist(), found.max(axis=1).tolist(), strict=True))
        every: list[Any] = found.tolist()
        return every

    def region(self, task: Task, found: Any, threshold: float | None) -> Region | None:
        """What `probabilities` said about one text; None when it said nothing."""
        if self.single:
            best, score = found
            if threshold is not None and score < threshold:
                return None
            chosen = {self.labels[best]: score}
        else:
            least = MULTI_THRESHOLD if threshold is None else threshold
            chosen = {label: score for label, score in zip(self.labels, found, strict=True) if score >= least}
            if not chosen:
                return None
            score = min(chosen.values())
        return self.control.region(task, {"choices": list(chosen)}, score=score, to_name=self.to_name)


@dataclass
class TextBinding(Binding):
    """`cold` are the scorers of an untrained model, made of this config's labels when the first text comes."""

    sources: tuple[Source, ...] = ()
    answers: tuple[Answer, ...] = ()
    cold: list[linear.Scorer] | None = None


def text_pairs(config: LabelConfig) -> list[tuple[Control, Object]]:
    """The controls this family fills, each with the object it is about.

    Raises LabelMismatch when there is none, or when the text would have to be fetched from an address.
    """
    pairs = [(control, source) for control, source in config.pairs("Choices", texts.TAGS) if not control.per_item]
    for _, source in pairs:
        texts.refuse_urls(source)
    if pairs:
        return pairs
    there = [
        f"{control} about {', '.join(map(str, _objects(control, config)))}" for control in config.controls.values()
    ]
    raise LabelMismatch(
        "The text classifier fills <Choices> that are about <Text>, <HyperText> or <Paragraphs>, "
        f"but the label config has {listed(there) or 'no control at all'}.",
        "Choose a model that fills these controls: `lsml models` lists them.",
    )


def _objects(control: Control, config: LabelConfig) -> list[Object]:
    return [config.objects[name] for name in control.to_names]


def warm_binding(binding: TextBinding, pairs: Sequence[tuple[Control, Object]], heads: Sequence[Head]) -> TextBinding:
    met = _pair_up(heads, pairs)
    answers, sources, notes = [], [], []
    for head, control, source in met:
        known = {name: label for name in head.classes if (label := meet(name, control, binding.label_map)) is not None}
        if not known:
            continue
        if (read := Source(source, head.scorer)) not in sources:
            sources.append(read)
        answers.append(_answer(head, control, source, sources.index(read), known))
        notes += _differences(head, control, known)
    if not answers:
        raise _nothing_in_common(heads, [control for control, _ in pairs], bool(met))
    filled = {answer.control.name for answer in answers}
    lost = [str(control) for control, _ in pairs if control.name not in filled]
    if lost:
        notes.append(f"The model was not trained for {listed(lost)}: no predictions there.")
    binding.meetings = tuple(answer.meeting() for answer in answers)
    binding.sources, binding.answers, binding.notes = tuple(sources), tuple(answers), tuple(notes)
    return binding


def _answer(head: Head, control: Control, source: Object, index: int, known: Mapping[str, str]) -> Answer:
    place = {label.name: i for i, label in enumerate(control.labels)}
    order = sorted(known, key=lambda name: place.get(known[name], len(place)))  # as the config lists them
    columns = tuple(head.classes.index(name) for name in order)
    return Answer(control, source.name, index, head, columns, tuple(known[name] for name in order))


def _pair_up(heads: Sequence[Head], pairs: Sequence[tuple[Control, Object]]) -> list[tuple[Head, Control, Object]]:
    """Heads and controls meet by name; what is left over on both sides meets when it is one and one."""
    by_name = {control.name: (control, source) for control, source in pairs}
    met = [(head, *by_name[head.control]) for head in heads if head.control in by_name]
    taken = {head.control for head, _, _ in met}
    left_heads = [head for head in heads if head.control not in taken]
    left_pairs = [pair for pair in pairs if pair[0].name not in taken]
    if len(left_heads) == len(left_pairs) == 1:
        met.append((left_heads[0], *left_pairs[0]))
    return met


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


def _differences(head: Head, control: Control, known: Mapping[str, str]) -> list[str]:
    notes = []
    if lost := [name for name in head.classes if name not in known]:
        count = f"{len(lost)} of the model's {len(head.classes)} classes"
        notes.append(f"Dropped {count}, for which {control} has no label: {listed(lost)}.")
    if new := [label.name for label in control.labels if label.name not in known.values()]:
        notes.append(f"Never predicted, because the model does not know them, of {control}: {listed(new)}.")
    return notes


def _nothing_in_common(heads: Sequence[Head], controls: Sequence[Control], met: bool) -> LabelMismatch:
    classes = "; ".join(f'"{head.control}": {listed(head.classes)}' for head in heads)
    labels = "; ".join(f'"{control.name}": {listed([label.name for label in control.labels])}' for control in controls)
    if met:
        return LabelMismatch(
            "The model and the label config have no label in common. "
            f"The model has {classes}. The label config has {labels}.",
            "Say which of the model's classes stands for which label in a file: --label-map.",
        )
    return LabelMismatch(
        "It is not clear which control of the label config the model should fill. "
        f"The model was trained for {classes}. The label config has {labels}.",
        "Name the controls as in the label config the model was trained with.",
    )


def cold_binding(binding: TextBinding, pairs: Sequence[tuple[Control, Object]]) -> TextBinding:
    """An untrained model: one head for each control that has labels, its classes the labels themselves."""
    notes = ["The model is untrained and goes by the names of the labels alone; `lsml fit` trains it."]
    sources: list[Source] = []
    answers = []
    width = [0] * len(pairs)
    for control, source in pairs:
        names = tuple(label.name for label in control.labels)
        if not names:
            notes.append(f"{control} has no labels of its own, so there is nothing to go by: no predictions there.")
            continue
        number = next((i for i, known in enumerate(sources) if known.object == source), len(sources))
        if number == len(sources):
            sources.append(Source(source, number))
        head = Head(control.name, source.name, number, width[number], names, not control.single)
        width[number] += len(names)
        answers.append(_answer(head, control, source, number, {name: name for name in names}))
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
                heads.append(linear.Wanted(rows, chosen, classes, answer.head.multi))
            binding.cold.append(linear.fit(names, heads, settings)[0])
    return binding.cold


def _in_words(*names: str) -> str:
    """ "OrderStatus", "order_status" -> "Order Status order status"."""
    return " ".join(re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|[_/-]+", " ", name) for name in dict.fromkeys(names))
