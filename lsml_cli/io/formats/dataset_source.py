"""The base class of what reads data sets: a source of records, each a task of Label Studio."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import quote

from lsml_cli.errors import UsageError
from lsml_cli.io.json_records import Record
from lsml_cli.io.source import STDIN
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.controls import Control
from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction, Region
from lsml_cli.schema.tasks import Task

_TOTAL = 1_000_000  # what `Record.end` counts up to: sources know their share only


@dataclass(frozen=True)
class ReadOptions:
    """How a data set is read.

    Attributes:
        config: The label config that the tasks have to fit; None: one is made.
        content: What the labels become.
        data_key: The key of a task's data that gets the path, the text, ...; None: by the label config.
        media_prefix: What is put before the path of a file, which is relative to the data set's folder; None: the
            folder as it was named.
        relative_to: The folder that paths of files begin at, where they lie below it; None: the working folder.
        variant: One of `Format.variants`; None: as the data set looks.
        columns: Further settings of table formats, by option: {"label-column": "label"}.
        needs_labels: False: a table is read without its labels, every column as data.
    """

    config: LabelConfig | None = None
    content: Literal["annotations", "predictions"] = "annotations"
    data_key: str | None = None
    media_prefix: str | None = None
    relative_to: Path | None = None
    variant: str | None = None
    columns: Mapping[str, str] | None = None
    needs_labels: bool = True


class Item(NamedTuple):
    """What a reader found for one task.

    Attributes:
        location: Where it stands, for messages: "image 12".
        data: The task's data.
        regions: Its labels; None if it has none, not even the answer that nothing is there.
        problem: Why there is no task here, "" if there is one.
        share: Which part (0..1) of the data set ends here.
    """

    location: str
    data: Mapping[str, Any]
    regions: Sequence[Region] | None = None
    problem: str = ""
    share: float = 0.0


class DatasetSource(ABC):
    """An open data set (a `TaskSource`): iterate over it once, inside of a `with` block.

    A subclass sets `label_config` in `__init__`, where problems of the whole data set are raised, and implements
    `_iter_items`.

    Args:
        path: A file or a folder.
        options: How it is read.

    Attributes:
        name: The path as messages call it.
        label_config: The given label config, or one that was made for this data set.
        root: The folder that files of the data set lie below.
        size: Made up, so that there is a share.
        notes: Sentences to show once.
        blank_lines: None.

    Raises:
        UsageError: There is no such file, or it does not fit the label config.
        InputError: It cannot be read at all.
    """

    label_config: LabelConfig
    size: int | None = _TOTAL
    blank_lines = 0

    def __init__(self, path: str, options: ReadOptions) -> None:
        if path == STDIN:
            raise UsageError("A data set is not read from standard input.", "Name its file or folder.")
        self.name = path
        self.options = options
        self.notes: tuple[str, ...] = ()
        self.path = Path(path)
        if not self.path.exists():
            raise UsageError(f"There is no file or folder {path}.", "Check the path.")
        self.root = self.path if self.path.is_dir() else self.path.parent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[Record]:
        for index, item in enumerate(self._iter_items()):
            end = int(item.share * _TOTAL)
            if item.problem:
                yield Record(index, item.location, b"", item.problem, end=end)
                continue
            task: dict[str, Any] = {"data": item.data}
            if item.regions is not None:
                labelled = Prediction.of(tuple(item.regions), type(self).__name__.removesuffix("Source").lower())
                is_prediction = self.options.content == "predictions"
                entry = labelled.to_json()
                task[self.options.content] = [entry if is_prediction else {"result": entry["result"]}]
            yield Record(index, item.location, dumps(task), end=end)

    def share(self, end: int) -> float | None:
        return end / _TOTAL

    @abstractmethod
    def _iter_items(self) -> Iterator[Item]:
        """Yield the tasks. What is wrong with one costs this one only, see `Item.problem`."""

    def _close(self) -> None:  # noqa: B027
        """Close open files."""

    def media_value(self, path: str) -> str:
        """Return the value of a task's data that stands for a file of the data set.

        Args:
            path: Relative to `root`.

        Raises:
            ValueError: The path leads out of the data set.
        """
        parts = Path(path).parts
        if not parts or Path(path).is_absolute() or ".." in parts or "\0" in path:
            raise ValueError(f"the file name {path!r} leads out of the data set")
        relative = "/".join(parts)
        prefix = self.media_prefix
        is_address = "://" in prefix or "?d=" in prefix
        return prefix + (quote(os.fsencode(relative)) if is_address else relative)

    @property
    def media_prefix(self) -> str:
        """What values of tasks have before the path of a file."""
        if self.options.media_prefix is not None:
            return self.options.media_prefix
        folder = self.root.as_posix()
        if self.options.relative_to is not None:
            base, root = os.path.realpath(self.options.relative_to), os.path.realpath(self.root)
            is_below = Path(root).is_relative_to(base)
            folder = os.path.relpath(root, base) if is_below else self.root.absolute().as_posix()
        return "" if folder == "." else f"{folder.rstrip('/')}/"

    def locate_media(self, media: Media) -> Media:
        """Return where media are, with the files of this data set among them."""
        if not (prefix := self.media_prefix):
            return replace(media, root=self.root)
        return replace(media, prefix_map=(*media.prefix_map, (prefix, self.root)))


class RegionFactory:
    """Makes the regions of one task; ordinals, and with them ids, count up.

    Args:
        index: Position of the task in the data set.
    """

    def __init__(self, index: int) -> None:
        self._task = Task(index, None, {}, {})
        self._ordinals: dict[str, int] = {}

    def make(self, control: Control, value: Mapping[str, Any], **fields: Any) -> Region:
        """Return a region; `fields` are those of `Control.region`."""
        ordinal = self._ordinals.get(control.name, 0)
        self._ordinals[control.name] = ordinal + 1
        return control.region(self._task, value, ordinal=ordinal, **fields)
