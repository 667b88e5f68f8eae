"""Lines of plain text -> the bytes of one task each, `{"data": {key: line}}`, without an id."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from lsml_cli.io.json_records import CHUNK, MAX_TASK_BYTES, WHITESPACE, EndReason, Record, too_large_message


def read_texts(
    stream: io.BufferedReader[Any],
    end_reason: EndReason,
    key: str,
    count_blank: Callable[[], None],
    max_bytes: int = MAX_TASK_BYTES,
) -> Iterator[Record]:
    """Yield one record for each line of text; blank lines are skipped.

    The value is the line as it is, spaces at both ends included. A carriage return before a line break belongs to the
    line break.

    Args:
        stream: The text.
        end_reason: Why the input ended early, "" if it did not.
        key: The key of a task's data that gets the line.
        count_blank: Called for each blank line.
        max_bytes: The most that one line may have.
    """
    yield from read_entries(stream, end_reason, b"\n", lambda *entry: _make_record(key, *entry), count_blank, max_bytes)


def read_entries(
    stream: io.BufferedReader[Any],
    end_reason: EndReason,
    separator: bytes,
    make_record: Callable[[int, str, bytes], Record],
    count_blank: Callable[[], None] = lambda: None,
    max_bytes: int = MAX_TASK_BYTES,
) -> Iterator[Record]:
    """Yield one record for each entry of a list; blank ones are skipped.

    Args:
        stream: The list.
        end_reason: Why the input ended early, "" if it did not.
        separator: What ends an entry: a line break, to which a carriage return before it belongs, or NUL.
        make_record: Makes the record of an entry from its index, location and bytes.
        count_blank: Called for each blank entry.
        max_bytes: The most that one entry may have.
    """
    is_line = separator == b"\n"
    entry_name = "line" if is_line else "path"
    index = number = end = 0
    for entry, size, is_complete in split_entries(stream, separator, max_bytes):
        number += 1
        end += size + is_complete
        location = f"{entry_name} {number}"
        if not is_complete and end_reason():  # this may be half an entry
            yield Record(index, location, b"", end_reason(), truncated=True)
            return
        if size > max_bytes:
            yield Record(index, location, b"", too_large_message(size, max_bytes), end=end)
        elif entry.strip(WHITESPACE) if is_line else entry:
            content = entry.removesuffix(b"\r") if is_line else entry
            yield make_record(index, location, content)._replace(end=end)
        else:
            count_blank()
            continue
        index += 1
    if end_reason():
        yield Record(index, f"{entry_name} {number + 1}", b"", end_reason(), truncated=True)


def _make_record(key: str, index: int, location: str, line: bytes) -> Record:
    body, problem = b"", ""
    if b"\0" in line:
        problem = "this line holds a NUL character, which no database of Label Studio's stores"
    else:
        try:
            body = orjson.dumps({"data": {key: line.decode()}})
        except UnicodeDecodeError:
            problem = "this line is not UTF-8 text: convert the file first, for example with iconv"
    return Record(index, location, body, problem)


def split_entries(
    stream: io.BufferedReader[Any], separator: bytes, max_bytes: int
) -> Iterator[tuple[bytes, int, bool]]:
    """Split a stream at each separator.

    Yields:
        An entry, empty if it has more than `max_bytes`; its size; whether its separator was seen.
    """
    held = bytearray()  # of an entry that goes on
    size = 0
    while chunk := stream.read1(CHUNK):
        *complete, rest = chunk.split(separator)
        for piece in complete:
            size += len(piece)
            yield (bytes(held) + piece if size <= max_bytes else b""), size, True
            held.clear()
            size = 0
        size += len(rest)
        if size <= max_bytes:
            held += rest
        else:
            held.clear()
    if size:
        yield bytes(held), size, False
