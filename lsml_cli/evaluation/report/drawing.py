"""Compute the outlines of regions drawn on an image. `templates/card.html.j2` draws them.

A drawing is `DRAWING_WIDTH` units wide and as high as the aspect ratio of the image requires, so that letters are not
distorted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lsml_cli.evaluation.metrics.matching import ScoredRegion
from lsml_cli.evaluation.metrics.texts import Transcription
from lsml_cli.evaluation.report.formatting import shorten
from lsml_cli.schema.shapes import Point, Shape

DRAWING_WIDTH = 1000  # units
FONT_SIZE = 34  # units
MAX_NAMED_REGIONS = 4  # regions of each side with a visible label; more would cover the image
MAX_LABEL_LENGTH = 28  # characters of a predicted label, its score follows
SMALL_FONT_SIZE = 27  # units, where there are many captions
LETTER_WIDTHS = (0.64, 0.78, 1.05)  # of the font size: bold letters, capitals and digits, letters of East Asia
CAPTION_GAP = 8  # units between a caption and its outline

Side = Literal["people", "model"]


@dataclass(frozen=True)
class Caption:
    """A label beside an outline; `anchor` is SVG's text-anchor."""

    text: str
    x: float
    y: float
    anchor: Literal["start", "end"]
    is_small: bool = False


@dataclass(frozen=True)
class Outline:
    """A closed outline; `title` appears when it is pointed at, `is_agreed` if both sides have the region.

    `colour` is the number of a colour in style.css; None for that of the side, which the tooltip then names.
    """

    side: Side
    is_agreed: bool
    corners: Sequence[Point]
    title: str
    caption: Caption | None = None
    colour: int | None = None

    @property
    def tooltip(self) -> str:
        return self.title if self.colour is not None else f"{self.side}: {self.title}"


class _Box(NamedTuple):
    """The room that a caption takes, in units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class CaptionPlacer:
    """Places captions on one drawing so that all of them can be read: none covers another, or leaves the drawing."""

    def __init__(self, height: float, *, is_small: bool = False) -> None:
        self._height = height
        self._is_small = is_small
        self._font_size = SMALL_FONT_SIZE if is_small else FONT_SIZE
        self._taken: list[_Box] = []

    def place(self, corners: Sequence[Point], text: str, side: Side) -> Caption | None:
        """Return a caption beside an outline; None where no place is free.

        It stands above what people marked and below what the model did, if there is room, else on the other side, in
        the outline, or at its other end.
        """
        size = self._font_size
        width = size * sum(map(_letter_width, text))
        left, right = (bound(x for x, _ in corners) for bound in (min, max))
        top, bottom = (bound(y for _, y in corners) for bound in (min, max))
        above, below = top - CAPTION_GAP, bottom + size
        baselines = [above, below] if side == "people" else [below, above]
        starts = left <= DRAWING_WIDTH * 0.7
        for is_start in (starts, not starts):
            for y in (*baselines, top + size, bottom - CAPTION_GAP):
                box = _Box(left, y - size, left + width, y + CAPTION_GAP)
                if not is_start:
                    box = box._replace(left=right - width, right=right)
                if self._is_free(box):
                    self._taken.append(box)
                    x = left if is_start else right
                    return Caption(text, x, y, "start" if is_start else "end", self._is_small)
        return None

    def _is_free(self, box: _Box) -> bool:
        is_inside = box.left >= 0 and box.right <= DRAWING_WIDTH and box.top >= 0 and box.bottom <= self._height + 2
        return is_inside and not any(box.overlaps(taken) for taken in self._taken)


def draw_regions(
    regions: Sequence[ScoredRegion],
    is_agreed: Sequence[bool],
    height: float,
    side: Side,
    placer: CaptionPlacer | None = None,
) -> list[Outline]:
    """Draw the regions of one side, large ones below small ones.

    Captions are given to the largest regions that only this side has.

    Args:
        regions: What one side marked.
        is_agreed: Whether the other side has the same region, for each of `regions`.
        height: Of the drawing, in units.
        side: Who marked them.
        placer: Of the captions of this drawing, if it has other ones.
    """
    placer = placer or CaptionPlacer(height)
    by_size = sorted(range(len(regions)), key=lambda i: -bounding_box_area(regions[i].shape))
    captioned = [i for i in by_size if not is_agreed[i]][:MAX_NAMED_REGIONS]
    outlines = []
    for i in by_size:
        label = regions[i].label
        title = label if side == "people" else f"{shorten(label, MAX_LABEL_LENGTH)} {regions[i].score:.2f}"
        if corners := scale_outline(regions[i].shape, height):
            caption = placer.place(corners, title, side) if title and i in captioned else None
            outlines.append(Outline(side, is_agreed[i], corners, title, caption))
    return outlines


def draw_transcriptions(transcriptions: Sequence[Transcription], height: float, side: Side) -> list[Outline]:
    """Draw the regions of texts of one side, each with its text as the title."""
    return [
        Outline(side, False, corners, text)
        for text, shape in transcriptions
        if shape and (corners := scale_outline(shape, height))
    ]


def scale_outline(shape: Shape, height: float) -> list[Point]:
    """Convert the corners of a shape from percent to units; empty for a brush mask."""
    return [(x * DRAWING_WIDTH / 100, y * height / 100) for x, y in shape.outline()]


def bounding_box_area(shape: Shape) -> float:
    """Return the area of the box around a shape, in percent squared; 0 for a brush mask."""
    xs, ys = zip(*(shape.outline() or [(0.0, 0.0)]), strict=True)
    return float((max(xs) - min(xs)) * (max(ys) - min(ys)))


def _letter_width(letter: str) -> float:
    """Return the width of a letter in font sizes; rather too much, since fonts differ."""
    if unicodedata.east_asian_width(letter) in ("W", "F"):
        return LETTER_WIDTHS[2]
    return LETTER_WIDTHS[1 if letter.isupper() or letter.isdigit() else 0]
