"""The rule of a control, and the checks that all types of region values share.

A check takes a region's value; it returns None, or what is wrong as the end of a sentence ("x is -3, which is outside
0..100").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from lsml_cli.errors import format_list, sort_by_similarity

RegionValue = Mapping[str, Any]
ValueCheck = Callable[[RegionValue, "ControlRule"], str | None]

MAX_FINITE = 1e308  # no finite number is larger: comparing with it finds inf and NaN


@dataclass(frozen=True, slots=True)
class ControlRule:
    """What one control accepts.

    Attributes:
        name: Name of the control.
        type: Type of its regions.
        to_names: Objects that a region may be about.
        image_names: Those of them that are an <Image>.
        labels: Labels that may be chosen; empty: any.
        is_single_choice: Whether at most one of them may be.
        is_once_per_task: Whether a task has at most one region of it.
        mergeable_types: Geometry tools whose regions may carry the labels of this <Labels> control: "rectangle" for the
            region type "rectanglelabels".
        max_rating: The maxRating attribute as it was written.
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


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MAX_FINITE <= value <= MAX_FINITE


def is_integer(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer, not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_numbers(value: RegionValue, *names: str) -> str | None:
    """Check that fields are finite numbers."""
    for name in names:
        if not is_number(number := value.get(name)):
            return f"{name} is missing" if number is None else f"{name} is {number!r}, not a finite number"
    return None


def check_range(value: RegionValue, max_value: float, *names: str) -> str | None:
    """Check that fields are numbers in 0..max_value."""
    for name in names:
        if not is_number(number := value.get(name)):
            return check_numbers(value, name)
        if not 0.0 <= number <= max_value:
            return f"{name} is {number!r}, which is outside 0..{max_value:g}"
    return None


def check_rotation(value: RegionValue) -> str | None:
    """Check the rotation, which may be missing."""
    angle = value.get("rotation")
    is_valid = angle is None or (is_number(angle) and -360.0 <= angle <= 360.0)
    return None if is_valid else f"rotation is {angle!r}, not an angle in -360..360 degrees"


def check_optional(value: RegionValue, name: str, expected_type: type) -> str | None:
    """Check a field that may be missing or null; float stands for any finite number."""
    field = value.get(name)
    if field is None:
        return None
    checks: dict[type, Callable[[Any], bool]] = {float: is_number, int: is_integer}
    is_valid = checks[expected_type](field) if expected_type in checks else isinstance(field, expected_type)
    return None if is_valid else f"{name} is {field!r}, which is not of type {expected_type.__name__}"


def check_labels(labels: Any, rule: ControlRule, key: str) -> str | None:
    """Check that labels are a list of texts, and that the control has each of them if it has any."""
    if not isinstance(labels, list | tuple):
        return f"{key} must be a list of texts, not {labels!r}"
    known = rule.labels
    for label in labels:
        if not isinstance(label, str):
            return f"{key} holds {label!r}, which is not a text"
        if known and label not in known:
            return f"{key} holds {label!r}, but the label config has: {format_list(sort_by_similarity(label, known))}"
    return None


ANY_RULE = ControlRule("", "", (), (), {}, False, False, frozenset())  # for values that need no control
