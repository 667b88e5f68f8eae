"""Turn the outputs of MMOCR's models into lines of text, in reading order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median, median_low
from typing import Any

from lsml_cli.models.ocr import crops
from lsml_cli.models.ocr.text_lines import TextLine

MATCH_IOU = 0.8  # overlap from which two boxes are the same text
MIN_CROSSWISE_ANGLE = 45.0  # degrees to the other lines of a page from which a line runs across them


def extract_lines(sample: Any) -> list[TextLine]:
    """Return the lines in a data sample of a text detector."""
    instances = sample.pred_instances
    return [
        TextLine(tuple((float(x), float(y)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)), float(score))
        for polygon, score in zip(instances.polygons, instances.scores, strict=True)
    ]


def with_text(line: TextLine, sample: Any) -> TextLine:
    """Add the text in a data sample of a recognizer to a line; its confidence is the mean over the characters."""
    scores = [float(score) for score in sample.pred_text.score]
    confidence = min(max(sum(scores) / len(scores), 0.0), 1.0) if scores else 0.0
    return replace(line, text=sample.pred_text.item.strip(), text_confidence=confidence)


def sort_in_reading_order(lines: Sequence[TextLine]) -> list[TextLine]:
    """Sort lines from top to bottom and, within a row, from left to right.

    Positions are those on the page turned upright, by the median angle of its lines. The first line of a row says how
    far below its center the row reaches: half its height, but at most the median height. A line across the others, as
    in a margin, is sorted by its center and starts no row that others could join.
    """
    if not lines:
        return []
    quads = [crops.reading_quad(line.points) for line in lines]
    angles = [crops.text_angle(quad) for quad in quads]
    heights = [math.dist(quad[0], quad[3]) for quad in quads]
    page_angle, median_height = median_low(angles), median(heights)
    sine, cosine = math.sin(math.radians(page_angle)), math.cos(math.radians(page_angle))
    centers = [quad.mean(axis=0).tolist() for quad in quads]
    positions = [(x * cosine + y * sine, y * cosine - x * sine) for x, y in centers]
    rows: list[list[int]] = []
    bottom = float("-inf")
    for i in sorted(range(len(lines)), key=lambda i: positions[i][1]):
        if positions[i][1] > bottom:
            rows.append([])
            difference = abs(angles[i] - page_angle)
            if difference < MIN_CROSSWISE_ANGLE or difference > 180 - MIN_CROSSWISE_ANGLE:
                bottom = positions[i][1] + min(heights[i] / 2, median_height)
        rows[-1].append(i)
    return [lines[i] for row in rows for i in sorted(row, key=lambda i: positions[i][0])]


def agreement(reference: Sequence[Any], candidate: Sequence[Any]) -> float | None:
    """Return the share (0..1) of lines that two precisions of a text detector find in the same place; None without any.

    Args:
        reference: Data samples.
        candidate: Those of the same images in another precision.
    """
    import torch
    from torchvision.ops import box_iou

    num_matched = num_lines = 0
    for samples in zip(reference, candidate, strict=True):
        first, second = (
            torch.tensor([crops.bounding_box(line.points) for line in extract_lines(sample)]) for sample in samples
        )
        num_lines += len(first) + len(second)
        if len(first) and len(second):
            is_match = box_iou(first, second) >= MATCH_IOU
            num_matched += int(is_match.any(dim=0).sum()) + int(is_match.any(dim=1).sum())
    return num_matched / num_lines if num_lines else None
