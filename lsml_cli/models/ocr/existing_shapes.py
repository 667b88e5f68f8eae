"""What people, or earlier predictions, have drawn around text and written about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lsml_cli.models.ocr.crops import Point, Size
from lsml_cli.models.ocr.postprocess import ControlBinding, ExistingShape, RegionValue
from lsml_cli.schema.annotations import iter_task_annotations
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.shapes import parse_shape
from lsml_cli.schema.tasks import Task

Result = Sequence[Mapping[str, Any]]  # regions as Label Studio stores them

_LABELS = ("labels", "rectanglelabels", "polygonlabels")
_SHAPES = ("rectangle", "polygon", "rectanglelabels", "polygonlabels")

RegionGroup = list[tuple[Mapping[str, Any], RegionValue]]  # regions with their values


class TranscribedShape(NamedTuple):
    """A shape around a line of text, with what is written there, "" where nobody has said.

    points    in pixels
    in_order  whether they are four that begin where the text does
    """

    existing_shape: ExistingShape
    points: tuple[Point, ...]
    has_reading_order: bool
    text: str


def latest_regions(task: Task, config: LabelConfig) -> Result:
    """The regions that count: of an editor that asks, the annotation, the draft, or the last prediction."""
    if task.context is not None and (asked := _regions(task.context)):
        return asked
    counting = next(iter(iter_task_annotations([task], config)), None)
    if counting is not None and counting.selected:
        return counting.selected[-1].result
    drafts = task.raw.get("drafts")
    for each in [*(drafts if isinstance(drafts, list) else ())][::-1] + stored_predictions(task.raw)[::-1]:
        if found := _regions(each):
            return found
    return ()


def _regions(stored: Any) -> Result:
    result = stored.get("result") if isinstance(stored, Mapping) else None
    return [each for each in result if isinstance(each, Mapping)] if isinstance(result, list) else []


def transcribed_shapes(
    result: Iterable[Mapping[str, Any]], control_binding: ControlBinding, size: Size
) -> list[TranscribedShape]:
    """The shapes of one picture, in the order in which they were drawn.

    Shape, label and transcription belong together by their id; where an export has dropped those, by their place.
    size  (width, height) of the picture in pixels
    """
    groups: dict[Any, RegionGroup] = {}
    for region in result:
        value = region.get("value")
        if (
            isinstance(value, Mapping)
            and region.get("to_name", control_binding.image.name) == control_binding.image.name
        ):
            groups.setdefault(_group_key(region, value), []).append((region, dict(value)))
    found = []
    for group in (shaped for every in groups.values() for shaped in _split_by_shape(every)):
        region, value = group[0]
        shape = parse_shape({"value": value, "original_width": size[0], "original_height": size[1]})
        if shape is None or not (outline := shape.outline()):
            continue
        kind = _shape_kind(value)
        names = ("x", "y", "width", "height", "rotation") if kind == "rectangle" else ("points", "closed")
        geometry = {name: value[name] for name in names if name in value}
        own_id = region.get("id") if isinstance(region.get("id"), str) and region.get("id") else None
        points = tuple((x * size[0] / 100, y * size[1] / 100) for x, y in outline)
        turned = kind == "rectangle" and bool(value.get("rotation"))
        found.append(
            TranscribedShape(
                ExistingShape(own_id, kind, geometry, _labels(group)), points, turned, _text(group, control_binding)
            )
        )
    return found


def whole_image_text(result: Iterable[Mapping[str, Any]], control_binding: ControlBinding) -> str:
    """What is written about the whole picture."""
    return _text(
        [(each, dict(each["value"])) for each in result if isinstance(each.get("value"), Mapping)], control_binding
    )


def _group_key(region: Mapping[str, Any], value: Mapping[str, Any]) -> Any:
    own = region.get("id")
    if isinstance(own, str) and own:
        return own
    return _geometry_key(value)


def _split_by_shape(group: RegionGroup) -> list[RegionGroup]:
    """The regions of one id, shape by shape, each behind its shape: those at the same place, behind the first the rest.

    No group where there is no shape.
    """
    placed = [each for each in group if _shape_kind(each[1])]
    shapes = [each for each in placed if each[0].get("type") in _SHAPES] or placed[:1]
    found: dict[str, RegionGroup] = {}
    for each in shapes:
        found.setdefault(_geometry_key(each[1]), []).append(each)
    for each in group if found else ():
        if not any(each is shape for shape in shapes):
            found.get(_geometry_key(each[1]), next(iter(found.values()))).append(each)
    return list(found.values())


def _geometry_key(value: Mapping[str, Any]) -> str:
    return repr([value.get(name) or 0 for name in ("x", "y", "width", "height", "rotation", "points")])


def _shape_kind(value: Mapping[str, Any]) -> str:
    """ "" for what is neither a box nor a polygon."""
    return "polygon" if "points" in value else "rectangle" if "width" in value and "x" in value else ""


def _labels(group: RegionGroup) -> tuple[str, ...]:
    """Each once."""
    lists = [value.get(key) for _, value in group for key in _LABELS]
    every = [each for given in lists if isinstance(given, list) for each in given]
    return tuple(dict.fromkeys(each for each in every if isinstance(each, str)))


def _text(group: RegionGroup, control_binding: ControlBinding) -> str:
    """What was written last; several lines where a <TextArea> was filled several times."""
    for region, value in reversed(group):
        if region.get("from_name") == control_binding.text.name:
            given = value.get("text")
            lines = [given] if isinstance(given, str) else given if isinstance(given, list) else []
            return "\n".join(each for each in lines if isinstance(each, str)).strip()
    return ""
