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
from lsml_cli.io.image_paths import is_picture, read_paths, separator_of, shows_separator
from lsml_cli.io.json_records import CHUNK, WHITESPACE, Depth, Record, cut_objects, read_lines

STDIN = "-"
EXPECTED = "Expected a JSON array of tasks, JSON Lines, CSV or TSV, as Label Studio exports and imports them."
BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
SAMPLE = 4096  # bytes that tell text from anything else
_PRINTABLE = bytes({*range(256)} - {*range(32), 127} | {*b"\t\n\f\r"})
_UNPRINTABLE = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f\udc80-\udcff]")  # the last range: bytes that are no UTF-8
_DECODER = json.JSONDecoder(parse_int=float)  # says where a text stops being JSON; int refuses 5,000 digits
_HEADER_WORD = re.compile(r'("?)[^\W\d][\w .-]{0,63}\1\s*')


class Source:
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
        self._file = _open(source)
        self.size = None if source == STDIN or not Path(source).is_file() else Path(source).stat().st_size
        self._gunzip: _Gunzip | None = None
        raw: io.RawIOBase = self._file
        head = _read_until(raw, b"", lambda head: len(head) >= 2)
        if head[:2] == b"\x1f\x8b":
            raw = self._gunzip = _Gunzip(_Prefixed(head, raw))
            head = b""
        head = _read_until(raw, head, _is_telling if paths_key is None else shows_separator)
        self._stream: io.BufferedReader[Any] = io.BufferedReader(_Prefixed(head.removeprefix(BOM), raw), CHUNK)
        self._separator = separator_of(head)  # of a list
        try:
            self.form = (self._recognise if paths_key is None else self._recognise_list)(head.removeprefix(BOM))
        except InputError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        if self._paths_key is not None:
            return read_paths(self._stream, self._ending, self._paths_key, self._separator)
        if self.form == "lines":
            return read_lines(self._stream, self._ending)
        if self.form == "csv":
            return read_rows(self._stream, self._ending, self.id_column)
        return cut_objects(self._stream, self._ending, in_array=self.form == "array")

    def position(self) -> int:
        """Bytes of the file consumed so far, before decompression; compare with `size`."""
        return self._file.tell() if self.size is not None else 0

    def _ending(self, otherwise: str = "") -> str:
        """Why the bytes ended where they did, `otherwise` when the file itself does not tell."""
        torn = self._gunzip.torn if self._gunzip else ""
        return f"{self.name} ends here: {torn}" if torn else otherwise and f"{self.name} {otherwise}"

    def _recognise(self, head: bytes) -> str:
        start = head.lstrip(WHITESPACE)
        if not start:
            raise InputError(f"{self._ending() or f'{self.name} is empty'}.", EXPECTED)
        if start.startswith(b"PK\x03\x04"):
            raise InputError(f"{self.name} is a zip archive (or an Excel file).", "Unpack it, or export it as CSV.")
        first_line, newline, _ = start.partition(b"\n")
        if _is_binary(start):
            raise self._no_text()
        if start.startswith(b"["):
            return "array"
        if start.startswith(b"{"):
            return _form_of_objects(start)
        if is_picture(self.name):  # PGM begins like a CSV file with one column
            raise self._no_text()
        text = first_line.decode("utf-8", "surrogateescape")
        separated = re.search(r"[,;\t]", text)
        if separated and _UNPRINTABLE.search(text):
            raise self._no_text()
        if separated or (newline and _HEADER_WORD.fullmatch(text)):
            return "csv"
        shown = first_line[:40].decode("utf-8", "replace")
        raise InputError(f"{self.name} is neither JSON nor CSV: it starts with {shown!r}.", EXPECTED)

    def _recognise_list(self, head: bytes) -> str:
        """Refuse what is surely no list, instead of looking for a file with the name of each line."""
        start = head.strip(WHITESPACE + b"\0")
        if not start:
            raise InputError(f"{self._ending() or f'{self.name} is empty'}.", "Expected a path or a URL on each line.")
        if start.startswith(UTF16_BOMS) or is_picture(self.name):
            raise self._no_text()
        if re.match(rb"\[\s*[{\]]", start) or _is_object(start.partition(b"\n")[0]):
            raise InputError(f"{self.name} is JSON, not a list of paths.", "Leave out --from paths.")
        return "paths"

    def _no_text(self) -> InputError:
        if is_picture(self.name):
            return InputError(
                f"{self.name} is a picture, not a file of tasks.",
                "Name the folder that it is in, or pipe its path: echo PICTURE | lsml predict - --from paths",
            )
        return InputError(
            f"{self.name} is UTF-16 or binary, not UTF-8 text.",
            "Convert it first, for example: iconv -f UTF-16 -t UTF-8 tasks.json > tasks-utf8.json",
        )


