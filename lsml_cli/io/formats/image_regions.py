"""Regions on an image with their labels and shapes: what belongs together is one region, whatever controls it has.

Label Studio stores a region that has several controls, such as <Polygon> and <Labels>, as several results with one id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.label_config_parser import parse_xml
from lsml_cli.schema.shapes import Point, Shape, bounding_box, parse_image_size, parse_keypoint, parse_shape

SHAPE_TYPES = frozenset({"rectangle", "polygon", "ellipse", "brush", "keypoint", "magicwand"})
LABELLED_TYPES = frozenset({f"{name}labels" for name in SHAPE_TYPES} | {"labels"})

# Controls whose labels are classes of objects with an extent: those of keypoints are their names.
HULL_TYPES = LABELLED_TYPES - {"keypointlabels"}

KEYPOINT_SIZE = 0.5  # percent; how large Label Studio draws a keypoint that is read

NO_LABEL = "a shape without a label"
NO_SHAPE = "not a shape on an image"
INVALID_SHAPE = "a shape that is not valid"


@dataclass(frozen=True)
class ImageRegion:
    """A region on an image.

    Attributes:
        id: Id of the region, None in JSON_MIN.
        parent_id: Id of the region that it belongs to: that of a person, for a keypoint.
        kind: "rectangle", "polygon", "ellipse", "brush", "keypoint".
        labels: Its labels, one or more, by their names in the label config.
        shape: None for a keypoint.
        point: Of a keypoint, in percent of the image.
        rotation: In degrees, clockwise around the upper left corner of the unrotated box.
        image_size: (width, height) in pixels of the upright image.
        score: Probability in 0..1.
    """

    id: str | None
    parent_id: str | None
    kind: str
    labels: tuple[str, ...]
    shape: Shape | None
    point: Point | None
    rotation: float
    image_size: tuple[int, int] | None
    score: float | None


def collect_regions(
    result: Iterable[Mapping[str, Any]], config: LabelConfig | None, left_out: Counter[str]
) -> list[ImageRegion]:
    """Return the labelled regions on an image.

    Args:
        result: Label Studio's region objects.
        config: The label config; None: labels keep the spelling that regions have.
        left_out: Counts what is no such region, by reason.
    """
    groups: dict[object, list[Mapping[str, Any]]] = {}
    for position, region in enumerate(result):
        groups.setdefault(region.get("id") or position, []).append(region)
    collected: list[ImageRegion] = []
    for parts in groups.values():
        merged = _merge(parts, config)
        if isinstance(merged, ImageRegion):
            collected.append(merged)
        else:
            left_out[merged] += 1
    return collected


def keypoint_names(config: LabelConfig | None) -> list[str]:
    """Return the labels of keypoints in the order in which formats list them.

    That is the order of the label config, or that of `model_index`, if all of these labels have one.
    """
    if config is None:
        return []
    controls = [control for control in config.controls.values() if control.type == "keypointlabels"]
    labels = [label for control in controls for label in control.labels]
    indexes = {
        element.get("value"): int(element.get("model_index"))
        for element in parse_xml(config.xml).iter()
        if str(element.get("model_index") or "").isascii() and str(element.get("model_index") or "").isdecimal()
    }
    if all(label.value in indexes for label in labels):
        labels.sort(key=lambda label: indexes[label.value])
    return list(dict.fromkeys(label.name for label in labels))


def assign_keypoints(regions: Sequence[ImageRegion]) -> tuple[list[dict[str, Point]], int]:
    """Return the keypoints of each region by label, in percent, and how many keypoints belong to none.

    A keypoint belongs to the region that is its parent; without one, to the only region that it lies in.
    """
    points: list[dict[str, Point]] = [{} for _ in regions]
    orphans = 0
    shaped = [(i, region) for i, region in enumerate(regions) if region.shape and not region.shape.brush_rle]
    for region in regions:
        if region.point is None:
            continue
        owners = [i for i, other in shaped if other.id is not None and other.id == region.parent_id]
        if not owners:
            owners = [i for i, other in shaped if other.shape and _is_inside(region.point, other.shape)]
        if len(owners) == 1:
            points[owners[0]] |= dict.fromkeys(region.labels, region.point)
        else:
            orphans += 1
    return points, orphans


def _is_inside(point: Point, shape: Shape) -> bool:
    left, top, width, height = bounding_box(shape.outline())
    return left <= point[0] <= left + width and top <= point[1] <= top + height


def _merge(parts: Sequence[Mapping[str, Any]], config: LabelConfig | None) -> ImageRegion | str:
    """Return the region that results with one id make; else why there is none."""
    labels = tuple(dict.fromkeys(label for part in parts for label in _labels(part, config)))
    shaped = next((part for part in parts if _kind(part)), None)
    if shaped is None:
        return NO_SHAPE
    kind = _kind(shaped)
    shape = None if kind == "keypoint" else parse_shape(shaped)
    point = parse_keypoint(shaped) if kind == "keypoint" else None
    if shape is None and point is None:
        return INVALID_SHAPE
    if not labels:
        return NO_LABEL
    value = shaped["value"]
    scores = [part["score"] for part in parts if _is_score(part.get("score"))]
    parent_id = shaped.get("parentID")
    return ImageRegion(
        shaped.get("id"),
        parent_id if isinstance(parent_id, str) else None,
        kind,
        labels,
        shape,
        point,
        float(value.get("rotation") or 0.0) if kind == "rectangle" else 0.0,
        parse_image_size(shaped),
        min(scores) if scores else None,
    )


def _kind(region: Mapping[str, Any]) -> str:
    """Return the kind of a region's shape, "" if it has none; a result of <Labels> holds that of the tool."""
    region_type = str(region.get("type") or "")
    value = region.get("value")
    if not isinstance(value, Mapping):
        return ""
    name = region_type.removesuffix("labels")
    if name in SHAPE_TYPES:
        return "brush" if name == "magicwand" else name
    if region_type != "labels":
        return ""
    for key, kind in (("rle", "brush"), ("points", "polygon"), ("radiusX", "ellipse"), ("height", "rectangle")):
        if key in value:
            return kind
    return ""


def _labels(region: Mapping[str, Any], config: LabelConfig | None) -> Iterator[str]:
    region_type = str(region.get("type") or "")
    value = region.get("value")
    if region_type not in LABELLED_TYPES or not isinstance(value, Mapping):
        return
    control = config.controls.get(str(region.get("from_name"))) if config else None
    names = control.label_names if control else {}
    labels = value.get(region_type, value.get("labels"))
    for label in [labels] if isinstance(labels, str) else labels if isinstance(labels, list | tuple) else ():
        if isinstance(label, str):
            yield names.get(label, label)


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class ClassList:
    """The classes of a data set: those of the label config in its order, then others as they come.

    Args:
        config: The label config; only labels of shapes on an <Image> are classes, choices are none.
        types: Types of the controls that count.
    """

    def __init__(self, config: LabelConfig | None, types: frozenset[str] = LABELLED_TYPES) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        for control in config.controls.values() if config else ():
            if control.type in types and any(_is_image(config, name) for name in control.to_names):
                for label in control.labels:
                    self.number(label.name)

    def number(self, name: str) -> int:
        """Return the number of a class, from 0."""
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]


def _is_image(config: LabelConfig | None, name: str) -> bool:
    return config is not None and name in config.objects and config.objects[name].tag.lower() == "image"
