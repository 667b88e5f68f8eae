"""Match detected regions with true ones, as COCO does.

Of each class the detection with the highest score goes first. It takes the free true region that it overlaps most, if
their IoU reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lsml_cli.evaluation.metrics.geometry import ImageSize, iou_matrix
from lsml_cli.schema.shapes import Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Those of pycocotools, np.linspace(0.5, 0.95, 10), to the last bit: boxes of whole pixels overlap by exactly 0.6.
IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.8999999999999999, 0.95)


class ScoredRegion(NamedTuple):
    """A region with its label. The score of a true region has no meaning."""

    label: str
    shape: Shape
    score: float = 1.0


class LabelMatch(NamedTuple):
    """The regions of one label.

    Attributes:
        label: Their label.
        truths: Indices of the true regions.
        detections: Indices of the detections, the highest score first.
        bits: For each detection a number with bit i set if it matches at the i-th IoU threshold.
    """

    label: str
    truths: Sequence[int]
    detections: Sequence[int]
    bits: Sequence[int]


def match_by_label(
    truths: Sequence[ScoredRegion],
    detections: Sequence[ScoredRegion],
    image_size: ImageSize | None,
    iou_thresholds: Sequence[float],
    max_detections: int | None = None,
) -> Iterator[LabelMatch]:
    """Match detections and true regions of the same label, label by label.

    Args:
        truths: The true regions of one image.
        detections: The detections on it, in any order.
        image_size: Of the image, if known.
        iou_thresholds: At which to match.
        max_detections: How many detections of each label count, those with the highest scores; None for all.
    """
    for label in dict.fromkeys(region.label for region in (*truths, *detections)):
        true_indices = [i for i, region in enumerate(truths) if region.label == label]
        # sorted() is stable, as is the mergesort of pycocotools.
        candidates = (i for i, region in enumerate(detections) if region.label == label)
        by_score = sorted(candidates, key=lambda i: -detections[i].score)[:max_detections]
        overlap = iou_matrix(
            [detections[i].shape for i in by_score], [truths[i].shape for i in true_indices], image_size
        )
        yield LabelMatch(label, true_indices, by_score, match_detections(overlap, iou_thresholds))


def match_detections(overlap: npt.NDArray[np.float64], iou_thresholds: Sequence[float]) -> list[int]:
    """Match the detections of one class.

    Args:
        overlap: IoU, shape (detections, true regions), the detection with the highest score first.
        iou_thresholds: At which to match.

    Returns:
        For each detection a number with bit i set if it matches at `iou_thresholds[i]`.
    """
    matched = [0] * len(overlap)
    if not overlap.size:
        return matched
    rows = overlap.tolist()
    for bit, threshold in enumerate(iou_thresholds):
        taken: set[int] = set()
        for i, row in enumerate(rows):
            best, best_truth = min(threshold, 1 - 1e-10), -1
            for j, value in enumerate(row):
                if value >= best and j not in taken:
                    best, best_truth = value, j
            if best_truth >= 0:
                taken.add(best_truth)
                matched[i] |= 1 << bit
    return matched
