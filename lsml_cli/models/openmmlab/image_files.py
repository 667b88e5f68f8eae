"""Pictures for the toolkits: blue, green, red, upright; from the bytes of a task, or from the files of a training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, error_reason
from lsml_cli.schema.tasks import AnnotatedTask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    ImageArray = NDArray[np.uint8]

IMAGE_LOADER = "LsmlPicture"  # the step of a pipeline that loads a picture as lsml does
BATCH_SAMPLER = "LsmlBatches"  # the sampler of batches without one of a single picture
MAX_LISTED = 20  # pictures that are named when they cannot be used


def decode_image(content: bytes) -> ImageArray:
    """(H, W, 3) as a person sees the picture; blue, green, red, as the toolkits want them.

    Raises ValueError with a sentence when there is no picture.
    """
    import numpy as np

    return np.ascontiguousarray(np.asarray(images.decode(content))[:, :, ::-1])


@cache
def register_modules() -> None:
    """Make `LOADER` and `BATCHES` known to the toolkits, which have been imported: see `toolkit.toolkit`.

    LOADER   takes `img`, or reads the file `img_path`
    BATCHES  wide pictures together, and tall ones; see `batched`
    """
    import cv2
    import numpy as np
    from mmdet.datasets.samplers import AspectRatioBatchSampler
    from mmengine.registry import DATA_SAMPLERS, TRANSFORMS

    class Picture:
        def __init__(self, color_type: str = "color", to_float32: bool = False, **_: Any) -> None:
            self.grey = color_type.startswith("grayscale")
            self.to_float32 = to_float32

        def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
            picture = results.get("img")
            if picture is None:
                picture = decode_image(Path(results["img_path"]).read_bytes())
            if self.grey:
                picture = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
            results["img"] = picture.astype(np.float32) if self.to_float32 else picture
            results["img_shape"] = results["ori_shape"] = picture.shape[:2]
            return results

    class Batches(AspectRatioBatchSampler):  # type: ignore[misc]
        def __init__(self, sampler: Any, batch_size: int) -> None:
            pictures = len(sampler)  # of this process
            super().__init__(sampler, batch_size, drop_last=images_per_epoch(pictures, batch_size) < pictures)

    TRANSFORMS.register_module(name=IMAGE_LOADER, force=True, module=Picture)
    DATA_SAMPLERS.register_module(name=BATCH_SAMPLER, force=True, module=Batches)


def images_per_epoch(num_images: int, batch_size: int) -> int:
    """How many pictures of an epoch are learned from: a last batch of one, which BatchNorm cannot take, is left out."""
    return num_images - 1 if num_images > batch_size and num_images % batch_size == 1 else num_images


@dataclass(frozen=True)
class TrainingImage:
    """A picture of a training, as a file.

    size  (width, height) as a person sees it
    """

    path: Path
    size: tuple[int, int]
    example: AnnotatedTask


def fetch_images(
    examples: Sequence[AnnotatedTask],
    get_media_ref: Callable[[AnnotatedTask], str],
    media_reader: MediaReader,
    folder: Path,
    progress: Progress,
) -> list[TrainingImage]:
    """Write what the tasks show into files, in the order of the tasks; those that are no pictures are left out, named.

    value_of  the value of a task that points to its picture; raises ValueError with a sentence when there is none

    Raises ModelError when no picture is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[TrainingImage] = []
    bad = 0
    for example, gathered in _fetch_to_files(examples, get_media_ref, media_reader, folder):
        if isinstance(gathered, TrainingImage):
            found.append(gathered)
            continue
        bad += 1
        if bad <= MAX_LISTED:
            progress(f"Not learned from {_describe_example(example)}: {gathered}.")
    if bad > MAX_LISTED:
        progress(f"Nor from {bad - MAX_LISTED:,} more: {bad:,} of {len(examples):,} pictures are no use.")
    if not found and examples:
        raise ModelError(
            "No picture can be used.",
            "What is wrong with them stands above; `lsml predict --check` looks for all that is missing.",
        )
    return found


def _fetch_to_files(
    examples: Sequence[AnnotatedTask],
    get_media_ref: Callable[[AnnotatedTask], str],
    media_reader: MediaReader,
    folder: Path,
) -> Iterator[tuple[AnnotatedTask, TrainingImage | str]]:
    """Each with its file, or with the reason why there is none; fetched in threads, some ahead."""

    def written(number: int, example: AnnotatedTask) -> TrainingImage | str:
        try:
            content = media_reader.read(get_media_ref(example), example.task.id)
            picture = images.decode(content)  # all of it: a picture that is torn would end the training
            path = folder / f"{number:07}"
            path.write_bytes(content)
            return TrainingImage(path, picture.size, example)
        except OSError as error:
            if error.filename is not None and Path(error.filename).parent == folder:
                raise  # a full disk is nobody's bad picture
            return error_reason(error)
        except Exception as error:  # one bad picture costs one example
            return error_reason(error)

    waiting: deque[tuple[AnnotatedTask, Future[TrainingImage | str]]] = deque()
    coming = enumerate(examples)
    with ThreadPoolExecutor(DEFAULT_FETCH_THREADS, "fetch") as pool:
        while True:
            for number, example in islice(coming, 4 * DEFAULT_FETCH_THREADS - len(waiting)):
                waiting.append((example, pool.submit(written, number, example)))
            if not waiting:
                return
            example, future = waiting.popleft()
            yield example, future.result()


def _describe_example(example: AnnotatedTask) -> str:
    task = example.task
    return f"task {task.id}" if task.id is not None else f"the task at position {task.index + 1}"
