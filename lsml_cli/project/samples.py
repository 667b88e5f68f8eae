"""Tasks for a new project, so that it runs before anybody has exported anything. The same ones every time."""

from __future__ import annotations

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


def _split(data: list[dict[str, str]], labels: list[str], control: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    fresh = {number for number in range(len(data)) if number % 7 >= 5}
    name, to_name = control
    annotated: list[Any] = []
    left: list[Any] = []
    for number, (each, label) in enumerate(zip(data, labels, strict=True)):
        if number in fresh and len(left) < 2 * FRESH:
            left.append({"id": number + 1, "data": each})
            continue
        region = {
            "id": "answer",
            "from_name": name,
            "to_name": to_name,
            "type": "choices",
            "value": {"choices": [label]},
        }
        annotation = {"id": number + 1, "result": [region], "was_cancelled": False, "ground_truth": False}
        annotated.append({"id": number + 1, "data": each, "annotations": [annotation]})
    return annotated, left
