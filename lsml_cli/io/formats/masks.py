"""Masks as PNG: a picture of the size of each image, whose pixels say what is there.

    classes.txt              a class a line; the first is number 1, and 0 is background
    images/a.jpg
    semantic/a.png           each pixel is the number of its class
    instance/a.png           each pixel is the number of its region in the image, from 1 (variant instance alone)

Of regions that overlap, the later one is on top. Pixels have 8 bits, or 16 where there are more than 255 numbers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import InputError
from lsml_cli.io.formats.config_binding import Need, bind_config
from lsml_cli.io.formats.dataset_source import DatasetSource, Item, ReadOptions, RegionFactory
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, WriteOptions
from lsml_cli.io.formats.image_regions import HULL_TYPES, ClassList, collect_regions
from lsml_cli.io.formats.image_set import ImageSet, distinct_name, flat_name
from lsml_cli.io.formats.image_source import iter_files, make_region, read_file
from lsml_cli.io.image_paths import IMAGE_SUFFIXES
from lsml_cli.runtime import read_small_file
from lsml_cli.schema.brush_rle import MAX_PIXELS, encode_rle
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.shapes import draw_mask

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

VARIANTS = ("semantic", "instance")
CLASSES_FILE = "classes.txt"
SEMANTIC, INSTANCE, IMAGES = "semantic", "instance", "images"
MAX_NUMBER = 65_535  # of 16 bits
MAX_CLASS_BYTES = 10 << 20

KEYPOINT = "a keypoint, which has no pixels"
EMPTY = "a shape without a pixel in its image"
MERGED = "further labels of a region, of which a pixel has one"


class MasksWriter(DatasetWriter):
    """Writes masks; the variant is semantic unless another one is named."""

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._images = ImageSet(options)
        self._classes = ClassList(options.config, HULL_TYPES)
        super().__init__(folder, options)
        self._has_instances = options.variant == INSTANCE
        self.folder.make_folder(SEMANTIC)

    def write(self, example: Example) -> None:
        import numpy as np

        value = self._images.value(example)
        regions = collect_regions(self._images.select(example), self.options.config, self.left_out)
        width, height = size = self._images.size(example, value, regions)
        if width * height > MAX_PIXELS:
            raise ValueError(f"its image has {width:,} x {height:,} pixels, and {MAX_PIXELS:,} is the most")
        classes, instances = (np.zeros((height, width), np.uint16) for _ in range(2))
        count = 0
        for region in regions:
            if region.shape is None:
                self.left_out[KEYPOINT] += 1
                continue
            drawn = draw_mask(region.shape, size) > 0
            if not drawn.any():
                self.left_out[EMPTY] += 1
                continue
            if len(region.labels) > 1:
                self.left_out[MERGED] += len(region.labels) - 1
            count += 1
            if count > MAX_NUMBER:
                raise ValueError(f"it has more than {MAX_NUMBER:,} regions")
            classes[drawn] = self._classes.number(region.labels[0]) + 1
            instances[drawn] = count
        name = distinct_name(flat_name(value), value, lambda name: self.folder.exists(_mask_file(SEMANTIC, name)))
        self._images.add_file(self.folder, f"{IMAGES}/{name}", value, example.task)
        self.folder.write(_mask_file(SEMANTIC, name), encode_png(classes))
        if self._has_instances:
            self.folder.write(_mask_file(INSTANCE, name), encode_png(instances))
        self.written += count

    def _finish(self) -> None:
        names = [" ".join(name.split()) for name in self._classes.names]
        self.folder.write(CLASSES_FILE, "".join(f"{name}\n" for name in names).encode())


def _mask_file(folder: str, image_name: str) -> str:
    return f"{folder}/{PurePosixPath(image_name).stem}.png"


def encode_png(numbers: npt.NDArray[np.uint16]) -> bytes:
    """Return a grey PNG of 8 bits, or of 16 where a number needs them."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(numbers if numbers.max(initial=0) > 255 else numbers.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(content: bytes) -> npt.NDArray[np.uint16]:
    """Return the numbers of the pixels of a PNG: grey values, or places in its palette.

    Raises:
        ValueError: It is no such picture.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"the mask has {image.width:,} x {image.height:,} pixels")
            if image.mode not in ("L", "P", "1", "I;16", "I;16B", "I"):
                raise ValueError(f"the mask has colours ({image.mode}), and numbers of classes are expected")
            pixels = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the mask is no PNG that can be read: {error}") from None
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > MAX_NUMBER:
        raise ValueError("the mask holds numbers beyond 16 bits")
    return pixels.astype(np.uint16)


class MasksSource(DatasetSource):
    """Reads masks: a folder with `semantic/` and `classes.txt`, and `instance/` where regions are told apart."""

    def __init__(self, path: str, options: ReadOptions) -> None:
        super().__init__(path, options)
        if not (self.root / SEMANTIC).is_dir():
            raise InputError(f"{self.name} has no folder {SEMANTIC} with masks.", "Name the folder above it.")
        self._masks = list(iter_files(self.root / SEMANTIC, lambda name: name.lower().endswith(".png")))
        self._names = self._read_names()
        self._has_instances = options.variant != SEMANTIC and (self.root / INSTANCE).is_dir()
        needs = [Need("BrushLabels", tuple(dict.fromkeys(self._names)))]
        self._binding = bind_config(needs, options.config, options.data_key, title="A data set of masks")
        self.label_config = self._binding.config

    def _read_names(self) -> list[str]:
        try:
            text = read_small_file(self.root / CLASSES_FILE, MAX_CLASS_BYTES).decode("utf-8", "replace")
        except OSError:
            raise InputError(
                f"The classes of {self.name} have no names: there is no {CLASSES_FILE}.",
                "Write them into it, a line each; the first is number 1.",
            ) from None
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _iter_items(self) -> Iterator[Item]:
        for index, path in enumerate(self._masks):
            share = (index + 1) / len(self._masks)
            location = f"{SEMANTIC}/{path}"
            try:
                data = {self._binding.data_key: self.media_value(self._find_image(path))}
                regions = list(self._regions(index, path))
            except ValueError as error:
                yield Item(location, {}, problem=str(error), share=share)
            else:
                yield Item(location, data, regions, share=share)

    def _find_image(self, mask_path: str) -> str:
        stem = f"{IMAGES}/{PurePosixPath(mask_path).with_suffix('')}"
        names = [stem + suffix for suffix in (".jpg", ".png", ".jpeg", *sorted(IMAGE_SUFFIXES))]
        return next((name for name in names if (self.root / name).is_file()), names[0])

    def _regions(self, index: int, path: str) -> Iterator[Region]:
        import numpy as np

        classes = decode_png(read_file(self.root, f"{SEMANTIC}/{path}"))
        height, width = classes.shape
        if (highest := int(classes.max(initial=0))) > len(self._names):
            raise ValueError(f"there is no class {highest} in {CLASSES_FILE}")
        numbers = decode_png(read_file(self.root, f"{INSTANCE}/{path}")) if self._has_instances else classes
        if numbers.shape != classes.shape:
            raise ValueError(f"the mask below {INSTANCE} has another size")
        factory = RegionFactory(index)
        for number in np.unique(numbers[classes > 0]).tolist():
            mask = (numbers == number) & (classes > 0)
            label = self._names[int(np.bincount(classes[mask]).argmax()) - 1]
            value: dict[str, Any] = {"format": "rle", "rle": list(encode_rle(mask.astype(np.uint8) * 255, repeat=4))}
            yield from make_region(factory, self._binding.targets["BrushLabels"], value, label, (width, height))
