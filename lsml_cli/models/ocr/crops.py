"""Where a line of text is in a picture, and the upright crop of it that a recogniser reads.

Corners are in pixels of the picture as a person sees it, x to the right and y downwards, (N, 2).
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

    Quad = NDArray[np.float32]  # (4, 2): upper left, upper right, lower right, lower left, as the text is read

Point = tuple[float, float]
Size = tuple[int, int]  # width, height

LEVEL_TOLERANCE = 3.0  # degrees that a text may be off and still count as upright
MIN_LEVEL_FILL = (
    0.5  # of its box: a text that is hardly turned, but so long that its box is mostly something else, is turned
)
MIN_UPRIGHT_FILL = 0.95  # of its box: a polygon that fills this much is that box
MAX_TEXT_ANGLE = 75.0  # degrees: text that rises more steeply is taken for upright, as a lone "1" or "I" is
MIN_LINE_ASPECT = 1.5  # times as long as high: from there on the longer side is the line of text
MIN_VERTICAL_ASPECT = (
    3.0  # the same at any angle: a lone "1" is 2.6 times as high as wide, four of them side by side are longer
)
PADDING_ALONG, PADDING_ACROSS = (
    0.4,
    0.2,
)  # of the shorter side, what mmocr adds around a text along its longer side, and across it
MIN_CROP_SIDE = 2  # pixels of a side, as the toolkit's own recipes have it: nothing can be read in less
MAX_CROP_ASPECT = 100  # times its height: a crop that is wider is no line of text, and would fill the memory


def clip_polygon(points: Sequence[Point], size: Size) -> list[Point]:
    """The part of a polygon that is in the picture; no points when there is none. By Sutherland and Hodgman."""
    found = [(float(x), float(y)) for x, y in points]
    for axis, limit, sign in ((0, 0.0, 1), (0, float(size[0]), -1), (1, 0.0, 1), (1, float(size[1]), -1)):
        found = _clip_to_half_plane(found, axis, limit, sign)
    return found if len(found) > 2 and area(found) > 0 else []


def _clip_to_half_plane(points: Sequence[Point], axis: int, limit: float, sign: int) -> list[Point]:
    """The part of a polygon on one side of a line that is parallel to an axis."""
    found: list[Point] = []
    for last, here in zip([*points[-1:], *points[:-1]], points, strict=True):
        was_in, is_in = (sign * (each[axis] - limit) >= 0 for each in (last, here))
        if was_in != is_in:
            share = (limit - last[axis]) / (here[axis] - last[axis])
            other = last[1 - axis] + share * (here[1 - axis] - last[1 - axis])
            found.append((limit, other) if axis == 0 else (other, limit))
        if is_in:
            found.append(here)
    return found


def area(points: Sequence[Point]) -> float:
    """Of a polygon, in square pixels."""
    pairs = zip(points, [*points[1:], *points[:1]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def bounding_box(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom."""
    across, down = [x for x, _ in points], [y for _, y in points]
    return min(across), min(down), max(across), max(down)


def is_upright(points: Sequence[Point]) -> bool:
    """Whether a polygon is as good as the box around it."""
    left, top, right, bottom = bounding_box(points)
    full = area(points) / max((right - left) * (bottom - top), 1e-9)
    if full >= MIN_UPRIGHT_FILL:
        return True
    return (
        len(points) == 4
        and full >= MIN_LEVEL_FILL
        and all(_axis_deviation(*edge) <= LEVEL_TOLERANCE for edge in _edges(points))
    )


def is_vertical(points: Sequence[Point]) -> bool:
    """Whether a polygon is as high as only a line of text is long."""
    left, top, right, bottom = bounding_box(points)
    return bottom - top > MIN_VERTICAL_ASPECT * (right - left)


def reading_quad(points: Sequence[Point]) -> Quad:
    """The four corners of a text in the order in which it is read, from the upper left one, clockwise.

    A polygon with another number of corners counts as the smallest turned box around it. Nobody says where the text
    begins, so it is taken to run to the right; along its longer side, unless that is close to upright and not `FAR`
    longer. A text that is, and that is upright to within `LEVEL`, is taken to run upwards: most of them do, and one
    degree more or less must not turn it round.
    """
    import cv2
    import numpy as np

    corners = np.asarray(points, np.float32)
    if len(corners) != 4 or not cv2.isContourConvex(corners):
        corners = cv2.boxPoints(cv2.minAreaRect(corners)).astype(np.float32)
    middle = corners.mean(axis=0)
    angles = np.arctan2(*(corners - middle).T[::-1])
    corners = corners[np.argsort(angles, kind="stable")]  # clockwise, since y points downwards
    sides = np.roll(corners, -1, axis=0) - corners
    first = min(range(4), key=lambda i: _upper_side_cost(sides[i], sides[(i + 1) % 4]))
    return np.roll(corners, -first, axis=0)


