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
_PRAISE = ("I love", "We are very happy with", "Thank you so much for", "Wonderful, just what I wanted:")
_COMPLAINT = ("I am disappointed by", "Please take back", "It broke after a day,", "Never again will I buy")
_THINGS = ("the lamp", "the kettle", "this chair", "the blue mug", "my new radio", "the bicycle bell", "this tent")
FRESH = 8  # tasks of each kind that nobody has annotated
SIZE = 64  # pixels of a side


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
class Sample:
    """config: its labelling XML. tasks: (annotated tasks, fresh ones); it is given a folder to write pictures into."""

    config: str
    tasks: Callable[[Path], tuple[list[Any], list[Any]]]


def texts() -> tuple[list[Any], list[Any]]:
    """(annotated tasks, fresh ones): short messages to a shop."""
    said = [
        (f"{begun} {thing}!", mood)
        for pairs in zip(product(_PRAISE, _THINGS), product(_COMPLAINT, _THINGS), strict=True)
        for (begun, thing), mood in zip(pairs, ("Praise", "Complaint"), strict=True)
    ]
    return _split([{"text": text} for text, _ in said], [mood for _, mood in said], ("mood", "message"))


def pictures(folder: Path) -> tuple[list[Any], list[Any]]:
    """The same for pictures, which are written into `folder`: a sky over the sea, by day and by night."""
    from PIL import Image

    data, times = [], []
    folder.mkdir(exist_ok=True)
    for number, (horizon, tint) in enumerate(islice(product(range(20, 45, 2), range(0, 40, 10)), 28)):
        for time, sky, sea in (
            ("Day", (150 + tint, 200, 255), (40, 110, 180)),
            ("Night", (10 + tint // 2, 15, 50), (5, 10, 25)),
        ):
            picture = Image.new("RGB", (SIZE, SIZE), sky)
            picture.paste(sea, (0, horizon, SIZE, SIZE))
            path = folder / f"{time.lower()}-{number:02}.png"
            picture.save(path)
            data.append({"image": f"{folder.name}/{path.name}"})
            times.append(time)
    return _split(data, times, ("time", "picture"))


def boxes(folder: Path) -> tuple[list[Any], list[Any]]:
    """The same for boxes: a sun over the sea, and sometimes a boat."""
    from PIL import Image, ImageDraw

    data, answers = [], []
    folder.mkdir(exist_ok=True)
    for number, (left, top, sail) in enumerate(islice(product(range(8, 90, 20), range(6, 36, 8), range(4)), 70)):
        picture = Image.new("RGB", (2 * SIZE, 2 * SIZE), (150, 200, 255 - number))
        picture.paste((40, 110, 180), (0, 80, 2 * SIZE, 2 * SIZE))
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
        answers.append([_box(label, place, picture.size) for label, place in things])
    return _divided(data, answers)


def words(folder: Path) -> tuple[list[Any], list[Any]]:
    """The same for writing: a picture is a number."""
    from PIL import Image, ImageDraw, ImageFont

    data, answers = [], []
    folder.mkdir(exist_ok=True)
    font = ImageFont.load_default(24)
    for number in range(210):
        text = str((number * 7919) % 1000)
        picture = Image.new("RGB", (SIZE, SIZE // 2), (250, 245, 200 + number % 50))
        at = 2 + number % 10, number % 5
        ImageDraw.Draw(picture).text(at, text, fill=(20, 20, 60), font=font)
        path = folder / f"label-{number:03}.png"
        picture.save(path)
        data.append({"image": f"{folder.name}/{path.name}"})
        region = {"id": "answer", "from_name": "text", "to_name": "picture", "type": "textarea"}
        answers.append([region | {"value": {"text": [text]}}])
    return _divided(data, answers)


def _box(label: str, place: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """A region of the picture; place: left, top, right, bottom in pixels."""
    left, right = (round(100 * each / size[0], 4) for each in place[::2])
    top, bottom = (round(100 * each / size[1], 4) for each in place[1::2])
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


def _split(data: list[dict[str, str]], labels: list[str], control: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    """Tasks with one choice each."""
    name, to_name = control
    region = {"id": "answer", "from_name": name, "to_name": to_name, "type": "choices"}
    return _divided(data, [[region | {"value": {"choices": [label]}}] for label in labels])


def _divided(data: list[dict[str, str]], answers: list[list[dict[str, Any]]]) -> tuple[list[Any], list[Any]]:
    fresh = {number for number in range(len(data)) if number % 7 >= 5}
    annotated: list[Any] = []
    left: list[Any] = []
    for number, (each, result) in enumerate(zip(data, answers, strict=True)):
        if number in fresh and len(left) < 2 * FRESH:
            left.append({"id": number + 1, "data": each})
            continue
        annotation = {"id": number + 1, "result": result, "was_cancelled": False, "ground_truth": False}
        annotated.append({"id": number + 1, "data": each, "annotations": [annotation]})
    return annotated, left


TEXTS = Sample(TEXT_CONFIG, lambda folder: texts())
PICTURES = Sample(IMAGE_CONFIG, pictures)
BOXES = Sample(BOX_CONFIG, boxes)
WORDS = Sample(WORD_CONFIG, words)
