"""Read the shapes around text, and their transcriptions, that a task has already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lsml_cli.models.ocr.binding import ControlBinding
from lsml_cli.models.ocr.crops import Point, Size
from lsml_cli.models.ocr.text_lines import ExistingShape, RegionValue
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
    """A shape around a line of text, and its transcription.

    Args:
        existing_shape: The shape as it is stored.
        points: Its outline in pixels.
        has_reading_order: Whether the points are four corners that start where the text does.
        text: "" if there is no transcription.
    """

    existing_shape: ExistingShape
    points: tuple[Point, ...]
    has_reading_order: bool
    text: str


def latest_regions(task: Task, config: LabelConfig) -> Result:
    """Return the regions to read: those in the editor, of the annotation, the draft, or the last prediction."""
    if task.context is not None and (regions := _regions(task.context)):
        return regions
    annotations = next(iter(iter_task_annotations([task], config)), None)
    if annotations is not None and annotations.selected:
        return annotations.selected[-1].result
    drafts = task.raw.get("drafts")
    for stored in [*(drafts if isinstance(drafts, list) else ())][::-1] + stored_predictions(task.raw)[::-1]:
        if regions := _regions(stored):
            return regions
    return ()


def _regions(stored: Any) -> Result:
    result = stored.get("result") if isinstance(stored, Mapping) else None
    return [region for region in result if isinstance(region, Mapping)] if isinstance(result, list) else []


def transcribed_shapes(
    result: Iterable[Mapping[str, Any]], control_binding: ControlBinding, size: Size
) -> list[TranscribedShape]:
    """Return the shapes of one image, in the order in which they were drawn.

    Shape, label and transcription belong together by their id; where an export has dropped it, by their geometry.

    Args:
        result: The regions of the task.
        control_binding: The controls about the image.
        size: (width, height) of the image in pixels.
    """
    groups: dict[Any, RegionGroup] = {}
    for region in result:
        value = region.get("value")
        if (
            isinstance(value, Mapping)
            and region.get("to_name", control_binding.image.name) == control_binding.image.name
        ):
            groups.setdefault(_group_key(region, value), []).append((region, dict(value)))
    shapes = []
    for group in (shape_group for id_group in groups.values() for shape_group in _split_by_shape(id_group)):
        region, value = group[0]
        shape = parse_shape({"value": value, "original_width": size[0], "original_height": size[1]})
        if shape is None or not (outline := shape.outline()):
            continue
        kind = _shape_kind(value)
        names = ("x", "y", "width", "height", "rotation") if kind == "rectangle" else ("points", "closed")
        geometry = {name: value[name] for name in names if name in value}
        own_id = region.get("id") if isinstance(region.get("id"), str) and region.get("id") else None
        points = tuple((x * size[0] / 100, y * size[1] / 100) for x, y in outline)
        is_rotated = kind == "rectangle" and bool(value.get("rotation"))
        existing_shape = ExistingShape(own_id, kind, geometry, _labels(group))
        shapes.append(TranscribedShape(existing_shape, points, is_rotated, _text(group, control_binding)))
    return shapes


def whole_image_text(result: Iterable[Mapping[str, Any]], control_binding: ControlBinding) -> str:
    """Return the transcription of an image that is one line of text."""
    group = [(region, dict(region["value"])) for region in result if isinstance(region.get("value"), Mapping)]
    return _text(group, control_binding)


def _group_key(region: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    region_id = region.get("id")
    return region_id if isinstance(region_id, str) and region_id else _geometry_key(value)


def _split_by_shape(group: RegionGroup) -> list[RegionGroup]:
    """Split the regions of one id into a group per shape, which comes first in it.

    Other regions join the shape with their geometry, else the first one. Without a shape there is no group.
    """
    placed = [item for item in group if _shape_kind(item[1])]
    shapes = [item for item in placed if item[0].get("type") in _SHAPES] or placed[:1]
    groups: dict[str, RegionGroup] = {}
    for shape in shapes:
        groups.setdefault(_geometry_key(shape[1]), []).append(shape)
    for item in group if groups else ():
        if not any(item is shape for shape in shapes):
            groups.get(_geometry_key(item[1]), next(iter(groups.values()))).append(item)
    return list(groups.values())


def _geometry_key(value: Mapping[str, Any]) -> str:
    return repr([value.get(name) or 0 for name in ("x", "y", "width", "height", "rotation", "points")])


def _shape_kind(value: Mapping[str, Any]) -> str:
    """Return "polygon", "rectangle", or "" for a value that is neither."""
    return "polygon" if "points" in value else "rectangle" if "width" in value and "x" in value else ""


def _labels(group: RegionGroup) -> tuple[str, ...]:
    """Return the labels of a group, each once."""
    lists = [value.get(key) for _, value in group for key in _LABELS]
    labels = [label for value in lists if isinstance(value, list) for label in value]
    return tuple(dict.fromkeys(label for label in labels if isinstance(label, str)))


def _text(group: RegionGroup, control_binding: ControlBinding) -> str:
    """Return the last transcription; several lines if its <TextArea> was filled several times."""
    for region, value in reversed(group):
        if region.get("from_name") == control_binding.text.name:
            text = value.get("text")
            lines = [text] if isinstance(text, str) else text if isinstance(text, list) else []
            return "\n".join(line for line in lines if isinstance(line, str)).strip()
    return ""
