"""Build the cards of the tasks on which model and people disagree most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lsml_cli.evaluation.metrics.geometry import ImageSize, iou_matrix
from lsml_cli.evaluation.metrics.matching import ScoredRegion, match_by_label
from lsml_cli.evaluation.metrics.texts import character_edits, match_texts
from lsml_cli.evaluation.report.drawing import (
    DRAWING_WIDTH,
    CaptionPlacer,
    Outline,
    draw_regions,
    draw_transcriptions,
)
from lsml_cli.evaluation.report.examples import EmbeddedImage, Example
from lsml_cli.evaluation.report.formatting import shorten
from lsml_cli.evaluation.report.marked_text import TextSegment
from lsml_cli.evaluation.results import ControlEvaluation, Disagreement
from lsml_cli.evaluation.scorers import extract_regions, extract_texts, find_image_size, lowest_control_score
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.label_config import Control

MAX_TEXT_LENGTH = 700  # characters of a task's text
MAX_LISTED_TEXTS = 8  # wrong texts listed for one image
MAX_LISTED_CLASSES = 6  # classes of missed or extra regions listed for one image


@dataclass(frozen=True)
class ChoiceAnswers:
    """The labels of both sides, and the lowest score of the model's."""

    truth: Sequence[str]
    predicted: Sequence[str]
    score: float | None


@dataclass(frozen=True)
class LabelCounts:
    """How often each label occurs, the most frequent first; `other_count` is the number of labels left out."""

    counts: Sequence[tuple[str, int]]
    other_count: int

    @classmethod
    def of(cls, labels: Sequence[str]) -> LabelCounts:
        counts = Counter(labels)
        return cls(counts.most_common(MAX_LISTED_CLASSES), len(counts) - MAX_LISTED_CLASSES)


@dataclass(frozen=True)
class RegionAnswers:
    """The regions that only one side has, by label, and the number of those that both have."""

    false_negatives: LabelCounts
    false_positives: LabelCounts
    agreed_count: int


@dataclass(frozen=True)
class TextAnswers:
    """Pairs (true text, read text) that differ, the worst first; `other_count` is the number of pairs left out."""

    pairs: Sequence[tuple[str, str]]
    other_count: int


Answers = ChoiceAnswers | RegionAnswers | TextAnswers


@dataclass(frozen=True)
class Card:
    """One task with both answers.

    Attributes:
        task_id: None if the task has none; then its position identifies it.
        position: Of the task in the input, from 0.
        task_url: Where Label Studio shows the task, if known.
        image: The image, if there is one to show.
        image_error: Why the image cannot be shown.
        segments: The values of the task's other objects, shortened.
        outlines: Drawn on the image.
        height: Of the drawing, in units.
        answers: What people and model say.
    """

    task_id: int | None
    position: int
    task_url: str | None
    image: EmbeddedImage | None
    image_error: str | None
    segments: Sequence[TextSegment]
    outlines: Sequence[Outline]
    height: float
    answers: Answers


@dataclass(frozen=True)
class Gallery:
    """The cards of one control. `has_drawings`: whether there are images with regions on them."""

    control_name: str
    kind: str
    cards: Sequence[Card]
    has_drawings: bool


def build_gallery(evaluation: ControlEvaluation, examples: Sequence[Example]) -> Gallery:
    """Build the cards of a control."""
    has_images = any(isinstance(example.image, EmbeddedImage) for example in examples)
    return Gallery(
        evaluation.control.name,
        evaluation.kind,
        [_build_card(evaluation, example) for example in examples],
        has_drawings=has_images and evaluation.kind != "choices",
    )


def _build_card(evaluation: ControlEvaluation, example: Example) -> Card:
    image = example.image if isinstance(example.image, EmbeddedImage) else None
    height = DRAWING_WIDTH * image.height / image.width if image else DRAWING_WIDTH
    compare = _COMPARE_BY_KIND[evaluation.kind]
    answers, outlines = compare(evaluation.control, example.disagreement, height)
    task = example.disagreement.task
    return Card(
        task_id=task.id,
        position=task.index,
        task_url=example.task_url,
        image=image,
        image_error=example.image if isinstance(example.image, str) else None,
        segments=[TextSegment(shorten(example.text, MAX_TEXT_LENGTH))] if example.text else [],
        outlines=outlines,
        height=height,
        answers=answers,
    )


