"""Read the images of annotated tasks, batch by batch, and keep account of those that cannot be used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

from lsml_cli.errors import ModelError
from lsml_cli.models.base import Progress
from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.models.choices.training_set import TrainingSet
from lsml_cli.models.image_classifier.preprocessing import Preprocessing
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.media_refs import format_task_name, read_image_ref
from lsml_cli.progress import Steps
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, available_cores, error_reason
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.failure_causes import FailureCauses, not_learned_lines
from lsml_cli.schema.label_config import LabelConfig, Object
from lsml_cli.schema.tasks import AnnotatedTask, Task

if TYPE_CHECKING:
    from lsml_cli.models.image_classifier.preprocessing import Pixels

PREFETCH_BATCHES = 2  # batches that are read and decoded ahead
UNUSABLE_HINT = "The messages above say what is wrong with them; `lsml predict --check` looks for all that is missing."

ReadPixels = Callable[[bytes, int], "Pixels"]  # content of an image and its position -> pixels
Batch = list[tuple[int, "Pixels | str"]]  # positions with pixels, or with the reason why there are none
Batches = Generator[Batch, None, None]  # to be closed


@dataclass(frozen=True)
class ImageRef:
    """Point to the image of a task."""

    value: str
    task_id: int | None
    task_index: int

    @classmethod
    def from_task(cls, image_object: Object, task: Task) -> ImageRef:
        """Read the reference out of a task. Raises ValueError with a sentence if there is none."""
        return cls(read_image_ref(image_object, task), task.id, task.index)

    def __str__(self) -> str:
        return format_task_name(self.task_id, self.task_index)


@dataclass(frozen=True)
class ImageDataset:
    """Images that can be read again and again."""

    images: Sequence[ImageRef]
    preprocessing: Preprocessing
    media_reader: MediaReader

    def pixels(self, content: bytes, position: int) -> Pixels:
        """Decode an image as the network sees it in prediction; `position` does not matter here."""
        return self.preprocessing.pixels(content)

    def batches(self, positions: Sequence[int], size: int, read_pixels: ReadPixels | None = None) -> Batches:
        """Yield images in batches, fetched and decoded ahead in threads.

        Args:
            positions: Positions of the images, in the order in which they are needed.
            size: Images per batch.
            read_pixels: Decodes an image; `self.pixels` if it is not given.

        Yields:
            Each position with its pixels, or with the reason why there are none.
        """
        read_pixels = read_pixels or self.pixels
        fetchers = ThreadPoolExecutor(DEFAULT_FETCH_THREADS, "fetch")  # do nothing but wait
        decoders = ThreadPoolExecutor(max(2, available_cores()), "read")
        pending: deque[tuple[int, Future[Pixels]]] = deque()
        remaining = iter(positions)
        try:
            while True:
                for position in islice(remaining, PREFETCH_BATCHES * size + size - len(pending)):
                    content = fetchers.submit(self._fetch_content, position)
                    pending.append((position, decoders.submit(_decode, read_pixels, content, position)))
                if not pending:
                    return
                yield [_pixels_or_error(*pending.popleft()) for _ in range(min(size, len(pending)))]
        finally:  # a caller that stops half-way, by an error or ctrl-C, waits for nothing
            for pool in (fetchers, decoders):
                pool.shutdown(wait=False, cancel_futures=True)

    def augmented_batches(self, positions: Sequence[int], size: int, seed: str) -> Batches:
        """Yield batches of random crops; equal seeds give equal crops, whichever thread makes them."""

        def read_augmented(content: bytes, position: int) -> Pixels:
            return self.preprocessing.augmented_pixels(content, Random(f"{seed} {position}"))

        return self.batches(positions, size, read_augmented)

    def find_unusable(self, batch_size: int, progress: Progress) -> dict[int, str]:
        """Read every image once; return the positions of those that cannot be decoded, with the reason."""
        unusable: dict[int, str] = {}
        steps = Steps(progress, "reading images", "images", len(self.images))
        with closing(self.batches(range(len(self.images)), batch_size)) as batches:
            for batch in batches:
                unusable |= split_usable(batch)[1]
                steps.update(batch[-1][0] + 1, len(unusable))
        return unusable

    def report_unusable(self, unusable: Mapping[int, str], progress: Progress) -> None:
        """Name images that cannot be used, and the reason.

        Raises:
            ModelError: No image is left.
        """
        causes = FailureCauses()
        for position, reason in unusable.items():
            causes.add("fetch", reason, str(self.images[position]))
        for line in not_learned_lines(causes, "image"):
            progress(line)
        if causes.total > 1:
            progress(f"{causes.total:,} of {len(self.images):,} images cannot be used.")
        if len(unusable) == len(self.images):
            raise ModelError("No image can be used.", UNUSABLE_HINT)

    def _fetch_content(self, position: int) -> bytes:
        image = self.images[position]
        return self.media_reader.read(image.value, image.task_id)


def split_usable(batch: Batch) -> tuple[list[tuple[int, Pixels]], dict[int, str]]:
    """Separate the images of a batch that were decoded from the reasons why others were not."""
    usable = [(position, pixels) for position, pixels in batch if not isinstance(pixels, str)]
    return usable, {position: reason for position, reason in batch if isinstance(reason, str)}


def build_validation(
    training_set: TrainingSet[ImageRef], validation: Sequence[AnnotatedTask], dataset: ImageDataset, config: LabelConfig
) -> tuple[ImageDataset, list[HeadTargets]]:
    """Build the validation data for the heads of a training set.

    Args:
        training_set: The heads, with their classes.
        validation: Annotated tasks; labels that were not learned are left out.
        dataset: Says how images are read.
        config: The label config of both.

    Returns:
        The images, and for each head what its answers should be.
    """
    images: list[ImageRef] = []
    rows: dict[str, list[int]] = {name: [] for name in training_set.targets}
    row_classes: dict[str, list[Sequence[str]]] = {name: [] for name in training_set.targets}
    for example in validation:
        try:
            image = ImageRef.from_task(training_set.object_tag, example.task)
        except ValueError:
            continue
        for name, head in training_set.targets.items():
            labels = tuple(dict.fromkeys(extract_labels(config.controls[name], example.annotation.result)))
            if set(labels) <= set(head.classes) and (head.is_multi_label or len(labels) == 1):
                rows[name].append(len(images))
                row_classes[name].append(labels)
        images.append(image)
    targets = [
        HeadTargets(rows[name], row_classes[name], head.classes, head.is_multi_label)
        for name, head in training_set.targets.items()
    ]
    return replace(dataset, images=images), targets


def drop_unusable(heads: Sequence[HeadTargets], unusable: Mapping[int, str]) -> list[HeadTargets]:
    """Remove images that cannot be used from the targets, and classes that only they had.

    Raises:
        ModelError: A head is left with nothing to tell apart.
    """
    remaining = [head if not unusable else _drop_rows(head, unusable) for head in heads]
    for head in remaining:
        if not head.classes or (len(head.classes) == 1 and not head.is_multi_label):
            raise ModelError("Too few images can be used: two different answers are needed.", UNUSABLE_HINT)
    return remaining


def restrict_to_head(targets: HeadTargets, head: HeadTargets) -> HeadTargets:
    """Remove rows with a class that the head does not have (any more) from validation targets."""
    rows = zip(targets.rows, targets.row_classes, strict=True)
    kept = [(row, names) for row, names in rows if set(names) <= set(head.classes)]
    return HeadTargets([row for row, _ in kept], [names for _, names in kept], head.classes, head.is_multi_label)


def _drop_rows(head: HeadTargets, unusable: Mapping[int, str]) -> HeadTargets:
    kept = [(row, names) for row, names in zip(head.rows, head.row_classes, strict=True) if row not in unusable]
    present = {name for _, names in kept for name in names}
    return replace(
        head,
        rows=[row for row, _ in kept],
        row_classes=[names for _, names in kept],
        classes=[name for name in head.classes if name in present],
    )


def _decode(read_pixels: ReadPixels, content: Future[bytes], position: int) -> Pixels:
    return read_pixels(content.result(), position)


def _pixels_or_error(position: int, pixels: Future[Pixels]) -> tuple[int, Pixels | str]:
    try:
        return position, pixels.result()
    except Exception as error:  # one bad image costs one example
        return position, error_reason(error)
