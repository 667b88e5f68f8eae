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
from lsml_cli.inference.replica import FETCHERS, reason
from lsml_cli.media import images
from lsml_cli.models.base import Progress
from lsml_cli.models.media_reader import Source
from lsml_cli.schema.tasks import Labelled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

LOADER = "LsmlPicture"  # the step of a pipeline that loads a picture as lsml does
BATCHES = "LsmlBatches"  # the sampler of batches without one of a single picture
NAMED = 20  # pictures that are named when they cannot be used


def pixels(content: bytes) -> Pixels:
    """(H, W, 3) as a person sees the picture; blue, green, red, as the toolkits want them.

    Raises ValueError with a sentence when there is no picture.
    """
    import numpy as np

    return np.ascontiguousarray(np.asarray(images.decode(content))[:, :, ::-1])


@cache
def register() -> None:
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
                picture = pixels(Path(results["img_path"]).read_bytes())
            if self.grey:
                picture = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
            results["img"] = picture.astype(np.float32) if self.to_float32 else picture
            results["img_shape"] = results["ori_shape"] = picture.shape[:2]
            return results

    class Batches(AspectRatioBatchSampler):  # type: ignore[misc]
        def __init__(self, sampler: Any, batch_size: int) -> None:
            pictures = len(sampler)  # of this process
            super().__init__(sampler, batch_size, drop_last=batched(pictures, batch_size) < pictures)

    TRANSFORMS.register_module(name=LOADER, force=True, module=Picture)
    DATA_SAMPLERS.register_module(name=BATCHES, force=True, module=Batches)


def batched(pictures: int, batch_size: int) -> int:
    """How many pictures of an epoch are learned from: a last batch of one, which BatchNorm cannot take, is left out."""
    return pictures - 1 if pictures > batch_size and pictures % batch_size == 1 else pictures


@dataclass(frozen=True)
class Gathered:
    """A picture of a training, as a file.

    size  (width, height) as a person sees it
    """

    path: Path
    size: tuple[int, int]
    example: Labelled


def gather(
    examples: Sequence[Labelled],
    value_of: Callable[[Labelled], str],
    source: Source,
    folder: Path,
    progress: Progress,
) -> list[Gathered]:
    """Write what the tasks show into files, in the order of the tasks; those that are no pictures are left out, named.

    value_of  the value of a task that points to its picture; raises ValueError with a sentence when there is none

    Raises ModelError when no picture is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Gathered] = []
    bad = 0
    for example, gathered in _written(examples, value_of, source, folder):
        if isinstance(gathered, Gathered):
            found.append(gathered)
            continue
        bad += 1
        if bad <= NAMED:
            progress(f"Not learned from {_name(example)}: {gathered}.")
    if bad > NAMED:
        progress(f"Nor from {bad - NAMED:,} more: {bad:,} of {len(examples):,} pictures are no use.")
    if not found and examples:
        raise ModelError(
            "No picture can be used.",
            "What is wrong with them stands above; `lsml predict --check` looks for all that is missing.",
        )
    return found


def _written(
    examples: Sequence[Labelled], value_of: Callable[[Labelled], str], source: Source, folder: Path
) -> Iterator[tuple[Labelled, Gathered | str]]:
    """Each with its file, or with the reason why there is none; fetched in threads, some ahead."""

    def written(number: int, example: Labelled) -> Gathered | str:
        try:
            content = source.content(value_of(example), example.task.id)
            picture = images.decode(content)  # all of it: a picture that is torn would end the training
            path = folder / f"{number:07}"
            path.write_bytes(content)
            return Gathered(path, picture.size, example)
        except OSError as error:
            if error.filename is not None and Path(error.filename).parent == folder:
                raise  # a full disk is nobody's bad picture
            return reason(error)
        except Exception as error:  # one bad picture costs one example
            return reason(error)

    waiting: deque[tuple[Labelled, Future[Gathered | str]]] = deque()
    coming = enumerate(examples)
    with ThreadPoolExecutor(FETCHERS, "fetch") as pool:
        while True:
            for number, example in islice(coming, 4 * FETCHERS - len(waiting)):
                waiting.append((example, pool.submit(written, number, example)))
            if not waiting:
                return
            example, future = waiting.popleft()
            yield example, future.result()


def _name(example: Labelled) -> str:
    task = example.task
    return f"task {task.id}" if task.id is not None else f"the task at position {task.index + 1}"
