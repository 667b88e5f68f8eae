"""Check the values of regions by their type: labels, spans and answers; CHECKS says which checks a type obeys.

A check takes a region's value and the rule of its control; it returns None, or what is wrong as the end of a sentence
("start is 5, which is after the end, 2").
"""

from __future__ import annotations

from lsml_cli.schema.shape_checks import (
    SHAPE_CHECKS,
    check_brush,
    check_page_box,
    check_video_boxes,
    check_video_vectors,
)
from lsml_cli.schema.value_checks import (
    ANY_RULE,
    MAX_FINITE,
    ControlRule,
    RegionValue,
    ValueCheck,
    check_labels,
    check_numbers,
    check_optional,
    is_integer,
    is_number,
)

# ---- labels


def _check_choices(value: RegionValue, rule: ControlRule) -> str | None:
    choices = value.get("choices")
    if problem := check_labels(choices, rule, "choices"):
        return problem
    if rule.is_single_choice and len(choices) > 1:  # type: ignore[arg-type]
        return f"{len(choices)} choices on a control that takes one"  # type: ignore[arg-type]
    return None


def make_labels_check(key: str) -> ValueCheck:
    """Return the check of the labels under a key."""
    return lambda value, rule: check_labels(value.get(key), rule, key)


def make_merged_labels_check(region_type: str) -> ValueCheck:
    """Return the check of a geometry region with the labels of a <Labels> control, under its own type or "labels"."""

    def check(value: RegionValue, rule: ControlRule) -> str | None:
        key = region_type if region_type in value else "labels"
        problem = check_labels(value.get(key), rule, key)
        return problem or (None if value[key] and rule.labels else f"{key} must name a label of the config")

    return check


def _check_video_labels(value: RegionValue, rule: ControlRule) -> str | None:
    return check_labels(value.get("labels"), rule, "labels") if rule.labels or "labels" in value else None


def _check_taxonomy(value: RegionValue, rule: ControlRule) -> str | None:
    paths = value.get("taxonomy")
    if not isinstance(paths, list | tuple):
        return f"taxonomy must be a list of paths, not {paths!r}"
    return next((problem for path in paths if (problem := check_labels(path, rule, "a path of the taxonomy"))), None)


# ---- spans


def _check_span(value: RegionValue, rule: ControlRule) -> str | None:
    """Check positions in a text or seconds of audio; in <HyperText> XPaths, as texts."""
    return _check_start_end(value, 0.0)


def _check_instant(value: RegionValue, rule: ControlRule) -> str | None:
    problem = _check_start_end(value, -MAX_FINITE)
    return problem or (None if isinstance(value.get("instant"), bool) else "instant must be true or false")


def _check_start_end(value: RegionValue, min_value: float) -> str | None:
    start, end = value.get("start"), value.get("end")
    for name, position in (("start", start), ("end", end)):
        if not (isinstance(position, str) or (is_number(position) and position >= min_value)):
            shown = "missing" if position is None else repr(position)
            return f"{name} is {shown}: it must be a place in the text or sound"
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
        if problem := check_numbers(part, "start", "end") or check_optional(part, "enabled", bool):
            return f"the range {part!r} is wrong: {problem}"
        if part["start"] > part["end"]:
            return f"the range {part!r} starts after its end"
    return None


# ---- answers


def check_texts(value: RegionValue, rule: ControlRule) -> str | None:
    """Check the texts of a <TextArea>."""
    return check_labels(value.get("text"), rule, "text")


def _check_number(value: RegionValue, rule: ControlRule) -> str | None:
    return check_numbers(value, "number")


def _check_datetime(value: RegionValue, rule: ControlRule) -> str | None:
    return None if isinstance(value.get("datetime"), str) else f"datetime is {value.get('datetime')!r}, not a text"


def _check_pairwise(value: RegionValue, rule: ControlRule) -> str | None:
    return None if isinstance(value.get("selected"), str) else f"selected is {value.get('selected')!r}, not a text"


def _check_rating(value: RegionValue, rule: ControlRule) -> str | None:
    rating = value.get("rating")
    try:
        max_rating = int(rule.max_rating)
    except ValueError:
        return f"the label config's maxRating is {rule.max_rating!r}, which is not a whole number"
    is_valid = is_integer(rating) and 0 <= rating <= max_rating
    return None if is_valid else f"rating is {rating!r}, not a whole number in 0..{max_rating}"


def _check_ranker(value: RegionValue, rule: ControlRule) -> str | None:
    ranking = value.get("ranker")
    if not isinstance(ranking, dict):
        return f"ranker must be an object of lists, not {ranking!r}"
    return next(
        (problem for name, items in ranking.items() if (problem := check_labels(items, ANY_RULE, repr(name)))), None
    )


def _check_message(value: RegionValue, rule: ControlRule) -> str | None:
    message = value.get("chatmessage")
    if not isinstance(message, dict):
        return f"chatmessage must be an object, not {message!r}"
    for name in ("role", "content"):
        if not isinstance(message.get(name), str):
            return f"{name} is {message.get(name)!r}, not a text"
    return check_optional(message, "createdAt", int)


def _check_react_code(value: RegionValue, rule: ControlRule) -> str | None:
    return None if isinstance(value.get("reactcode"), dict) else "reactcode must be an object"


def _reject_region(value: RegionValue, rule: ControlRule) -> str | None:
    return "Label Studio takes no regions for this control"


CHECK_LABELS_KEY = make_labels_check("labels")

# A type that is not listed belongs to a control without known rules: any object is a value for it.
CHECKS: dict[str, tuple[ValueCheck, ...]] = {
    **{shape: (check,) for shape, check in SHAPE_CHECKS.items()},
    **{f"{shape}labels": (check, make_labels_check(f"{shape}labels")) for shape, check in SHAPE_CHECKS.items()},
    "magicwand": (check_brush,),
    "ocrlabels": (check_page_box, make_labels_check("ocrlabels")),
    "videorectangle": (check_video_boxes, _check_video_labels),
    "videovector": (check_video_vectors,),
    "videovectorlabels": (check_video_vectors, CHECK_LABELS_KEY),
    "choices": (_check_choices,),
    "taxonomy": (_check_taxonomy,),
    "labels": (_check_span, CHECK_LABELS_KEY),
    "hypertextlabels": (_check_span, _check_offsets, make_labels_check("hypertextlabels")),
    "paragraphlabels": (_check_span, _check_offsets, make_labels_check("paragraphlabels")),
    "timeserieslabels": (_check_instant, make_labels_check("timeserieslabels")),
    "timelinelabels": (_check_ranges, make_labels_check("timelinelabels")),
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
