"""COCO: boxes, polygons, masks and keypoints of images in one JSON file; scores in its format of results.

Written: `annotations.json`, which pycocotools reads, with the images below `images/`; for predictions also
`results.json`, which its `loadRes` reads. Read: such a file of annotations, and a file of results beside it.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.formats.coco_index import CocoIndex
from lsml_cli.io.formats.config_binding import ConfigBinding, Need, bind_config
from lsml_cli.io.formats.dataset_source import DatasetSource, Item, ReadOptions, RegionFactory
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, WriteOptions
from lsml_cli.io.formats.image_regions import ClassList, ImageRegion, collect_regions
from lsml_cli.io.formats.image_set import ImageSet, confine_name
from lsml_cli.io.formats.image_source import fit_needs, make_region
from lsml_cli.schema.coco_rle import decode_mask, encode_mask
from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.predictions import SCORE_DIGITS, Region
from lsml_cli.schema.shapes import (
    bounding_box,
    box_value,
    clip_points,
    draw_mask,
    polygon_area,
    polygon_value,
    to_pixels,
)
from lsml_cli.schema.value_checks import is_integer, is_number

ANNOTATIONS_FILE = "annotations.json"
RESULTS_FILE = "results.json"
IMAGE_FOLDER = "images"

PIXEL_DIGITS = 3  # digits of coordinates in pixels that are written

OUTSIDE = "a shape that lies outside of its image"
UNSUPPORTED = "a keypoint that belongs to no box"


class CocoWriter(DatasetWriter):
    """Writes a COCO data set.

    Annotations are written as they come; the images, which belong into the same file, wait in a temporary one.
    """

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._images = ImageSet(options)
        self._classes = ClassList(options.config)
        super().__init__(folder, options)
        self._is_results = options.content == "predictions"
        self._file = self.folder.create(RESULTS_FILE if self._is_results else ANNOTATIONS_FILE)
        self._image_file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _close
        self._image_count = 0
        self._file.write(b"[" if self._is_results else b'{"info":{"description":"written by lsml"},"annotations":[')

    def write(self, example: Example) -> None:
        value = self._images.value(example)
        regions = collect_regions(self._images.select(example), self.options.config, self.left_out)
        width, height = size = self._images.size(example, value, regions)
        name = confine_name(value)
        image_id = self._image_count + 1
        annotations = [
            annotation for region in regions for annotation in self._annotations(region, size, example.score)
        ]
        self._images.add_file(self.folder, f"{IMAGE_FOLDER}/{name}", value, example.task)
        for annotation in annotations:
            self.written += 1
            identity = {} if self._is_results else {"id": self.written}
            self._append(self._file, {**identity, "image_id": image_id, **annotation}, self.written > 1)
        image = {"id": image_id, "file_name": name, "width": width, "height": height}
        self._append(self._image_file, image, self._image_count > 0)
        self._image_count += 1

    def _annotations(
        self, region: ImageRegion, size: tuple[int, int], default_score: float | None
    ) -> Iterator[dict[str, Any]]:
        """Yield an annotation for each label of a region."""
        geometry = _geometry(region, size)
        if geometry is None:
            self.left_out[UNSUPPORTED if region.kind == "keypoint" else OUTSIDE] += 1
            return
        for label in region.labels:
            annotation = {"category_id": self._classes.number(label) + 1, **geometry}
            if self._is_results:
                score = region.score if region.score is not None else default_score
                annotation["score"] = 1.0 if score is None else round(score, SCORE_DIGITS)
                if not annotation["segmentation"]:
                    del annotation["segmentation"]
            else:
                annotation["iscrowd"] = 0
            yield annotation

    def _finish(self) -> None:
        if self._is_results:
            self._file.write(b"]\n")
            self._file.close()
            self._file = self.folder.create(ANNOTATIONS_FILE)
            self._file.write(b'{"info":{"description":"written by lsml"},"annotations":[')
        self._file.write(b'],"images":[')
        self._image_file.seek(0)
        shutil.copyfileobj(self._image_file, self._file)
        categories = [{"id": i, "name": name} for i, name in enumerate(self._classes.names, 1)]
        self._file.write(b'],"categories":' + dumps(categories) + b"}\n")

    def _close(self) -> None:
        self._file.close()
        self._image_file.close()

    @staticmethod
    def _append(file: BinaryIO, entry: Mapping[str, Any], has_predecessor: bool) -> None:
        file.write((b",\n" if has_predecessor else b"\n") + dumps(entry))


def _geometry(region: ImageRegion, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return bbox (left, top, width, height), area and segmentation in pixels; None if nothing is in the image."""
    if region.shape is None:
        return None
    if region.shape.brush_rle is not None:
        return _mask_geometry(region, size)
    corners = [
        (round(x, PIXEL_DIGITS), round(y, PIXEL_DIGITS))
        for x, y in clip_points(to_pixels(region.shape.outline(), size), size)
    ]
    box = bounding_box(corners)
    if box[2] <= 0 or box[3] <= 0:
        return None
    is_box = region.shape.box is not None
    return {
        "bbox": [round(number, PIXEL_DIGITS) for number in box],
        "area": round(polygon_area(corners), PIXEL_DIGITS),
        "segmentation": [] if is_box else [[coordinate for point in corners for coordinate in point]],
    }


