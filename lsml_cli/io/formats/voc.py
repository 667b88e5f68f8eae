"""Pascal VOC: an XML file for each image, with boxes in whole pixels.

    JPEGImages/a.jpg
    Annotations/a.xml
    ImageSets/Main/train.txt, val.txt, trainval.txt     names of images without their suffix

A box is (xmin, ymin, xmax, ymax), the first and the last pixel of each axis, counted from 1. So xmin is one more than
the left edge of the box, and xmax is its right edge. The points of a polygon, which some tools add, begin at 1, too.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

from lsml_cli.errors import InputError
from lsml_cli.io.formats.config_binding import Need, bind_config
from lsml_cli.io.formats.dataset_source import DatasetSource, Item, ReadOptions, RegionFactory
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, WriteOptions
from lsml_cli.io.formats.image_regions import ImageRegion, collect_regions
from lsml_cli.io.formats.image_set import ImageSet, distinct_name, flat_name
from lsml_cli.io.formats.image_source import fit_needs, iter_files, make_region, read_file, read_image_size
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.shapes import Point, bounding_box, box_value, clip_points, polygon_value, to_pixels

ANNOTATION_FOLDER = "Annotations"
IMAGE_FOLDERS = ("JPEGImages", "images", "")  # in the order in which an image is looked for
SET_FOLDER = "ImageSets/Main"
POLYGON_DIGITS = 2  # of the points of a polygon
MAX_XML_BYTES = 32 << 20

MASK = "a brush mask, and VOC has boxes and polygons"
KEYPOINT = "a keypoint, and VOC has boxes and polygons"
OUTSIDE = "a shape that lies outside of its image"

_INVALID_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class VocWriter(DatasetWriter):
    """Writes a VOC data set. A shape that is no polygon becomes the upright box around it."""

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._images = ImageSet(options)
        super().__init__(folder, options)
        self.folder.make_folder(ANNOTATION_FOLDER)
        sets = ("trainval", "train", "val") if options.has_validation else ("trainval",)
        self._sets: dict[str, BinaryIO] = {name: self.folder.create(f"{SET_FOLDER}/{name}.txt") for name in sets}

    def write(self, example: Example) -> None:
        value = self._images.value(example)
        regions = collect_regions(self._images.select(example), self.options.config, self.left_out)
        size = self._images.size(example, value, regions)
        objects = [text for region in regions for text in self._objects(region, size)]
        name = distinct_name(flat_name(value), value, lambda name: self.folder.exists(_xml_file(name)))
        self._images.add_file(self.folder, f"{IMAGE_FOLDERS[0]}/{name}", value, example.task)
        lines = [
            "<annotation>",
            f"  <folder>{IMAGE_FOLDERS[0]}</folder>",
            f"  <filename>{_escape(name)}</filename>",
            "  <source><database>lsml</database></source>",
            f"  <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
            "  <segmented>0</segmented>",
            *objects,
            "</annotation>",
        ]
        self.folder.write(_xml_file(name), "".join(f"{line}\n" for line in lines).encode())
        self.written += len(objects)
        for set_name, file in self._sets.items():
            if set_name in ("trainval", example.side):
                file.write(f"{PurePosixPath(name).stem}\n".encode())

    def _objects(self, region: ImageRegion, size: tuple[int, int]) -> Iterator[str]:
        """Yield an object for each label of a region."""
        if region.shape is None or region.shape.brush_rle is not None:
            self.left_out[KEYPOINT if region.shape is None else MASK] += 1
            return
        points = clip_points(to_pixels(region.shape.outline(), size), size)
        left, top, width, height = bounding_box(points)
        if width <= 0 or height <= 0:
            self.left_out[OUTSIDE] += 1
            return
        box = _format_box(left, top, left + width, top + height)
        polygon = _format_polygon(points) if region.kind == "polygon" else ""
        for label in region.labels:
            yield (
                f"  <object><name>{_escape(label)}</name><pose>Unspecified</pose><truncated>0</truncated>"
                f"<difficult>0</difficult>{box}{polygon}</object>"
            )

    def _finish(self) -> None:
        self._close()

    def _close(self) -> None:
        for file in self._sets.values():
            file.close()


def _format_box(left: float, top: float, right: float, bottom: float) -> str:
    """Return a box in whole pixels, at least one of each axis."""
    numbers = {"xmin": round(left) + 1, "ymin": round(top) + 1}
    numbers |= {"xmax": max(round(right), numbers["xmin"]), "ymax": max(round(bottom), numbers["ymin"])}
    return f"<bndbox>{''.join(f'<{name}>{number}</{name}>' for name, number in numbers.items())}</bndbox>"


def _format_polygon(points: Sequence[Point]) -> str:
    parts = [
        f"<x{i}>{round(x + 1, POLYGON_DIGITS)}</x{i}><y{i}>{round(y + 1, POLYGON_DIGITS)}</y{i}>"
        for i, (x, y) in enumerate(points, 1)
    ]
    return f"<polygon>{''.join(parts)}</polygon>"


def _escape(text: str) -> str:
    if _INVALID_XML.search(text):
        raise ValueError(f"XML cannot hold the name {text!r}")
    return escape(text)


def _xml_file(image_name: str) -> str:
    return f"{ANNOTATION_FOLDER}/{PurePosixPath(image_name).stem}.xml"


class VocSource(DatasetSource):
    """Reads a VOC data set: its folder, or one of its XML files."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        super().__init__(path, options)
        if self.path.is_file():
            self.root = self.path.parent.parent if self.path.parent.name == ANNOTATION_FOLDER else self.path.parent
            self._files = [self.path.relative_to(self.root).as_posix()]
        else:
            folder = ANNOTATION_FOLDER if (self.root / ANNOTATION_FOLDER).is_dir() else ""
            names = iter_files(self.root / folder, lambda name: name.lower().endswith(".xml"))
            self._files = [f"{folder}/{name}" if folder else name for name in names]
        if not self._files:
            raise InputError(f"{self.name} has no annotations.", f"They are XML files in a folder {ANNOTATION_FOLDER}.")
        labels, has_boxes, has_polygons = self._survey()
        shapes = {"RectangleLabels": has_boxes or not has_polygons, "PolygonLabels": has_polygons}
        needs = [Need(tag, labels) for tag, occurs in shapes.items() if occurs]
        needs = fit_needs(options.config, needs, labels)
        self._binding = bind_config(needs, options.config, options.data_key, title="Pascal VOC")
        self.label_config = self._binding.config

    def _survey(self) -> tuple[tuple[str, ...], bool, bool]:
        """Return the classes, whether there are boxes without a polygon, and whether there are polygons."""
        labels: dict[str, None] = {}
        has_boxes = has_polygons = False
        for path in self._files:
            try:
                objects = self._parse(path).findall("object")
            except ValueError:
                continue
            for entry in objects:
                if name := (entry.findtext("name") or "").strip():
                    labels[name] = None
                has_polygon = entry.find("polygon") is not None
                has_polygons |= has_polygon
                has_boxes |= not has_polygon
        return tuple(sorted(labels)), has_boxes, has_polygons

    def _parse(self, path: str) -> Any:
        """Return the root of an XML file; raise ValueError if it is no annotation."""
        from defusedxml import ElementTree
        from defusedxml.common import DefusedXmlException

        content = read_file(self.root, path)
        if len(content) > MAX_XML_BYTES:
            raise ValueError(f"it has more than {MAX_XML_BYTES:,} bytes")
        try:
            root = ElementTree.fromstring(content, forbid_dtd=True)
        except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
            raise ValueError(f"it is no XML that can be read: {' '.join(str(error).split())}") from None
        if root.tag != "annotation":
            raise ValueError(f"it is no annotation: its outermost tag is <{root.tag}>")
        return root

    def _iter_items(self) -> Iterator[Item]:
        for index, path in enumerate(self._files):
            share = (index + 1) / len(self._files)
            try:
                root = self._parse(path)
                image = self._find_image(root, path)
                data = {self._binding.data_key: self.media_value(image)}
                regions = list(self._regions(index, root, image))
            except ValueError as error:
                yield Item(path, {}, problem=str(error), share=share)
            else:
                yield Item(path, data, regions, share=share)

    def _find_image(self, root: Any, xml_path: str) -> str:
        """Return the path of the image of an annotation: where it is, else where it should be."""
        name = (root.findtext("filename") or "").strip()
        if not name:
            raise ValueError("it has no <filename>")
        folder = (root.findtext("folder") or "").strip()
        subfolder = PurePosixPath(xml_path).parent.relative_to(
            ANNOTATION_FOLDER if xml_path.startswith(f"{ANNOTATION_FOLDER}/") else "."
        )
        folders = [*(str(PurePosixPath(base) / subfolder) for base in IMAGE_FOLDERS), *IMAGE_FOLDERS, folder]
        candidates = [str(PurePosixPath(base) / name) for base in dict.fromkeys(folders)]
        self.media_value(name)  # raises where it leads out of the data set
        usable = [path for path in candidates if not path.startswith("/") and ".." not in PurePosixPath(path).parts]
        return next((path for path in usable if (self.root / path).is_file()), usable[0])

    def _regions(self, index: int, root: Any, image: str) -> Iterator[Region]:
        factory = RegionFactory(index)
        size: tuple[int, int] | None = None
        for number, entry in enumerate(root.findall("object"), 1):
            try:
                size = size or self._size(root, image)
                label = (entry.findtext("name") or "").strip()
                if not label:
                    raise ValueError("it has no <name>")
                tag, value = self._value(entry, size)
                yield from make_region(factory, self._binding.targets[tag], value, label, size)
            except ValueError as error:
                raise ValueError(f"object {number}: {error}") from None

    def _size(self, root: Any, image: str) -> tuple[int, int]:
        """Return (width, height) of the image, as the annotation says, else as the image does."""
        texts = [(root.findtext(f"size/{name}") or "").strip() for name in ("width", "height")]
        if all(re.fullmatch("[1-9][0-9]{0,5}", text) for text in texts):
            return int(texts[0]), int(texts[1])
        return read_image_size(self.root, image)

    def _value(self, entry: Any, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
        targets = self._binding.targets
        polygon = entry.find("polygon")
        if polygon is not None and "PolygonLabels" in targets:
            count = sum(child.tag.startswith("x") for child in polygon)
            points = [(_number(polygon, f"x{i}") - 1, _number(polygon, f"y{i}") - 1) for i in range(1, count + 1)]
            return "PolygonLabels", polygon_value(points, size)
        box = entry.find("bndbox")
        if box is None:
            raise ValueError("it has no <bndbox>")
        left, top = _number(box, "xmin") - 1, _number(box, "ymin") - 1
        right, bottom = _number(box, "xmax"), _number(box, "ymax")
        if "RectangleLabels" in targets:
            return "RectangleLabels", box_value((left, top, right - left, bottom - top), size)
        return "PolygonLabels", polygon_value([(left, top), (right, top), (right, bottom), (left, bottom)], size)


def _number(element: Any, name: str) -> float:
    text = (element.findtext(name) or "").strip()
    if not re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{0,20})?", text):
        raise ValueError(f"<{name}> is {text!r}, not a number of pixels")
    return float(text)
