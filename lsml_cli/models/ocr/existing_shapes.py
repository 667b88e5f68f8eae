"""What people, or earlier predictions, have drawn around text and written about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lsml_cli.evaluation.metrics.geometry import shape_of
from lsml_cli.models.ocr.crops import Point, Size
from lsml_cli.models.ocr.postprocess import Drawn, Filling, Value
from lsml_cli.schema.annotations import answered
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import stored_predictions
from lsml_cli.schema.tasks import Task

Result = Sequence[Mapping[str, Any]]  # regions as Label Studio stores them

_LABELS = ("labels", "rectanglelabels", "polygonlabels")
_SHAPES = ("rectangle", "polygon", "rectanglelabels", "polygonlabels")

Group = list[tuple[Mapping[str, Any], Value]]  # regions with their values


class Written(NamedTuple):
    """A shape around a line of text, with what is written there, "" where nobody has said.

    points    in pixels
    in_order  whether they are four that begin where the text does
    """

    drawn: Drawn
    points: tuple[Point, ...]
    in_order: bool
    text: str


def latest(task: Task, config: LabelConfig) -> Result:
    """The regions that count: of an editor that asks, the annotation, the draft, or the last prediction."""
    if task.context is not None and (asked := _regions(task.context)):
        return asked
    counting = next(iter(answered([task], config)), None)
    if counting is not None and counting.counting:
        return counting.counting[-1].result
    drafts = task.raw.get("drafts")
    for each in [*(drafts if isinstance(drafts, list) else ())][::-1] + stored_predictions(task.raw)[::-1]:
        if found := _regions(each):
            return found
    return ()


def _regions(stored: Any) -> Result:
    result = stored.get("result") if isinstance(stored, Mapping) else None
    return [each for each in result if isinstance(each, Mapping)] if isinstance(result, list) else []


def written(result: Iterable[Mapping[str, Any]], filling: Filling, size: Size) -> list[Written]:
    """The shapes of one picture, in the order in which they were drawn.

    Shape, label and transcription belong together by their id; where an export has dropped those, by their place.
    size  (width, height) of the picture in pixels
    """
    groups: dict[Any, Group] = {}
    for region in result:
        value = region.get("value")
        if isinstance(value, Mapping) and region.get("to_name", filling.image.name) == filling.image.name:
            groups.setdefault(_key(region, value), []).append((region, dict(value)))
    found = []
    for group in (shaped for every in groups.values() for shaped in _by_shape(every)):
        region, value = group[0]
        shape = shape_of({"value": value, "original_width": size[0], "original_height": size[1]})
        if shape is None or not (outline := shape.outline()):
            continue
        kind = _kind(value)
        names = ("x", "y", "width", "height", "rotation") if kind == "rectangle" else ("points", "closed")
        geometry = {name: value[name] for name in names if name in value}
        own_id = region.get("id") if isinstance(region.get("id"), str) and region.get("id") else None
        points = tuple((x * size[0] / 100, y * size[1] / 100) for x, y in outline)
        turned = kind == "rectangle" and bool(value.get("rotation"))
        found.append(Written(Drawn(own_id, kind, geometry, _labels(group)), points, turned, _text(group, filling)))
    return found


def text_about(result: Iterable[Mapping[str, Any]], filling: Filling) -> str:
    """What is written about the whole picture."""
    return _text([(each, dict(each["value"])) for each in result if isinstance(each.get("value"), Mapping)], filling)


def _key(region: Mapping[str, Any], value: Mapping[str, Any]) -> Any:
    own = region.get("id")
    if isinstance(own, str) and own:
        return own
    return _place(value)


def _by_shape(group: Group) -> list[Group]:
    """The regions of one id, shape by shape, each behind its shape: those at the same place, behind the first the rest.

    No group where there is no shape.
    """
    placed = [each for each in group if _kind(each[1])]
    shapes = [each for each in placed if each[0].get("type") in _SHAPES] or placed[:1]
    found: dict[str, Group] = {}
    for each in shapes:
        found.setdefault(_place(each[1]), []).append(each)
    for each in group if found else ():
        if not any(each is shape for shape in shapes):
            found.get(_place(each[1]), next(iter(found.values()))).append(each)
    return list(found.values())


def _place(value: Mapping[str, Any]) -> str:
    return repr([value.get(name) or 0 for name in ("x", "y", "width", "height", "rotation", "points")])


def _kind(value: Mapping[str, Any]) -> str:
    """ "" for what is neither a box nor a polygon."""
    return "polygon" if "points" in value else "rectangle" if "width" in value and "x" in value else ""


def _labels(group: Group) -> tuple[str, ...]:
    """Each once."""
    lists = [value.get(key) for _, value in group for key in _LABELS]
    every = [each for given in lists if isinstance(given, list) for each in given]
    return tuple(dict.fromkeys(each for each in every if isinstance(each, str)))


def _text(group: Group, filling: Filling) -> str:
    """What was written last; several lines where a <TextArea> was filled several times."""
    for region, value in reversed(group):
        if region.get("from_name") == filling.text.name:
            given = value.get("text")
            lines = [given] if isinstance(given, str) else given if isinstance(given, list) else []
            return "\n".join(each for each in lines if isinstance(each, str)).strip()
    return ""
