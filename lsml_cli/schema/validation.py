"""Check whether Label Studio accepts a prediction.

The rules are those of Label Studio's validating import (`LabelInterface.validate_prediction` of label-studio-sdk 2.1.2,
the oracle of the tests), and stricter where that accepts what the editor cannot show: two choices on choice="single", a
box outside the image, a missing original_width, NaN. `region_rules` checks the value of each type of region, and
`data_checks` compares regions with the data of their task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lsml_cli.errors import format_list, sort_by_similarity
from lsml_cli.schema.controls import Object
from lsml_cli.schema.data_checks import find_data_problem
from lsml_cli.schema.predictions import Prediction, Region
from lsml_cli.schema.region_rules import (
    CHECK_LABELS_KEY,
    CHECKS,
    check_texts,
    make_merged_labels_check,
)
from lsml_cli.schema.shape_checks import MERGEABLE_CHECKS, SHAPE_CHECKS
from lsml_cli.schema.value_checks import ControlRule, ValueCheck, is_integer, is_number

SCORE_TOLERANCE = 1e-6  # float32 probabilities that sum to a little more than 1; rounded away when written

SINGLE_RESULT_TYPES = frozenset({"choices", "datetime", "number", "pairwise", "ranker", "rating", "taxonomy"})
# A value with one of these keys lies on an image.
GEOMETRY_KEYS = frozenset({"x", "points", "vertices", "rle", "imageDataURL"})
REGION_FIELDS = frozenset({"id", "from_name", "to_name", "type", "value", "score"})  # never in `Region.extra`


@dataclass(frozen=True)
class ConfigRules:
    """The rules of all controls of a label config, by from_name, and its objects, by name."""

    by_name: Mapping[str, ControlRule]
    objects: Mapping[str, Object]

    @cached_property
    def has_shared_ids(self) -> bool:
        """Tell whether a <Labels> region may describe a shape of another control by sharing its id."""
        types = {rule.type for rule in self.by_name.values()}
        return "labels" in types and not types.isdisjoint(SHAPE_CHECKS)


def find_first_problem(rules: ConfigRules, prediction: Prediction, data: Mapping[str, Any] | None = None) -> str | None:
    """Return the first problem of a prediction as one sentence, None if Label Studio accepts it.

    Args:
        rules: The rules of the label config.
        prediction: The prediction.
        data: The data of its task; None if it is not known.
    """
    version = prediction.model_version
    if not isinstance(version, str) or not version:
        return f"model_version is {version!r}, not a name"
    if prediction.score is not None and (problem := _check_score(prediction.score)):
        return f"the prediction's score {problem}"
    result = prediction.result
    shapes: Mapping[str, str] = {}
    if rules.has_shared_ids:
        shapes = {region.id: region.type for region in reversed(result) if _is_shape(region)}
    by_name = rules.by_name
    for index, region in enumerate(result):
        name = region.from_name
        rule = by_name.get(name) if isinstance(name, str) else None
        if rule is not None:
            problem = _check_region(region, rule, shapes)
            if problem is None and data is not None:
                problem = find_data_problem(region, rules.objects[region.to_name], data)
        elif region.type == "relation":
            problem = _check_relation(region, result)
        else:
            known = format_list(sort_by_similarity(str(name), by_name))
            problem = f"from_name is {name!r}, but the label config has: {known}"
        if problem:
            control = f", from control {name!r}" if rule else ""
            return f"region {index + 1} of {len(result)}{control}: {problem}"
    return _check_duplicates(result, by_name) if len(result) > 1 else None


def _is_shape(region: Region) -> bool:
    return isinstance(region.id, str) and isinstance(region.type, str) and region.type in SHAPE_CHECKS


def _check_region(region: Region, rule: ControlRule, shapes: Mapping[str, str]) -> str | None:
    """Check one region; `shapes` maps ids of regions to their type of geometry."""
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
    if region.score is not None and (problem := _check_score(region.score)):
        return f"its score {problem}"
    if isinstance(value.get(rule.name), dict) and rule.type != "ranker":
        return f"its value has an object {rule.name!r}, the control's own name, which Label Studio takes for all of it"
    for check in checks:
        if problem := check(value, rule):
            return problem
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
    """Check that regions do not exclude each other."""
    seen: set[str | tuple[str, str]] = set()
    for region in result:
        if region.type == "relation":
            continue
        rule = by_name[region.from_name]
        key = rule.name if rule.is_once_per_task else (rule.name, region.id)
        if key in seen and rule.is_once_per_task:
            return f"control {rule.name!r} answers twice, but a task takes one answer of it"
        if key in seen:  # the editor would show only one of them
            return f"two regions of control {rule.name!r} have the id {region.id!r}: give each its own ordinal"
        seen.add(key)
    return None


def _check_image_size(extra: Mapping[str, Any]) -> str | None:
    for name in ("original_width", "original_height"):
        size = extra.get(name)
        if not is_integer(size) or size <= 0:
            return f"{name} is {'missing' if size is None else repr(size)}: it must be the image's size in pixels"
    return None


def _check_score(score: Any) -> str | None:
    if is_number(score) and -SCORE_TOLERANCE <= score <= 1 + SCORE_TOLERANCE:
        return None
    return f"is {score!r}, not a number in 0..1"
