"""Geometry of regions on images: boxes, polygons, ellipses and brush masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsml_cli.schema.brush_rle import MAX_PIXELS, decode_rle
from lsml_cli.schema.value_checks import is_number

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DEFAULT_IMAGE_SIZE = (1000, 1000)  # pixels of an image whose size no region holds

MAX_IMAGE_SIDE = 30_000  # pixels; larger sides are ignored as errors

# Percent of the image. What lies further out, or has a longer outline, is no shape that a person drew, and drawing it
# pixel by pixel would take all memory.
MAX_COORDINATE = 1_000.0
MAX_OUTLINE = 20_000.0

PERCENT_DIGITS = 6  # digits of values that are made: a hundredth of a pixel of the largest image
MIN_ANGLE = 1e-3  # degrees; a box that is rotated by less is not

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


def parse_keypoint(region: Mapping[str, Any]) -> Point | None:
    """Return the position of a stored keypoint in percent, None if it has none or an invalid one."""
    value = region.get("value")
    if not isinstance(value, Mapping):
        return None
    try:
        return _to_coordinate(value["x"]), _to_coordinate(value["y"])
    except (KeyError, ValueError):
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


def to_pixels(points: Sequence[Point], image_size: tuple[int, int]) -> list[Point]:
    """Convert points from percent to pixels."""
    return [(x * image_size[0] / 100, y * image_size[1] / 100) for x, y in points]


def bounding_box(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Return (left, top, width, height) of the box around points."""
    left, top = min(x for x, _ in points), min(y for _, y in points)
    return left, top, max(x for x, _ in points) - left, max(y for _, y in points) - top


def clip_points(points: Sequence[Point], image_size: tuple[int, int]) -> list[Point]:
    """Move points in pixels that lie outside of the image to its edge."""
    width, height = image_size
    return [(min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))) for x, y in points]


def polygon_area(points: Sequence[Point]) -> float:
    """Return the area of a polygon in the unit of its points, squared (the shoelace formula)."""
    return abs(polygon_signed_area(points))


def polygon_signed_area(points: Sequence[Point]) -> float:
    """Return the area of a polygon, negative if its points go round counterclockwise on an image."""
    return sum(points[i - 1][0] * y - x * points[i - 1][1] for i, (x, y) in enumerate(points)) / 2


def draw_mask(shape: Shape, image_size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Draw a shape pixel by pixel.

    Returns:
        0 and 1, shape (height, width).
    """
    if shape.brush_rle is not None:
        return decode_brush(shape.brush_rle, image_size)
    return _fill_polygon(to_pixels(shape.outline(), image_size), image_size)


def decode_brush(brush: tuple[bytes, tuple[int, int]], image_size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Decode a brush mask, see `Shape.brush_rle`, to 0 and 1, shape (height, width) of the image.

    A mask of another size is resized by nearest neighbours.
    """
    import numpy as np

    rle, (mask_width, mask_height) = brush
    width, height = image_size
    pixels = decode_rle(rle, mask_width, mask_height)
    if (mask_width, mask_height) == image_size:
        return pixels
    rows, columns = np.arange(height) * mask_height // height, np.arange(width) * mask_width // width
    resized: npt.NDArray[np.uint8] = pixels[rows][:, columns]
    return resized


def _fill_polygon(points: Sequence[Point], image_size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the pixels whose middle lies in a polygon: an odd number of its edges is to the left of them."""
    import numpy as np

    width, height = image_size
    changes = np.zeros((height, width + 1), np.uint8)
    for i, (x2, y2) in enumerate(points):
        x1, y1 = points[i - 1]
        if y1 == y2:
            continue
        top, bottom = min(y1, y2), max(y1, y2)
        rows = np.arange(max(0, math.ceil(top - 0.5)), min(height, math.ceil(bottom - 0.5)))
        crossings = x1 + (rows + 0.5 - y1) * ((x2 - x1) / (y2 - y1))
        changes[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.intp)] += 1
    parities = np.cumsum(changes[:, :width], axis=1, dtype=np.uint8) % 2
    return parities.astype(np.uint8, copy=False)


def box_value(box: Sequence[float], image_size: tuple[int, int], rotation: float = 0.0) -> dict[str, float]:
    """Return Label Studio's value of a box in percent.

    Args:
        box: (left, top, width, height) in pixels, before it is rotated; without a rotation it is cut at the edges.
        image_size: (width, height) in pixels.
        rotation: In degrees, clockwise around the upper left corner.

    Raises:
        ValueError: Nothing of it lies in the image.
    """
    left, top, width, height = box
    if not rotation:
        (left, top), (right, bottom) = clip_points([(left, top), (left + width, top + height)], image_size)
        width, height = right - left, bottom - top
    if not (width > 0 and height > 0):
        raise ValueError("the box is empty, or outside of the image")
    x, width = (round(100 * length / image_size[0], PERCENT_DIGITS) for length in (left, width))
    y, height = (round(100 * length / image_size[1], PERCENT_DIGITS) for length in (top, height))
    return {"x": x, "y": y, "width": width, "height": height, "rotation": round(rotation, PERCENT_DIGITS)}


def oriented_box_value(corners: Sequence[Point], image_size: tuple[int, int]) -> dict[str, float]:
    """Return Label Studio's value of a rotated box whose four corners are in pixels, one after the other.

    A box is rotated around its first corner, which has to lie in the image: another one of the four is taken where it
    does not.

    Raises:
        ValueError: The box is empty, or no corner lies in the image.
    """
    if polygon_signed_area(corners) < 0:  # the corners go round the other way
        corners = [corners[0], *reversed(corners[1:])]
    width, height = image_size
    for first in range(4):
        origin, right, _, down = (corners[(first + i) % 4] for i in range(4))
        if not (0 <= origin[0] <= width and 0 <= origin[1] <= height):
            continue
        angle = math.degrees(math.atan2(right[1] - origin[1], right[0] - origin[0])) % 360
        box = (*origin, math.dist(origin, right), math.dist(origin, down))
        is_upright = min(angle, 360 - angle) < MIN_ANGLE
        return box_value(box, image_size, 0.0 if is_upright else angle)
    raise ValueError("the box is empty, or outside of the image")


def polygon_value(points: Sequence[Point], image_size: tuple[int, int]) -> dict[str, Any]:
    """Return Label Studio's value of a polygon whose points are in pixels; raise ValueError if it has too few."""
    clipped = clip_points(points, image_size)
    if len(clipped) < 3:
        raise ValueError(f"a polygon needs 3 points, and this one has {len(clipped)}")
    return {"points": [point_value(point, image_size) for point in clipped], "closed": True}


def point_value(point: Point, image_size: tuple[int, int]) -> list[float]:
    """Return a point in pixels as percent of the image."""
    return [round(100 * position / side, PERCENT_DIGITS) for position, side in zip(point, image_size, strict=True)]


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
