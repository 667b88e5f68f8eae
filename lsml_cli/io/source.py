"""Where tasks come from: a file or standard input, whatever it holds.

A JSON array, JSON Lines, a stream of JSON objects, CSV, TSV, and gzip of each are recognised by their content. A list
of paths is not: any text could be one, so it has to be asked for.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.csv_records import read_rows
from lsml_cli.io.image_paths import detect_separator, has_separator, is_image, read_paths
from lsml_cli.io.json_records import CHUNK, WHITESPACE, BraceDepth, Record, read_lines, split_objects

STDIN = "-"
EXPECTED_TASKS_HINT = (
    "Expected a JSON array of tasks, JSON Lines, CSV or TSV, as Label Studio exports and imports them."
)
BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
BINARY_SAMPLE_BYTES = 4096  # bytes that tell text from anything else
_PRINTABLE = bytes({*range(256)} - {*range(32), 127} | {*b"\t\n\f\r"})
_CONTROL_OR_INVALID = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f\udc80-\udcff]")  # the last range: bytes that are no UTF-8
_DECODER = json.JSONDecoder(parse_int=float)  # says where a text stops being JSON; int refuses 5,000 digits
_HEADER_PATTERN = re.compile(r'("?)[^\W\d][\w .-]{0,63}\1\s*')


class RecordSource:
    """An open source of records. Iterate it once; use it as a context manager.

    form   "array", "lines", "stream", "csv" or "paths", known after opening
    size   bytes on disk, None for a pipe
    notes  sentences to read once: none, but a `Folder` has some
    """

    notes: tuple[str, ...] = ()

    def __init__(self, source: str, id_column: str | None = None, paths_key: str | None = None) -> None:
        """Open `source`, a path or "-" for standard input.

        id_column names the CSV column that holds task ids; without it every column is data.
        paths_key says that this is a list of paths and URLs, and under which key of the data they are put.
        Raises UsageError when there is no such file, InputError when it holds nothing that could be tasks.
        """
        self.name = "standard input" if source == STDIN else source
        self.id_column = id_column
        self._paths_key = paths_key
        self._file = _open_input(source)
        self.size = None if source == STDIN or not Path(source).is_file() else Path(source).stat().st_size
        self._gzip: _GzipStream | None = None
        raw: io.RawIOBase = self._file
        head = _read_until(raw, b"", lambda head: len(head) >= 2)
        if head[:2] == b"\x1f\x8b":
            raw = self._gzip = _GzipStream(_PrefixedStream(head, raw))
            head = b""
        head = _read_until(raw, head, _is_format_visible if paths_key is None else has_separator)
        self._stream: io.BufferedReader[Any] = io.BufferedReader(_PrefixedStream(head.removeprefix(BOM), raw), CHUNK)
        self._separator = detect_separator(head)  # of a list
        try:
            self.format = (self._detect_format if paths_key is None else self._detect_path_list)(head.removeprefix(BOM))
        except InputError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        if self._paths_key is not None:
            return read_paths(self._stream, self._end_reason, self._paths_key, self._separator)
        if self.format == "lines":
            return read_lines(self._stream, self._end_reason)
        if self.format == "csv":
            return read_rows(self._stream, self._end_reason, self.id_column)
        return split_objects(self._stream, self._end_reason, in_array=self.format == "array")

    def position(self) -> int:
        """Bytes of the file consumed so far, before decompression; compare with `size`."""
        return self._file.tell() if self.size is not None else 0

    def _end_reason(self, default: str = "") -> str:
        """Why the bytes ended where they did, `otherwise` when the file itself does not tell."""
        torn = self._gzip.truncation_reason if self._gzip else ""
        return f"{self.name} ends here: {torn}" if torn else default and f"{self.name} {default}"

    def _detect_format(self, head: bytes) -> str:
        start = head.lstrip(WHITESPACE)
        if not start:
            raise InputError(f"{self._end_reason() or f'{self.name} is empty'}.", EXPECTED_TASKS_HINT)
        if start.startswith(b"PK\x03\x04"):
            raise InputError(f"{self.name} is a zip archive (or an Excel file).", "Unpack it, or export it as CSV.")
        first_line, newline, _ = start.partition(b"\n")
        if _is_binary(start):
            raise self._not_text_error()
        if start.startswith(b"["):
            return "array"
        if start.startswith(b"{"):
            return _detect_object_format(start)
        if is_image(self.name):  # PGM begins like a CSV file with one column
            raise self._not_text_error()
        text = first_line.decode("utf-8", "surrogateescape")
        separated = re.search(r"[,;\t]", text)
        if separated and _CONTROL_OR_INVALID.search(text):
            raise self._not_text_error()
        if separated or (newline and _HEADER_PATTERN.fullmatch(text)):
            return "csv"
        shown = first_line[:40].decode("utf-8", "replace")
        raise InputError(f"{self.name} is neither JSON nor CSV: it starts with {shown!r}.", EXPECTED_TASKS_HINT)

    def _detect_path_list(self, head: bytes) -> str:
        """Refuse what is surely no list, instead of looking for a file with the name of each line."""
        start = head.strip(WHITESPACE + b"\0")
        if not start:
            raise InputError(
                f"{self._end_reason() or f'{self.name} is empty'}.", "Expected a path or a URL on each line."
            )
        if start.startswith(UTF16_BOMS) or is_image(self.name):
            raise self._not_text_error()
        if re.match(rb"\[\s*[{\]]", start) or _is_json_object(start.partition(b"\n")[0]):
            raise InputError(f"{self.name} is JSON, not a list of paths.", "Leave out --from paths.")
        return "paths"

    def _not_text_error(self) -> InputError:
        if is_image(self.name):
            return InputError(
                f"{self.name} is a picture, not a file of tasks.",
                "Name the folder that it is in, or pipe its path: echo PICTURE | lsml predict - --from paths",
            )
        return InputError(
            f"{self.name} is UTF-16 or binary, not UTF-8 text.",
            "Convert it first, for example: iconv -f UTF-16 -t UTF-8 tasks.json > tasks-utf8.json",
        )


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
        raise UsageError(f"{source} is a folder.", "Name the file with the tasks in it.") from None
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from None


def _set_blocking(file: io.FileIO) -> io.FileIO:
    """Some programs (node among them) leave their pipes non-blocking; "nothing yet" would be taken for the end."""
    os.set_blocking(file.fileno(), True)
    return file


def _missing_file_hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    known = sorted(other.name for other in path.parent.iterdir() if other.suffix == path.suffix and other.is_file())
    return f"That folder has: {', '.join(known[:5])}." if known else "Check the path."


class _PrefixedStream(io.RawIOBase):
    """Bytes that were read already, then the rest of the stream that they came from."""

    def __init__(self, head: bytes, rest: io.RawIOBase) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self._head:
            return self._rest.readinto(buffer)
        data, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


class _GzipStream(io.RawIOBase):
    """A gzip stream that gives everything up to a tear, then ends and says why in `torn`."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._decompressor = zlib.decompressobj(wbits=31)
        self._unread = b""
        self.truncation_reason = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self.truncation_reason:
            self._unread = self._unread or self._file.read(1 << 16) or b""
            if self._decompressor.eof:
                if not self._unread.strip(b"\0"):  # gzip allows padding after the last member
                    break
                self._decompressor = zlib.decompressobj(wbits=31)
            elif not self._unread:
                self.truncation_reason = "the gzip data is cut off"
                break
            try:
                data = self._decompressor.decompress(self._unread, len(buffer))
            except zlib.error as error:
                self.truncation_reason = f"the gzip data is damaged ({error})"
                break
            self._unread = (
                self._decompressor.unused_data if self._decompressor.eof else self._decompressor.unconsumed_tail
            )
        buffer[: len(data)] = data
        return len(data)


