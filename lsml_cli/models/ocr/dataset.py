"""Annotated pictures -> what a recogniser and a text detector learn from, as files of MMOCR's own kind."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.models.ocr import crops, existing_shapes
from lsml_cli.models.ocr.postprocess import ControlBinding
from lsml_cli.models.openmmlab.image_files import TrainingImage, decode_image

if TYPE_CHECKING:
    from lsml_cli.models.openmmlab.image_files import ImageArray

TOO_SMALL = "too small to be read"
SEVERAL_LINES = "of several lines"


@dataclass(frozen=True)
class TextCrop:
    """A crop in a file, and what is written on it."""

    path: Path
    text: str


def extract_text_crops(
    training_images: Iterable[tuple[TrainingImage, ControlBinding]], folder: Path, skipped: Counter[str]
) -> Iterator[TextCrop]:  # fmt: skip
    """The texts that somebody has transcribed, one picture at a time; what cannot be learned is counted, by reason."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for each, filling in training_images:
        picture = decode_image(each.path.read_bytes())
        for crop, text in _iter_texts(picture, each, filling):
            if "\n" in text:
                skipped[SEVERAL_LINES] += 1
            elif crop is None:
                skipped[TOO_SMALL] += 1
            elif text := normalize_text(text):
                path = folder / f"{number:07}.png"
                if not cv2.imwrite(str(path), crop):
                    raise OSError(f"{path} cannot be written; is the disk full?")
                number += 1
                yield TextCrop(path, text)


def _iter_texts(
    image: ImageArray, training_image: TrainingImage, control_binding: ControlBinding
) -> Iterator[tuple[ImageArray | None, str]]:
    """Each transcription with its crop."""
    result = training_image.example.annotation.result
    if control_binding.is_whole_image:
        if text := existing_shapes.whole_image_text(result, control_binding):
            yield crops.fit_crop(image), text
        return
    for one in existing_shapes.transcribed_shapes(result, control_binding, training_image.size):
        if one.text:
            yield crops.rectify(image, one.points, has_reading_order=one.has_reading_order), one.text


def normalize_text(text: str) -> str:
    """An é is one character, and so is whatever space there is between two words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def write_recognition_dataset(text_crops: Sequence[TextCrop], path: Path, transform: Callable[[str], str]) -> None:
    """In MMOCR's form. spelled: a text -> the text as it is learned."""
    _write(
        [{"img_path": str(each.path), "instances": [{"text": transform(each.text)}]} for each in text_crops],
        path,
        {"dataset_type": "TextRecogDataset", "task_name": "textrecog"},
    )


def write_detection_dataset(
    training_images: Iterable[tuple[TrainingImage, ControlBinding]], path: Path
) -> tuple[int, int]:
    """Pictures with the polygons of their texts, in MMOCR's form; how many of both there are.

    A picture without any is left out: the toolkit's own recipes cut out parts with text, and find none.
    """
    found: list[dict[str, Any]] = []
    texts = 0
    for each, filling in training_images:
        written = existing_shapes.transcribed_shapes(each.example.annotation.result, filling, each.size)
        shapes = [crops.clip_polygon(one.points, each.size) for one in written]
        if instances := [_instance(points) for points in shapes if points]:
            width, height = each.size
            found.append({"img_path": str(each.path), "height": height, "width": width, "instances": instances})
            texts += len(instances)
    about = {"dataset_type": "TextDetDataset", "task_name": "textdet", "category": [{"id": 0, "name": "text"}]}
    _write(found, path, about)
    return len(found), texts


def _instance(points: Sequence[crops.Point]) -> dict[str, Any]:
    return {
        "polygon": [round(part, 2) for point in points for part in point],
        "bbox": [round(part, 2) for part in crops.bounding_box(points)],
        "bbox_label": 0,
        "ignore": False,
    }


def _write(data_list: Sequence[Any], path: Path, metainfo: dict[str, Any]) -> None:
    path.write_text(json.dumps({"metainfo": metainfo, "data_list": data_list}), "utf-8")
