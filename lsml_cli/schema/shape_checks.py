"""Check geometry in the values of regions: shapes on images, in percent, and shapes in the frames of videos."""

from __future__ import annotations

from collections.abc import Callable

from lsml_cli.schema.value_checks import (
    ANY_RULE,
    ControlRule,
    RegionValue,
    ValueCheck,
    check_labels,
    check_numbers,
    check_optional,
    check_range,
    check_rotation,
    is_integer,
)

EDGE_TOLERANCE = 1e-3  # percent of the image: x + width of a box that touches the edge, after rounding


def _check_box(value: RegionValue, rule: ControlRule) -> str | None:
    """Check a box: (x, y) is its upper left corner before it is rotated around that corner by `rotation` degrees."""
    if problem := check_range(value, 100.0, "x", "y", "width", "height") or check_rotation(value):
        return problem
    for start, length in (("x", "width"), ("y", "height")):
        if value[length] <= 0:
            return f"{length} is {value[length]!r}, so the box is empty"
        if value[start] + value[length] > 100.0 + EDGE_TOLERANCE and not value.get("rotation"):
            return f"{start} + {length} is {value[start] + value[length]!r}, which is outside 0..100"
    return None


def _check_ellipse(value: RegionValue, rule: ControlRule) -> str | None:
    if (
        problem := check_range(value, 100.0, "x", "y")
        or check_range(value, 50.0, "radiusX", "radiusY")
        or check_rotation(value)
    ):
        return problem
    empty = [radius for radius in ("radiusX", "radiusY") if value[radius] <= 0]
    return f"{empty[0]} is {value[empty[0]]!r}, so the ellipse is empty" if empty else None


def _check_polygon(value: RegionValue, rule: ControlRule) -> str | None:
    points = value.get("points")
    if not isinstance(points, list | tuple) or len(points) < 3:
        return "points must be a list of at least 3 points"
    for point in points:
        if not isinstance(point, list | tuple) or len(point) != 2:
            return f"the point {point!r} is not a pair of numbers"
        if problem := check_range({"x": point[0], "y": point[1]}, 100.0, "x", "y"):
            return f"the point {point!r} is wrong: {problem}"
    return None


def _check_keypoint(value: RegionValue, rule: ControlRule) -> str | None:
    return check_range(value, 100.0, "x", "y")


def check_brush(value: RegionValue, rule: ControlRule) -> str | None:
    rle = value.get("rle")
    if not isinstance(value.get("format", ""), str):
        return f"format is {value['format']!r}, not a text"
    try:
        return None if isinstance(rle, list | tuple) and bytes(rle) else "rle must be a list of bytes that is not empty"
    except (TypeError, ValueError):
        return "rle must hold whole numbers in 0..255"


def _check_bitmask(value: RegionValue, rule: ControlRule) -> str | None:
    if not isinstance(value.get("imageDataURL"), str):
        return "imageDataURL must be a text"
    return check_optional(value, "format", str)


def _check_vector(value: RegionValue, rule: ControlRule) -> str | None:
    vertices = value.get("vertices")
    if not isinstance(vertices, list | tuple):
        return "vertices must be a list"
    for vertex in vertices:
        if not isinstance(vertex, dict):
            return f"the vertex {vertex!r} is not an object"
        texts = check_optional(vertex, "id", str) or check_optional(vertex, "prevPointId", str)
        if problem := check_numbers(vertex, "x", "y") or texts or check_optional(vertex, "isBezier", bool):
            return f"the vertex {vertex!r} is wrong: {problem}"
    return check_optional(value, "closed", bool)


def check_page_box(value: RegionValue, rule: ControlRule) -> str | None:
    problem = check_numbers(value, "x", "y", "width", "height") or check_rotation(value)
    return problem or check_optional(value, "ocrtext", str) or check_optional(value, "pageIndex", int)


def check_video_boxes(value: RegionValue, rule: ControlRule) -> str | None:
    if not is_integer(value.get("framesCount")):
        return f"framesCount is {value.get('framesCount')!r}, not a whole number"
    return check_numbers(value, "duration") or _check_frames(value, _check_video_box) or _check_own_labels(value)


def _check_video_box(frame: RegionValue) -> str | None:
    return (
        check_range(frame, 100.0, "x", "y", "width", "height") or check_numbers(frame, "time") or check_rotation(frame)
    )


def check_video_vectors(value: RegionValue, rule: ControlRule) -> str | None:
    numbers = check_optional(value, "framesCount", int) or check_optional(value, "duration", float)
    return numbers or _check_frames(value, _check_video_vector) or _check_own_labels(value)


def _check_video_vector(frame: RegionValue) -> str | None:
    return (
        check_optional(frame, "time", float) or check_optional(frame, "enabled", bool) or _check_vector(frame, ANY_RULE)
    )


def _check_frames(value: RegionValue, check: Callable[[RegionValue], str | None]) -> str | None:
    frames = value.get("sequence")
    if not isinstance(frames, list | tuple):
        return "sequence must be a list"
    for frame in frames:
        if not isinstance(frame, dict):
            return f"the frame {frame!r} is not an object"
        if not is_integer(frame.get("frame")):
            return f"frame is {frame.get('frame')!r}, not a whole number"
        if is_integer(count := value.get("framesCount")) and frame["frame"] > count:
            return f"frame is {frame['frame']!r}, but framesCount says that the video has {count!r}"
        if problem := check(frame):
            return f"in frame {frame['frame']}, {problem}"
    return None


def _check_own_labels(value: RegionValue) -> str | None:
    return None if value.get("labels") is None else check_labels(value["labels"], ANY_RULE, "labels")


# Geometry by the type of the tool that draws it; "rectangle" also stands behind "rectanglelabels".
SHAPE_CHECKS: dict[str, ValueCheck] = {
    "rectangle": _check_box,
    "ellipse": _check_ellipse,
    "polygon": _check_polygon,
    "keypoint": _check_keypoint,
    "brush": check_brush,
    "bitmask": _check_bitmask,
    "vector": _check_vector,
}
MERGEABLE_CHECKS: dict[str, ValueCheck] = {
    **SHAPE_CHECKS,
    "videorectangle": check_video_boxes,
    "videovector": check_video_vectors,
}
