"""Score one control of the label config: annotations against predictions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, NamedTuple, Protocol

from lsml_cli.evaluation.metrics import regions, texts
from lsml_cli.evaluation.metrics.agreement import Agreement, MeanAgreement, NominalAgreement
from lsml_cli.evaluation.metrics.choices import NO_LABELS, ChoiceCounts, ChoiceMetrics, LabelPair
from lsml_cli.evaluation.metrics.geometry import ImageSize
from lsml_cli.evaluation.metrics.matching import ScoredRegion
from lsml_cli.evaluation.metrics.regions import RegionCounts, RegionMetrics
from lsml_cli.evaluation.metrics.texts import TextCounts, TextMetrics, Transcription
from lsml_cli.evaluation.prediction_records import parse_score
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.label_config import Control, LabelConfig
from lsml_cli.schema.shapes import Shape, parse_image_size, parse_shape

RegionList = Sequence[Mapping[str, Any]]  # regions as Label Studio stores them
ControlMetrics = ChoiceMetrics | RegionMetrics | TextMetrics

REGION_CONTROL_TYPES = frozenset({"rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "labels"})


class TaskScore(NamedTuple):
    """The score of one task for one control.

    Attributes:
        is_counted: Whether the task counts for this control at all.
        is_correct: Whether the prediction matches every selected annotation.
        severity: How wrong it is, compared lexicographically; higher is worse.
    """

    is_counted: bool
    is_correct: bool
    severity: tuple[float, ...] = ()


class Scorer(Protocol):
    """Accumulates one control over many tasks."""

    kind: ClassVar[str]
    control: Control

    @property
    def counts(self) -> ChoiceCounts | RegionCounts | TextCounts: ...

    def add(self, truths: Sequence[RegionList], prediction: RegionList) -> TaskScore:
        """Add a task: the selected annotations, none if the task is not to count, and the prediction."""

    def add_failure(self, truths: Sequence[RegionList]) -> None:
        """Add a task without a prediction, which is wrong also where the right one would be empty."""

    def add_agreement(self, results: Sequence[RegionList]) -> None:
        """Add all annotations of a task that has several."""

    def agreement(self) -> Agreement | None: ...


def build_scorers(config: LabelConfig, threshold: float = 0.0) -> dict[str, Scorer]:
    """Create a scorer for each control that has metrics, by name, in the order of the config.

    Args:
        config: The label config.
        threshold: Regions with a lower score do not count as predicted, except for average precision.
    """
    scorers: dict[str, Scorer] = {}
    for control in config.controls.values():
        kind = metric_kind(control, config)
        if kind == "choices":
            scorers[control.name] = ChoiceScorer(control)
        elif kind == "regions":
            scorers[control.name] = RegionScorer(control, threshold)
        elif kind == "texts":
            scorers[control.name] = TextScorer(control)
    return scorers


def metric_kind(control: Control, config: LabelConfig) -> str | None:
    """Return "choices" (of whole tasks), "regions" (of images) or "texts"; None if the control has no metrics."""
    if control.type == "choices":
        return None if control.per_region else "choices"
    if control.type == "textarea":
        return "texts"
    return "regions" if control.type in REGION_CONTROL_TYPES and _is_over_image(control, config) else None


def compares_shapes(config: LabelConfig, control_tags: Collection[str]) -> bool:
    """Tell whether measuring the controls of these tags compares shapes on images, which needs pycocotools."""
    types = {tag.lower() for tag in control_tags}
    return any(
        metric_kind(control, config) == "regions" or (control.type == "textarea" and control.per_region)
        for control in config.controls.values()
        if control.type in types and _is_over_image(control, config)
    )


def _is_over_image(control: Control, config: LabelConfig) -> bool:
    return any(config.objects[name].tag.lower() == "image" for name in control.to_names)


def filled_unmeasurable_controls(truths: Sequence[RegionList], config: LabelConfig) -> set[str]:
    """Return the controls that annotations fill and that have no metrics yet."""
    names = {str(region.get("from_name")) for result in truths for region in result}
    return {name for name in names if name in config.controls and metric_kind(config.controls[name], config) is None}


def describe_controls(config: LabelConfig, names: Collection[str]) -> list[str]:
    """Name controls with their tags, in the order of the config: "entities (<Labels> over <Text>)"."""
    described = []
    for control in config.controls.values():
        if control.name in names:
            tags = dict.fromkeys(f"<{config.objects[name].tag}>" for name in control.to_names)
            where = f"{', '.join(tags)}, per region" if control.per_region else ", ".join(tags)
            described.append(f"{control.name} (<{control.tag}> over {where})")
    return described


class ChoiceScorer:
    """Scores <Choices> of whole tasks, single and multiple.

    An annotation without a label counts for multiple choices, where it means that no label applies. For a single choice
    it is no answer.
    """

    kind: ClassVar[str] = "choices"

    def __init__(self, control: Control) -> None:
        self.control = control
        self.counts = ChoiceCounts()
        self._agreement = NominalAgreement()

    def add(self, truths: Sequence[RegionList], prediction: RegionList) -> TaskScore:
        predicted = frozenset(extract_labels(self.control, prediction))
        pairs: list[LabelPair] = [(labels, predicted) for labels in self._extract_answers(truths)]
        score = lowest_control_score(self.control, prediction) if predicted else None
        self.counts.add(pairs, score)
        errors = max((len(truth ^ predicted) for truth, _ in pairs), default=0)
        return TaskScore(bool(pairs), not errors, (errors, score or 0.0))

    def add_failure(self, truths: Sequence[RegionList]) -> None:
        self.counts.add([(labels, NO_LABELS) for labels in self._extract_answers(truths)])

    def add_agreement(self, results: Sequence[RegionList]) -> None:
        self._agreement.add(self._extract_answers(results))

    def agreement(self) -> Agreement | None:
        return self._agreement.compute()

    def _extract_answers(self, results: Sequence[RegionList]) -> list[frozenset[str]]:
        answers = [frozenset(extract_labels(self.control, result)) for result in results]
        return [labels for labels in answers if labels or not self.control.is_single_choice]


class RegionScorer:
    """Scores labelled boxes, polygons, ellipses and brush masks on images."""

    kind: ClassVar[str] = "regions"

    def __init__(self, control: Control, threshold: float) -> None:
        self.control = control
        self.counts = RegionCounts(threshold)
        self._agreement = MeanAgreement("F1 at IoU 0.5")

    def add(self, truths: Sequence[RegionList], prediction: RegionList) -> TaskScore:
        match = self.counts.add(
            [extract_regions(self.control, truth) for truth in truths],
            extract_regions(self.control, prediction),
            find_image_size((*truths, prediction), self.control),
        )
        return TaskScore(bool(truths), not match.errors, (match.errors, match.max_false_positive_score))

    def add_failure(self, truths: Sequence[RegionList]) -> None:
        self.add(truths, ())

    def add_agreement(self, results: Sequence[RegionList]) -> None:
        by_annotator = [extract_regions(self.control, result) for result in results]
        if any(by_annotator):
            image_size = find_image_size(results, self.control)
            self._agreement.add(
                [regions.agreement(first, second, image_size) for first, second in combinations(by_annotator, 2)]
            )

    def agreement(self) -> Agreement | None:
        return self._agreement.compute()


class TextScorer:
    """Scores <TextArea>: transcriptions of regions of an image, or texts about a whole task."""

    kind: ClassVar[str] = "texts"

    def __init__(self, control: Control) -> None:
        self.control = control
        self.counts = TextCounts()
        self._agreement = MeanAgreement("1 - CER")

    def add(self, truths: Sequence[RegionList], prediction: RegionList) -> TaskScore:
        errors = self.counts.add(
            [extract_texts(self.control, truth) for truth in truths],
            extract_texts(self.control, prediction),
            find_image_size((*truths, prediction), self.control),
        )
        region_errors = errors.false_negatives + errors.false_positives
        return TaskScore(bool(truths), not (errors.edits or region_errors), (errors.edits, region_errors))

    def add_failure(self, truths: Sequence[RegionList]) -> None:
        self.add(truths, ())

    def add_agreement(self, results: Sequence[RegionList]) -> None:
        by_annotator = [extract_texts(self.control, result) for result in results]
        if any(by_annotator):
            image_size = find_image_size(results, self.control)
            self._agreement.add(
                [texts.agreement(first, second, image_size) for first, second in combinations(by_annotator, 2)]
            )

    def agreement(self) -> Agreement | None:
        return self._agreement.compute()


def lowest_control_score(control: Control, result: RegionList) -> float | None:
    """Return the lowest score of a control's regions; None if none has one."""
    scores = (parse_score(region.get("score")) for region in result if region.get("from_name") == control.name)
    return min((score for score in scores if score is not None), default=None)


