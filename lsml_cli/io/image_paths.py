"""A list of paths and URLs -> the bytes of one task each, `{"data": {key: path}}`, without an id."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import orjson

from lsml_cli.io.json_records import MAX_TASK_BYTES, EndReason, Record
from lsml_cli.io.text_lines import read_entries
from lsml_cli.terminal import escape_controls

# Suffixes of images, whether or not a model can read them: one that it cannot read should fail visibly.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - called for millions of names


def has_separator(head: bytes) -> bool:
    """Return whether enough of a list was read to know how its entries end."""
    return b"\n" in head or b"\0" in head


def detect_separator(head: bytes) -> bytes:
    """Return what ends an entry of a list, given its first bytes: NUL, as `find -print0` writes, or a line break."""
    return b"\0" if b"\0" in head else b"\n"


def read_paths(
    stream: io.BufferedReader[Any],
    end_reason: EndReason,
    key: str,
    separator: bytes,
    max_bytes: int = MAX_TASK_BYTES,
) -> Iterator[Record]:
    """Yield one record for each path or URL; blank lines are skipped.

    The value is the line as it is: nothing is decoded, completed or looked up. A carriage return before a line break
    belongs to the line break.

    Args:
        stream: The list.
        end_reason: Why the input ended early, "" if it did not.
        key: The key of a task's data that gets the path.
        separator: What ends an entry, a line break or NUL.
        max_bytes: The most that one entry may have.
    """

    def make_record(index: int, location: str, entry: bytes) -> Record:
        return make_path_record(index, location, key, entry.decode("utf-8", "surrogateescape"))

    yield from read_entries(stream, end_reason, separator, make_record, max_bytes=max_bytes)


def make_path_record(index: int, location: str, key: str, value: str) -> Record:
    """Return the record of a path; one with a problem where the name is not UTF-8, since JSON holds text."""
    try:
        return Record(index, location, orjson.dumps({"data": {key: value}}))
    except TypeError:
        problem = (
            f"{escape_path(value)} is not UTF-8, and a task can hold nothing else: "
            "rename the file, for example with convmv"
        )
        return Record(index, location, b"", problem)


def escape_path(path: str) -> str:
    """Return a path as one line of text, whatever bytes it holds."""
    return escape_controls(path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