def _mask_geometry(region: ImageRegion, size: tuple[int, int]) -> dict[str, Any] | None:
    import numpy as np

    assert region.shape is not None
    mask = draw_mask(region.shape, size)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    return {"bbox": box, "area": int(mask.sum()), "segmentation": encode_mask(mask)}


class CocoSource(DatasetSource):
    """Reads a COCO data set: a file of annotations, or a folder with one."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        super().__init__(path, options)
        file = _find_annotations_file(self.path)
        self._results: Path | None = None
        if options.content == "predictions" and (results := file.with_name(RESULTS_FILE)).is_file():
            self._results = results
        self._index = CocoIndex(file, self._results)
        try:
            self._bind()
        except BaseException:
            self._index.close()
            raise

    def _bind(self) -> None:
        self._class_names = {entry["id"]: entry["name"] for entry in self._index.categories}
        if not self._class_names:
            raise InputError(f"{self.name} has no categories.", 'Expected "categories": [{"id": 1, "name": ...}].')
        labels = tuple(dict.fromkeys(self._class_names.values()))
        shapes = {"RectangleLabels": self._index.has_boxes, "PolygonLabels": self._index.has_polygons}
        shapes["BrushLabels"] = self._index.has_masks
        needs = [Need(tag, labels) for tag, occurs in shapes.items() if occurs] or [Need("RectangleLabels", labels)]
        needs = fit_needs(self.options.config, needs, labels)
        self._binding: ConfigBinding = bind_config(needs, self.options.config, self.options.data_key, title="COCO")
        self.label_config = self._binding.config
        self.root, self._image_folder = _find_image_folder(self._index.path, self._index.first_file_name())
        self.notes = self._index.notes

    def _iter_items(self) -> Iterator[Item]:
        for index, (image, entries, share, problem) in enumerate(self._index):
            location = f"image {index + 1}"
            if problem:
                yield Item(location, {}, problem=problem, share=share)
                continue
            try:
                location = f"image {image['id']} ({image['file_name']})"
                data = {self._binding.data_key: self.media_value(_join(self._image_folder, image["file_name"]))}
                regions = list(self._regions(index, image, entries))
            except (ValueError, TypeError, KeyError) as error:
                yield Item(location, {}, problem=_describe(error), share=share)
                continue
            yield Item(location, data, regions, share=share)

    def _regions(
        self, index: int, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]
    ) -> Iterator[Region]:
        factory = RegionFactory(index)
        for annotation in annotations:
            width, height = image.get("width"), image.get("height")
            if not (is_integer(width) and is_integer(height) and width > 0 and height > 0):
                raise ValueError('the image has no "width" and "height", in which its regions are measured')
            try:
                yield from self._annotation_regions(factory, annotation, (width, height))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"annotation {annotation.get('id')}: {_describe(error)}") from None

    def _annotation_regions(
        self, factory: RegionFactory, annotation: Mapping[str, Any], size: tuple[int, int]
    ) -> Iterator[Region]:
        if annotation.get("category_id") not in self._class_names:
            raise ValueError(f"there is no category {annotation.get('category_id')!r}")
        label = self._class_names[annotation["category_id"]]
        score = annotation.get("score")
        for tag, value in self._values(annotation, size):
            yield from make_region(
                factory, self._binding.targets[tag], value, label, size, score if is_number(score) else None
            )

    def _values(self, annotation: Mapping[str, Any], size: tuple[int, int]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the shapes of an annotation, each with the tag of its control: those that the label config can hold."""
        targets = self._binding.targets
        segmentation = annotation.get("segmentation")
        if segmentation and isinstance(segmentation, list) and "PolygonLabels" in targets:
            for ring in segmentation:
                yield "PolygonLabels", polygon_value(list(zip(ring[::2], ring[1::2], strict=True)), size)
        elif segmentation and isinstance(segmentation, dict) and "BrushLabels" in targets:
            yield "BrushLabels", _brush_value(segmentation, size)
        elif "RectangleLabels" in targets:
            yield "RectangleLabels", box_value(_parse_box(annotation["bbox"]), size)
        else:
            raise ValueError(f"the label config has no control for it, only {', '.join(targets)}")

    def _close(self) -> None:
        self._index.close()


