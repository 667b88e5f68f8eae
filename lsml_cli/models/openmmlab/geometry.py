"""Convert pixels of an image to Label Studio's percent."""

from __future__ import annotations

from typing import Any

PERCENT_DIGITS = 4  # decimals of a percent: a millionth of the image's side
MIN_SIDE_PERCENT = 1e-3  # a box with a shorter side counts as empty

Box = tuple[float, float, float, float]  # left, top, right, bottom


def to_percent(pixels: float, side: int) -> float:
    """Return a coordinate as a percentage of the image's side, clipped to 0..100."""
    return round(min(max(100.0 * float(pixels) / side, 0.0), 100.0), PERCENT_DIGITS)


def box_value(box: Box, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return the value of a rectangle region, clipped to the image; None if nothing is left of it.

    Args:
        box: In pixels.
        size: (width, height) of the image in pixels.
    """
    left, right = (to_percent(x, size[0]) for x in (box[0], box[2]))
    top, bottom = (to_percent(y, size[1]) for y in (box[1], box[3]))
    width, height = round(right - left, PERCENT_DIGITS), round(bottom - top, PERCENT_DIGITS)
    if not (width >= MIN_SIDE_PERCENT and height >= MIN_SIDE_PERCENT):
        return None
    return {"x": left, "y": top, "width": width, "height": height, "rotation": 0}
