"""Annotated tasks -> a dataset in COCO's form, a folder that mmdet can train on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, listed
from lsml_cli.evaluation.metrics.geometry import Shape, shape_of
from lsml_cli.models.base import Progress
from lsml_cli.models.object_detector.postprocess import Pairs
from lsml_cli.models.openmmlab.image_files import Gathered
from lsml_cli.schema import brush_rle
from lsml_cli.schema.annotations import chosen
from lsml_cli.schema.label_config import Control
from lsml_cli.schema.tasks import Labelled

Coco = dict[str, Any]


def classes_of(examples: Sequence[Labelled], pairs: Pairs, progress: Progress) -> tuple[str, ...]:
    """The labels that regions have, sorted; `progress` hears about those that are learned from little.

    Raises ModelError when there is none.
    """
    counts: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for example in examples:
        for control, region in _regions(example, pairs):
            for name in chosen(control, [region]):
                known = control.dynamic or name in control.name_of
                (counts if known and shape_of(region) is not None else unknown)[name] += 1
    if unknown:
        progress(f"Not learned, because the label config has no such label: {listed(sorted(unknown))}.")
    if not counts:
        there = listed(str(control) for control, _ in pairs)
        raise ModelError(
            f"There is nothing to learn: no annotation has a region with a label of {there}.",
            "Annotate more tasks, or check that the label config is the one of this project.",
        )
    if rare := [name for name, count in counts.items() if count < _FEW]:
        progress(f"Learned from fewer than {_FEW} regions each: {listed(sorted(rare))}.")
    return tuple(sorted(counts))


_FEW = 10  # regions of a class, from which little can be learned


def coco(shown: Sequence[tuple[Gathered, Pairs]], classes: Sequence[str]) -> Coco:
    """Everything in pixels of the picture as a person sees it. A picture without regions shows what is none.

    shown  each picture with the controls that are about it; file names begin with the picture's folder
    """
    number = {name: i for i, name in enumerate(classes)}
    annotations: list[dict[str, Any]] = []
    images = []
    for image, (each, pairs) in enumerate(shown):
        name = f"{each.path.parent.name}/{each.path.name}"
        images.append({"id": image, "file_name": name, "width": each.size[0], "height": each.size[1]})
        for control, region in _regions(each.example, pairs):
            shape = shape_of(region)
            if shape is None:
                continue
            place = _place(shape, each.size)
            for name in chosen(control, [region]) if place is not None else ():
                if name in number:
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": image, "category_id": number[name], "iscrowd": 0}
                        | (place or {})
                    )
    categories = [{"id": i, "name": name} for name, i in number.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(found: Coco, path: Path) -> None:
    path.write_text(json.dumps(found), "utf-8")


def _regions(example: Labelled, pairs: Pairs) -> Iterator[tuple[Control, Mapping[str, Any]]]:
    controls = {control.name: (control, source) for control, source in pairs}
    for region in example.annotation.result:
        control, source = controls.get(str(region.get("from_name")), (None, None))
        if control is not None and source is not None and region.get("to_name", source.name) == source.name:
            yield control, region


def _place(shape: Shape, size: tuple[int, int]) -> dict[str, Any] | None:
    """bbox (left, top, width, height), area and segmentation in pixels; None for what has no area in the picture."""
    width, height = size
    if shape.stroke is not None:
        return _of_stroke(shape.stroke, size)
    corners = [
        (min(max(x, 0.0), 100.0) * width / 100, min(max(y, 0.0), 100.0) * height / 100) for x, y in shape.outline()
    ]
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    wide, high = max(x for x, _ in corners) - left, max(y for _, y in corners) - top
    if wide < 1 or high < 1:
        return None
    flat = [round(part, 2) for corner in corners for part in corner]
    return {"bbox": [left, top, wide, high], "area": wide * high, "segmentation": [flat]}


def _of_stroke(stroke: tuple[bytes, tuple[int, int]], size: tuple[int, int]) -> dict[str, Any] | None:
    import cv2
    import numpy as np

    code, (width, height) = stroke
    mask = brush_rle.unpack(code, width, height)
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
