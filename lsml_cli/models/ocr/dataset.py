"""Turn annotated images into datasets in MMOCR's format, for a recognizer and for a text detector."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.models.ocr import crops, existing_shapes
from lsml_cli.models.ocr.binding import ControlBinding
from lsml_cli.models.openmmlab.image_files import TrainingImage, decode_image

if TYPE_CHECKING:
    from lsml_cli.models.openmmlab.image_files import ImageArray

TOO_SMALL = "too small to be read"
SEVERAL_LINES = "of several lines"


@dataclass(frozen=True)
class TextCrop:
    """A crop in a file, and the text in it."""

    path: Path
    text: str


def extract_text_crops(
    training_images: Iterable[tuple[TrainingImage, ControlBinding]], folder: Path, skipped: Counter[str]
) -> Iterator[TextCrop]:
    """Write the crops of transcribed texts into files.

    Args:
        training_images: Images with the controls about them.
        folder: For the crops; created.
        skipped: Counts, by reason, the texts that cannot be learned.
    """
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for training_image, control_binding in training_images:
        image = decode_image(training_image.path.read_bytes())
        for crop, text in _iter_texts(image, training_image, control_binding):
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
    """Yield each transcription with its crop; None for one that is too small."""
    result = training_image.example.annotation.result
    if control_binding.is_whole_image:
        if text := existing_shapes.whole_image_text(result, control_binding):
            yield crops.fit_crop(image), text
        return
    for shape in existing_shapes.transcribed_shapes(result, control_binding, training_image.size):
        if shape.text:
            yield crops.rectify(image, shape.points, has_reading_order=shape.has_reading_order), shape.text


def normalize_text(text: str) -> str:
    """Normalize to Unicode NFC, so that an é is one character, and to single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def write_recognition_dataset(text_crops: Sequence[TextCrop], path: Path) -> None:
    """Write crops and their texts as a dataset."""
    _write(
        [{"img_path": str(crop.path), "instances": [{"text": crop.text}]} for crop in text_crops],
        path,
        {"dataset_type": "TextRecogDataset", "task_name": "textrecog"},
    )


def write_detection_dataset(
    training_images: Iterable[tuple[TrainingImage, ControlBinding]], path: Path
) -> tuple[int, int]:
    """Write images and the polygons of their texts as a dataset; return the numbers of images and of texts.

    Images without text are left out: the toolkit's own training pipelines look for a crop with text.
    """
    data_list: list[dict[str, Any]] = []
    num_texts = 0
    for image, control_binding in training_images:
        shapes = existing_shapes.transcribed_shapes(image.example.annotation.result, control_binding, image.size)
        polygons = [crops.clip_polygon(shape.points, image.size) for shape in shapes]
        if instances := [_instance(points) for points in polygons if points]:
            width, height = image.size
            data_list.append({"img_path": str(image.path), "height": height, "width": width, "instances": instances})
            num_texts += len(instances)
    metainfo = {"dataset_type": "TextDetDataset", "task_name": "textdet", "category": [{"id": 0, "name": "text"}]}
    _write(data_list, path, metainfo)
    return len(data_list), num_texts


def _instance(points: Sequence[crops.Point]) -> dict[str, Any]:
    return {
        "polygon": [round(coordinate, 2) for point in points for coordinate in point],
        "bbox": [round(coordinate, 2) for coordinate in crops.bounding_box(points)],
        "bbox_label": 0,
        "ignore": False,
    }


def _write(data_list: Sequence[Any], path: Path, metainfo: dict[str, Any]) -> None:
    path.write_text(json.dumps({"metainfo": metainfo, "data_list": data_list}), "utf-8")
