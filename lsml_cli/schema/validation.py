"""What a prediction must look like, so that Label Studio accepts it.

The rules are those of Label Studio's validating import (`LabelInterface.validate_prediction` of label-studio-sdk
2.1.2, which the tests ask as their oracle), made stricter where it lets through what the editor cannot show:
two choices on choice="single", a box outside the picture, a missing original_width, NaN.
`region_values` has the rules for the value of each type of region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lsml_cli.errors import format_list, sort_by_similarity
from lsml_cli.schema.predictions import Prediction, Region
from lsml_cli.schema.region_rules import (
    CHECK_LABELS_KEY,
    CHECKS,
    MERGEABLE_CHECKS,
    SHAPE_CHECKS,
    ControlRule,
    ValueCheck,
    check_texts,
    is_integer,
    is_number,
    make_merged_labels_check,
)

SCORE_TOLERANCE = 1e-6  # float32 probabilities that sum to a little more than 1; rounded away when written

SINGLE_RESULT_TYPES = frozenset({"choices", "datetime", "number", "pairwise", "ranker", "rating", "taxonomy"})
GEOMETRY_KEYS = frozenset(
    {"x", "points", "vertices", "rle", "imageDataURL"}
)  # a value with one of these lies on a picture
REGION_FIELDS = frozenset({"id", "from_name", "to_name", "type", "value", "score"})  # never in `extra`


@dataclass(frozen=True)
class ConfigRules:
    """All rules of a label config, by from_name."""

    by_name: Mapping[str, ControlRule]

    @cached_property
    def has_shared_ids(self) -> bool:
        """Whether a <Labels> region may describe a box of another control, by sharing its id."""
        types = {rule.type for rule in self.by_name.values()}
        return "labels" in types and not types.isdisjoint(SHAPE_CHECKS)


def find_first_problem(rules: ConfigRules, prediction: Prediction) -> str | None:
    """None when Label Studio accepts the prediction, else one sentence about the first thing wrong."""
    version = prediction.model_version
    if not isinstance(version, str) or not version:
        return f"model_version is {version!r}, not a name"
    if prediction.score is not None and (wrong := _check_score(prediction.score)):
        return f"the prediction's score {wrong}"
    result = prediction.result
    shapes: Mapping[str, str] = {}
    if rules.has_shared_ids:
        shapes = {region.id: region.type for region in reversed(result) if _is_shape(region)}
    by_name = rules.by_name
    for index, region in enumerate(result):
        name = region.from_name
        rule = by_name.get(name) if isinstance(name, str) else None
        if rule is not None:
            wrong = _check_region(region, rule, shapes)
        elif region.type == "relation":
            wrong = _check_relation(region, result)
        else:
            wrong = f"from_name is {name!r}, but the label config has: {format_list(sort_by_similarity(str(name), by_name))}"
        if wrong:
            where = f", from control {name!r}" if rule else ""
            return f"region {index + 1} of {len(result)}{where}: {wrong}"
    return _check_duplicates(result, by_name) if len(result) > 1 else None


def _is_shape(region: Region) -> bool:
    return isinstance(region.id, str) and isinstance(region.type, str) and region.type in SHAPE_CHECKS


def _check_region(region: Region, rule: ControlRule, shapes: Mapping[str, str]) -> str | None:
    """`shapes`: region id -> type of the geometry that has this id."""
    value = region.value
    if not isinstance(region.id, str) or not region.id:
        return f"its id is {region.id!r}, not a text"
    if not isinstance(value, dict):
        return f"its value is {value!r}, not an object"
    if region.to_name not in rule.to_names:
        return f"to_name is {region.to_name!r}, but this control is about: {', '.join(rule.to_names) or 'nothing'}"
    if region.type != rule.type:
        merged = str(region.type).removesuffix("labels")
        if merged == region.type or merged not in rule.mergeable_types:
            return f"type is {region.type!r}, but this control's regions are of type {rule.type!r}"
        checks: tuple[ValueCheck, ...] = (MERGEABLE_CHECKS[merged], make_merged_labels_check(region.type))
    elif rule.type == "labels" and region.id in shapes:
        checks = (SHAPE_CHECKS[shapes[region.id]], CHECK_LABELS_KEY)
    elif rule.type == "textarea" and region.id in shapes and not GEOMETRY_KEYS.isdisjoint(value):
        checks = (check_texts, SHAPE_CHECKS[shapes[region.id]])
    else:
        checks = CHECKS.get(rule.type, ())
    if region.score is not None and (wrong := _check_score(region.score)):
        return f"its score {wrong}"
    if isinstance(value.get(rule.name), dict) and rule.type != "ranker":
        return f"its value has an object {rule.name!r}, the control's own name, which Label Studio takes for all of it"
    for check in checks:
        if wrong := check(value, rule):
            return wrong
    extra = region.extra
    if extra and not REGION_FIELDS.isdisjoint(extra):
        return f"{sorted(REGION_FIELDS.intersection(extra))[0]!r} is given twice"
    if region.to_name in rule.image_names and not GEOMETRY_KEYS.isdisjoint(value):
        return _check_image_size(extra)
    return None


def _check_relation(region: Region, result: Sequence[Region]) -> str | None:
    if region.extra.get("direction") not in ("left", "right", "bi"):
        return f"direction is {region.extra.get('direction')!r}, not left, right or bi"
    ids = {other.id for other in result if other.type != "relation" and isinstance(other.id, str)}
    for end in ("from_id", "to_id"):
        if not isinstance(region.extra.get(end), str) or region.extra[end] not in ids:
            return f"{end} is {region.extra.get(end)!r}, and no region has this id"
    return None


def _check_duplicates(result: Sequence[Region], by_name: Mapping[str, ControlRule]) -> str | None:
    """Every region is fine by itself; do they fit together?"""
    seen: set[str | tuple[str, str]] = set()
    for region in result:
        if region.type == "relation":
            continue
        rule = by_name[region.from_name]
        key = rule.name if rule.is_once_per_task else (rule.name, region.id)
        if key in seen and rule.is_once_per_task:
            return f"control {rule.name!r} answers twice, but a task takes one answer of it"
        if key in seen:  # the editor would show one of them
            return f"two regions of control {rule.name!r} have the id {region.id!r}: give each its own ordinal"
        seen.add(key)
    return None


def _check_image_size(extra: Mapping[str, Any]) -> str | None:
    for name in ("original_width", "original_height"):
        size = extra.get(name)
        if not is_integer(size) or size <= 0:
            return f"{name} is {'missing' if size is None else repr(size)}: it must be the picture's size in pixels"
    return None


def _check_score(score: Any) -> str | None:
    if is_number(score) and -SCORE_TOLERANCE <= score <= 1 + SCORE_TOLERANCE:
        return None
    return f"is {score!r}, not a number in 0..1"
