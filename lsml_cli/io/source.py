"""Open a file or standard input and iterate over its records, whatever format they have.

A JSON array, JSON Lines, a stream of JSON objects, CSV, TSV, and gzip of each are detected by their content. A list of
paths and lines of text are not: any text could be one, so the caller has to say that it is.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lsml_cli.errors import LsmlError, UsageError
from lsml_cli.io.byte_streams import GzipStream, PrefixedStream, read_head
from lsml_cli.io.csv_records import read_rows
from lsml_cli.io.foreign_formats import recognize_folder
from lsml_cli.io.format_detection import BOM, detect_format, is_format_visible, require_path_list, require_text
from lsml_cli.io.image_paths import detect_separator, has_separator, read_paths
from lsml_cli.io.json_records import CHUNK, MAX_TASK_BYTES, Record, read_lines, split_objects
from lsml_cli.io.text_lines import read_texts

STDIN = "-"


class RecordSource:
    """An open source of records (a `TaskSource`). Iterate over it once; use it as a context manager.

    Attributes:
        name: The source as messages call it.
        format: "array", "lines", "stream", "csv", "paths" or "texts".
        size: Bytes on disk from where reading starts, None for a pipe.
        notes: Sentences to show once: none, but an `ImageFolderSource` has some.
        blank_lines: Lines of text that were skipped so far because nothing is in them.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        source: str,
        id_column: str | None = None,
        paths_key: str | None = None,
        texts_key: str | None = None,
        data_keys: Collection[str] = (),
        max_record_bytes: int = MAX_TASK_BYTES,
    ) -> None:
        """Open a source and detect its format.

        Args:
            source: A path, or "-" for standard input.
            id_column: The CSV column that holds task ids; without it every column is data.
            paths_key: Says that the source is a list of paths and URLs, and under which key of the data they go.
            texts_key: Says that the source is text, each line a task, and under which key of the data they go.
            data_keys: Keys of the data of which a table must have at least one.
            max_record_bytes: A larger record has a problem instead of a body.

        Raises:
            UsageError: There is no such file, or it holds a data set of another format.
            InputError: It holds nothing that could be tasks.
        """
        self.name = "standard input" if source == STDIN else source
        self.id_column = id_column
        self.blank_lines = 0
        self._paths_key = paths_key
        self._texts_key = texts_key
        self._data_keys = data_keys
        self._max_record_bytes = max_record_bytes
        self._file = _open_input(source)
        self.size = _remaining_bytes(self._file)
        self._gzip: GzipStream | None = None
        raw: io.RawIOBase = self._file
        head = b""
        while len(head) < 2 and (more := raw.read(CHUNK)):
            head += more
        if head[:2] == b"\x1f\x8b":
            raw = self._gzip = GzipStream(PrefixedStream(head, raw))
            head = b""
        is_detected = paths_key is None and texts_key is None
        head = read_head(raw, head, is_format_visible if is_detected else has_separator)
        self._separator = detect_separator(head)  # of a list
        head = head.removeprefix(BOM)
        self._stream: io.BufferedReader[Any] = io.BufferedReader(PrefixedStream(head, raw), CHUNK)
        try:
            if paths_key is not None:
                require_path_list(head, self.name, self._end_reason)
                self.format = "paths"
            elif texts_key is not None:
                require_text(head, self.name, self._end_reason)
                self.format = "texts"
            else:
                self.format = detect_format(head, self.name, self._end_reason)
        except LsmlError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        stream, end_reason, max_bytes = self._stream, self._end_reason, self._max_record_bytes
        if self._paths_key is not None:
            return read_paths(stream, end_reason, self._paths_key, self._separator, max_bytes)
        if self._texts_key is not None:
            return read_texts(stream, end_reason, self._texts_key, self._count_blank_line, max_bytes)
        if self.format == "lines":
            return read_lines(stream, end_reason, max_bytes)
        if self.format == "csv":
            return read_rows(stream, end_reason, self.id_column, self._data_keys, max_bytes)
        return split_objects(stream, end_reason, in_array=self.format == "array", max_bytes=max_bytes)

    def share(self, end: int) -> float | None:
        """Return which part (0..1) of the file ends at the `end` of a record; None for a pipe.

        For a compressed file that is estimated, by how well it was compressed so far.
        """
        size = (self.size or 0) * (self._gzip.expansion if self._gzip else 1)
        return min(1.0, end / size) if size else None

    def _count_blank_line(self) -> None:
        self.blank_lines += 1

    def _end_reason(self, default: str = "") -> str:
        """Return why the bytes ended where they did; `default`, with the name before it, when only the caller knows."""
        reason = self._gzip.truncation_reason if self._gzip else ""
        return f"{self.name} ends here: {reason}" if reason else default and f"{self.name} {default}"


def _open_input(source: str) -> io.FileIO:
    if source == STDIN:
        if sys.stdin is None:
            raise UsageError("Standard input is closed.", "Name a file, or pipe the tasks in.")
        return _set_blocking(io.FileIO(sys.stdin.fileno(), closefd=False))
    path = Path(source)
    try:
        return _set_blocking(io.FileIO(path))
    except FileNotFoundError:
        raise UsageError(f"There is no file {source}.", _missing_file_hint(path)) from None
    except IsADirectoryError:
        raise (
            recognize_folder(source) or UsageError(f"{source} is a folder.", "Name the file with the tasks in it.")
        ) from None
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from None


def _set_blocking(file: io.FileIO) -> io.FileIO:
    """Make reads block: some programs (Node.js among them) leave their pipes non-blocking, where no data yet would be
    taken for the end."""
    os.set_blocking(file.fileno(), True)
    return file


def _remaining_bytes(file: io.FileIO) -> int | None:
    """Return the bytes from here to the end of a file; None for a pipe."""
    status = os.fstat(file.fileno())
    return max(0, status.st_size - file.tell()) if stat.S_ISREG(status.st_mode) else None


def _missing_file_hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    neighbours = sorted(
        other.name for other in path.parent.iterdir() if other.suffix == path.suffix and other.is_file()
    )
    return f"That folder has: {', '.join(neighbours[:5])}." if neighbours else "Check the path."
