"""Read what the tasks of a label config point to, and get at it in `fit`."""

from __future__ import annotations

from lsml_cli.errors import UsageError
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Binding
from lsml_cli.schema.label_config import Object
from lsml_cli.schema.tasks import Task, describe_json_type


def read_image_ref(image_object: Object, task: Task) -> str:
    """Return the value of a task that points to its image.

    Raises:
        ValueError: The value is missing or no string; the sentence says what it is.
    """
    value = image_object.read(task.data)
    if not isinstance(value, str) or not value:
        raise ValueError(
            f'"{image_object.data_key}" is {describe_json_type(value)}, but {image_object} wants one address or '
            "path of an image"
        )
    return value


def require_media(binding: Binding) -> Media:
    """Return what fetches the images of a training.

    Raises:
        UsageError: The caller of `fit` did not say where they are.
    """
    if binding.media is None:
        raise UsageError("Images cannot be fetched here.", "Say where they are: fit_version(..., media=Media(...)).")
    return binding.media


def format_task_name(task_id: int | None, task_index: int) -> str:
    """Name a task in a sentence: by its id or, without one, by its position in the input."""
    return f"task {task_id}" if task_id is not None else f"the task at position {task_index + 1}"
