"""Compute the outlines of regions drawn on an image. `templates/gallery.html.j2` draws them.

A drawing is `DRAWING_WIDTH` units wide and as high as the aspect ratio of the image requires, so that letters are not
distorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lsml_cli.evaluation.metrics.matching import ScoredRegion
from lsml_cli.evaluation.metrics.texts import Transcription
from lsml_cli.evaluation.report.formatting import shorten
from lsml_cli.schema.shapes import Point, Shape

DRAWING_WIDTH = 1000  # units
FONT_SIZE = 34  # units
MAX_NAMED_REGIONS = 4  # regions of each side with a visible label; more would cover the image
MAX_LABEL_LENGTH = 28  # characters of a predicted label, its score follows

Side = Literal["people", "model"]


@dataclass(frozen=True)
class Caption:
    """A label beside an outline; `anchor` is SVG's text-anchor."""

    text: str
    x: float
    y: float
    anchor: Literal["start", "end"]


@dataclass(frozen=True)
class Outline:
    """A closed outline; `title` appears when it is pointed at, `is_agreed` if both sides have the region."""

    side: Side
    is_agreed: bool
    corners: Sequence[Point]
    title: str
    caption: Caption | None = None


def draw_regions(
    regions: Sequence[ScoredRegion], is_agreed: Sequence[bool], height: float, side: Side
) -> list[Outline]:
    """Draw the regions of one side, large ones below small ones.

    Captions are given to the largest regions that only this side has.

    Args:
        regions: What one side marked.
        is_agreed: Whether the other side has the same region, for each of `regions`.
        height: Of the drawing, in units.
        side: Who marked them.
    """
    by_size = sorted(range(len(regions)), key=lambda i: -_bounding_box_area(regions[i].shape))
    captioned = [i for i in by_size if not is_agreed[i]][:MAX_NAMED_REGIONS]
    outlines = []
    for i in by_size:
        label = regions[i].label
        title = label if side == "people" else f"{shorten(label, MAX_LABEL_LENGTH)} {regions[i].score:.2f}"
        if corners := _scale(regions[i].shape, height):
            caption = _place_caption(corners, title, height, side) if title and i in captioned else None
            outlines.append(Outline(side, is_agreed[i], corners, title, caption))
    return outlines


def draw_transcriptions(transcriptions: Sequence[Transcription], height: float, side: Side) -> list[Outline]:
    """Draw the regions of texts of one side, each with its text as the title."""
    return [
        Outline(side, False, corners, text)
        for text, shape in transcriptions
        if shape and (corners := _scale(shape, height))
    ]


def _scale(shape: Shape, height: float) -> list[Point]:
    """Convert the corners of a shape from percent to units; empty for a brush mask."""
    return [(x * DRAWING_WIDTH / 100, y * height / 100) for x, y in shape.outline()]


def _place_caption(corners: Sequence[Point], text: str, height: float, side: Side) -> Caption:
    """Place a caption above what people marked, and below what the model did, so that neither covers the other."""
    left, right = min(x for x, _ in corners), max(x for x, _ in corners)
    top, bottom = min(y for _, y in corners), max(y for _, y in corners)
    y = max(top - 8, FONT_SIZE) if side == "people" else min(bottom + FONT_SIZE, height - 6)
    return Caption(text, right, y, "end") if left > DRAWING_WIDTH * 0.7 else Caption(text, left, y, "start")


def _bounding_box_area(shape: Shape) -> float:
    xs, ys = zip(*(shape.outline() or [(0.0, 0.0)]), strict=True)
    return float((max(xs) - min(xs)) * (max(ys) - min(ys)))
