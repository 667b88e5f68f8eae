"""Turn annotated tasks into a dataset in COCO's format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, format_list
from lsml_cli.models.base import Progress
from lsml_cli.models.object_detector.binding import ControlPairs
from lsml_cli.models.openmmlab.image_files import TrainingImage
from lsml_cli.schema import brush_rle
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.label_config import Control
from lsml_cli.schema.shapes import Shape, parse_shape
from lsml_cli.schema.tasks import AnnotatedTask

Coco = dict[str, Any]

MIN_REGIONS = 10  # of a class; fewer are reported, since little can be learned from them


def collect_classes(examples: Sequence[AnnotatedTask], pairs: ControlPairs, progress: Progress) -> tuple[str, ...]:
    """Return the labels of the regions, sorted.

    Args:
        examples: The training tasks.
        pairs: The controls that are learned.
        progress: Told about labels with few regions, and about unknown ones.

    Raises:
        ModelError: No region has a label.
    """
    counts: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for example in examples:
        for control, region in _regions(example, pairs):
            for name in extract_labels(control, [region]):
                is_known = control.has_dynamic_labels or name in control.label_names
                (counts if is_known and parse_shape(region) is not None else unknown)[name] += 1
    if unknown:
        progress(f"Not learned, because the label config has no such label: {format_list(sorted(unknown))}.")
    if not counts:
        controls = format_list(str(control) for control, _ in pairs)
        raise ModelError(
            f"There is nothing to learn: no annotation has a region with a label of {controls}.",
            "Annotate more tasks, or check that the label config is the one of this project.",
        )
    if rare := [name for name, count in counts.items() if count < MIN_REGIONS]:
        progress(f"Learned from fewer than {MIN_REGIONS} regions each: {format_list(sorted(rare))}.")
    return tuple(sorted(counts))


def build_coco(training_images: Sequence[tuple[TrainingImage, ControlPairs]], classes: Sequence[str]) -> Coco:
    """Build the dataset, in pixels of the upright images. Images without regions are examples of background.

    Args:
        training_images: Each image with the controls that are about it.
        classes: In the order of their category ids.

    Returns:
        COCO's JSON; file names are relative to the folder above that of an image.
    """
    category_ids = {name: i for i, name in enumerate(classes)}
    annotations: list[dict[str, Any]] = []
    images = []
    for image_id, (image, pairs) in enumerate(training_images):
        file_name = f"{image.path.parent.name}/{image.path.name}"
        images.append({"id": image_id, "file_name": file_name, "width": image.size[0], "height": image.size[1]})
        for control, region in _regions(image.example, pairs):
            shape = parse_shape(region)
            geometry = None if shape is None else _coco_geometry(shape, image.size)
            if geometry is None:
                continue
            for name in extract_labels(control, [region]):
                if name in category_ids:
                    annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_ids[name]}
                    annotations.append(annotation | {"iscrowd": 0} | geometry)
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(coco: Coco, path: Path) -> None:
    """Write a dataset as JSON."""
    path.write_text(json.dumps(coco), "utf-8")


def _regions(example: AnnotatedTask, pairs: ControlPairs) -> Iterator[tuple[Control, Mapping[str, Any]]]:
    """Yield the regions of some controls, each with its control."""
    pair_of = {control.name: (control, image) for control, image in pairs}
    for region in example.annotation.result:
        control, image = pair_of.get(str(region.get("from_name")), (None, None))
        if control is not None and image is not None and region.get("to_name", image.name) == image.name:
            yield control, region


def _coco_geometry(shape: Shape, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return bbox (left, top, width, height), area and segmentation in pixels; None if nothing is in the image."""
    width, height = size
    if shape.brush_rle is not None:
        return _brush_geometry(shape.brush_rle, size)
    corners = [
        (min(max(x, 0.0), 100.0) * width / 100, min(max(y, 0.0), 100.0) * height / 100) for x, y in shape.outline()
    ]
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    box_width, box_height = max(x for x, _ in corners) - left, max(y for _, y in corners) - top
    if box_width < 1 or box_height < 1:
        return None
    coordinates = [round(coordinate, 2) for corner in corners for coordinate in corner]
    return {
        "bbox": [left, top, box_width, box_height],
        "area": box_width * box_height,
        "segmentation": [coordinates],
    }


def _brush_geometry(brush: tuple[bytes, tuple[int, int]], size: tuple[int, int]) -> dict[str, Any] | None:
    """Do the same as `_coco_geometry` for a brush stroke: its encoded mask, and the size (width, height) of that."""
    import cv2
    import numpy as np

    rle, (width, height) = brush
    mask = brush_rle.decode_rle(rle, width, height)
    if (width, height) != size:
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [contour.ravel().tolist() for contour in contours if len(contour) >= 3]
    left, top = int(columns.min()), int(rows.min())
    box_width, box_height = int(columns.max()) - left + 1, int(rows.max()) - top + 1
    if box_width < 2 or box_height < 2 or not outlines:
        return None
    return {"bbox": [left, top, box_width, box_height], "area": int(mask.sum()), "segmentation": outlines}
