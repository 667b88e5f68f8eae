"""Rows of CSV and TSV -> the bytes of one task each."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import orjson

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.json_records import CHUNK, MAX_TASK_BYTES, EndReason, Record, read_long_line, too_large_message
from lsml_cli.schema.tasks import DATA_PREFIX, is_export_row

_LINE_OVERHEAD = 64  # bytes that Python needs for a short line beside its text


def read_rows(
    stream: io.BufferedReader[Any],
    end_reason: EndReason,
    id_column: str | None,
    data_keys: Collection[str] = (),
    max_bytes: int = MAX_TASK_BYTES,
) -> Iterator[Record]:
    """Return one record per row: `{"data": {column: text}}`, or the flat row itself for a row of an export.

    Quoted fields may hold line breaks. A row that cannot be read costs only itself: reading goes on in the line after
    its first one, since a quote that is never closed swallows the rows that follow. The header and the first row are
    read at once.

    Args:
        stream: The table; its delimiter is the most frequent of tab, comma and semicolon in the header.
        end_reason: Why the input ended early, "" if it did not.
        id_column: A column that must exist, None for none.
        data_keys: Columns of which at least one must exist, if there are any.
        max_bytes: The most that one row may have.

    Raises:
        InputError: Header or first row are missing or make no sense.
        UsageError: There is no column `id_column`, or none of `data_keys`.
    """
    csv.field_size_limit(2 * max_bytes + 1)  # never reached: `_RewindableLines` ends a row before that
    lines = _RewindableLines(stream, max_bytes)
    try:
        header_line = lines.skip_blank()
        delimiter = max("\t,;", key=header_line.count)
        header = next(_csv_reader(lines, delimiter), [])
    except csv.Error as error:
        raise InputError(f"{end_reason(f'has a header that is not CSV: {_csv_error_message(error)}')}.") from None
    if id_column is not None and id_column not in header:
        raise UsageError(f"There is no column {id_column}.", f"The columns are: {', '.join(header)}.")
    if data_keys and not any(_has_column(header, key) for key in data_keys):
        wanted = " or ".join(f'"{key}"' for key in sorted(data_keys))
        raise UsageError(
            f"{end_reason(f'was read as a table, and has no column {wanted}, which the label config shows')}; "
            f"its first line is {header_line.strip()[:60]!r}.",
            "Rename a column; or say that each line is a text, with --from lines, or a path, with --from paths.",
        )
    repeated = sorted(name for name, count in Counter(header).items() if count > 1)
    if repeated:
        raise InputError(f"Two columns have the same name: {', '.join(repeated)}.", "Rename one of them.")
    records = _iter_records(lines, delimiter, header, end_reason)
    record = next(records, None)
    if record is None:
        raise InputError(f"{end_reason('has a header and no rows')}.", f"The header reads: {', '.join(header)[:200]}")
    return itertools.chain([record], records)


def _has_column(header: Sequence[str], key: str) -> bool:
    """Return whether a table has a column for a key: its own, that of an export, or the beginning of a path."""
    return not {key, f"{DATA_PREFIX}{key}", re.split(r"[.\[]", key)[0]}.isdisjoint(header)


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
            yield Record(index, location, b"", _csv_error_message(error), end=lines.end)
            lines.give_up_row(error)
            reader = _csv_reader(lines, delimiter)
        else:
            if lines.is_truncated(end_reason):  # what looks like its last field may be half of one
                break
            if lines.is_searching:  # the row ends after all: read it as a whole
                lines.restart_row()
                reader = _csv_reader(lines, delimiter)
                continue
            if not row:
                continue
            yield _make_record(index, location, header, row, lines.max_bytes, lines.end)
        index += 1
    if end_reason():
        yield Record(index, location, b"", end_reason(), truncated=True)


def _csv_reader(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _make_record(
    index: int, location: str, header: Sequence[str], row: Sequence[str], max_bytes: int, end: int
) -> Record:
    body, problem = b"", ""
    if len(row) == len(header):
        fields = dict(zip(header, row, strict=True))
        try:
            body = orjson.dumps(fields if is_export_row(fields) else {"data": fields})
        except TypeError:
            problem = "this row is not UTF-8 text: convert the file first, for example with iconv"
        if len(body) > max_bytes:
            body, problem = b"", too_large_message(len(body), max_bytes)
    else:
        problem = f"this row has {len(row)} fields, the header has {len(header)}"
    return Record(index, location, body, problem, False, end)


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


class _UnclosedQuoteError(csv.Error):
    """A quote that is not closed within the size of a row; whether it is closed at all is not known."""


class _RewindableLines:
    """The lines of a stream for the `csv` module, which asks for another one of the same row only inside of quotes.

    After a row that cannot be read, its lines but the first one are returned once more. Rows among them that end inside
    of quotes fail like that row, or at least as late, since inside of quotes the past does not matter: such a row is
    not followed through lines that are known to stay inside of quotes. So each line is looked at a few times, however
    many rows fail.

    Attributes:
        max_bytes: The most that one row may have.
        line_number: Number of the line that was returned last, from 1.
        row_lines: Lines of the current row.
        end: Bytes that were read from the stream.
        is_searching: Whether lines of the current row were left out, to find out whether it ends at all.
    """

    def __init__(self, stream: io.BufferedReader[Any], max_bytes: int) -> None:
        self.stream = stream
        self.max_bytes = max_bytes
        self.line_number = 0
        self.end = 0
        self.row_lines: list[str] = []
        self.is_searching = False
        self._row_bytes = 0
        self._pending: deque[str] = deque()  # lines that were read, and are to be returned once more
        self._pending_bytes = 0
        # Whether a row that is inside of quotes at one of the pending lines stays so to the last one of them; then also
        # why it fails there, "" if the search was only given up.
        self._stays_quoted = False
        self._failure = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._pending and self.row_lines and self._stays_quoted and not self.is_searching:
            if self._failure:
                raise csv.Error(self._failure)
            self.is_searching = True
            self._row_bytes += self._pending_bytes
        if self._row_bytes > self.max_bytes:
            raise _UnclosedQuoteError(self._unclosed_message())
        if self._pending and not self.is_searching:
            line = self._pending.popleft()
            self._pending_bytes -= len(line) + _LINE_OVERHEAD
        else:
            line = self._read()
        self._row_bytes += len(line) + _LINE_OVERHEAD
        if self.is_searching:
            self._pending.append(line)
            self._pending_bytes += len(line) + _LINE_OVERHEAD
        else:
            self.row_lines.append(line)
            self.line_number += 1
        if isinstance(line, _OversizedLine):
            is_first = len(self.row_lines) == 1 and not self.is_searching
            raise csv.Error(line if is_first else self._unclosed_message())
        return line

    def _unclosed_message(self) -> str:
        return f"a quote that is opened here is not closed within {self.max_bytes:,} bytes, the limit of a row"

    def _read(self) -> str:
        line = self.stream.readline(CHUNK)
        size = len(line)
        if not line:
            raise StopIteration
        if size == CHUNK and not line.endswith(b"\n"):
            line, size = read_long_line(self.stream, line, self.max_bytes)
        self.end += size
        if size > self.max_bytes:
            return _OversizedLine(too_large_message(size, self.max_bytes))
        return line.decode("utf-8", "surrogateescape")

    def skip_blank(self) -> str:
        """Return the first line that is not blank, which comes next all the same; "" at the end."""
        for line in self:
            if not line.isspace():
                self.restart_row()
                return line
            self.start_row()
        return ""

    def start_row(self) -> None:
        """Declare the next line the first of a row."""
        self.row_lines.clear()
        self._row_bytes = 0
        self.is_searching = False

    def give_up_row(self, error: csv.Error) -> None:
        """Continue in the line after the first one of this row, which `error` was raised about."""
        if len(self.row_lines) > 1 or self.is_searching:
            self._stays_quoted = True
            self._failure = "" if isinstance(error, _UnclosedQuoteError) else str(error)
        self._rewind(self.row_lines[1:])

    def restart_row(self) -> None:
        """Return all lines of this row once more, and those that were left out."""
        self._stays_quoted = False
        self._rewind(self.row_lines)

    def _rewind(self, lines: Sequence[str]) -> None:
        self._pending.extendleft(reversed(lines))
        self._pending_bytes += sum(map(len, lines)) + _LINE_OVERHEAD * len(lines)
        self.line_number -= len(lines)
        self.start_row()

    def is_truncated(self, end_reason: EndReason) -> bool:
        """Return whether the input was cut off inside of the current row."""
        last_lines = self._pending if self.is_searching else self.row_lines
        return not (last_lines and last_lines[-1].endswith("\n")) and bool(end_reason())
