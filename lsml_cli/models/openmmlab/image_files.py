"""Decode images for the toolkits, and fetch the images of a training into files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError
from lsml_cli.media import images
from lsml_cli.models.base import Progress
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.media_refs import format_task_name, read_image_ref
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, error_reason
from lsml_cli.schema.failure_causes import FailureCauses, not_learned_lines
from lsml_cli.schema.label_config import Object
from lsml_cli.schema.tasks import AnnotatedTask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    ImageArray = NDArray[np.uint8]

IMAGE_LOADER = "LsmlImageLoader"  # the pipeline step that loads an image as lsml does
BATCH_SAMPLER = "LsmlBatchSampler"  # the sampler that makes no batch of a single image


def decode_image(content: bytes) -> ImageArray:
    """Decode an image to (H, W, 3), upright; blue, green, red, as the toolkits expect.

    Raises:
        ValueError: It is no usable image; the sentence says why.
    """
    import numpy as np

    return np.ascontiguousarray(np.asarray(images.decode(content))[:, :, ::-1])


@cache
def register_modules() -> None:
    """Register `IMAGE_LOADER` and `BATCH_SAMPLER` with the toolkits, which have to be imported already."""
    import cv2
    import numpy as np
    from mmdet.datasets.samplers import AspectRatioBatchSampler
    from mmengine.registry import DATA_SAMPLERS, TRANSFORMS

    class ImageLoader:
        """Take the array `img`, or read the file `img_path`."""

        def __init__(self, color_type: str = "color", to_float32: bool = False, **_: Any) -> None:
            self.is_grayscale = color_type.startswith("grayscale")
            self.to_float32 = to_float32

        def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
            image = results.get("img")
            if image is None:
                image = decode_image(Path(results["img_path"]).read_bytes())
            if self.is_grayscale:
                image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            results["img"] = image.astype(np.float32) if self.to_float32 else image
            results["img_shape"] = results["ori_shape"] = image.shape[:2]
            return results

    class BatchSampler(AspectRatioBatchSampler):  # type: ignore[misc]
        """Batch wide images and tall images apart; see `images_per_epoch`."""

        def __init__(self, sampler: Any, batch_size: int) -> None:
            num_images = len(sampler)  # of this process
            super().__init__(sampler, batch_size, drop_last=images_per_epoch(num_images, batch_size) < num_images)

    TRANSFORMS.register_module(name=IMAGE_LOADER, force=True, module=ImageLoader)
    DATA_SAMPLERS.register_module(name=BATCH_SAMPLER, force=True, module=BatchSampler)


def loading_step(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step that loads an image as lsml does, in place of a toolkit's own."""
    return {"type": IMAGE_LOADER} | {key: step[key] for key in ("color_type", "to_float32") if key in step}


def images_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the images of an epoch without a last batch of one, which batch normalization cannot take."""
    return num_images - 1 if num_images > batch_size and num_images % batch_size == 1 else num_images


@dataclass(frozen=True)
class TrainingImage:
    """An image of a training, in a file.

    Args:
        path: The file.
        size: (width, height) of the upright image.
        example: The annotated task that shows it.
    """

    path: Path
    size: tuple[int, int]
    example: AnnotatedTask


def fetch_images(
    examples: Sequence[AnnotatedTask],
    image_object: Object,
    media_reader: MediaReader,
    folder: Path,
    progress: Progress,
) -> list[TrainingImage]:
    """Write the images of tasks into files.

    Args:
        examples: The tasks.
        image_object: Which of their images.
        media_reader: Fetches them.
        folder: For the files; created.
        progress: Told which images cannot be used, and why.

    Returns:
        The usable images, in the order of the tasks.

    Raises:
        ModelError: There is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    usable: list[TrainingImage] = []
    causes = FailureCauses()
    for example, image in _fetch_to_files(examples, image_object, media_reader, folder):
        if isinstance(image, TrainingImage):
            usable.append(image)
            continue
        causes.add("fetch", str(image), format_task_name(example.task.id, example.task.index))
    for line in not_learned_lines(causes, "image"):
        progress(line)
    if causes.total > 1:
        progress(f"{causes.total:,} of {len(examples):,} images cannot be used.")
    if not usable and examples:
        raise ModelError(
            "No image can be used.",
            "The messages above say what is wrong with them; `lsml predict --check` looks for all that is missing.",
        )
    return usable


def _fetch_to_files(
    examples: Sequence[AnnotatedTask], image_object: Object, media_reader: MediaReader, folder: Path
) -> Iterator[tuple[AnnotatedTask, TrainingImage | str]]:
    """Yield each task with its image, or with the reason why there is none; fetched ahead in threads."""

    def fetch(number: int, example: AnnotatedTask) -> TrainingImage | str:
        try:
            content = media_reader.read(read_image_ref(image_object, example.task), example.task.id)
            image = images.decode(content)  # completely: a truncated image would end the training
            path = folder / f"{number:07}"
            path.write_bytes(content)
            return TrainingImage(path, image.size, example)
        except OSError as error:
            if error.filename is not None and Path(error.filename).parent == folder:
                raise  # a full disk is not the fault of an image
            return error_reason(error)
        except Exception as error:  # one bad image costs one example
            return error_reason(error)

    pending: deque[tuple[AnnotatedTask, Future[TrainingImage | str]]] = deque()
    remaining = enumerate(examples)
    with ThreadPoolExecutor(DEFAULT_FETCH_THREADS, "fetch") as pool:
        while True:
            for number, example in islice(remaining, 4 * DEFAULT_FETCH_THREADS - len(pending)):
                pending.append((example, pool.submit(fetch, number, example)))
            if not pending:
                return
            example, future = pending.popleft()
            yield example, future.result()
