"""Pictures with writing in them, and annotations that say what is written where."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

FONT = ImageFont.load_default(28)
MARGIN = 3  # pixels between letters and the box around them

OCR_CONFIG = """<View><Image name="image" value="$ocr"/>
  <Labels name="label" toName="image"><Label value="Text"/><Label value="Handwriting"/></Labels>
  <Rectangle name="bbox" toName="image"/><Polygon name="poly" toName="image"/>
  <TextArea name="transcription" toName="image" perRegion="true"/></View>"""
BOX_CONFIG = OCR_CONFIG.replace('<Polygon name="poly" toName="image"/>', "")
MERGED_CONFIG = """<View><Image name="image" value="$ocr"/>
  <RectangleLabels name="box" toName="image"><Label value="printed"/></RectangleLabels>
  <TextArea name="words" toName="image" perRegion="true"/></View>"""
WHOLE_IMAGE_CONFIG = '<View><Image name="image" value="$ocr"/><TextArea name="words" toName="image"/></View>'

# A text detector that finds what is dark; see blobs.py.
BLOB_DETECTOR_CONFIG = """
default_scope = "mmocr"
custom_imports = dict(imports=["tests.openmmlab.blobs"])
model = dict(
    type="Blobs",
    data_preprocessor=dict(type="TextDetDataPreprocessor", mean=[0, 0, 0], std=[255, 255, 255], pad_value=255,
                           pad_size_divisor=32),
)
test_dataloader = dict(dataset=dict(type="OCRDataset", pipeline=[
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(480, 480), keep_ratio=True),
    dict(type="PackTextDetInputs", meta_keys=("img_path", "ori_shape", "img_shape", "scale_factor")),
]))
"""

# DBNet at a quarter of its width, for pages of `pages`.
SMALL_DETECTOR_CONFIG = """
_base_ = "mmocr::textdet/dbnet/dbnet_resnet18_fpnc_1200e_icdar2015.py"
model = dict(neck=dict(lateral_channels=64, out_channels=16), det_head=dict(in_channels=64))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="LoadOCRAnnotations", with_polygon=True, with_bbox=True, with_label=True),
    dict(type="RandomCrop", min_side_ratio=0.3),
    dict(type="Resize", scale=(256, 256), keep_ratio=True),
    dict(type="Pad", size=(256, 256)),
    dict(type="PackTextDetInputs", meta_keys=("img_path", "ori_shape", "img_shape")),
]))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="Resize", scale=(256, 256), keep_ratio=True),
    dict(type="LoadOCRAnnotations", with_polygon=True, with_bbox=True, with_label=True),
    dict(type="PackTextDetInputs", meta_keys=("img_path", "ori_shape", "img_shape", "scale_factor")),
]))
"""


@dataclass(frozen=True)
class Word:
    """middle: in pixels; angle: degrees clockwise; ink: 0 is black."""

    text: str
    center: tuple[int, int]
    angle: float = 0
    ink: int = 0

    def corners(self) -> list[tuple[float, float]]:
        """Upper left, upper right, lower right, lower left, as it is read; in pixels."""
        wide, high = (each / 2 for each in self.size())
        sine, cosine = math.sin(math.radians(self.angle)), math.cos(math.radians(self.angle))
        corners = (-wide, -high), (wide, -high), (wide, high), (-wide, high)
        return [(self.center[0] + x * cosine - y * sine, self.center[1] + x * sine + y * cosine) for x, y in corners]

    def size(self) -> tuple[int, int]:
        """Width and height of the box around it, both even."""
        left, top, right, bottom = FONT.getbbox(self.text)
        return 2 * math.ceil((right - left) / 2 + MARGIN), 2 * math.ceil((bottom - top) / 2 + MARGIN)


def draw_page(words: Sequence[Word], size: tuple[int, int] = (480, 360)) -> Image.Image:
    """White, with these words on it."""
    found = Image.new("RGB", size, "white")
    for word in words:
        layer = Image.new("RGB", size, "white")
        ImageDraw.Draw(layer).text(word.center, word.text, font=FONT, fill=(word.ink,) * 3, anchor="mm")
        layer = layer.rotate(-word.angle, Image.Resampling.BICUBIC, center=word.center, fillcolor="white")
        found = Image.composite(layer, found, layer.convert("L").point(lambda value: 255 * (value < 255)))
    return found


def make_ocr_regions(word: Word, size: tuple[int, int], id: str, *, text: str | None = None) -> list[dict[str, Any]]:
    """The three regions of the OCR template for a box around a word, turned as the word is."""
    (left, top), (wide, high) = word.corners()[0], word.size()
    box = {
        "x": 100 * left / size[0],
        "y": 100 * top / size[1],
        "width": 100 * wide / size[0],
        "height": 100 * high / size[1],
        "rotation": word.angle,
    }
    shared = {"id": id, "to_name": "image", "original_width": size[0], "original_height": size[1], "image_rotation": 0}
    return [
        shared | {"from_name": "bbox", "type": "rectangle", "value": box},
        shared | {"from_name": "label", "type": "labels", "value": box | {"labels": ["Handwriting"]}},
        shared
        | {"from_name": "transcription", "type": "textarea", "value": box | {"text": [text or word.text]}},
    ]  # fmt: skip


def write_digit_images(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` pictures of a number of two or three digits, each an annotated task with a box around the number."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    size = (96, 56)
    tasks = []
    for number in range(1, count + 1):
        middle = size[0] // 2 + rng.randint(-8, 8), size[1] // 2 + rng.randint(-6, 6)
        word = Word(str(rng.randint(10, 999)), middle, ink=rng.randint(0, 90))
        draw_page([word], size).save(folder / f"{number}.png")
        tasks.append(
            {
                "id": number,
                "data": {"ocr": f"{folder.name}/{number}.png"},
                "annotations": [{"id": number, "result": make_ocr_regions(word, size, f"r{number}")}],
            }
        )
    return tasks


def write_pages(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` annotated pages of a few numbers each, some of them turned."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    size = (360, 300)
    tasks = []
    for number in range(1, count + 1):
        words = [
            Word(str(rng.randint(10, 999)), (60 + 120 * column, 50 + 100 * row), rng.choice([0, 0, 25, -20]))
            for row in range(3)
            for column in range(3)
            if rng.random() < 0.6 or row == column == 0
        ]
        draw_page(words, size).save(folder / f"{number}.png")
        result = [region for i, word in enumerate(words) for region in make_ocr_regions(word, size, f"p{number}-{i}")]
        task = {"id": number, "data": {"ocr": f"{folder.name}/{number}.png"}}
        tasks.append(task | {"annotations": [{"id": number, "result": result}]})
    return tasks
