"""What a run reads its tasks from: a file, standard input, a folder of images, or a data set in another format."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from lsml_cli.io.foreign_formats import find_format
from lsml_cli.io.formats.dataset_source import DatasetSource, ReadOptions
from lsml_cli.io.formats.registry import DATASETS, open_dataset
from lsml_cli.io.image_folder import ImageFolderSource
from lsml_cli.io.json_records import Record
from lsml_cli.io.source import STDIN, RecordSource
from lsml_cli.schema.label_config import LabelConfig


class TaskSource(Protocol):
    """An open source of records. Iterate over it once, inside of a `with` block."""

    @property
    def name(self) -> str:
        """The source as messages call it."""

    @property
    def size(self) -> int | None:
        """Bytes of the source, None for a pipe."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences to show once."""

    @property
    def blank_lines(self) -> int:
        """Lines of text that were skipped so far because nothing is in them."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[Record]: ...

    def share(self, end: int) -> float | None:
        """Return which part (0..1) of the source ends at the `end` of a record; None for a pipe."""


def is_folder(path: str) -> bool:
    """Return whether an input is a folder: one of images, since tasks come in files."""
    return path != STDIN and Path(path).is_dir()


def open_task_source(
    path: str,
    id_column: str | None = None,
    data_key: str | None = None,
    *,
    has_texts: bool = False,
    data_keys: Collection[str] = (),
    dataset_format: str | None = None,
    read_options: ReadOptions | None = None,
) -> TaskSource:
    """Open an input.

    Args:
        path: A file, a folder of images, or "-" for standard input.
        id_column: The CSV column that holds task ids.
        data_key: Says that the input is a folder or a list of paths, and under which key of a task's data they go.
        has_texts: Whether it is lines of text that go there instead.
        data_keys: Keys of a task's data of which a table must have at least one.
        dataset_format: Says that the input is a data set, and in which format; see `formats.registry`.
        read_options: How a data set is read, also one that is recognised; None: data sets are refused.

    Raises:
        UsageError: There is no such input.
        InputError: It holds nothing of the kind.
    """
    if dataset_format is None and read_options is not None and data_key is None:
        dataset_format = recognize_dataset(path)
    if dataset_format is not None:
        return open_dataset(dataset_format, path, read_options or ReadOptions())
    if has_texts:
        return RecordSource(path, texts_key=data_key)
    if data_key is not None and is_folder(path):
        return ImageFolderSource(path, data_key)
    return RecordSource(path, id_column, data_key, data_keys=data_keys)


def recognize_dataset(path: str) -> str | None:
    """Return the name of the format of a data set that can be read, None where that is not certain."""
    name = None if path == STDIN else find_format(path)
    return name if name in DATASETS else None


def open_annotated_dataset(
    path: str, dataset_format: str | None, config: LabelConfig | None, columns: Mapping[str, str] | None = None
) -> DatasetSource | None:
    """Open an input that is a data set; return None for a file of tasks.

    Args:
        path: A file, a folder, or "-" for standard input.
        dataset_format: Its format; None: by its content.
        config: The label config that its labels have to fit; None: one is made.
        columns: See `ReadOptions`.

    Raises:
        UsageError: There is no such input.
        LabelMismatch: It does not fit the label config.
        InputError: It cannot be read.
    """
    name = dataset_format or recognize_dataset(path)
    return None if name is None else open_dataset(name, path, ReadOptions(config, columns=columns))
