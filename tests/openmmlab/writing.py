"""Draw images with text, and annotate it; configs of small models for them."""

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
MAX_TILT = 8  # degrees

OCR_CONFIG = """<View><Image name="image" value="$ocr"/>
  <Labels name="label" toName="image"><Label value="Text"/><Label value="Handwriting"/></Labels>
  <Rectangle name="bbox" toName="image"/><Polygon name="poly" toName="image"/>
  <TextArea name="transcription" toName="image" perRegion="true"/></View>"""
BOX_CONFIG = OCR_CONFIG.replace('<Polygon name="poly" toName="image"/>', "")
MERGED_CONFIG = """<View><Image name="image" value="$ocr"/>
  <RectangleLabels name="box" toName="image"><Label value="printed"/></RectangleLabels>
  <TextArea name="words" toName="image" perRegion="true"/></View>"""
WHOLE_IMAGE_CONFIG = '<View><Image name="image" value="$ocr"/><TextArea name="words" toName="image"/></View>'

# A text detector that finds dark areas; see blobs.py.
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

# A recognizer with a hundredth of CRNN's computations: it learns to read digits in seconds instead of minutes.
SMALL_RECOGNIZER_CONFIG = """
_base_ = "mmocr::textrecog/crnn/crnn_mini-vgg_5e_mj.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNet",
        in_channels=1,
        stem_channels=[16],
        block_cfgs=dict(type="BasicBlock"),
        arch_layers=[1, 1, 1, 1, 1],
        arch_channels=[16, 32, 32, 64, 64],
        strides=[(2, 2), (2, 2), (2, 1), (2, 1), (2, 1)],
    ),
    decoder=dict(in_channels=64, rnn_flag=False),
)
"""

# DBNet at a quarter of its width, for the pages of `write_pages`.
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
    """A word on a page.

    Args:
        text: The word.
        center: In pixels.
        angle: Clockwise rotation in degrees.
        ink: Gray value; 0 is black.
    """

    text: str
    center: tuple[int, int]
    angle: float = 0
    ink: int = 0

    def corners(self) -> list[tuple[float, float]]:
        """Return upper left, upper right, lower right, lower left of the text, in pixels."""
        half_width, half_height = (side / 2 for side in self.size())
        sine, cosine = math.sin(math.radians(self.angle)), math.cos(math.radians(self.angle))
        corners = (
            (-half_width, -half_height),
            (half_width, -half_height),
            (half_width, half_height),
            (-half_width, half_height),
        )
        return [(self.center[0] + x * cosine - y * sine, self.center[1] + x * sine + y * cosine) for x, y in corners]

    def size(self) -> tuple[int, int]:
        """Return width and height of the box around it, both even."""
        left, top, right, bottom = FONT.getbbox(self.text)
        return 2 * math.ceil((right - left) / 2 + MARGIN), 2 * math.ceil((bottom - top) / 2 + MARGIN)


def draw_page(words: Sequence[Word], size: tuple[int, int] = (480, 360)) -> Image.Image:
    """Draw words on a white page."""
    page = Image.new("RGB", size, "white")
    for word in words:
        layer = Image.new("RGB", size, "white")
        ImageDraw.Draw(layer).text(word.center, word.text, font=FONT, fill=(word.ink,) * 3, anchor="mm")
        layer = layer.rotate(-word.angle, Image.Resampling.BICUBIC, center=word.center, fillcolor="white")
        page = Image.composite(layer, page, layer.convert("L").point(lambda value: 255 * (value < 255)))
    return page


def make_ocr_regions(word: Word, size: tuple[int, int], id: str, *, text: str | None = None) -> list[dict[str, Any]]:
    """Return the three regions of the OCR template for a box around a word, rotated with it."""
    (left, top), (width, height) = word.corners()[0], word.size()
    box = {
        "x": 100 * left / size[0],
        "y": 100 * top / size[1],
        "width": 100 * width / size[0],
        "height": 100 * height / size[1],
        "rotation": word.angle,
    }
    shared = {"id": id, "to_name": "image", "original_width": size[0], "original_height": size[1], "image_rotation": 0}
    return [
        shared | {"from_name": "bbox", "type": "rectangle", "value": box},
        shared | {"from_name": "label", "type": "labels", "value": box | {"labels": ["Handwriting"]}},
        shared | {"from_name": "transcription", "type": "textarea", "value": box | {"text": [text or word.text]}},
    ]


def write_digit_images(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw images of a number of two or three digits; return annotated tasks with a box around each number.

    Half of the numbers are tilted a little: a recognizer that sees only level ones is soon perfect on these, and does
    not learn enough to read the rotated ones of `write_pages`.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    size = (96, 56)
    tasks = []
    for number in range(1, count + 1):
        center = size[0] // 2 + rng.randint(-8, 8), size[1] // 2 + rng.randint(-6, 6)
        angle = rng.choice([0, rng.randint(-MAX_TILT, MAX_TILT)])
        word = Word(str(rng.randint(10, 999)), center, angle, ink=rng.randint(0, 90))
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
    """Draw pages of a few numbers each, some of them rotated; return annotated tasks."""
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
