"""COCO: boxes, polygons, masks and keypoints of images in one JSON file; scores in its format of results.

Written: `annotations.json`, which pycocotools reads, with the images below `images/`; for predictions also
`results.json`, which its `loadRes` reads. Read: such a file of annotations, and a file of results beside it.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.formats.coco_index import CocoIndex
from lsml_cli.io.formats.config_binding import ConfigBinding, Need, bind_config, has_control
from lsml_cli.io.formats.dataset_source import DatasetSource, Item, ReadOptions, RegionFactory
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, WriteOptions
from lsml_cli.io.formats.image_regions import (
    HULL_TYPES,
    KEYPOINT_SIZE,
    ClassList,
    ImageRegion,
    assign_keypoints,
    collect_regions,
    keypoint_names,
)
from lsml_cli.io.formats.image_set import ImageSet, confine_name
from lsml_cli.io.formats.image_source import fit_needs, make_region
from lsml_cli.schema.coco_rle import decode_mask, encode_mask
from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.predictions import SCORE_DIGITS, Region
from lsml_cli.schema.shapes import (
    Point,
    bounding_box,
    box_value,
    clip_points,
    draw_mask,
    point_value,
    polygon_area,
    polygon_value,
    to_pixels,
)
from lsml_cli.schema.value_checks import is_integer, is_number

ANNOTATIONS_FILE = "annotations.json"
RESULTS_FILE = "results.json"
IMAGE_FOLDER = "images"

DEFAULT_CLASS = "default"  # of keypoints where the label config has no classes beside them, as in the SDK's converter
PIXEL_DIGITS = 3  # digits of coordinates in pixels that are written

OUTSIDE = "a shape that lies outside of its image"
ORPHAN = "a keypoint that belongs to no box"
UNNAMED = "a keypoint, whose place in the list of keypoints only the label config tells"


class CocoWriter(DatasetWriter):
    """Writes a COCO data set.

    Annotations are written as they come; the images, which belong into the same file, wait in a temporary one.
    """

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._images = ImageSet(options)
        self._classes = ClassList(options.config, HULL_TYPES)
        self._keypoints = keypoint_names(options.config)
        self._has_classes = bool(self._classes.names) or options.config is None
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
        annotations = list(self._annotations(regions, size, example.score))
        self._images.add_file(self.folder, f"{IMAGE_FOLDER}/{name}", value, example.task)
        for annotation in annotations:
            self.written += 1
            identity = {} if self._is_results else {"id": self.written}
            self._append(self._file, {**identity, "image_id": image_id, **annotation}, self.written > 1)
        image = {"id": image_id, "file_name": name, "width": width, "height": height}
        self._append(self._image_file, image, self._image_count > 0)
        self._image_count += 1

    def _annotations(
        self, regions: Sequence[ImageRegion], size: tuple[int, int], default_score: float | None
    ) -> Iterator[dict[str, Any]]:
        """Yield an annotation for each label of each region; keypoints belong to those of their region."""
        points_of, orphans = assign_keypoints(regions)
        if not self._keypoints:
            self.left_out += Counter({UNNAMED: sum(region.point is not None for region in regions)})
        elif orphans and not self._has_classes:  # the image is about one thing, which has no box
            points = {label: region.point for region in regions if region.point for label in region.labels}
            scores = [region.score for region in regions if region.score is not None]
            score = min(scores, default=default_score)
            yield self._complete(_keypoint_geometry(points.values(), size), (DEFAULT_CLASS, score), points, size)
        else:
            self.left_out += Counter({ORPHAN: orphans})
        for region, own_points in zip(regions, points_of, strict=True):
            if region.shape is None:
                continue
            geometry = _geometry(region, size)
            if geometry is None:
                self.left_out[OUTSIDE] += 1
                continue
            score = region.score if region.score is not None else default_score
            for label in region.labels:
                yield self._complete(geometry, (label, score), own_points, size)

    def _complete(
        self,
        geometry: Mapping[str, Any],
        label: tuple[str, float | None],
        points: Mapping[str, Point],
        size: tuple[int, int],
    ) -> dict[str, Any]:
        """Return an annotation, given its geometry, its label with the score, and its keypoints in percent."""
        name, score = label
        annotation = {"category_id": self._classes.number(name) + 1, **geometry}
        if self._keypoints:
            annotation |= _keypoint_fields(self._keypoints, points, size)
        if not self._is_results:
            return annotation | {"iscrowd": 0}
        if not annotation["segmentation"]:
            del annotation["segmentation"]
        return annotation | {"score": 1.0 if score is None else round(score, SCORE_DIGITS)}

    def _finish(self) -> None:
        if self._is_results:
            self._file.write(b"]\n")
            self._file.close()
            self._file = self.folder.create(ANNOTATIONS_FILE)
            self._file.write(b'{"info":{"description":"written by lsml"},"annotations":[')
        self._file.write(b'],"images":[')
        self._image_file.seek(0)
        shutil.copyfileobj(self._image_file, self._file)
        keypoints = {"keypoints": self._keypoints, "skeleton": []} if self._keypoints else {}
        categories = [{"id": i, "name": name, **keypoints} for i, name in enumerate(self._classes.names, 1)]
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


def _keypoint_geometry(points: Iterable[Point], size: tuple[int, int]) -> dict[str, Any]:
    """Return the geometry of an object of which nothing but keypoints is known: the box around them."""
    box = bounding_box(clip_points(to_pixels(list(points), size), size))
    bbox = [round(number, PIXEL_DIGITS) for number in box]
    return {"bbox": bbox, "area": round(box[2] * box[3], PIXEL_DIGITS), "segmentation": []}


def _keypoint_fields(names: Sequence[str], points: Mapping[str, Point], size: tuple[int, int]) -> dict[str, Any]:
    """Return x, y and visibility of each keypoint in turn: 2 is visible, 0 is missing."""
    numbers: list[float] = []
    for name in names:
        if name in points:
            [(x, y)] = clip_points(to_pixels([points[name]], size), size)
            numbers += [round(x, PIXEL_DIGITS), round(y, PIXEL_DIGITS), 2]
        else:
            numbers += [0, 0, 0]
    return {"keypoints": numbers, "num_keypoints": sum(name in points for name in names)}


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
        self._keypoints = {entry["id"]: _parse_keypoint_names(entry) for entry in self._index.categories}
        labels = tuple(dict.fromkeys(self._class_names.values()))
        shapes = {"RectangleLabels": self._index.has_boxes, "PolygonLabels": self._index.has_polygons}
        shapes["BrushLabels"] = self._index.has_masks
        needs = [Need(tag, labels) for tag, occurs in shapes.items() if occurs] or [Need("RectangleLabels", labels)]
        needs = fit_needs(self.options.config, needs, labels)
        self.notes = self._index.notes
        points = Need("KeyPointLabels", self._keypoint_labels())
        if self._index.has_keypoints and points.labels:
            if self.options.config is None or has_control(self.options.config, points):
                needs.append(points)
            else:
                self.notes += ("Its keypoints are not read: the label config has no <KeyPointLabels>.",)
        self._binding: ConfigBinding = bind_config(needs, self.options.config, self.options.data_key, title="COCO")
        self.label_config = self._binding.config
        self.root, self._image_folder = _find_image_folder(self._index.path, self._index.first_file_name())

    def _keypoint_labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for names in self._keypoints.values() for name in names))

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
        score = annotation.get("score") if is_number(annotation.get("score")) else None
        parent_id = None
        for tag, value in self._values(annotation, size):
            for region in make_region(factory, self._binding.targets[tag], value, label, size, score):
                parent_id = parent_id or region.id
                yield region
        if "KeyPointLabels" in self._binding.targets and annotation.get("keypoints"):
            names = self._keypoints[annotation["category_id"]]
            yield from self._keypoint_regions(factory, annotation["keypoints"], names, size, parent_id)

    def _keypoint_regions(
        self,
        factory: RegionFactory,
        numbers: Any,
        names: Sequence[str],
        size: tuple[int, int],
        parent_id: str | None,
    ) -> Iterator[Region]:
        if not (isinstance(numbers, list) and len(numbers) == 3 * len(names) and all(map(is_number, numbers))):
            raise ValueError(f"its keypoints are not 3 numbers for each of {len(names)}")
        for name, x, y, visibility in zip(names, numbers[::3], numbers[1::3], numbers[2::3], strict=True):
            if visibility:
                position = point_value(clip_points([(x, y)], size)[0], size)
                value = {"x": position[0], "y": position[1], "width": KEYPOINT_SIZE}
                target = self._binding.targets["KeyPointLabels"]
                yield from make_region(factory, target, value, name, size, parentID=parent_id)

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


def _parse_keypoint_names(category: Mapping[str, Any]) -> list[str]:
    names = category.get("keypoints")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


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
