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
from lsml_cli.models.ocr.postprocess import Filling
from lsml_cli.models.openmmlab.image_files import Gathered, pixels

if TYPE_CHECKING:
    from lsml_cli.models.openmmlab.image_files import Pixels

TOO_SMALL = "too small to be read"
SEVERAL_LINES = "of several lines"


@dataclass(frozen=True)
class Snippet:
    """A crop in a file, and what is written on it."""

    path: Path
    text: str


def snippets(
    gathered: Iterable[tuple[Gathered, Filling]], folder: Path, left_out: Counter[str]
) -> Iterator[Snippet]:  # fmt: skip
    """The texts that somebody has transcribed, one picture at a time; what cannot be learned is counted, by reason."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for each, filling in gathered:
        picture = pixels(each.path.read_bytes())
        for crop, text in _texts(picture, each, filling):
            if "\n" in text:
                left_out[SEVERAL_LINES] += 1
            elif crop is None:
                left_out[TOO_SMALL] += 1
            elif text := plain(text):
                path = folder / f"{number:07}.png"
                if not cv2.imwrite(str(path), crop):
                    raise OSError(f"{path} cannot be written; is the disk full?")
                number += 1
                yield Snippet(path, text)


def _texts(picture: Pixels, each: Gathered, filling: Filling) -> Iterator[tuple[Pixels | None, str]]:
    """Each transcription with its crop."""
    result = each.example.annotation.result
    if filling.whole:
        if text := existing_shapes.text_about(result, filling):
            yield crops.fitting(picture), text
        return
    for one in existing_shapes.written(result, filling, each.size):
        if one.text:
            yield crops.rectified(picture, one.points, in_order=one.in_order), one.text


def plain(text: str) -> str:
    """An é is one character, and so is whatever space there is between two words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def write_snippets(found: Sequence[Snippet], path: Path, spelled: Callable[[str], str]) -> None:
    """In MMOCR's form. spelled: a text -> the text as it is learned."""
    _write(
        [{"img_path": str(each.path), "instances": [{"text": spelled(each.text)}]} for each in found],
        path,
        {"dataset_type": "TextRecogDataset", "task_name": "textrecog"},
    )


def write_shapes(gathered: Iterable[tuple[Gathered, Filling]], path: Path) -> tuple[int, int]:
    """Pictures with the polygons of their texts, in MMOCR's form; how many of both there are.

    A picture without any is left out: the toolkit's own recipes cut out parts with text, and find none.
    """
    found: list[dict[str, Any]] = []
    texts = 0
    for each, filling in gathered:
        written = existing_shapes.written(each.example.annotation.result, filling, each.size)
        shapes = [crops.clipped(one.points, each.size) for one in written]
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
        "bbox": [round(part, 2) for part in crops.box_of(points)],
        "bbox_label": 0,
        "ignore": False,
    }


def _write(found: Sequence[Any], path: Path, about: dict[str, Any]) -> None:
    path.write_text(json.dumps({"metainfo": about, "data_list": found}), "utf-8")