def _upper_side_cost(along: Any, across: Any) -> float:
    """How little a side looks like the upper one of a text, whose next side is `across`."""
    turned = math.degrees(math.atan2(along[1], along[0]))
    angle, times = abs(turned), math.hypot(*along) / max(math.hypot(*across), 1e-9)
    if times > MIN_VERTICAL_ASPECT:
        return abs((turned + LEVEL_TOLERANCE + 180) % 360 - 180) - 180
    return angle - 90 if times > MIN_LINE_ASPECT and angle <= MAX_TEXT_ANGLE else angle


def text_angle(quad: Quad) -> float:
    """Degrees that a text is turned, clockwise, -180..180."""
    along = (quad[1] - quad[0]) + (quad[2] - quad[3])
    return math.degrees(math.atan2(float(along[1]), float(along[0])))


def rectify(image: ImageArray, points: Sequence[Point], *, has_reading_order: bool = False) -> ImageArray | None:
    """The text, upright, with a little of what is around it; None where there is too little of it to read.

    in_order  whether the points are four that begin where the text does, as those of a box that somebody turned
    """
    size = image.shape[1], image.shape[0]
    within = clip_polygon(points, size)
    if not within:
        return None
    if not has_reading_order and is_upright(within) and not is_vertical(within):
        return fit_crop(_crop_upright(image, points))
    if not all(abs(x / size[0] - 0.5) <= 1 and abs(y / size[1] - 0.5) <= 1 for x, y in points):
        points, has_reading_order = within, False  # far outside there is nothing to read
    import numpy as np

    quad = np.asarray(points, np.float32) if has_reading_order else reading_quad(points)
    return fit_crop(_crop_rotated(image, quad))


def fit_crop(crop: ImageArray) -> ImageArray | None:
    """A crop that a recogniser can read; None for one that is hardly there."""
    height, width = crop.shape[:2]
    if min(height, width) < MIN_CROP_SIDE:
        return None
    if width <= MAX_CROP_ASPECT * height:
        return crop
    import cv2

    resized: ImageArray = cv2.resize(crop, (MAX_CROP_ASPECT * height, height), interpolation=cv2.INTER_AREA)
    return resized


def _crop_upright(image: ImageArray, points: Sequence[Point]) -> ImageArray:
    """The crop that MMOCR makes by itself."""
    toolkit.import_mmocr()
    from mmocr.utils import crop_img

    left, top, right, bottom = bounding_box(points)
    crop: ImageArray = crop_img(image, [left, top, right, top, right, bottom, left, bottom])
    return crop


def _crop_rotated(image: ImageArray, quad: Quad) -> ImageArray:
    """The same for a text that is turned, or seen from the side."""
    import cv2
    import numpy as np

    lengths = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    width, height = float(max(lengths[0], lengths[2])), float(max(lengths[1], lengths[3]))
    shorter = min(width, height)
    beside, above = (
        (PADDING_ALONG * shorter, PADDING_ACROSS * shorter)
        if width > height
        else (PADDING_ACROSS * shorter, PADDING_ALONG * shorter)
    )
    right, bottom = beside + width, above + height
    target = np.array([[beside, above], [right, above], [right, bottom], [beside, bottom]], np.float32)
    whole = round(width + 2 * beside), round(height + 2 * above)
    if min(whole) < 1:
        return image[:0, :0]
    crop: ImageArray = cv2.warpPerspective(
        image,
        cv2.getPerspectiveTransform(quad - np.float32(0.5), target - np.float32(0.5)),  # to OpenCV, 0 is a middle
        whole,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return crop


def _edges(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(x2 - x1, y2 - y1) for (x1, y1), (x2, y2) in zip(points, [*points[1:], *points[:1]], strict=True)]


def _axis_deviation(across: float, down: float) -> float:
    """Degrees between a side and the nearer axis."""
    angle = math.degrees(math.atan2(abs(down), abs(across)))
    return min(angle, 90 - angle)
