"""One control of the label config: what people said about a task against what was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, NamedTuple, Protocol

from lsml_cli.evaluation.metrics import regions, texts
from lsml_cli.evaluation.metrics.agreement import Agreement, MeanAgreement, NameAgreement
from lsml_cli.evaluation.metrics.choices import ChoiceCounts, Metrics, Pair
from lsml_cli.evaluation.metrics.geometry import Shape, shape_of, size_of
from lsml_cli.evaluation.metrics.regions import Found, RegionCounts, RegionMetrics
from lsml_cli.evaluation.metrics.texts import Text, TextCounts, TextMetrics
from lsml_cli.schema.annotations import chosen
from lsml_cli.schema.label_config import Control, LabelConfig

Result = Sequence[Mapping[str, Any]]  # regions as Label Studio stores them
AnyMetrics = Metrics | RegionMetrics | TextMetrics

REGIONS = frozenset({"rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "labels"})


class Verdict(NamedTuple):
    """How one task went.

    counts   whether the task counts for this control at all
    right    whether everything is as every annotation that counts says
    badness  how much is wrong, for finding where model and people disagree most; the larger the worse
    """

    counts: bool
    right: bool
    badness: tuple[float, ...] = ()


class Judge(Protocol):
    """Collects one control over many tasks, and knows its numbers at the end."""

    kind: ClassVar[str]
    control: Control

    @property
    def counts(self) -> ChoiceCounts | RegionCounts | TextCounts: ...

    def add(self, truths: Sequence[Result], guess: Result) -> Verdict:
        """The next task: the annotations that count (none where the task is not to count), and the prediction."""

    def agree(self, results: Sequence[Result]) -> None:
        """All annotations of one task, of which there are several."""

    def agreement(self) -> Agreement | None: ...


def judges_of(config: LabelConfig, threshold: float = 0.0) -> dict[str, Judge]:
    """A judge for each control that has numbers, by name, in the order of the config.

    threshold  regions with a lower score are no predictions, except for average precision
    """
    found: dict[str, Judge] = {}
    for control in config.controls.values():
        kind = kind_of(control, config)
        if kind == "choices":
            found[control.name] = ChoiceJudge(control)
        elif kind == "regions":
            found[control.name] = RegionJudge(control, threshold)
        elif kind == "texts":
            found[control.name] = TextJudge(control)
    return found


def kind_of(control: Control, config: LabelConfig) -> str | None:
    """ "choices" about whole tasks, "regions" of pictures, "texts"; None where nothing can be measured."""
    if control.type == "choices":
        return None if control.per_region else "choices"
    if control.type == "textarea":
        return "texts"
    pictures = [name for name in control.to_names if config.objects[name].tag.lower() == "image"]
    return "regions" if control.type in REGIONS and pictures else None


class ChoiceJudge:
    """<Choices> about whole tasks, single and multiple.

    Where several labels may apply, an annotation without any says that none does; where one has to, it says nothing.
    """

    kind: ClassVar[str] = "choices"

    def __init__(self, control: Control) -> None:
        self.control = control
        self.counts = ChoiceCounts()
        self._agreement = NameAgreement()

    def add(self, truths: Sequence[Result], guess: Result) -> Verdict:
        guessed = frozenset(chosen(self.control, guess))
        pairs: list[Pair] = []
        for truth in truths:
            labels = frozenset(chosen(self.control, truth))
            if labels or not self.control.single:
                pairs.append((labels, guessed))
        score = score_of(self.control, guess) if guessed else None
        self.counts.add(pairs, score)
        off = max((len(truth ^ guessed) for truth, _ in pairs), default=0)
        return Verdict(bool(pairs), not off, (off, score or 0.0))

    def agree(self, results: Sequence[Result]) -> None:
        answers = [frozenset(chosen(self.control, result)) for result in results]
        self._agreement.add([labels for labels in answers if labels or not self.control.single])

    def agreement(self) -> Agreement | None:
        return self._agreement.found()


class RegionJudge:
    """Labelled boxes, polygons, ellipses and brush strokes on pictures."""

    kind: ClassVar[str] = "regions"

    def __init__(self, control: Control, threshold: float) -> None:
        self.control = control
        self.counts = RegionCounts(threshold)
        self._agreement = MeanAgreement("F1 at IoU 0.5")

    def add(self, truths: Sequence[Result], guess: Result) -> Verdict:
        found = regions_of(self.control, guess)
        matching = self.counts.add(
            [regions_of(self.control, truth) for truth in truths], found, _size(self.control, (*truths, guess))
        )
        return Verdict(bool(truths), not matching.errors, (matching.errors, matching.surest))

    def agree(self, results: Sequence[Result]) -> None:
        size = _size(self.control, results)
        several = [regions_of(self.control, result) for result in results]
        if any(several):
            self._agreement.add([regions.agreement(one, other, size) for one, other in combinations(several, 2)])

    def agreement(self) -> Agreement | None:
        return self._agreement.found()


class TextJudge:
    """<TextArea>: what is written in regions of a picture, or about a whole task."""

    kind: ClassVar[str] = "texts"

    def __init__(self, control: Control) -> None:
        self.control = control
        self.counts = TextCounts()
        self._agreement = MeanAgreement("1 - CER")

    def add(self, truths: Sequence[Result], guess: Result) -> Verdict:
        written = [texts_of(self.control, truth) for truth in truths]
        reading = self.counts.add(written, texts_of(self.control, guess), _size(self.control, (*truths, guess)))
        wrong = bool(reading.edits or reading.missed or reading.invented)
        return Verdict(bool(truths), not wrong, (reading.edits, reading.missed + reading.invented))

    def agree(self, results: Sequence[Result]) -> None:
        several = [texts_of(self.control, result) for result in results]
        if any(several):
            size = _size(self.control, results)
            self._agreement.add([texts.agreement(one, other, size) for one, other in combinations(several, 2)])

    def agreement(self) -> Agreement | None:
        return self._agreement.found()


def score_of(control: Control, result: Result) -> float | None:
    """The lowest score that regions of a control have; None where none has one."""
    scores = [
        score
        for region in result
        if region.get("from_name") == control.name and isinstance(score := region.get("score"), int | float)
    ]
    return min(scores, default=None)


def regions_of(control: Control, result: Result) -> list[Found]:
    """The regions of a control that have a label and a place, one for each label."""
    found = []
    for region in result:
        if region.get("from_name") != control.name or (shape := shape_of(region)) is None:
            continue
        score = region.get("score")
        sure = float(score) if isinstance(score, int | float) else 1.0
        found += [Found(label, shape, sure) for label in chosen(control, [region])]
    return found


def texts_of(control: Control, result: Result) -> list[Text]:
    """What is written, each with the place of its region: its own, or that of a region that shares its id."""
    mine = [region for region in result if region.get("from_name") == control.name]
    places: dict[Any, Shape] = {}
    for region in result if mine else ():
        if isinstance(region.get("id"), str) and (shape := shape_of(region)) is not None:
            places.setdefault(region["id"], shape)
    found = []
    for region in mine:
        value = region.get("value")
        written = value.get("text") if isinstance(value, Mapping) else None
        lines = [written] if isinstance(written, str) else written if isinstance(written, list) else []
        shape = shape_of(region) or places.get(region.get("id"))
        found.append(Text("\n".join(line for line in lines if isinstance(line, str)), shape))
    return found


def _size(control: Control, results: Sequence[Result]) -> tuple[int, int] | None:
    """(width, height) of the picture in pixels, as the first region that tells says."""
    sizes = (size_of(region) for result in results for region in result if region.get("from_name") == control.name)
    return next((size for size in sizes if size), None)
