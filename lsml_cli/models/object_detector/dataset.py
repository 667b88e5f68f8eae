"""Annotated tasks -> a dataset in COCO's form, a folder that mmdet can train on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, format_list
from lsml_cli.models.base import Progress
from lsml_cli.models.object_detector.postprocess import ControlPairs
from lsml_cli.models.openmmlab.image_files import TrainingImage
from lsml_cli.schema import brush_rle
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.label_config import Control
from lsml_cli.schema.shapes import Shape, parse_shape
from lsml_cli.schema.tasks import AnnotatedTask

Coco = dict[str, Any]


def collect_classes(examples: Sequence[AnnotatedTask], pairs: ControlPairs, progress: Progress) -> tuple[str, ...]:
    """The labels that regions have, sorted; `progress` hears about those that are learned from little.

    Raises ModelError when there is none.
    """
    counts: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for example in examples:
        for control, region in _regions(example, pairs):
            for name in extract_labels(control, [region]):
                known = control.has_dynamic_labels or name in control.label_names
                (counts if known and parse_shape(region) is not None else unknown)[name] += 1
    if unknown:
        progress(f"Not learned, because the label config has no such label: {format_list(sorted(unknown))}.")
    if not counts:
        there = format_list(str(control) for control, _ in pairs)
        raise ModelError(
            f"There is nothing to learn: no annotation has a region with a label of {there}.",
            "Annotate more tasks, or check that the label config is the one of this project.",
        )
    if rare := [name for name, count in counts.items() if count < _FEW_REGIONS]:
        progress(f"Learned from fewer than {_FEW_REGIONS} regions each: {format_list(sorted(rare))}.")
    return tuple(sorted(counts))


_FEW_REGIONS = 10  # regions of a class, from which little can be learned


def build_coco(training_images: Sequence[tuple[TrainingImage, ControlPairs]], classes: Sequence[str]) -> Coco:
    """Everything in pixels of the picture as a person sees it. A picture without regions shows what is none.

    shown  each picture with the controls that are about it; file names begin with the picture's folder
    """
    number = {name: i for i, name in enumerate(classes)}
    annotations: list[dict[str, Any]] = []
    images = []
    for image, (each, pairs) in enumerate(training_images):
        name = f"{each.path.parent.name}/{each.path.name}"
        images.append({"id": image, "file_name": name, "width": each.size[0], "height": each.size[1]})
        for control, region in _regions(each.example, pairs):
            shape = parse_shape(region)
            if shape is None:
                continue
            place = _coco_geometry(shape, each.size)
            for name in extract_labels(control, [region]) if place is not None else ():
                if name in number:
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": image, "category_id": number[name], "iscrowd": 0}
                        | (place or {})
                    )
    categories = [{"id": i, "name": name} for name, i in number.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(coco: Coco, path: Path) -> None:
    path.write_text(json.dumps(coco), "utf-8")


def _regions(example: AnnotatedTask, pairs: ControlPairs) -> Iterator[tuple[Control, Mapping[str, Any]]]:
    controls = {control.name: (control, source) for control, source in pairs}
    for region in example.annotation.result:
        control, source = controls.get(str(region.get("from_name")), (None, None))
        if control is not None and source is not None and region.get("to_name", source.name) == source.name:
            yield control, region


def _coco_geometry(shape: Shape, size: tuple[int, int]) -> dict[str, Any] | None:
    """bbox (left, top, width, height), area and segmentation in pixels; None for what has no area in the picture."""
    width, height = size
    if shape.brush_rle is not None:
        return _brush_geometry(shape.brush_rle, size)
    corners = [
        (min(max(x, 0.0), 100.0) * width / 100, min(max(y, 0.0), 100.0) * height / 100) for x, y in shape.outline()
    ]
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    wide, high = max(x for x, _ in corners) - left, max(y for _, y in corners) - top
    if wide < 1 or high < 1:
        return None
    flat = [round(part, 2) for corner in corners for part in corner]
    return {"bbox": [left, top, wide, high], "area": wide * high, "segmentation": [flat]}


def _brush_geometry(stroke: tuple[bytes, tuple[int, int]], size: tuple[int, int]) -> dict[str, Any] | None:
    import cv2
    import numpy as np

    code, (width, height) = stroke
    mask = brush_rle.decode_rle(code, width, height)
    if (width, height) != size:
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [each.ravel().tolist() for each in contours if len(each) >= 3]
    left, top = int(columns.min()), int(rows.min())
    wide, high = int(columns.max()) - left + 1, int(rows.max()) - top + 1
    if wide < 2 or high < 2 or not outlines:
        return None
    return {"bbox": [left, top, wide, high], "area": int(mask.sum()), "segmentation": outlines}
