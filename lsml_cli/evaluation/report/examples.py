"""Collect what the cards of the report show about a task: its texts, its image, and a link to Label Studio."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lsml_cli.errors import LsmlError
from lsml_cli.evaluation.results import ControlEvaluation, Disagreement
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.label_config import LabelConfig, Object

MAX_IMAGE_SIDE = 800  # pixels of the longer side of an embedded image
JPEG_QUALITY = 78  # 0..100


@dataclass(frozen=True)
class EmbeddedImage:
    """An image for the page: a JPEG as a data URI, and its sides in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """What one card shows about a task.

    Attributes:
        disagreement: The task with both answers.
        image: The image, the reason why it cannot be shown, or None if the task refers to no image.
        text: The values of all other objects, one per line.
        task_url: Where Label Studio shows the task; None if that is not known.
    """

    disagreement: Disagreement
    image: EmbeddedImage | str | None
    text: str
    task_url: str | None


def build_examples(
    evaluation: ControlEvaluation, config: LabelConfig, media: Media, label_studio_url: str | None
) -> list[Example]:
    """Collect what the tasks of the disagreements show; the reason replaces an image that cannot be fetched."""
    objects = [config.objects[to_name] for to_name in evaluation.control.to_names]
    return [_build_example(disagreement, objects, media, label_studio_url) for disagreement in evaluation.disagreements]


def build_task_url(task_id: int | None, project: str | None, label_studio_url: str | None) -> str | None:
    """Return the address of a task in Label Studio; None if server, project or task id is unknown."""
    if (
        label_studio_url is None
        or project is None
        or task_id is None
        or not label_studio_url.startswith(("http://", "https://"))
    ):
        return None
    return f"{label_studio_url.rstrip('/')}/projects/{quote(project, safe='')}/data?task={task_id}"


def _build_example(
    disagreement: Disagreement, objects: Sequence[Object], media: Media, label_studio_url: str | None
) -> Example:
    image: EmbeddedImage | str | None = None
    texts = []
    for config_object in objects:
        try:
            value = config_object.read(disagreement.task.data)
        except ValueError as error:
            texts.append(str(error))
            continue
        if config_object.tag.lower() == "image" and isinstance(value, str) and image is None:
            image = load_image(value, disagreement.task.id, media)
        else:
            texts.append(format_value(value))
    task = disagreement.task
    return Example(disagreement, image, "\n".join(texts), build_task_url(task.id, task.project, label_studio_url))


def load_image(value: str, task_id: int | None, media: Media) -> EmbeddedImage | str:
    """Fetch an image and make it small enough to embed; return the reason why it cannot be shown."""
    from lsml_cli.media import images

    try:
        image = images.decode(media.fetch(value, task_id), min_side=MAX_IMAGE_SIDE)
    except (ValueError, OSError, LsmlError) as error:
        return f"The image cannot be shown: {error}"
    image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=JPEG_QUALITY, optimize=True)
    encoded = base64.b64encode(jpeg.getvalue()).decode()
    return EmbeddedImage(f"data:image/jpeg;base64,{encoded}", image.width, image.height)


def format_value(value: Any) -> str:
    """Return the value of an object as text: the turns of a dialogue one per line."""
    if isinstance(value, list):
        lines = [item.get("text", item) if isinstance(item, dict) else item for item in value]
        return "\n".join(map(str, lines))
    return str(value)
