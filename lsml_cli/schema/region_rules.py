"""What the value of a region must look like, by its type.

A check takes a region's value and the rule of its control; it returns None, or what is wrong as the end of a
sentence ("x is -3, which is outside 0..100"). `CHECKS` says which checks a region type obeys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from lsml_cli.errors import format_list, sort_by_similarity

RegionValue = Mapping[str, Any]
ValueCheck = Callable[[RegionValue, "ControlRule"], str | None]

EDGE_TOLERANCE = 1e-3  # percent of the picture: x + width of a box that touches the edge, after rounding
MAX_FINITE = 1e308  # no finite number is larger: comparing with it finds inf and NaN


@dataclass(frozen=True, slots=True)
class ControlRule:
    """What one control accepts.

    to_names  objects a region may be about; `pictures` are those among them that are an <Image>
    labels    what may be chosen; empty: anything
    once      whether a task has at most one region of it
    merged    geometry tools whose regions may carry this <Labels> control's labels: "rectangle" for the region
              type "rectanglelabels"
    """

    name: str
    type: str
    to_names: tuple[str, ...]
    image_names: tuple[str, ...]
    labels: Mapping[str, None]
    is_single_choice: bool
    is_once_per_task: bool
    mergeable_types: frozenset[str]
    max_rating: str = "5"


# ---- geometry, in percent of the picture


def _check_box(value: RegionValue, rule: ControlRule) -> str | None:
    """x, y: the upper left corner before the box is turned around it by `rotation` degrees."""
    if wrong := _check_range(value, 100.0, "x", "y", "width", "height") or _check_rotation(value):
        return wrong
    for start, length in (("x", "width"), ("y", "height")):
        if value[length] <= 0:
            return f"{length} is {value[length]!r}, so the box is empty"
        if value[start] + value[length] > 100.0 + EDGE_TOLERANCE and not value.get("rotation"):
            return f"{start} + {length} is {value[start] + value[length]!r}, which is outside 0..100"
    return None


def _check_ellipse(value: RegionValue, rule: ControlRule) -> str | None:
    if (
        wrong := _check_range(value, 100.0, "x", "y")
        or _check_range(value, 50.0, "radiusX", "radiusY")
        or _check_rotation(value)
    ):
        return wrong
    empty = [radius for radius in ("radiusX", "radiusY") if value[radius] <= 0]
    return f"{empty[0]} is {value[empty[0]]!r}, so the ellipse is empty" if empty else None


def _check_polygon(value: RegionValue, rule: ControlRule) -> str | None:
    points = value.get("points")
    if not isinstance(points, list | tuple) or len(points) < 3:
        return "points must be a list of at least 3 points"
    for point in points:
        if not isinstance(point, list | tuple) or len(point) != 2:
            return f"the point {point!r} is not a pair of numbers"
        if wrong := _check_range({"x": point[0], "y": point[1]}, 100.0, "x", "y"):
            return f"the point {point!r} is wrong: {wrong}"
    return None


def _check_keypoint(value: RegionValue, rule: ControlRule) -> str | None:
    return _check_range(value, 100.0, "x", "y")


def _check_brush(value: RegionValue, rule: ControlRule) -> str | None:
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
    return _check_optional(value, "format", str)


def _check_vector(value: RegionValue, rule: ControlRule) -> str | None:
    vertices = value.get("vertices")
    if not isinstance(vertices, list | tuple):
        return "vertices must be a list"
    for vertex in vertices:
        if not isinstance(vertex, dict):
            return f"the vertex {vertex!r} is not an object"
        texts = _check_optional(vertex, "id", str) or _check_optional(vertex, "prevPointId", str)
        if wrong := _check_numbers(vertex, "x", "y") or texts or _check_optional(vertex, "isBezier", bool):
            return f"the vertex {vertex!r} is wrong: {wrong}"
    return _check_optional(value, "closed", bool)


def _check_page_box(value: RegionValue, rule: ControlRule) -> str | None:
    wrong = _check_numbers(value, "x", "y", "width", "height") or _check_rotation(value)
    return wrong or _check_optional(value, "ocrtext", str) or _check_optional(value, "pageIndex", int)


def _check_video_boxes(value: RegionValue, rule: ControlRule) -> str | None:
    if not is_integer(value.get("framesCount")):
        return f"framesCount is {value.get('framesCount')!r}, not a whole number"
    return _check_numbers(value, "duration") or _check_frames(value, _check_video_box) or _check_own_labels(value)


def _check_video_box(frame: RegionValue) -> str | None:
    return (
        _check_range(frame, 100.0, "x", "y", "width", "height")
        or _check_numbers(frame, "time")
        or _check_rotation(frame)
    )


def _check_video_vectors(value: RegionValue, rule: ControlRule) -> str | None:
    numbers = _check_optional(value, "framesCount", int) or _check_optional(value, "duration", float)
    return numbers or _check_frames(value, _check_video_vector) or _check_own_labels(value)


def _check_video_vector(frame: RegionValue) -> str | None:
    return (
        _check_optional(frame, "time", float)
        or _check_optional(frame, "enabled", bool)
        or _check_vector(frame, _ANY_RULE)
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
        if wrong := check(frame):
            return f"in frame {frame['frame']}, {wrong}"
    return None


# ---- labels


def _check_choices(value: RegionValue, rule: ControlRule) -> str | None:
    choices = value.get("choices")
    if wrong := _check_labels(choices, rule, "choices"):
        return wrong
    if rule.is_single_choice and len(choices) > 1:  # type: ignore[arg-type]
        return f"{len(choices)} choices on a control that takes one"  # type: ignore[arg-type]
    return None


def _make_labels_check(key: str) -> ValueCheck:
    return lambda value, rule: _check_labels(value.get(key), rule, key)


def make_merged_labels_check(region_type: str) -> ValueCheck:
    """A geometry's region that carries the labels of a <Labels> control, under its own type or under "labels"."""

    def check(value: RegionValue, rule: ControlRule) -> str | None:
        key = region_type if region_type in value else "labels"
        wrong = _check_labels(value.get(key), rule, key)
        return wrong or (None if value[key] and rule.labels else f"{key} must name a label of the config")

    return check


