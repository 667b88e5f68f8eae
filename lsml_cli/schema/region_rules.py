"""What the value of a region must look like, by its type.

A check takes a region's value and the rule of its control; it returns None, or what is wrong as the end of a
sentence ("x is -3, which is outside 0..100"). `CHECKS` says which checks a region type obeys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from lsml_cli.errors import closest_first, listed

Value = Mapping[str, Any]
Check = Callable[[Value, "Rule"], str | None]

EDGE_SLACK = 1e-3  # percent of the picture: x + width of a box that touches the edge, after rounding
LARGEST = 1e308  # no finite number is larger: comparing with it finds inf and NaN


@dataclass(frozen=True, slots=True)
class Rule:
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
    pictures: tuple[str, ...]
    labels: Mapping[str, None]
    single: bool
    once: bool
    merged: frozenset[str]
    max_rating: str = "5"


# ---- geometry, in percent of the picture


def _box(value: Value, rule: Rule) -> str | None:
    """x, y: the upper left corner before the box is turned around it by `rotation` degrees."""
    if wrong := _within(value, 100.0, "x", "y", "width", "height") or _angle(value):
        return wrong
    for start, length in (("x", "width"), ("y", "height")):
        if value[length] <= 0:
            return f"{length} is {value[length]!r}, so the box is empty"
        if value[start] + value[length] > 100.0 + EDGE_SLACK and not value.get("rotation"):
            return f"{start} + {length} is {value[start] + value[length]!r}, which is outside 0..100"
    return None


def _ellipse(value: Value, rule: Rule) -> str | None:
    if wrong := _within(value, 100.0, "x", "y") or _within(value, 50.0, "radiusX", "radiusY") or _angle(value):
        return wrong
    empty = [radius for radius in ("radiusX", "radiusY") if value[radius] <= 0]
    return f"{empty[0]} is {value[empty[0]]!r}, so the ellipse is empty" if empty else None


def _polygon(value: Value, rule: Rule) -> str | None:
    points = value.get("points")
    if not isinstance(points, list | tuple) or len(points) < 3:
        return "points must be a list of at least 3 points"
    for point in points:
        if not isinstance(point, list | tuple) or len(point) != 2:
            return f"the point {point!r} is not a pair of numbers"
        if wrong := _within({"x": point[0], "y": point[1]}, 100.0, "x", "y"):
            return f"the point {point!r} is wrong: {wrong}"
    return None


def _keypoint(value: Value, rule: Rule) -> str | None:
    return _within(value, 100.0, "x", "y")


def _brush(value: Value, rule: Rule) -> str | None:
    rle = value.get("rle")
    if not isinstance(value.get("format", ""), str):
        return f"format is {value['format']!r}, not a text"
    try:
        return None if isinstance(rle, list | tuple) and bytes(rle) else "rle must be a list of bytes that is not empty"
    except (TypeError, ValueError):
        return "rle must hold whole numbers in 0..255"


def _bitmask(value: Value, rule: Rule) -> str | None:
    if not isinstance(value.get("imageDataURL"), str):
        return "imageDataURL must be a text"
    return _optional(value, "format", str)


def _vector(value: Value, rule: Rule) -> str | None:
    vertices = value.get("vertices")
    if not isinstance(vertices, list | tuple):
        return "vertices must be a list"
    for vertex in vertices:
        if not isinstance(vertex, dict):
            return f"the vertex {vertex!r} is not an object"
        texts = _optional(vertex, "id", str) or _optional(vertex, "prevPointId", str)
        if wrong := _numbers(vertex, "x", "y") or texts or _optional(vertex, "isBezier", bool):
            return f"the vertex {vertex!r} is wrong: {wrong}"
    return _optional(value, "closed", bool)


def _page_box(value: Value, rule: Rule) -> str | None:
    wrong = _numbers(value, "x", "y", "width", "height") or _angle(value)
    return wrong or _optional(value, "ocrtext", str) or _optional(value, "pageIndex", int)


def _video_boxes(value: Value, rule: Rule) -> str | None:
    if not is_whole(value.get("framesCount")):
        return f"framesCount is {value.get('framesCount')!r}, not a whole number"
    return _numbers(value, "duration") or _frames(value, _video_box) or _own_labels(value)


def _video_box(frame: Value) -> str | None:
    return _within(frame, 100.0, "x", "y", "width", "height") or _numbers(frame, "time") or _angle(frame)


def _video_vectors(value: Value, rule: Rule) -> str | None:
    numbers = _optional(value, "framesCount", int) or _optional(value, "duration", float)
    return numbers or _frames(value, _video_vector) or _own_labels(value)


def _video_vector(frame: Value) -> str | None:
    return _optional(frame, "time", float) or _optional(frame, "enabled", bool) or _vector(frame, _ANY)


def _frames(value: Value, check: Callable[[Value], str | None]) -> str | None:
    frames = value.get("sequence")
    if not isinstance(frames, list | tuple):
        return "sequence must be a list"
    for frame in frames:
        if not isinstance(frame, dict):
            return f"the frame {frame!r} is not an object"
        if not is_whole(frame.get("frame")):
            return f"frame is {frame.get('frame')!r}, not a whole number"
        if wrong := check(frame):
            return f"in frame {frame['frame']}, {wrong}"
    return None


# ---- labels


def _choices(value: Value, rule: Rule) -> str | None:
    choices = value.get("choices")
    if wrong := _bad_labels(choices, rule, "choices"):
        return wrong
    if rule.single and len(choices) > 1:  # type: ignore[arg-type]
        return f"{len(choices)} choices on a control that takes one"  # type: ignore[arg-type]
    return None


def _labels_under(key: str) -> Check:
    return lambda value, rule: _bad_labels(value.get(key), rule, key)


def merged_labels(type: str) -> Check:
    """A geometry's region that carries the labels of a <Labels> control, under its own type or under "labels"."""

    def check(value: Value, rule: Rule) -> str | None:
        key = type if type in value else "labels"
        wrong = _bad_labels(value.get(key), rule, key)
        return wrong or (None if value[key] and rule.labels else f"{key} must name a label of the config")

    return check