def _open(source: str) -> io.FileIO:
    if source == STDIN:
        if sys.stdin is None:
            raise UsageError("Standard input is closed.", "Name a file, or pipe the tasks in.")
        return _blocking(io.FileIO(sys.stdin.fileno(), closefd=False))
    path = Path(source)
    try:
        return _blocking(io.FileIO(path))
    except FileNotFoundError:
        raise UsageError(f"There is no file {source}.", _what_is_there(path)) from None
    except IsADirectoryError:
        raise UsageError(f"{source} is a folder.", "Name the file with the tasks in it.") from None
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from None


def _blocking(file: io.FileIO) -> io.FileIO:
    """Some programs (node among them) leave their pipes non-blocking; "nothing yet" would be taken for the end."""
    os.set_blocking(file.fileno(), True)
    return file


def _what_is_there(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    known = sorted(other.name for other in path.parent.iterdir() if other.suffix == path.suffix and other.is_file())
    return f"That folder has: {', '.join(known[:5])}." if known else "Check the path."


class _Prefixed(io.RawIOBase):
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


class _Gunzip(io.RawIOBase):
    """A gzip stream that gives everything up to a tear, then ends and says why in `torn`."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(wbits=31)
        self._waiting = b""
        self.torn = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self.torn:
            self._waiting = self._waiting or self._file.read(1 << 16) or b""
            if self._inflate.eof:
                if not self._waiting.strip(b"\0"):  # gzip allows padding after the last member
                    break
                self._inflate = zlib.decompressobj(wbits=31)
            elif not self._waiting:
                self.torn = "the gzip data is cut off"
                break
            try:
                data = self._inflate.decompress(self._waiting, len(buffer))
            except zlib.error as error:
                self.torn = f"the gzip data is damaged ({error})"
                break
            self._waiting = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        buffer[: len(data)] = data
        return len(data)


def _read_until(raw: io.RawIOBase, head: bytes, enough: Callable[[bytes], bool]) -> bytes:
    """`head` and what follows, until `enough` or a chunk is there. A pipe may deliver it byte by byte."""
    while not enough(head) and (len(head) < CHUNK or not head.strip(WHITESPACE)):
        more = raw.read(CHUNK)
        if not more:
            break
        head += more
    return head


def _is_binary(start: bytes) -> bool:
    """Whether this is UTF-16, or for a good part what no text holds: one NUL in one task costs only that task."""
    sample = start[:SAMPLE]
    odd = len(sample.translate(None, _PRINTABLE))
    odd += len(sample) - len(sample.decode("utf-8", "ignore").encode())
    return start.startswith(UTF16_BOMS) or b"\0" in sample[:4] or 3 * odd > max(len(sample), 256)


def _is_telling(head: bytes) -> bool:
    """Whether the form shows: in the first line, or in three when the first begins an object without ending it."""
    *lines, _ = head.removeprefix(BOM).split(b"\n")
    lines = [line for line in lines if line.strip()]
    return bool(lines) and (len(lines) >= 3 or not lines[0].lstrip().startswith(b"{") or _is_object(lines[0]))


def _form_of_objects(start: bytes) -> str:
    """Whether objects come one a line, or in any other way: pretty-printed, several on a line.

    A first line that is no object may be a broken one, which costs a task, or the beginning of one over several lines,
    which a reader of lines would make many failures of. What the next two lines are tells which.
    """
    first, *others = [line for line in start[:CHUNK].split(b"\n") if line.strip()][:3]
    if _is_object(first):
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
    if unfinished and seen_whole and not (len(others) == 1 and _is_object(second)):
        return "stream"
    return "lines" if second.startswith(b"{") or Depth().feed(first) or not seen_whole else "stream"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
