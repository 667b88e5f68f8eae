"""Generate sample tasks, with which a new project runs before there is an export; always the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

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
UNLABELED_PER_CLASS = 8  # tasks of each class without annotations
IMAGE_SIZE = 64  # pixels; the side of an image


@dataclass(frozen=True)
class SampleData:
    """A label config and the tasks for it.

    Attributes:
        label_config: the XML.
        make_tasks: writes images into a folder, and returns (annotated tasks, unlabelled tasks).
    """

    label_config: str
    make_tasks: Callable[[Path], tuple[list[Any], list[Any]]]


def make_texts() -> tuple[list[Any], list[Any]]:
    """Generate short messages to a shop: (annotated tasks, unlabelled tasks)."""
    messages = [
        (f"{opening} {product_}!", mood)
        for pairs in zip(
            product(_PRAISE_PHRASES, _PRODUCT_PHRASES), product(_COMPLAINT_PHRASES, _PRODUCT_PHRASES), strict=True
        )
        for (opening, product_), mood in zip(pairs, ("Praise", "Complaint"), strict=True)
    ]
    data = [{"text": text} for text, _ in messages]
    return _make_choice_tasks(data, [mood for _, mood in messages], ("mood", "message"))


def make_images(folder: Path) -> tuple[list[Any], list[Any]]:
    """Draw skies over the sea by day and by night into a folder: (annotated tasks, unlabelled tasks)."""
    from PIL import Image

    data, times = [], []
    folder.mkdir(exist_ok=True)
    for number, (horizon, tint) in enumerate(islice(product(range(20, 45, 2), range(0, 40, 10)), 28)):
        for time, sky, sea in (
            ("Day", (150 + tint, 200, 255), (40, 110, 180)),
            ("Night", (10 + tint // 2, 15, 50), (5, 10, 25)),
        ):
            image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), sky)
            image.paste(sea, (0, horizon, IMAGE_SIZE, IMAGE_SIZE))
            data.append(_save_image(image, folder / f"{time.lower()}-{number:02}.png"))
            times.append(time)
    return _make_choice_tasks(data, times, ("time", "picture"))


def make_boxes(folder: Path) -> tuple[list[Any], list[Any]]:
    """Draw suns over the sea, some with a boat, into a folder: (annotated tasks, unlabelled tasks)."""
    from PIL import Image, ImageDraw

    data, results = [], []
    folder.mkdir(exist_ok=True)
    for number, (left, top, sail) in enumerate(islice(product(range(8, 90, 20), range(6, 36, 8), range(4)), 70)):
        image = Image.new("RGB", (2 * IMAGE_SIZE, 2 * IMAGE_SIZE), (150, 200, 255 - number))
        image.paste((40, 110, 180), (0, 80, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE))
        pen = ImageDraw.Draw(image)
        objects = [("Sun", (left, top, left + 24, top + 24))]
        pen.ellipse(objects[0][1], fill=(255, 220, 60))
        if sail:
            x = (37 * number) % 80
            objects.append(("Boat", (x, 84, x + 20 + 8 * sail, 100)))
            pen.rectangle(objects[1][1], fill=(120, 60, 20))
        data.append(_save_image(image, folder / f"sea-{number:02}.png"))
        results.append([_make_box_region(label, bounds, image.size) for label, bounds in objects])
    return _split_tasks(data, results)


def make_ocr_words(folder: Path) -> tuple[list[Any], list[Any]]:
    """Draw numbers into a folder, one for each image: (annotated tasks, unlabelled tasks)."""
    from PIL import Image, ImageDraw, ImageFont

    data, results = [], []
    folder.mkdir(exist_ok=True)
    font = ImageFont.load_default(24)
    for number in range(210):
        text = str((number * 7919) % 1000)
        image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE // 2), (250, 245, 200 + number % 50))
        position = 2 + number % 10, number % 5
        ImageDraw.Draw(image).text(position, text, fill=(20, 20, 60), font=font)
        data.append(_save_image(image, folder / f"label-{number:03}.png"))
        region = {"id": "answer", "from_name": "text", "to_name": "picture", "type": "textarea"}
        results.append([region | {"value": {"text": [text]}}])
    return _split_tasks(data, results)


def _save_image(image: Image, path: Path) -> dict[str, str]:
    """Save an image and return the data of its task."""
    image.save(path)
    return {"image": f"{path.parent.name}/{path.name}"}


def _make_box_region(label: str, bounds: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """Return a region in percent of the image's size (width, height); bounds are left, top, right, bottom in pixels."""
    left, right = (round(100 * x / size[0], 4) for x in bounds[::2])
    top, bottom = (round(100 * y / size[1], 4) for y in bounds[1::2])
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
    """Build tasks with one choice each; control is (from_name, to_name)."""
    name, to_name = control
    region = {"id": "answer", "from_name": name, "to_name": to_name, "type": "choices"}
    return _split_tasks(data, [[region | {"value": {"choices": [label]}}] for label in labels])


def _split_tasks(data: list[dict[str, str]], results: list[list[dict[str, Any]]]) -> tuple[list[Any], list[Any]]:
    """Build tasks, of which the last two of each seven get no annotation, up to a limit."""
    annotated: list[Any] = []
    unlabeled: list[Any] = []
    for index, (task_data, result) in enumerate(zip(data, results, strict=True)):
        if index % 7 >= 5 and len(unlabeled) < 2 * UNLABELED_PER_CLASS:
            unlabeled.append({"id": index + 1, "data": task_data})
            continue
        annotation = {"id": index + 1, "result": result, "was_cancelled": False, "ground_truth": False}
        annotated.append({"id": index + 1, "data": task_data, "annotations": [annotation]})
    return annotated, unlabeled


TEXTS = SampleData(TEXT_CONFIG, lambda folder: make_texts())
IMAGES = SampleData(IMAGE_CONFIG, make_images)
BOXES = SampleData(BOX_CONFIG, make_boxes)
WORDS = SampleData(WORD_CONFIG, make_ocr_words)