def extract_regions(control: Control, result: RegionList) -> list[ScoredRegion]:
    """Return the regions of a control that have a label and a shape, one for each label."""
    scored = []
    for region in result:
        if region.get("from_name") != control.name or (shape := parse_shape(region)) is None:
            continue
        score = parse_score(region.get("score"))
        scored += [
            ScoredRegion(label, shape, 1.0 if score is None else score) for label in extract_labels(control, [region])
        ]
    return scored


def extract_texts(control: Control, result: RegionList) -> list[Transcription]:
    """Return the texts of a control, each with its shape: its own, or that of a region with the same id."""
    text_regions = [region for region in result if region.get("from_name") == control.name]
    shapes: dict[Any, Shape] = {}
    for region in result if text_regions else ():
        if isinstance(region.get("id"), str) and (shape := parse_shape(region)) is not None:
            shapes.setdefault(region["id"], shape)
    transcriptions = []
    for region in text_regions:
        value = region.get("value")
        text = value.get("text") if isinstance(value, Mapping) else None
        lines = [text] if isinstance(text, str) else text if isinstance(text, list) else []
        shape = parse_shape(region) or shapes.get(region.get("id"))
        transcriptions.append(Transcription("\n".join(line for line in lines if isinstance(line, str)), shape))
    return transcriptions


def find_image_size(results: Sequence[RegionList], control: Control | None = None) -> ImageSize | None:
    """Return (width, height) of the image in pixels, from the first region that states it.

    Args:
        results: Regions of annotations and predictions.
        control: Look at its regions only.
    """
    sizes = (
        parse_image_size(region)
        for result in results
        for region in result
        if control is None or region.get("from_name") == control.name
    )
    return next((size for size in sizes if size), None)
