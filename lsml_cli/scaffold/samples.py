"""Tasks for a new project, so that it runs before anybody has exported anything. The same ones every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

TEXT_CONFIG = """<View>
  <Text name="message" value="$text"/>
  <Choices name="mood" toName="message" choice="single" showInline="true">
    <Choice value="Praise"/>
    <Choice value="Complaint"/>
  </Choices>
</View>
"""
IMAGE_CONFIG = """<View>
  <Image name="picture" value="$image"/>
  <Choices name="time" toName="picture" choice="single" showInline="true">
    <Choice value="Day"/>
    <Choice value="Night"/>
  </Choices>
</View>
"""
_PRAISE_PHRASES = ("I love", "We are very happy with", "Thank you so much for", "Wonderful, just what I wanted:")
_COMPLAINT_PHRASES = ("I am disappointed by", "Please take back", "It broke after a day,", "Never again will I buy")
_PRODUCT_PHRASES = (
    "the lamp",
    "the kettle",
    "this chair",
    "the blue mug",
    "my new radio",
    "the bicycle bell",
    "this tent",
)
UNLABELED_PER_CLASS = 8  # tasks of each kind that nobody has annotated
IMAGE_SIZE = 64  # pixels of a side


BOX_CONFIG = """<View>
  <Image name="picture" value="$image"/>
  <RectangleLabels name="thing" toName="picture">
    <Label value="Sun"/>
    <Label value="Boat"/>
  </RectangleLabels>
</View>
"""
WORD_CONFIG = """<View>
  <Image name="picture" value="$image"/>
  <TextArea name="text" toName="picture" editable="true"/>
</View>
"""


@dataclass(frozen=True)
class SampleData:
    """config: its labelling XML. tasks: (annotated tasks, fresh ones); it is given a folder to write pictures into."""

    label_config: str
    make_tasks: Callable[[Path], tuple[list[Any], list[Any]]]


def make_texts() -> tuple[list[Any], list[Any]]:
    """(annotated tasks, fresh ones): short messages to a shop."""
    said = [
        (f"{begun} {thing}!", mood)
        for pairs in zip(
            product(_PRAISE_PHRASES, _PRODUCT_PHRASES), product(_COMPLAINT_PHRASES, _PRODUCT_PHRASES), strict=True
        )
        for (begun, thing), mood in zip(pairs, ("Praise", "Complaint"), strict=True)
    ]
    return _make_choice_tasks([{"text": text} for text, _ in said], [mood for _, mood in said], ("mood", "message"))


def make_images(folder: Path) -> tuple[list[Any], list[Any]]:
    """The same for pictures, which are written into `folder`: a sky over the sea, by day and by night."""
    from PIL import Image

    data, times = [], []
    folder.mkdir(exist_ok=True)
    for number, (horizon, tint) in enumerate(islice(product(range(20, 45, 2), range(0, 40, 10)), 28)):
        for time, sky, sea in (
            ("Day", (150 + tint, 200, 255), (40, 110, 180)),
            ("Night", (10 + tint // 2, 15, 50), (5, 10, 25)),
        ):
            picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), sky)
            picture.paste(sea, (0, horizon, IMAGE_SIZE, IMAGE_SIZE))
            path = folder / f"{time.lower()}-{number:02}.png"
            picture.save(path)
            data.append({"image": f"{folder.name}/{path.name}"})
            times.append(time)
    return _make_choice_tasks(data, times, ("time", "picture"))


def make_boxes(folder: Path) -> tuple[list[Any], list[Any]]:
    """The same for boxes: a sun over the sea, and sometimes a boat."""
    from PIL import Image, ImageDraw

    data, answers = [], []
    folder.mkdir(exist_ok=True)
    for number, (left, top, sail) in enumerate(islice(product(range(8, 90, 20), range(6, 36, 8), range(4)), 70)):
        picture = Image.new("RGB", (2 * IMAGE_SIZE, 2 * IMAGE_SIZE), (150, 200, 255 - number))
        picture.paste((40, 110, 180), (0, 80, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE))
        pen = ImageDraw.Draw(picture)
        things = [("Sun", (left, top, left + 24, top + 24))]
        pen.ellipse(things[0][1], fill=(255, 220, 60))
        if sail:
            x = (37 * number) % 80
            things.append(("Boat", (x, 84, x + 20 + 8 * sail, 100)))
            pen.rectangle(things[1][1], fill=(120, 60, 20))
        path = folder / f"sea-{number:02}.png"
        picture.save(path)
        data.append({"image": f"{folder.name}/{path.name}"})
        answers.append([_make_box_region(label, place, picture.size) for label, place in things])
    return _split_tasks(data, answers)


def make_ocr_words(folder: Path) -> tuple[list[Any], list[Any]]:
    """The same for writing: a picture is a number."""
    from PIL import Image, ImageDraw, ImageFont

    data, answers = [], []
    folder.mkdir(exist_ok=True)
    font = ImageFont.load_default(24)
    for number in range(210):
        text = str((number * 7919) % 1000)
        picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE // 2), (250, 245, 200 + number % 50))
        at = 2 + number % 10, number % 5
        ImageDraw.Draw(picture).text(at, text, fill=(20, 20, 60), font=font)
        path = folder / f"label-{number:03}.png"
        picture.save(path)
        data.append({"image": f"{folder.name}/{path.name}"})
        region = {"id": "answer", "from_name": "text", "to_name": "picture", "type": "textarea"}
        answers.append([region | {"value": {"text": [text]}}])
    return _split_tasks(data, answers)


def _make_box_region(label: str, bounds: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """A region of the picture; place: left, top, right, bottom in pixels."""
    left, right = (round(100 * each / size[0], 4) for each in bounds[::2])
    top, bottom = (round(100 * each / size[1], 4) for each in bounds[1::2])
    value = {"x": left, "y": top, "width": round(right - left, 4), "height": round(bottom - top, 4), "rotation": 0}
    return {
        "id": label.lower(),
        "from_name": "thing",
        "to_name": "picture",
        "type": "rectanglelabels",
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "value": value | {"rectanglelabels": [label]},
    }


def _make_choice_tasks(
    data: list[dict[str, str]], labels: list[str], control: tuple[str, str]
) -> tuple[list[Any], list[Any]]:
    """Tasks with one choice each."""
    name, to_name = control
    region = {"id": "answer", "from_name": name, "to_name": to_name, "type": "choices"}
    return _split_tasks(data, [[region | {"value": {"choices": [label]}}] for label in labels])


def _split_tasks(data: list[dict[str, str]], results: list[list[dict[str, Any]]]) -> tuple[list[Any], list[Any]]:
    fresh = {number for number in range(len(data)) if number % 7 >= 5}
    annotated: list[Any] = []
    left: list[Any] = []
    for number, (each, result) in enumerate(zip(data, results, strict=True)):
        if number in fresh and len(left) < 2 * UNLABELED_PER_CLASS:
            left.append({"id": number + 1, "data": each})
            continue
        annotation = {"id": number + 1, "result": result, "was_cancelled": False, "ground_truth": False}
        annotated.append({"id": number + 1, "data": each, "annotations": [annotation]})
    return annotated, left


TEXTS = SampleData(TEXT_CONFIG, lambda folder: make_texts())
IMAGES = SampleData(IMAGE_CONFIG, make_images)
BOXES = SampleData(BOX_CONFIG, make_boxes)
WORDS = SampleData(WORD_CONFIG, make_ocr_words)