def _check_own_labels(value: RegionValue) -> str | None:
    return None if value.get("labels") is None else _check_labels(value["labels"], _ANY_RULE, "labels")


def _check_video_labels(value: RegionValue, rule: ControlRule) -> str | None:
    return _check_labels(value.get("labels"), rule, "labels") if rule.labels or "labels" in value else None


def _check_labels(labels: Any, rule: ControlRule, key: str) -> str | None:
    if not isinstance(labels, list | tuple):
        return f"{key} must be a list of texts, not {labels!r}"
    known = rule.labels
    for label in labels:
        if not isinstance(label, str):
            return f"{key} holds {label!r}, which is not a text"
        if known and label not in known:
            return f"{key} holds {label!r}, but the label config has: {format_list(sort_by_similarity(label, known))}"
    return None


def _check_taxonomy(value: RegionValue, rule: ControlRule) -> str | None:
    paths = value.get("taxonomy")
    if not isinstance(paths, list | tuple):
        return f"taxonomy must be a list of paths, not {paths!r}"
    return next((wrong for path in paths if (wrong := _check_labels(path, rule, "a path of the taxonomy"))), None)


# ---- spans


def _check_span(value: RegionValue, rule: ControlRule) -> str | None:
    """Positions in a text or seconds of a sound; XPaths, as texts, in <HyperText>."""
    return _check_start_end(value, 0.0)


def _check_instant(value: RegionValue, rule: ControlRule) -> str | None:
    wrong = _check_start_end(value, -MAX_FINITE)
    return wrong or (None if isinstance(value.get("instant"), bool) else "instant must be true or false")


def _check_start_end(value: RegionValue, min_value: float) -> str | None:
    start, end = value.get("start"), value.get("end")
    for name, place in (("start", start), ("end", end)):
        if not (isinstance(place, str) or (is_number(place) and place >= min_value)):
            return f"{name} is {'missing' if place is None else repr(place)}: it must be a place in the text or sound"
    if is_number(start) and is_number(end) and start > end:
        return f"start is {start!r}, which is after the end, {end!r}"
    return None


def _check_offsets(value: RegionValue, rule: ControlRule) -> str | None:
    for name in ("startOffset", "endOffset"):
        if value.get(name) is not None and not (is_integer(value[name]) and value[name] >= 0):
            return f"{name} is {value[name]!r}, not a number of characters"
    return None


def _check_ranges(value: RegionValue, rule: ControlRule) -> str | None:
    ranges = value.get("ranges")
    if not isinstance(ranges, list | tuple) or not ranges:
        return "ranges must be a list that is not empty"
    for part in ranges:
        if not isinstance(part, dict):
            return f"the range {part!r} is not an object"
        if wrong := _check_numbers(part, "start", "end") or _check_optional(part, "enabled", bool):
            return f"the range {part!r} is wrong: {wrong}"
    return None


# ---- answers


def check_texts(value: RegionValue, rule: ControlRule) -> str | None:
    return _check_labels(value.get("text"), rule, "text")


def _check_number(value: RegionValue, rule: ControlRule) -> str | None:
    return _check_numbers(value, "number")


def _check_datetime(value: RegionValue, rule: ControlRule) -> str | None:
    return None if isinstance(value.get("datetime"), str) else f"datetime is {value.get('datetime')!r}, not a text"


def _check_pairwise(value: RegionValue, rule: ControlRule) -> str | None:
    return None if isinstance(value.get("selected"), str) else f"selected is {value.get('selected')!r}, not a text"


def _check_rating(value: RegionValue, rule: ControlRule) -> str | None:
    rating = value.get("rating")
    try:
        most = int(rule.max_rating)
    except ValueError:
        return f"the label config's maxRating is {rule.max_rating!r}, which is not a whole number"
    return (
        None if is_integer(rating) and 0 <= rating <= most else f"rating is {rating!r}, not a whole number in 0..{most}"
    )