def _own_labels(value: Value) -> str | None:
    return None if value.get("labels") is None else _bad_labels(value["labels"], _ANY, "labels")


def _video_labels(value: Value, rule: Rule) -> str | None:
    return _bad_labels(value.get("labels"), rule, "labels") if rule.labels or "labels" in value else None


def _bad_labels(found: Any, rule: Rule, key: str) -> str | None:
    if not isinstance(found, list | tuple):
        return f"{key} must be a list of texts, not {found!r}"
    known = rule.labels
    for label in found:
        if not isinstance(label, str):
            return f"{key} holds {label!r}, which is not a text"
        if known and label not in known:
            return f"{key} holds {label!r}, but the label config has: {listed(closest_first(label, known))}"
    return None


def _taxonomy(value: Value, rule: Rule) -> str | None:
    paths = value.get("taxonomy")
    if not isinstance(paths, list | tuple):
        return f"taxonomy must be a list of paths, not {paths!r}"
    return next((wrong for path in paths if (wrong := _bad_labels(path, rule, "a path of the taxonomy"))), None)


# ---- spans


def _span(value: Value, rule: Rule) -> str | None:
    """Positions in a text or seconds of a sound; XPaths, as texts, in <HyperText>."""
    return _between(value, 0.0)


def _instant(value: Value, rule: Rule) -> str | None:
    wrong = _between(value, -LARGEST)
    return wrong or (None if isinstance(value.get("instant"), bool) else "instant must be true or false")


def _between(value: Value, least: float) -> str | None:
    start, end = value.get("start"), value.get("end")
    for name, place in (("start", start), ("end", end)):
        if not (isinstance(place, str) or (is_number(place) and place >= least)):
            return f"{name} is {'missing' if place is None else repr(place)}: it must be a place in the text or sound"
    if is_number(start) and is_number(end) and start > end:
        return f"start is {start!r}, which is after the end, {end!r}"
    return None


def _offsets(value: Value, rule: Rule) -> str | None:
    for name in ("startOffset", "endOffset"):
        if value.get(name) is not None and not (is_whole(value[name]) and value[name] >= 0):
            return f"{name} is {value[name]!r}, not a number of characters"
    return None


def _ranges(value: Value, rule: Rule) -> str | None:
    ranges = value.get("ranges")
    if not isinstance(ranges, list | tuple) or not ranges:
        return "ranges must be a list that is not empty"
    for part in ranges:
        if not isinstance(part, dict):
            return f"the range {part!r} is not an object"
        if wrong := _numbers(part, "start", "end") or _optional(part, "enabled", bool):
            return f"the range {part!r} is wrong: {wrong}"
    return None


# ---- answers


def texts(value: Value, rule: Rule) -> str | None:
    return _bad_labels(value.get("text"), rule, "text")


def _number(value: Value, rule: Rule) -> str | None:
    return _numbers(value, "number")


def _datetime(value: Value, rule: Rule) -> str | None:
    return None if isinstance(value.get("datetime"), str) else f"datetime is {value.get('datetime')!r}, not a text"