def _parse_box(box: Any) -> Sequence[float]:
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise ValueError(f"bbox is {box!r}, not a list of 4 numbers")
    return box


def _brush_value(segmentation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    from lsml_cli.schema.brush_rle import encode_rle

    mask = decode_mask(segmentation)
    if mask.shape != (size[1], size[0]):
        raise ValueError(f"its mask has the size {segmentation['size']}, and the image is {size[0]} x {size[1]}")
    return {"format": "rle", "rle": list(encode_rle(mask * 255, repeat=4))}


def _describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f'there is no "{error.args[0]}"'
    return str(error)


def _join(folder: str, name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f'"file_name" is {name!r}, not a text')
    return f"{folder}/{name}" if folder else name


def _find_annotations_file(path: Path) -> Path:
    """Return the file of annotations of a data set.

    Raises:
        UsageError: A folder has none, or several.
    """
    if not path.is_dir():
        return path
    usual = [path / ANNOTATIONS_FILE, path / "instances.json", path / "annotations" / "instances.json"]
    if found := next((file for file in usual if file.is_file()), None):
        return found
    files = [file for folder in (path, path / "annotations") for file in sorted(folder.glob("*.json"))]
    files = [file for file in files if file.name != RESULTS_FILE]
    if len(files) == 1:
        return files[0]
    names = ", ".join(str(file.relative_to(path)) for file in files[:5])
    raise UsageError(
        f"{path} has {'several files' if files else 'no file'} of annotations{f': {names}' if files else ''}.",
        "Name the file instead of the folder.",
    )


def _find_image_folder(file: Path, first_name: str | None) -> tuple[Path, str]:
    """Return the folder of the data set, and the folder of its images relative to that: where the first image is."""
    folder = file.parent
    split = file.stem.rpartition("_")[2]  # instances_train2017.json
    candidates = [(folder, ""), (folder, IMAGE_FOLDER), (folder, split)]
    candidates += [(folder.parent, ""), (folder.parent, IMAGE_FOLDER), (folder.parent, split)]
    if first_name is not None and not Path(first_name).is_absolute() and ".." not in Path(first_name).parts:
        for root, images in candidates:
            if (root / images / first_name).is_file():
                return root, images
    return folder, IMAGE_FOLDER if (folder / IMAGE_FOLDER).is_dir() else ""
