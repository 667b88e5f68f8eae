"""The base class of what writes data sets, and what it gets: a task with the regions that count."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from lsml_cli.io.formats.output_folder import OutputFolder
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task

Content = Literal["annotations", "predictions"]
ImageMode = Literal["none", "link", "copy"]
Side = Literal["train", "val"]

Region = Mapping[str, Any]  # Label Studio's region object


@dataclass(frozen=True)
class WriteOptions:
    """How a data set is written.

    Attributes:
        config: The label config; None: controls and labels are taken from the regions.
        content: What is written.
        data_key: The key of a task's data that holds its image, text or sound; None: by the label config.
        images: What happens to the files of images.
        media: Where they are.
        variant: One of `Format.variants`; None: as the format decides.
        has_validation: Whether some tasks have the side "val".
    """

    config: LabelConfig | None = None
    content: Content = "annotations"
    data_key: str | None = None
    images: ImageMode = "none"
    media: Media = field(default_factory=Media)
    variant: str | None = None
    has_validation: bool = False


@dataclass(frozen=True)
class Example:
    """A task with one annotation or prediction.

    Attributes:
        task: The task.
        regions: Its regions, those of controls that the label config does not have left out.
        source: The whole annotation or prediction.
        score: Of a prediction.
        side: Whether to train or to validate with it.
    """

    task: Task
    regions: Sequence[Region]
    source: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None
    side: Side = "train"


class LeftOut(Exception):
    """An example that a format has no place for: it is counted, and has not failed. The message says why."""


class DatasetWriter(ABC):
    """Writes a data set, one example at a time. Use it as a context manager, and end with `finish`.

    A subclass implements `write`, and `_finish` where something is to be written at the end. Memory holds nothing for
    each task.

    Args:
        folder: The folder that is made.
        options: How it is written.

    Attributes:
        left_out: Number of regions that the format cannot hold, by reason.
        written: Number of regions that were written.
    """

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self.options = options
        self.left_out: Counter[str] = Counter()
        self.written = 0
        self.folder = OutputFolder(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._close()
        self.folder.__exit__(exc_type, error, tb)

    @abstractmethod
    def write(self, example: Example) -> None:
        """Write an example.

        Raises:
            LeftOut: The format has no place for it.
            ValueError: It cannot be written, and nothing of it was; the message is the end of a sentence.
            OSError, TransientError: Its image cannot be had.
        """

    def finish(self) -> None:
        """Write what comes last, and let the folder appear."""
        self._finish()
        self._close()
        self.folder.publish()

    def _finish(self) -> None:  # noqa: B027 - most formats have nothing to add
        """Write what comes last."""

    def _close(self) -> None:  # noqa: B027
        """Close open files; may be called twice."""
