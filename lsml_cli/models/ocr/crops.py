"""Cut lines of text out of an image and turn them upright, for a recognizer.

Points are in pixels of the upright image, x to the right and y downwards, (N, 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lsml_cli.models.openmmlab import toolkit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lsml_cli.models.openmmlab.image_files import ImageArray

    Quad = NDArray[np.float32]  # (4, 2): upper left, upper right, lower right, lower left of the text

Point = tuple[float, float]
Size = tuple[int, int]  # width, height

LEVEL_TOLERANCE = 3.0  # degrees by which a text may be turned and still count as upright
MIN_LEVEL_FILL = 0.5  # share of its box that an upright text fills: a long one that fills less is turned
MIN_UPRIGHT_FILL = 0.95  # share of its box from which a polygon counts as that box
MAX_TEXT_ANGLE = 75.0  # degrees: a steeper text counts as upright, for example a lone "1" or "I"
MIN_LINE_ASPECT = 1.5  # length / height from which the longer side is the direction of the text
MIN_VERTICAL_ASPECT = 3.0  # the same at any angle: a lone "1" has 2.6
PADDING_ALONG, PADDING_ACROSS = 0.4, 0.2  # of the shorter side, as mmocr pads along the longer side, and across it
MIN_CROP_SIDE = 2  # pixels, as in the toolkit's own configs: nothing smaller can be read
MAX_CROP_ASPECT = 100  # width / height: a wider crop is no line of text, and would fill the memory


def clip_polygon(points: Sequence[Point], size: Size) -> list[Point]:
    """Return the part of a polygon inside the image, empty if there is none; algorithm of Sutherland and Hodgman."""
    clipped = [(float(x), float(y)) for x, y in points]
    for axis, limit, sign in ((0, 0.0, 1), (0, float(size[0]), -1), (1, 0.0, 1), (1, float(size[1]), -1)):
        clipped = _clip_to_half_plane(clipped, axis, limit, sign)
    return clipped if len(clipped) > 2 and area(clipped) > 0 else []


def _clip_to_half_plane(points: Sequence[Point], axis: int, limit: float, sign: int) -> list[Point]:
    """Return the part of a polygon on one side of a line that is parallel to an axis."""
    clipped: list[Point] = []
    for previous, current in zip([*points[-1:], *points[:-1]], points, strict=True):
        was_in, is_in = (sign * (point[axis] - limit) >= 0 for point in (previous, current))
        if was_in != is_in:
            share = (limit - previous[axis]) / (current[axis] - previous[axis])
            other = previous[1 - axis] + share * (current[1 - axis] - previous[1 - axis])
            clipped.append((limit, other) if axis == 0 else (other, limit))
        if is_in:
            clipped.append(current)
    return clipped


def area(points: Sequence[Point]) -> float:
    """Return the area of a polygon in square pixels."""
    pairs = zip(points, [*points[1:], *points[:1]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def bounding_box(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a polygon."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def is_upright(points: Sequence[Point]) -> bool:
    """Tell whether the box around a polygon can stand for it."""
    left, top, right, bottom = bounding_box(points)
    fill = area(points) / max((right - left) * (bottom - top), 1e-9)
    if fill >= MIN_UPRIGHT_FILL:
        return True
    return (
        len(points) == 4
        and fill >= MIN_LEVEL_FILL
        and all(_axis_deviation(*edge) <= LEVEL_TOLERANCE for edge in _edges(points))
    )


def is_vertical(points: Sequence[Point]) -> bool:
    """Tell whether a polygon is so high and narrow that its text runs vertically."""
    left, top, right, bottom = bounding_box(points)
    return bottom - top > MIN_VERTICAL_ASPECT * (right - left)


def reading_quad(points: Sequence[Point]) -> Quad:
    """Return the four corners of a text clockwise in reading order, from its upper left one.

    A polygon with another number of corners is replaced by the smallest rotated box around it. Where the text starts is
    not known, so it is taken to run to the right, along its longer side, unless that is nearly vertical and less than
    `MIN_VERTICAL_ASPECT` times as long as the other. A longer one that is vertical to within `LEVEL_TOLERANCE` is taken
    to run upwards: most do, and one degree more or less must not turn it upside down.
    """
    import cv2
    import numpy as np

    corners = np.asarray(points, np.float32)
    if len(corners) != 4 or not cv2.isContourConvex(corners):
        corners = cv2.boxPoints(cv2.minAreaRect(corners)).astype(np.float32)
    center = corners.mean(axis=0)
    angles = np.arctan2(*(corners - center).T[::-1])
    corners = corners[np.argsort(angles, kind="stable")]  # clockwise, since y points downwards
    sides = np.roll(corners, -1, axis=0) - corners
    first = min(range(4), key=lambda i: _upper_side_cost(sides[i], sides[(i + 1) % 4]))
    return np.roll(corners, -first, axis=0)


def _upper_side_cost(along: Any, across: Any) -> float:
    """Rate how little a side looks like the upper side of a text, whose next side is `across`."""
    direction = math.degrees(math.atan2(along[1], along[0]))
    angle, aspect = abs(direction), math.hypot(*along) / max(math.hypot(*across), 1e-9)
    if aspect > MIN_VERTICAL_ASPECT:
        return abs((direction + LEVEL_TOLERANCE + 180) % 360 - 180) - 180
    return angle - 90 if aspect > MIN_LINE_ASPECT and angle <= MAX_TEXT_ANGLE else angle


def text_angle(quad: Quad) -> float:
    """Return the clockwise rotation of a text in degrees, -180..180."""
    along = (quad[1] - quad[0]) + (quad[2] - quad[3])
    return math.degrees(math.atan2(float(along[1]), float(along[0])))


def rectify(image: ImageArray, points: Sequence[Point], *, has_reading_order: bool = False) -> ImageArray | None:
    """Return the crop of a text, upright and with a little padding; None if it is too small to be read.

    Args:
        image: The image.
        points: The outline of the text.
        has_reading_order: Whether the points are four corners that start where the text does, as those of a box that
            somebody rotated.
    """
    size = image.shape[1], image.shape[0]
    clipped = clip_polygon(points, size)
    if not clipped:
        return None
    if not has_reading_order and is_upright(clipped) and not is_vertical(clipped):
        return fit_crop(_crop_upright(image, points))
    if not all(abs(x / size[0] - 0.5) <= 1 and abs(y / size[1] - 0.5) <= 1 for x, y in points):
        points, has_reading_order = clipped, False  # there is nothing to read far outside the image
    import numpy as np

    quad = np.asarray(points, np.float32) if has_reading_order else reading_quad(points)
    return fit_crop(_crop_rotated(image, quad))


def fit_crop(crop: ImageArray) -> ImageArray | None:
    """Return a crop that a recognizer can read, made narrower if need be; None if it is too small."""
    height, width = crop.shape[:2]
    if min(height, width) < MIN_CROP_SIDE:
        return None
    if width <= MAX_CROP_ASPECT * height:
        return crop
    import cv2

    resized: ImageArray = cv2.resize(crop, (MAX_CROP_ASPECT * height, height), interpolation=cv2.INTER_AREA)
    return resized


def _crop_upright(image: ImageArray, points: Sequence[Point]) -> ImageArray:
    """Crop as MMOCR itself does."""
    toolkit.import_mmocr()
    from mmocr.utils import crop_img

    left, top, right, bottom = bounding_box(points)
    crop: ImageArray = crop_img(image, [left, top, right, top, right, bottom, left, bottom])
    return crop


def _crop_rotated(image: ImageArray, quad: Quad) -> ImageArray:
    """Crop a text that is turned, or seen in perspective."""
    import cv2
    import numpy as np

    lengths = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    width, height = float(max(lengths[0], lengths[2])), float(max(lengths[1], lengths[3]))
    shorter = min(width, height)
    along, across = PADDING_ALONG * shorter, PADDING_ACROSS * shorter
    left, top = (along, across) if width > height else (across, along)
    right, bottom = left + width, top + height
    target = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
    crop_size = round(width + 2 * left), round(height + 2 * top)
    if min(crop_size) < 1:
        return image[:0, :0]
    crop: ImageArray = cv2.warpPerspective(
        image,
        # OpenCV's coordinate 0 is the center of a pixel.
        cv2.getPerspectiveTransform(quad - np.float32(0.5), target - np.float32(0.5)),
        crop_size,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return crop


def _edges(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(x2 - x1, y2 - y1) for (x1, y1), (x2, y2) in zip(points, [*points[1:], *points[:1]], strict=True)]


def _axis_deviation(dx: float, dy: float) -> float:
    """Return the degrees between a side and the nearer axis."""
    angle = math.degrees(math.atan2(abs(dy), abs(dx)))
    return min(angle, 90 - angle)
