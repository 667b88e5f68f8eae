"""Rows of CSV and TSV -> the bytes of one task each."""

from __future__ import annotations

import csv
import io
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.json_records import MAX_TASK_BYTES, EndReason, Record, skip_line, too_large_message
from lsml_cli.schema.tasks import is_export_row

_LINE_OVERHEAD = 64  # bytes that Python needs for a short line beside its text


def read_rows(stream: io.BufferedReader[Any], end_reason: EndReason, id_column: str | None) -> Iterator[Record]:
    """Return one record per row: `{"data": {column: text}}`, or the flat row itself for a row of an export.

    Quoted fields may hold line breaks. A row that cannot be read costs only itself: reading goes on in the line after
    its first one, since a quote that is never closed swallows the rows that follow. The header and the first row are
    read at once.

    Args:
        stream: The table; its delimiter is the most frequent of tab, comma and semicolon in the header.
        end_reason: Why the input ended early, "" if it did not.
        id_column: A column that must exist, None for none.

    Raises:
        InputError: Header or first row are missing or make no sense.
        UsageError: There is no column `id_column`.
    """
    csv.field_size_limit(MAX_TASK_BYTES)
    lines = _RewindableLines(stream)
    try:
        header_line = next((line for line in lines if not line.isspace()), "")
        lines.rewind(len(lines.row_lines) - 1)
        delimiter = max("\t,;", key=header_line.count)
        header = next(_csv_reader(lines, delimiter), [])
    except csv.Error as error:
        raise InputError(f"{end_reason(f'has a header that is not CSV: {_csv_error_message(error)}')}.") from None
    if id_column is not None and id_column not in header:
        raise UsageError(f"There is no column {id_column}.", f"The columns are: {', '.join(header)}.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(f"Two columns have the same name: {', '.join(repeated)}.", "Rename one of them.")
    records = _iter_records(lines, delimiter, header, end_reason)
    record = next(records, None)
    if record is None:
        raise InputError(f"{end_reason('has a header and no rows')}.", f"The header reads: {', '.join(header)[:200]}")
    return itertools.chain([record], records)


def _iter_records(
    lines: _RewindableLines, delimiter: str, header: Sequence[str], end_reason: EndReason
) -> Iterator[Record]:
    reader = _csv_reader(lines, delimiter)
    index = 0
    while True:
        lines.start_row()
        location = f"line {lines.line_number + 1}"
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if lines.is_truncated(end_reason):
                break
            yield Record(index, location, b"", _csv_error_message(error))
            lines.rewind(1)
            reader = _csv_reader(lines, delimiter)
        else:
            if lines.is_truncated(end_reason):  # what looks like its last field may be half of one
                break
            if not row:
                continue
            yield _make_record(index, location, header, row)
        index += 1
    if end_reason():
        yield Record(index, location, b"", end_reason(), truncated=True)


def _csv_reader(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _make_record(index: int, location: str, header: Sequence[str], row: Sequence[str]) -> Record:
    if len(row) != len(header):
        return Record(index, location, b"", f"this row has {len(row)} fields, the header has {len(header)}")
    fields = dict(zip(header, row, strict=True))
    try:
        return Record(index, location, orjson.dumps(fields if is_export_row(fields) else {"data": fields}))
    except TypeError:
        return Record(
            index, location, b"", "this row is not UTF-8 text: convert the file first, for example with iconv"
        )


def _csv_error_message(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quote that is opened here is never closed"
    if "expected after" in text:
        return "this row is not CSV: a quote inside of a quoted field has to be doubled"
    if "new-line character" in text:
        return "this row is not CSV: a carriage return stands in a field without quotes"
    return text


class _OversizedLine(str):
    """The message about a line that is too large, in place of the line."""


class _RewindableLines:
    """The lines of a stream for the `csv` module; those of a row that cannot be read can be replayed.

    Attributes:
        line_number: Number of the line that was returned last, from 1.
        row_lines: Lines of the current row, at most `MAX_TASK_BYTES` of them.
    """

    def __init__(self, stream: io.BufferedReader[Any]) -> None:
        self.stream = stream
        self.line_number = 0
        self.row_lines: list[str] = []
        self._replayed: deque[str] = deque()  # lines to return once more
        self._row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._row_bytes > MAX_TASK_BYTES:
            raise csv.Error(f"a quote that is opened here is not closed within {MAX_TASK_BYTES:,} bytes")
        line = self._replayed.popleft() if self._replayed else self._read()
        self.line_number += 1
        self.row_lines.append(line)
        self._row_bytes += len(line) + _LINE_OVERHEAD
        if isinstance(line, _OversizedLine):
            raise csv.Error(line)
        return line

    def _read(self) -> str:
        line = self.stream.readline(MAX_TASK_BYTES)
        if not line:
            raise StopIteration
        if len(line) == MAX_TASK_BYTES and not line.endswith(b"\n"):
            return _OversizedLine(too_large_message(len(line) + skip_line(self.stream)))
        return line.decode("utf-8", "surrogateescape")

    def start_row(self) -> None:
        """Declare the next line the first of a row."""
        self.row_lines.clear()
        self._row_bytes = 0

    def rewind(self, keep: int) -> None:
        """Return the lines of this row once more, all but the first `keep`."""
        self._replayed.extendleft(reversed(self.row_lines[keep:]))
        self.line_number -= len(self.row_lines[keep:])
        self.start_row()

    def is_truncated(self, end_reason: EndReason) -> bool:
        """Return whether the input was cut off inside of the current row."""
        return not (self.row_lines and self.row_lines[-1].endswith("\n")) and bool(end_reason())
