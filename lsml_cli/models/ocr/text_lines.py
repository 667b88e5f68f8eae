"""A line of text in an image: where it is, what it says, and what of it was drawn before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsml_cli.models.ocr.crops import Point

RegionValue = dict[str, Any]


@dataclass(frozen=True)
class ExistingShape:
    """A shape that a task has already.

    Args:
        id: Of the region; None where an export has dropped it.
        kind: "rectangle" or "polygon".
        value: The geometry as it was stored.
        labels: Its labels, each once.
    """

    id: str | None
    kind: str
    value: RegionValue
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextLine:
    """A line of text.

    Args:
        points: Its outline in pixels of the image.
        score: Of the text detector (0..1); None if the shape existed already.
        text: "" if nothing can be read.
        text_confidence: Of the recognizer (0..1).
        has_reading_order: Whether `points` are four corners that start where the text does.
        existing_shape: The shape, if it existed already.
    """

    points: tuple[Point, ...] = ()
    score: float | None = None
    text: str = ""
    text_confidence: float = 0.0
    has_reading_order: bool = False
    existing_shape: ExistingShape | None = None