def _pairwise(value: Value, rule: Rule) -> str | None:
    return None if isinstance(value.get("selected"), str) else f"selected is {value.get('selected')!r}, not a text"


def _rating(value: Value, rule: Rule) -> str | None:
    rating = value.get("rating")
    try:
        most = int(rule.max_rating)
    except ValueError:
        return f"the label config's maxRating is {rule.max_rating!r}, which is not a whole number"
    return (
        None if is_whole(rating) and 0 <= rating <= most else f"rating is {rating!r}, not a whole number in 0..{most}"
    )


def _ranker(value: Value, rule: Rule) -> str | None:
    ranking = value.get("ranker")
    if not isinstance(ranking, dict):
        return f"ranker must be an object of lists, not {ranking!r}"
    return next((wrong for name, items in ranking.items() if (wrong := _bad_labels(items, _ANY, repr(name)))), None)


def _message(value: Value, rule: Rule) -> str | None:
    message = value.get("chatmessage")
    if not isinstance(message, dict):
        return f"chatmessage must be an object, not {message!r}"
    for name in ("role", "content"):
        if not isinstance(message.get(name), str):
            return f"{name} is {message.get(name)!r}, not a text"
    return _optional(message, "createdAt", int)


def _react(value: Value, rule: Rule) -> str | None:
    return None if isinstance(value.get("reactcode"), dict) else "reactcode must be an object"


def _never(value: Value, rule: Rule) -> str | None:
    return "Label Studio takes no regions for this control"


# ---- parts of the above


def is_number(value: Any) -> TypeGuard[float]:
    """Finite, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(value: Value, *names: str) -> str | None:
    for name in names:
        if not is_number(number := value.get(name)):
            return f"{name} is missing" if number is None else f"{name} is {number!r}, not a finite number"
    return None


def _within(value: Value, most: float, *names: str) -> str | None:
    for name in names:
        if not is_number(number := value.get(name)):
            return _numbers(value, name)
        if not 0.0 <= number <= most:
            return f"{name} is {number!r}, which is outside 0..{most:g}"
    return None


def _angle(value: Value) -> str | None:
    angle = value.get("rotation")
    good = angle is None or (is_number(angle) and -360.0 <= angle <= 360.0)
    return None if good else f"rotation is {angle!r}, not an angle in -360..360 degrees"


def _optional(value: Value, name: str, kind: type) -> str | None:
    """A field that may be missing or null; float stands for any finite number."""
    found = value.get(name)
    if found is None:
        return None
    good = is_number(found) if kind is float else is_whole(found) if kind is int else isinstance(found, kind)
    return None if good else f"{name} is {found!r}, which is not of type {kind.__name__}"


_ANY = Rule("", "", (), (), {}, False, False, frozenset())  # for what needs no control
LABELS_KEY = _labels_under("labels")

# Geometry by the type of the tool that draws it; "rectangle" also stands behind "rectanglelabels".
SHAPES: dict[str, Check] = {
    "rectangle": _box,
    "ellipse": _ellipse,
    "polygon": _polygon,
    "keypoint": _keypoint,
    "brush": _brush,
    "bitmask": _bitmask,
    "vector": _vector,
}
MERGEABLE: dict[str, Check] = {**SHAPES, "videorectangle": _video_boxes, "videovector": _video_vectors}

# A type that is not listed belongs to a control without known rules: any object is a value for it.
CHECKS: dict[str, tuple[Check, ...]] = {
    **{shape: (check,) for shape, check in SHAPES.items()},
    **{f"{shape}labels": (check, _labels_under(f"{shape}labels")) for shape, check in SHAPES.items()},
    "magicwand": (_brush,),
    "ocrlabels": (_page_box, _labels_under("ocrlabels")),
    "videorectangle": (_video_boxes, _video_labels),
    "videovector": (_video_vectors,),
    "videovectorlabels": (_video_vectors, LABELS_KEY),
    "choices": (_choices,),
    "taxonomy": (_taxonomy,),
    "labels": (_span, LABELS_KEY),
    "hypertextlabels": (_span, _offsets, _labels_under("hypertextlabels")),
    "paragraphlabels": (_span, _offsets, _labels_under("paragraphlabels")),
    "timeserieslabels": (_instant, _labels_under("timeserieslabels")),
    "timelinelabels": (_ranges, _labels_under("timelinelabels")),
    "textarea": (texts,),
    "number": (_number,),
    "datetime": (_datetime,),
    "pairwise": (_pairwise,),
    "rating": (_rating,),
    "ranker": (_ranker,),
    "chatmessage": (_message,),
    "reactcode": (_react,),
    "relations": (_never,),
}
