"""Geometry of regions on images: boxes, polygons, ellipses and brush masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsml_cli.schema.region_rules import is_number

if TYPE_CHECKING:
    pass

DEFAULT_IMAGE_SIZE = (1000, 1000)  # pixels of a picture whose size no region tells

MAX_IMAGE_SIDE = 30_000  # pixels of a side that are believed

ELLIPSE_POINTS = 40  # of an ellipse

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Shape:
    """Where something is.

    box     (x, y, width, height) in percent of the picture, for a box that is not turned
    points  corners in percent, for everything else that has some
    stroke  Label Studio's run-length code of a brush, with the size of its picture in pixels
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[Point, ...] = ()
    brush_rle: tuple[bytes, tuple[int, int]] | None = None

    def outline(self) -> tuple[Point, ...]:
        """Corners in percent, for drawing; none of a brush."""
        if self.box is None:
            return self.points
        x, y, width, height = self.box
        return ((x, y), (x + width, y), (x + width, y + height), (x, y + height))


def parse_shape(region: Mapping[str, Any]) -> Shape | None:
    """The shape of a region as Label Studio stores it; None for one that has none, or none that makes sense."""
    value = region.get("value")
    if not isinstance(value, Mapping):
        return None
    size = parse_image_size(region)
    try:
        if "rle" in value:
            return Shape(brush_rle=(bytes(value["rle"]), size)) if size else None
        if "points" in value:
            points = tuple((_to_finite_float(x), _to_finite_float(y)) for x, y in value["points"])
            return Shape(points=points) if len(points) > 2 else None
        if "radiusX" in value:
            centre = _to_finite_float(value["x"]), _to_finite_float(value["y"])
            radii = _to_finite_float(value["radiusX"]), _to_finite_float(value["radiusY"])
            return Shape(points=_ellipse_outline(centre, radii, value.get("rotation") or 0, size or DEFAULT_IMAGE_SIZE))
        if "width" in value:
            box = (
                _to_finite_float(value["x"]),
                _to_finite_float(value["y"]),
                _to_finite_float(value["width"]),
                _to_finite_float(value["height"]),
            )
            angle = value.get("rotation") or 0
            return Shape(points=_rotated_box_corners(box, angle, size or DEFAULT_IMAGE_SIZE)) if angle else Shape(box)
    except (KeyError, TypeError, ValueError):
        return None
    return None


def parse_image_size(region: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) of the region's picture in pixels; JSON_MIN keeps them in the value."""
    for place in (region, region.get("value")):
        if isinstance(place, Mapping):
            width, height = place.get("original_width"), place.get("original_height")
            if (
                is_number(width)
                and is_number(height)
                and 1 <= width <= MAX_IMAGE_SIDE
                and 1 <= height <= MAX_IMAGE_SIDE
            ):
                return int(width), int(height)
    return None


def _to_finite_float(value: Any) -> float:
    if not is_number(value):
        raise ValueError
    return float(value)


def _rotated_box_corners(
    box: tuple[float, float, float, float], angle: float, image_size: tuple[int, int]
) -> tuple[Point, ...]:
    """The corners of a box after it was turned around its upper left one, clockwise, by degrees; in percent."""
    x, y, width, height = box
    corners = ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
    return tuple((x + dx, y + dy) for dx, dy in (_rotate(corner, angle, image_size) for corner in corners))


def _ellipse_outline(centre: Point, radii: Point, angle: float, image_size: tuple[int, int]) -> tuple[Point, ...]:
    corners = []
    for i in range(ELLIPSE_POINTS):
        turn = 2 * math.pi * i / ELLIPSE_POINTS
        dx, dy = _rotate((radii[0] * math.cos(turn), radii[1] * math.sin(turn)), angle, image_size)
        corners.append((centre[0] + dx, centre[1] + dy))
    return tuple(corners)


def _rotate(offset: Point, angle: float, image_size: tuple[int, int]) -> Point:
    """An offset in percent, turned by degrees. Angles are those of pixels: a percent is not the same both ways."""
    across, down = offset[0] * image_size[0], offset[1] * image_size[1]
    sine, cosine = math.sin(math.radians(_to_finite_float(angle))), math.cos(math.radians(angle))
    return (across * cosine - down * sine) / image_size[0], (across * sine + down * cosine) / image_size[1]