def _compare_choices(
    control: Control, disagreement: Disagreement, height: float
) -> tuple[ChoiceAnswers, list[Outline]]:
    truth, predicted = (extract_labels(control, result) for result in (disagreement.truth, disagreement.prediction))
    return ChoiceAnswers(truth, predicted, lowest_control_score(control, disagreement.prediction)), []


def _compare_regions(
    control: Control, disagreement: Disagreement, height: float
) -> tuple[RegionAnswers, list[Outline]]:
    truths = extract_regions(control, disagreement.truth)
    predictions = sorted(extract_regions(control, disagreement.prediction), key=lambda region: -region.score)
    image_size = find_image_size((disagreement.truth, disagreement.prediction))
    is_correct = _find_correct(truths, predictions, image_size)
    is_detected = _find_detected(truths, predictions, image_size, is_correct)
    placer = CaptionPlacer(height)
    outlines = draw_regions(truths, is_detected, height, "people", placer)
    outlines += draw_regions(predictions, is_correct, height, "model", placer)
    missed = [region.label for region, detected in zip(truths, is_detected, strict=True) if not detected]
    extra = [region.label for region, correct in zip(predictions, is_correct, strict=True) if not correct]
    return RegionAnswers(LabelCounts.of(missed), LabelCounts.of(extra), sum(is_correct)), outlines


def _find_correct(
    truths: Sequence[ScoredRegion], predictions: Sequence[ScoredRegion], image_size: ImageSize | None
) -> list[bool]:
    """Return for each prediction whether it matches a true region of its class at IoU 0.5."""
    is_correct = [False] * len(predictions)
    for match in match_by_label(truths, predictions, image_size, (0.5,)):
        for i, bits in zip(match.detections, match.bits, strict=True):
            is_correct[i] = bool(bits)
    return is_correct


def _find_detected(
    truths: Sequence[ScoredRegion],
    predictions: Sequence[ScoredRegion],
    image_size: ImageSize | None,
    is_correct: Sequence[bool],
) -> list[bool]:
    """Return for each true region whether it was detected: each correct prediction claims the one it overlaps most."""
    is_detected = [False] * len(truths)
    for prediction, correct in zip(predictions, is_correct, strict=True):
        free = [i for i, truth in enumerate(truths) if truth.label == prediction.label and not is_detected[i]]
        if correct and free:
            overlap = iou_matrix([prediction.shape], [truths[i].shape for i in free], image_size)[0]
            is_detected[free[int(overlap.argmax())]] = True
    return is_detected


def _compare_texts(control: Control, disagreement: Disagreement, height: float) -> tuple[TextAnswers, list[Outline]]:
    truths, predictions = (extract_texts(control, result) for result in (disagreement.truth, disagreement.prediction))
    image_size = find_image_size((disagreement.truth, disagreement.prediction))
    outlines = draw_transcriptions(truths, height, "people") + draw_transcriptions(predictions, height, "model")
    pairs, missed, extra = match_texts(truths, predictions, image_size)
    errors: list[tuple[int, str, str]] = [
        (edits, true, read) for true, read in pairs if (edits := character_edits(true, read)[0])
    ]
    errors += [(len(text), text, "") for text in missed] + [(len(text), "", text) for text in extra]
    errors.sort(key=lambda error: -error[0])
    listed = [(true, read) for _, true, read in errors[:MAX_LISTED_TEXTS]]
    return TextAnswers(listed, len(errors) - len(listed)), outlines


_COMPARE_BY_KIND: Mapping[str, Callable[[Control, Disagreement, float], tuple[Answers, list[Outline]]]] = {
    "choices": _compare_choices,
    "regions": _compare_regions,
    "texts": _compare_texts,
}