def _read_until(raw: io.RawIOBase, head: bytes, is_enough: Callable[[bytes], bool]) -> bytes:
    """`head` and what follows, until `enough` or a chunk is there. A pipe may deliver it byte by byte."""
    while not is_enough(head) and (len(head) < CHUNK or not head.strip(WHITESPACE)):
        more = raw.read(CHUNK)
        if not more:
            break
        head += more
    return head


def _is_binary(start: bytes) -> bool:
    """Whether this is UTF-16, or for a good part what no text holds: one NUL in one task costs only that task."""
    sample = start[:BINARY_SAMPLE_BYTES]
    odd = len(sample.translate(None, _PRINTABLE))
    odd += len(sample) - len(sample.decode("utf-8", "ignore").encode())
    return start.startswith(UTF16_BOMS) or b"\0" in sample[:4] or 3 * odd > max(len(sample), 256)


def _is_format_visible(head: bytes) -> bool:
    """Whether the form shows: in the first line, or in three when the first begins an object without ending it."""
    *lines, _ = head.removeprefix(BOM).split(b"\n")
    lines = [line for line in lines if line.strip()]
    return bool(lines) and (len(lines) >= 3 or not lines[0].lstrip().startswith(b"{") or _is_json_object(lines[0]))


def _detect_object_format(start: bytes) -> str:
    """Whether objects come one a line, or in any other way: pretty-printed, several on a line.

    A first line that is no object may be a broken one, which costs a task, or the beginning of one over several lines,
    which a reader of lines would make many failures of. What the next two lines are tells which.
    """
    first, *others = [line for line in start[:CHUNK].split(b"\n") if line.strip()][:3]
    if _is_json_object(first):
        return "lines"
    second = others[0].lstrip() if others else b""
    text = b"\n".join([first, *others]).rstrip(WHITESPACE)
    seen_whole = bool(others) or len(start) < CHUNK
    try:
        _, end = _DECODER.raw_decode(text.decode("latin-1"))
        return "stream" if end > len(first) or first[end:].lstrip().startswith(b"{") else "lines"
    except RecursionError:
        return "lines"
    except json.JSONDecodeError as error:
        unfinished = error.pos >= len(text)
    if unfinished and seen_whole and not (len(others) == 1 and _is_json_object(second)):
        return "stream"
    return "lines" if second.startswith(b"{") or BraceDepth().feed(first) or not seen_whole else "stream"


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
