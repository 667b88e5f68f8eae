"""YOLO, as Ultralytics trains with it: a text file for each image, coordinates as shares of width and height.

    data.yaml                        class names, folders of the two sides
    images/train/a.jpg               upright, as YOLO reads it
    labels/train/a.txt               a line for each object

A line begins with the number of the class. What follows depends on the variant of the data set:

    detect   x y width height                      centre and size of a box
    seg      x1 y1 x2 y2 x3 y3 ...                 the points of a polygon
    obb      x1 y1 x2 y2 x3 y3 x4 y4               the corners of a rotated box
    pose     x y width height  px py v  px py v    a box, then each keypoint; v is 2 (visible), 1 (hidden), 0 (missing)

Format: https://docs.ultralytics.com/datasets/
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.formats.config_binding import Need, bind_config
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
from lsml_cli.io.formats.image_set import ImageSet, distinct_name, flat_name
from lsml_cli.io.formats.image_source import fit_needs, iter_files, make_region, read_file, read_image_size
from lsml_cli.io.image_paths import is_image
from lsml_cli.runtime import read_small_file
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.shapes import (
    Point,
    bounding_box,
    box_value,
    clip_points,
    oriented_box_value,
    point_value,
    polygon_value,
    to_pixels,
)

Variant = Literal["detect", "seg", "obb", "pose"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

YAML_FILE = "data.yaml"
CLASSES_FILE = "classes.txt"
DIGITS = 6  # of coordinates: a hundredth of a pixel of an image of 10,000
MAX_YAML_BYTES = 10 << 20
MAX_LABEL_BYTES = 64 << 20

MASK = "a brush mask, and YOLO has polygons"
KEYPOINT = "a keypoint, which only the variant pose has"
ORPHAN = "a keypoint that belongs to no box"
OUTSIDE = "a shape that lies outside of its image"


class YoloWriter(DatasetWriter):
    """Writes a YOLO data set."""

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._images = ImageSet(options)
        self._variant: Variant = _choose_variant(options)
        self._keypoints = _keypoint_names(options) if self._variant == "pose" else []
        self._classes = ClassList(options.config, HULL_TYPES)
        super().__init__(folder, options)

    def write(self, example: Example) -> None:
        value = self._images.value(example)
        regions = collect_regions(self._images.select(example), self.options.config, self.left_out)
        lines = list(self._lines(example, value, regions))
        image_name = self._distinct_name(example, value)
        self._images.add_file(self.folder, f"images/{example.side}/{image_name}", value, example.task)
        self.folder.write(_label_file(example.side, image_name), "".join(f"{line}\n" for line in lines).encode())
        self.written += len(lines)

    def _distinct_name(self, example: Example, value: str) -> str:
        """Return a name for the image whose label file is not there yet: 1.jpg and 1.png would share one."""

        def is_taken(name: str) -> bool:
            return self.folder.exists(_label_file(example.side, name))

        return distinct_name(flat_name(value), value, is_taken)

    def _lines(self, example: Example, value: str, regions: list[ImageRegion]) -> Iterator[str]:
        """Yield the lines of an image; its size matters only where it has regions."""
        if not regions:
            return
        size = self._images.size(example, value, regions)
        points_of = self._assign_keypoints(regions)
        for position, region in enumerate(regions):
            if region.shape is None:
                continue
            if region.shape.brush_rle is not None:
                self.left_out[MASK] += 1
                continue
            pixels = clip_points(to_pixels(region.shape.outline(), size), size)
            left, top, width, height = bounding_box(pixels)
            if width <= 0 or height <= 0:
                self.left_out[OUTSIDE] += 1
                continue
            if self._variant == "seg" or (self._variant == "obb" and region.kind == "rectangle"):
                numbers = _shares(pixels, size)
            elif self._variant == "obb":
                box = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
                numbers = _shares(box, size)
            else:
                numbers = _shares([(left + width / 2, top + height / 2), (width, height)], size)
            if self._variant == "pose":
                numbers += self._keypoint_numbers(points_of[position])
            for label in region.labels:
                yield " ".join([str(self._classes.number(label)), *numbers])

    def _assign_keypoints(self, regions: list[ImageRegion]) -> list[dict[str, Point]]:
        """Return the keypoints that belong to each region, by label; the others are counted as left out."""
        keypoints, orphans = assign_keypoints(regions)
        if self._variant == "pose":
            self.left_out[ORPHAN] += orphans
        else:
            self.left_out[KEYPOINT] += sum(region.point is not None for region in regions)
        self.left_out += type(self.left_out)()  # drop zeros
        return keypoints

    def _keypoint_numbers(self, points: dict[str, Point]) -> list[str]:
        numbers = []
        for name in self._keypoints:
            if name in points:
                x, y = (min(max(position, 0.0), 100.0) / 100 for position in points[name])
                numbers += [_format(x), _format(y), "2"]
            else:
                numbers += ["0", "0", "0"]
        return numbers

    def _finish(self) -> None:
        import yaml

        train, val = "images/train", "images/val" if self.options.has_validation else "images/train"
        names = dict(enumerate(self._classes.names))
        content: dict[str, Any] = {"task": _TASKS[self._variant], "train": train, "val": val, "names": names}
        if self._variant == "pose":
            content |= {"kpt_shape": [len(self._keypoints), 3]}
            content |= {"kpt_names": {number: list(self._keypoints) for number in names}}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        self.folder.write(YAML_FILE, text.encode())
        for folder in {train, val} | {train.replace("images", "labels"), val.replace("images", "labels")}:
            self.folder.make_folder(folder)


# What Ultralytics calls the variants.
_TASKS: dict[Variant, str] = {"detect": "detect", "seg": "segment", "obb": "obb", "pose": "pose"}


def _choose_variant(options: WriteOptions) -> Variant:
    """Return the variant that was named, else the one that the controls of the label config call for."""
    if options.variant is not None:
        variant: Variant = next(variant for variant in VARIANTS if variant == options.variant)
        return variant
    types = (
        {control.type.removesuffix("labels") for control in options.config.controls.values()}
        if options.config
        else set()
    )
    if "keypoint" in types and "rectangle" in types:
        return "pose"
    return "seg" if types & {"polygon", "ellipse"} and "rectangle" not in types else "detect"


def _keypoint_names(options: WriteOptions) -> list[str]:
    config = options.config
    if config is None:
        raise UsageError("The variant pose needs the names of all keypoints.", "Give the label config with -c FILE.")
    names = keypoint_names(config)
    if not names:
        raise UsageError("The variant pose needs keypoints, and the label config has no <KeyPointLabels>.")
    return names


def _label_file(side: str, image_name: str) -> str:
    return f"labels/{side}/{PurePosixPath(image_name).stem}.txt"


def _shares(points: Sequence[Point], size: tuple[int, int]) -> list[str]:
    return [_format(position / side) for point in points for position, side in zip(point, size, strict=True)]


def _format(number: float) -> str:
    return f"{number:.{DIGITS}f}".rstrip("0").rstrip(".")


class YoloSource(DatasetSource):
    """Reads a YOLO data set: its folder, or its data.yaml."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        super().__init__(path, options)
        if self.path.is_file():
            self.root = _root_of(self.path)
        self._layout = _Layout(self.root, self.path if self.path.suffix in (".yaml", ".yml") else None)
        self._names = self._layout.names
        self._keypoints = self._layout.keypoint_names
        self._variant: Variant = _given_variant(options) or self._layout.variant()
        labels = tuple(dict.fromkeys(self._names.values()))
        tag = "PolygonLabels" if self._variant == "seg" else "RectangleLabels"
        needs = fit_needs(options.config, [Need(tag, labels)], labels)
        if self._variant == "pose":
            needs.append(Need("KeyPointLabels", tuple(self._keypoints)))
        self._binding = bind_config(needs, options.config, options.data_key, title="YOLO")
        self.label_config = self._binding.config
        self.notes = self._layout.notes

    def _iter_items(self) -> Iterator[Item]:
        index = 0
        total = self._layout.count_images()
        for folder in self._layout.image_folders:
            for path, label_path in self._layout.images(folder):
                share = min(1.0, (index + 1) / max(1, total))
                location = label_path or path
                try:
                    data = {self._binding.data_key: self.media_value(path)}
                    regions = list(self._regions(index, path, label_path)) if label_path else []
                except ValueError as error:
                    yield Item(location, {}, problem=str(error), share=share)
                else:
                    yield Item(location, data, regions, share=share)
                index += 1

    def _regions(self, index: int, image_path: str, label_path: str) -> Iterator[Region]:
        content = read_file(self.root, label_path)
        if len(content) > MAX_LABEL_BYTES:
            raise ValueError(f"{label_path} has more than {MAX_LABEL_BYTES:,} bytes")
        lines = [
            (number, line.split()) for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1)
        ]
        size: tuple[int, int] | None = None
        factory = RegionFactory(index)
        for number, words in lines:
            if not words:
                continue
            try:
                size = size or read_image_size(self.root, image_path)
                yield from self._line_regions(factory, words, size)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None

    def _line_regions(self, factory: RegionFactory, words: list[str], size: tuple[int, int]) -> Iterator[Region]:
        class_id, numbers = _parse_line(words)
        if class_id not in self._names:
            raise ValueError(f"there is no class {class_id}")
        label = self._names[class_id]
        box_numbers = 4 + (len(self._keypoints) * self._layout.keypoint_values if self._variant == "pose" else 0)
        if len(numbers) in (4, 5) or (self._variant == "pose" and len(numbers) == box_numbers):
            score = numbers[4] if len(numbers) == 5 and 0 <= numbers[4] <= 1 else None
            tag, value = self._box(numbers[:4], size)
        elif self._variant in ("seg", "obb"):
            score = None
            tag, value = self._outline(numbers, size)
        else:
            raise ValueError(f"it has {len(numbers)} numbers after its class, and {box_numbers} are expected")
        regions = list(make_region(factory, self._binding.targets[tag], value, label, size, score))
        yield from regions
        if self._variant == "pose" and len(numbers) == box_numbers:
            yield from self._keypoint_regions(factory, numbers[4:], size, regions[0].id)

    def _box(self, numbers: Sequence[float], size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
        x, y, width, height = _scale(numbers, size)
        box = (x - width / 2, y - height / 2, width, height)
        if "RectangleLabels" in self._binding.targets:
            return "RectangleLabels", box_value(box, size)
        left, top, right, bottom = box[0], box[1], box[0] + width, box[1] + height
        return "PolygonLabels", polygon_value([(left, top), (right, top), (right, bottom), (left, bottom)], size)

    def _outline(self, numbers: Sequence[float], size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
        if len(numbers) % 2:
            raise ValueError(f"it has {len(numbers)} numbers after its class, and points are pairs")
        scaled = _scale(numbers, size)
        points = list(zip(scaled[::2], scaled[1::2], strict=True))
        if self._variant == "obb":
            if len(points) != 4:
                raise ValueError(f"a rotated box has 4 corners, and this one has {len(points)}")
            return "RectangleLabels", oriented_box_value(points, size)
        if "PolygonLabels" in self._binding.targets:
            return "PolygonLabels", polygon_value(points, size)
        return "RectangleLabels", box_value(bounding_box(points), size)

    def _keypoint_regions(
        self, factory: RegionFactory, numbers: Sequence[float], size: tuple[int, int], parent_id: str
    ) -> Iterator[Region]:
        target = self._binding.targets["KeyPointLabels"]
        step = self._layout.keypoint_values
        for name, start in zip(self._keypoints, range(0, len(numbers), step), strict=True):
            x, y = numbers[start : start + 2]
            is_missing = numbers[start + 2] == 0 if step == 3 else x == y == 0
            if is_missing:
                continue
            position = point_value(clip_points([(x * size[0], y * size[1])], size)[0], size)
            value = {"x": position[0], "y": position[1], "width": KEYPOINT_SIZE}
            yield from make_region(factory, target, value, name, size, parentID=parent_id)


def _given_variant(options: ReadOptions) -> Variant | None:
    return next((variant for variant in VARIANTS if variant == options.variant), None)


def _parse_line(words: list[str]) -> tuple[int, list[float]]:
    """Return the class and the numbers of a line; a class may be written as 1.0."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError("it is no line of numbers") from None
    if not all(-1e6 < number < 1e6 for number in numbers) or not numbers[0].is_integer():
        raise ValueError("it is no line of a class and of shares of the image")
    return int(numbers[0]), numbers[1:]


def _scale(numbers: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Convert shares of width and height, in turn, to pixels."""
    return [number * size[i % 2] for i, number in enumerate(numbers)]


def _root_of(file: Path) -> Path:
    """Return the folder of the data set that a file belongs to."""
    folder = file.parent
    if file.suffix in (".yaml", ".yml") or file.name == CLASSES_FILE:
        return folder
    return next((parent.parent for parent in (folder, *folder.parents) if parent.name == "labels"), folder)


class _Layout:
    """Which files of a folder are images, and which are their labels.

    Args:
        root: The folder of the data set.
        yaml_path: Its data.yaml; None: look for it.

    Attributes:
        names: Class names by number.
        keypoint_names: Of the variant pose, none for others.
        keypoint_values: Numbers of each keypoint, 2 or 3.
        image_folders: Folders of images, relative to the root.
        notes: Sentences to show once.

    Raises:
        InputError: The classes have no names, or there are no labels.
    """

    def __init__(self, root: Path, yaml_path: Path | None) -> None:
        self._root = root
        found = [root / name for name in (YAML_FILE, "data.yml", "dataset.yaml")]
        yaml_path = yaml_path or next((path for path in found if path.is_file()), None)
        self._settings = _read_yaml(yaml_path) if yaml_path else {}
        self.notes: tuple[str, ...] = ()
        self.names = self._read_names()
        self.keypoint_names, self.keypoint_values = self._read_keypoints()
        self.image_folders = self._find_image_folders()

    def _read_names(self) -> dict[int, str]:
        names = self._settings.get("names")
        if isinstance(names, list):
            return {i: str(name) for i, name in enumerate(names)}
        if isinstance(names, dict) and all(re.fullmatch(r"\d+", str(key)) for key in names):
            return {int(key): str(name) for key, name in names.items()}
        path = self._root / CLASSES_FILE
        if path.is_file():
            lines = read_small_file(path, MAX_YAML_BYTES).decode("utf-8", "replace").splitlines()
            return {i: name.strip() for i, name in enumerate(lines) if name.strip()}
        raise InputError(
            f"The classes of {self._root} have no names: there is no {YAML_FILE} with names, and no {CLASSES_FILE}.",
            f"Write the names, a line for each class, into {self._root / CLASSES_FILE}.",
        )

    def _read_keypoints(self) -> tuple[list[str], int]:
        shape = self._settings.get("kpt_shape")
        if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(side, int) for side in shape)):
            return [], 3
        count, values = shape
        if not (0 < count < 10_000 and values in (2, 3)):
            raise InputError(f"kpt_shape is {shape}, not [number of keypoints, 2 or 3].")
        given = self._settings.get("kpt_names")
        names = next(iter(given.values()), None) if isinstance(given, dict) else given
        if not (isinstance(names, list) and len(set(map(str, names))) == count):
            names = [f"point {i}" for i in range(1, count + 1)]
        return [str(name) for name in names], values

    def _find_image_folders(self) -> list[str]:
        named = [entry for side in ("train", "val", "test") for entry in _as_list(self._settings.get(side))]
        base = str(self._settings.get("path") or "")
        folders = [folder for entry in named if (folder := self._locate_folder(base, entry)) is not None]
        if folders:
            return list(dict.fromkeys(folders))
        usual = ("images", "train/images", "valid/images", "val/images", "test/images")
        folders = [folder for folder in usual if (self._root / folder).is_dir()]
        if folders:
            return folders
        if (self._root / "labels").is_dir():
            raise InputError(
                f"{self._root} has labels, but no folder of images.",
                f"Put the images into {self._root / 'images'}: their sizes are needed, and tasks name them.",
            )
        return [""]

    def _locate_folder(self, base: str, entry: str) -> str | None:
        """Return a folder of data.yaml relative to the data set's, None if it is not below that."""
        for path in (Path(base) / entry, Path(entry), Path(entry.removeprefix("../"))):
            relative = path.relative_to(self._root.absolute()) if path.is_relative_to(self._root.absolute()) else path
            if not relative.is_absolute() and ".." not in relative.parts and (self._root / relative).is_dir():
                return "" if relative == Path() else relative.as_posix()
        self.notes = (*self.notes, f"{entry}, which {YAML_FILE} names, is no folder in {self._root}, and not read.")
        return None

    def images(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield each image of a folder and its label file, "" without one; both relative to the root.

        A label file without an image comes as one, too: it fails then, instead of being missing.
        """
        label_folder = _label_folder(folder)
        images = ((_stem(path), path, "") for path in iter_files(self._root / folder, is_image))
        labels = ((_stem(path), "", path) for path in self._label_files(label_folder))
        for stem, entries in groupby(heapq.merge(images, labels), key=itemgetter(0)):
            paths = [(image, label) for _, image, label in entries]
            label = next((_join(label_folder, label) for _, label in paths if label), "")
            names = [image for image, _ in paths if image] or [f"{stem}jpg"]
            yield from ((_join(folder, name), label) for name in names)

    def count_images(self) -> int:
        """Return the number of images."""
        return sum(1 for folder in self.image_folders for _ in iter_files(self._root / folder, is_image))

    def _label_files(self, folder: str) -> Iterator[str]:
        for path in iter_files(self._root / folder, lambda name: name.endswith(".txt")):
            if path != CLASSES_FILE:
                yield path

    def variant(self) -> Variant:
        """Return the variant, as data.yaml says, or as the first lines of label files look."""
        task = self._settings.get("task")
        if named := next((variant for variant in VARIANTS if task in (_TASKS[variant], variant)), None):
            return named
        if self.keypoint_names:
            return "pose"
        counts = set()
        for folder in self.image_folders:
            label_folder = _label_folder(folder)
            for number, path in enumerate(self._label_files(label_folder)):
                try:
                    first, _, _ = read_file(self._root, _join(label_folder, path)).partition(b"\n")
                except ValueError:
                    continue
                counts.add(len(first.split()))
                if number >= MAX_SAMPLED:
                    break
        return "seg" if any(count > 6 for count in counts) else "detect"


MAX_SAMPLED = 200  # label files of a folder that are looked at for the variant


def _label_folder(image_folder: str) -> str:
    """Return where the labels of a folder of images are: "images" becomes "labels", the last time that it occurs."""
    parts = image_folder.split("/")
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return "/".join(parts)


def _stem(path: str) -> str:
    """Return a path without its suffix, but with the dot before it, which `iter_files` sorts by."""
    return f"{PurePosixPath(path).with_suffix('')}."


def _as_list(value: Any) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, str)]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(read_small_file(path, MAX_YAML_BYTES))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no table of settings.", "Expected names, train and val.")
    return content