def _check_ranker(value: RegionValue, rule: ControlRule) -> str | None:
    ranking = value.get("ranker")
    if not isinstance(ranking, dict):
        return f"ranker must be an object of lists, not {ranking!r}"
    return next(
        (wrong for name, items in ranking.items() if (wrong := _check_labels(items, _ANY_RULE, repr(name)))), None
    )


def _check_message(value: RegionValue, rule: ControlRule) -> str | None:
    message = value.get("chatmessage")
    if not isinstance(message, dict):
        return f"chatmessage must be an object, not {message!r}"
    for name in ("role", "content"):
        if not isinstance(message.get(name), str):
            return f"{name} is {message.get(name)!r}, not a text"
    return _check_optional(message, "createdAt", int)


def _check_react_code(value: RegionValue, rule: ControlRule) -> str | None:
    return None if isinstance(value.get("reactcode"), dict) else "reactcode must be an object"


def _reject_region(value: RegionValue, rule: ControlRule) -> str | None:
    return "Label Studio takes no regions for this control"


# ---- parts of the above


def is_number(value: Any) -> TypeGuard[float]:
    """Finite, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MAX_FINITE <= value <= MAX_FINITE


def is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_numbers(value: RegionValue, *names: str) -> str | None:
    for name in names:
        if not is_number(number := value.get(name)):
            return f"{name} is missing" if number is None else f"{name} is {number!r}, not a finite number"
    return None


def _check_range(value: RegionValue, max_value: float, *names: str) -> str | None:
    for name in names:
        if not is_number(number := value.get(name)):
            return _check_numbers(value, name)
        if not 0.0 <= number <= max_value:
            return f"{name} is {number!r}, which is outside 0..{max_value:g}"
    return None


def _check_rotation(value: RegionValue) -> str | None:
    angle = value.get("rotation")
    good = angle is None or (is_number(angle) and -360.0 <= angle <= 360.0)
    return None if good else f"rotation is {angle!r}, not an angle in -360..360 degrees"


def _check_optional(value: RegionValue, name: str, expected_type: type) -> str | None:
    """A field that may be missing or null; float stands for any finite number."""
    found = value.get(name)
    if found is None:
        return None
    good = (
        is_number(found)
        if expected_type is float
        else is_integer(found)
        if expected_type is int
        else isinstance(found, expected_type)
    )
    return None if good else f"{name} is {found!r}, which is not of type {expected_type.__name__}"


_ANY_RULE = ControlRule("", "", (), (), {}, False, False, frozenset())  # for what needs no control
CHECK_LABELS_KEY = _make_labels_check("labels")

# Geometry by the type of the tool that draws it; "rectangle" also stands behind "rectanglelabels".
SHAPE_CHECKS: dict[str, ValueCheck] = {
    "rectangle": _check_box,
    "ellipse": _check_ellipse,
    "polygon": _check_polygon,
    "keypoint": _check_keypoint,
    "brush": _check_brush,
    "bitmask": _check_bitmask,
    "vector": _check_vector,
}
MERGEABLE_CHECKS: dict[str, ValueCheck] = {
    **SHAPE_CHECKS,
    "videorectangle": _check_video_boxes,
    "videovector": _check_video_vectors,
}

# A type that is not listed belongs to a control without known rules: any object is a value for it.
CHECKS: dict[str, tuple[ValueCheck, ...]] = {
    **{shape: (check,) for shape, check in SHAPE_CHECKS.items()},
    **{f"{shape}labels": (check, _make_labels_check(f"{shape}labels")) for shape, check in SHAPE_CHECKS.items()},
    "magicwand": (_check_brush,),
    "ocrlabels": (_check_page_box, _make_labels_check("ocrlabels")),
    "videorectangle": (_check_video_boxes, _check_video_labels),
    "videovector": (_check_video_vectors,),
    "videovectorlabels": (_check_video_vectors, CHECK_LABELS_KEY),
    "choices": (_check_choices,),
    "taxonomy": (_check_taxonomy,),
    "labels": (_check_span, CHECK_LABELS_KEY),
    "hypertextlabels": (_check_span, _check_offsets, _make_labels_check("hypertextlabels")),
    "paragraphlabels": (_check_span, _check_offsets, _make_labels_check("paragraphlabels")),
    "timeserieslabels": (_check_instant, _make_labels_check("timeserieslabels")),
    "timelinelabels": (_check_ranges, _make_labels_check("timelinelabels")),
    "textarea": (check_texts,),
    "number": (_check_number,),
    "datetime": (_check_datetime,),
    "pairwise": (_check_pairwise,),
    "rating": (_check_rating,),
    "ranker": (_check_ranker,),
    "chatmessage": (_check_message,),
    "reactcode": (_check_react_code,),
    "relations": (_reject_region,),
}
