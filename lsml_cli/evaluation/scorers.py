"""One control of the label config: what people said about a task against what was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, NamedTuple, Protocol

from lsml_cli.evaluation.metrics import regions, texts
from lsml_cli.evaluation.metrics.agreement import Agreement, MeanAgreement, NominalAgreement
from lsml_cli.evaluation.metrics.choices import ChoiceCounts, ChoiceMetrics, LabelPair
from lsml_cli.evaluation.metrics.regions import RegionCounts, RegionMetrics, ScoredRegion
from lsml_cli.evaluation.metrics.texts import TextCounts, TextMetrics, Transcription
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.label_config import Control, LabelConfig
from lsml_cli.schema.shapes import Shape, parse_image_size, parse_shape

RegionList = Sequence[Mapping[str, Any]]  # regions as Label Studio stores them
ControlMetrics = ChoiceMetrics | RegionMetrics | TextMetrics

REGION_CONTROL_TYPES = frozenset({"rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "labels"})


class TaskScore(NamedTuple):
    """How one task went.

    counts   whether the task counts for this control at all
    right    whether everything is as every annotation that counts says
    badness  how much is wrong, for finding where model and people disagree most; the larger the worse
    """

    is_counted: bool
    is_correct: bool
    severity: tuple[float, ...] = ()


class Scorer(Protocol):
    """Collects one control over many tasks, and knows its numbers at the end."""

    kind: ClassVar[str]
    control: Control

    @property
    def counts(self) -> ChoiceCounts | RegionCounts | TextCounts: ...

    def add(self, truths: Sequence[RegionList], prediction: RegionList) -> TaskScore:
        """The next task: the annotations that count (none where the task is not to count), and the prediction."""

    def add_agreement(self, results: Sequence[RegionList]) -> None:
        """All annotations of one task, of which there are several."""

    def agreement(self) -> Agreement | None: ...


def build_scorers(config: LabelConfig, threshold: float = 0.0) -> dict[str, Scorer]:
    """A judge for each control that has numbers, by name, in the order of the config.

    threshold  regions with a lower score are no predictions, except for average precision
    """
    found: dict[str, Scorer] = {}
    for control in config.controls.values():
        kind = metric_kind(control, config)
        if kind == "choices":
            found[control.name] = ChoiceScorer(control)
        elif kind == "regions":
            found[control.name] = RegionScorer(control, threshold)
        elif kind == "texts":
            found[control.name] = TextScorer(control)
    return found


def metric_kind(control: Control, config: LabelConfig) -> str | None:
    """ "choices" about whole tasks, "regions" of pictures, "texts"; None where nothing can be measured."""
    if control.type == "choices":
        return None if control.per_region else "choices"
    if control.type == "textarea":
        return "texts"
    pictures = [name for name in control.to_names if config.objects[name].tag.lower() == "image"]
    return "regions" if control.type in REGION_CONTROL_TYPES and pictures else None


class ChoiceScorer:
    """<Choices> about whole tasks, single and multiple.

    Where several labels may apply, an annotation without any says that none does; where one has to, it says nothing.
    """

    kind: ClassVar[str] = "choices"

    def __init__(self, control: Control) -> None:
        self.control = control
        self.counts = ChoiceCounts()
        self._agreement = NominalAgreement()

    def add(self, truths: Sequence[RegionList], prediction: RegionList) -> TaskScore:
        guessed = frozenset(extract_labels(self.control, prediction))
        pairs: list[LabelPair] = []
        for truth in truths:
            labels = frozenset(extract_labels(self.control, truth))
            if labels or not self.control.is_single_choice:
                pairs.append((labels, guessed))
        score = lowest_control_score(self.control, prediction) if guessed else None
        self.counts.add(pairs, score)
        off = max((len(truth ^ guessed) for truth, _ in pairs), default=0)
        return TaskScore(bool(pairs), not off, (off, score or 0.0))

    def add_agreement(self, results: Sequence[RegionList]) -> None:
        answers = [frozenset(extract_labels(self.control, result)) for result in results]
        self._agreement.add([labels for labels in answers if labels or not self.control.is_single_choice])

    def agreement(self) -> Agreement | None:
        return self._agreement.compute()


class RegionScorer:
    """Labelled boxes, polygons, ellipses and brush strokes on pictures."""

    kind: ClassVar[str] = "regions"

    def __init__(self, control: Control, threshold: float) -> None:
        self.control = control
        self.counts = RegionCounts(threshold)
        self._agreement = MeanAgreement("F1 at IoU 0.5")

    def add(self, truths: Sequence[RegionList], prediction: RegionList) -> TaskScore:
        found = extract_regions(self.control, prediction)
        matching = self.counts.add(
            [extract_regions(self.control, truth) for truth in truths],
            found,
            _find_image_size(self.control, (*truths, prediction)),
        )
        return TaskScore(bool(truths), not matching.errors, (matching.errors, matching.max_false_positive_score))

    def add_agreement(self, results: Sequence[RegionList]) -> None:
        size = _find_image_size(self.control, results)
        several = [extract_regions(self.control, result) for result in results]
        if any(several):
            self._agreement.add([regions.agreement(one, other, size) for one, other in combinations(several, 2)])

    def agreement(self) -> Agreement | None:
        return self._agreement.compute()


class TextScorer:
    """<TextArea>: what is written in regions of a picture, or about a whole task."""

    kind: ClassVar[str] = "texts"

    def __init__(self, control: Control) -> None:
        self.control = control
        self.counts = TextCounts()
        self._agreement = MeanAgreement("1 - CER")

    def add(self, truths: Sequence[RegionList], prediction: RegionList) -> TaskScore:
        written = [extract_texts(self.control, truth) for truth in truths]
        reading = self.counts.add(
            written, extract_texts(self.control, prediction), _find_image_size(self.control, (*truths, prediction))
        )
        wrong = bool(reading.edits or reading.false_negatives or reading.false_positives)
        return TaskScore(bool(truths), not wrong, (reading.edits, reading.false_negatives + reading.false_positives))

    def add_agreement(self, results: Sequence[RegionList]) -> None:
        several = [extract_texts(self.control, result) for result in results]
        if any(several):
            size = _find_image_size(self.control, results)
            self._agreement.add([texts.agreement(one, other, size) for one, other in combinations(several, 2)])

    def agreement(self) -> Agreement | None:
        return self._agreement.compute()


def lowest_control_score(control: Control, result: RegionList) -> float | None:
    """The lowest score that regions of a control have; None where none has one."""
    scores = [
        score
        for region in result
        if region.get("from_name") == control.name and isinstance(score := region.get("score"), int | float)
    ]
    return min(scores, default=None)


def extract_regions(control: Control, result: RegionList) -> list[ScoredRegion]:
    """The regions of a control that have a label and a place, one for each label."""
    found = []
    for region in result:
        if region.get("from_name") != control.name or (shape := parse_shape(region)) is None:
            continue
        score = region.get("score")
        sure = float(score) if isinstance(score, int | float) else 1.0
        found += [ScoredRegion(label, shape, sure) for label in extract_labels(control, [region])]
    return found


def extract_texts(control: Control, result: RegionList) -> list[Transcription]:
    """What is written, each with the place of its region: its own, or that of a region that shares its id."""
    mine = [region for region in result if region.get("from_name") == control.name]
    places: dict[Any, Shape] = {}
    for region in result if mine else ():
        if isinstance(region.get("id"), str) and (shape := parse_shape(region)) is not None:
            places.setdefault(region["id"], shape)
    found = []
    for region in mine:
        value = region.get("value")
        written = value.get("text") if isinstance(value, Mapping) else None
        lines = [written] if isinstance(written, str) else written if isinstance(written, list) else []
        shape = parse_shape(region) or places.get(region.get("id"))
        found.append(Transcription("\n".join(line for line in lines if isinstance(line, str)), shape))
    return found


def _find_image_size(control: Control, results: Sequence[RegionList]) -> tuple[int, int] | None:
    """(width, height) of the picture in pixels, as the first region that tells says."""
    sizes = (
        parse_image_size(region) for result in results for region in result if region.get("from_name") == control.name
    )
    return next((size for size in sizes if size), None)
