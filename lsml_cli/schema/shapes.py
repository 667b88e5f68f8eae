"""Geometry of regions on images: boxes, polygons, ellipses and brush masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsml_cli.schema.brush_rle import MAX_PIXELS
from lsml_cli.schema.value_checks import is_number

DEFAULT_IMAGE_SIZE = (1000, 1000)  # pixels of an image whose size no region holds

MAX_IMAGE_SIDE = 30_000  # pixels; larger sides are ignored as errors

# Percent of the image. What lies further out, or has a longer outline, is no shape that a person drew, and drawing it
# pixel by pixel would take all memory.
MAX_COORDINATE = 1_000.0
MAX_OUTLINE = 20_000.0

ELLIPSE_POINTS = 40  # points of the polygon that replaces an ellipse

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Shape:
    """The geometry of a region.

    Attributes:
        box: (x, y, width, height) in percent of the image, for a box that is not rotated.
        points: Corners in percent, for rotated boxes, polygons and ellipses.
        brush_rle: Label Studio's run-length code of a brush mask, and the (width, height) of its image in pixels.
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[Point, ...] = ()
    brush_rle: tuple[bytes, tuple[int, int]] | None = None

    def outline(self) -> tuple[Point, ...]:
        """Return the corners in percent; none for a brush."""
        if self.box is None:
            return self.points
        x, y, width, height = self.box
        return ((x, y), (x + width, y), (x + width, y + height), (x, y + height))


def parse_shape(region: Mapping[str, Any]) -> Shape | None:
    """Return the shape of a stored region, None if it has none or an invalid one."""
    value = region.get("value")
    if not isinstance(value, Mapping):
        return None
    size = parse_image_size(region)
    try:
        if "rle" in value:
            return Shape(brush_rle=(bytes(value["rle"]), size)) if size else None
        if "points" in value:
            points = tuple((_to_coordinate(x), _to_coordinate(y)) for x, y in value["points"])
            is_drawable = len(points) > 2 and _outline_length(points) <= MAX_OUTLINE
            return Shape(points=points) if is_drawable else None
        if "radiusX" in value:
            center = _to_coordinate(value["x"]), _to_coordinate(value["y"])
            radii = _to_coordinate(value["radiusX"]), _to_coordinate(value["radiusY"])
            return Shape(points=_ellipse_outline(center, radii, _parse_angle(value), size or DEFAULT_IMAGE_SIZE))
        if "width" in value:
            box = (
                _to_coordinate(value["x"]),
                _to_coordinate(value["y"]),
                _to_coordinate(value["width"]),
                _to_coordinate(value["height"]),
            )
            angle = _parse_angle(value)
            return Shape(points=_rotated_box_corners(box, angle, size or DEFAULT_IMAGE_SIZE)) if angle else Shape(box)
    except (KeyError, TypeError, ValueError):
        return None
    return None


def parse_image_size(region: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (width, height) of the region's image in pixels; JSON_MIN keeps them in the value."""
    for fields in (region, region.get("value")):
        if isinstance(fields, Mapping):
            width, height = fields.get("original_width"), fields.get("original_height")
            if (
                is_number(width)
                and is_number(height)
                and 1 <= width <= MAX_IMAGE_SIDE
                and 1 <= height <= MAX_IMAGE_SIDE
                and width * height <= MAX_PIXELS
            ):
                return int(width), int(height)
    return None


def _to_coordinate(value: Any) -> float:
    if not is_number(value) or abs(value) > MAX_COORDINATE:
        raise ValueError
    return float(value)


def _parse_angle(value: Mapping[str, Any]) -> float:
    """Return the rotation in degrees, 0 if there is none."""
    angle = value.get("rotation") or 0.0
    if not is_number(angle):
        raise ValueError
    return float(angle)


def _outline_length(points: Sequence[Point]) -> float:
    """Return the length of a closed outline in percent."""
    return sum(math.dist(point, points[i - 1]) for i, point in enumerate(points))


def _rotated_box_corners(
    box: tuple[float, float, float, float], angle: float, image_size: tuple[int, int]
) -> tuple[Point, ...]:
    """Return the corners in percent of a box rotated clockwise around its upper left one; `angle` is in degrees."""
    x, y, width, height = box
    corners = ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
    return tuple((x + dx, y + dy) for dx, dy in (_rotate(corner, angle, image_size) for corner in corners))


def _ellipse_outline(center: Point, radii: Point, angle: float, image_size: tuple[int, int]) -> tuple[Point, ...]:
    corners = []
    for i in range(ELLIPSE_POINTS):
        phi = 2 * math.pi * i / ELLIPSE_POINTS
        dx, dy = _rotate((radii[0] * math.cos(phi), radii[1] * math.sin(phi)), angle, image_size)
        corners.append((center[0] + dx, center[1] + dy))
    return tuple(corners)


def _rotate(offset: Point, angle: float, image_size: tuple[int, int]) -> Point:
    """Rotate an offset in percent by degrees, in pixels: a percent differs between the axes of an image."""
    dx, dy = offset[0] * image_size[0], offset[1] * image_size[1]
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    return (dx * cosine - dy * sine) / image_size[0], (dx * sine + dy * cosine) / image_size[1]
