"""Pictures that no export names: a list of paths and URLs, or a folder -> the bytes of one task each.

The task is `{"data": {key: path}}`, and has no id.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.json_records import CHUNK, MAX_TASK_BYTES, WHITESPACE, EndReason, Record, too_large_message

# The suffixes that pictures have, whether or not a model reads them: one that it does not read should fail visibly.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)


def is_image(name: str) -> bool:
    """Whether a file is a picture, by its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - this is asked for millions of names


# --- A list


def has_separator(head: bytes) -> bool:
    """Whether enough of a list was read to know how its entries end."""
    return b"\n" in head or b"\0" in head


def detect_separator(head: bytes) -> bytes:
    """What ends an entry of the list that begins so: a NUL, as `find -print0` writes it, or a line break."""
    return b"\0" if b"\0" in head else b"\n"


def read_paths(stream: io.BufferedReader[Any], end_reason: EndReason, key: str, separator: bytes) -> Iterator[Record]:
    """One record for each path or URL; blank lines do not count.

    What stands in a line is the value as it is: nothing is decoded, completed or looked up. A carriage return before
    a line break belongs to the line break.
    """
    entry_name = "line" if separator == b"\n" else "path"
    index = number = 0
    for entry, beyond, ended in _split_entries(stream, separator):
        number += 1
        place = f"{entry_name} {number}"
        if not ended and end_reason():  # this may be half a path
            yield Record(index, place, b"", end_reason(), truncated=True)
            return
        if separator == b"\n":
            entry = entry.removesuffix(b"\r")
        if beyond:
            yield Record(index, place, b"", too_large_message(beyond + len(entry)))
        elif entry.strip(WHITESPACE) if separator == b"\n" else entry:
            yield make_path_record(index, place, key, entry.decode("utf-8", "surrogateescape"))
        else:
            continue
        index += 1
    if end_reason():
        yield Record(index, f"{entry_name} {number + 1}", b"", end_reason(), truncated=True)


def _split_entries(stream: io.BufferedReader[Any], separator: bytes) -> Iterator[tuple[bytes, int, bool]]:
    """Each entry, how many bytes of it were let go because it is too large, and whether its end was seen."""
    entry = b""
    beyond = 0
    while chunk := stream.read1(CHUNK):
        *ends, last = chunk.split(separator)
        for end in ends:
            yield entry + end, beyond, True
            entry, beyond = b"", 0
        entry += last
        if len(entry) > MAX_TASK_BYTES:
            entry, beyond = b"", beyond + len(entry)
    if entry or beyond:
        yield entry, beyond, False


def make_path_record(index: int, location: str, key: str, value: str) -> Record:
    """The task of a path. JSON holds text, so there is none where a name is not UTF-8."""
    try:
        return Record(index, location, orjson.dumps({"data": {key: value}}))
    except TypeError:
        shown = escape_path(value)
        problem = f"{shown} is not UTF-8, and a task can hold nothing else: rename the file, for example with convmv"
        return Record(index, location, b"", problem)


def escape_path(path: str) -> str:
    """A path on one line of text, whatever bytes it holds."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


# --- A folder


class ImageFolderSource:
    """The pictures below a folder, as a source of records with the face of `Source`.

    They come in the order of their paths, as `find | LC_ALL=C sort` would give them: memory holds the names of one
    folder on each level, never those of all. A value is the path of the picture as it would be typed: "photos/a.jpg"
    for the folder "photos".

    size   bytes of all records
    notes  sentences to read once: how many files are no pictures
    """

    def __init__(self, folder: str, key: str) -> None:
        """Go through the folder once, which takes seconds for a million pictures, so that what is wrong with it is
        known before a model is loaded.

        Raises UsageError when the folder cannot be read, InputError when no picture is below it.
        """
        self.name = str(Path(folder))
        self._key = key
        self._position = 0
        try:
            os.scandir(folder).close()
        except OSError as error:
            raise UsageError(f"The folder {folder} cannot be read: {error.strerror}.") from None
        walk = _ImageWalk(self.name)
        self.size = sum(map(_record_bytes, self._records(walk)))
        others = f"{walk.non_image_count:,} files are no pictures by their names"
        others = "1 file is no picture by its name" if walk.non_image_count == 1 else others
        if not self.size:
            raise InputError(
                f"There is no picture below {self.name}" + (f": {others}." if walk.non_image_count else "."),
                f"Pictures are known by their suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.",
            )
        self.notes = (f"{others}.",) if walk.non_image_count else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pass

    def __iter__(self) -> Iterator[Record]:
        for record in self._records(_ImageWalk(self.name)):
            self._position += _record_bytes(record)
            yield record

    def position(self) -> int:
        """Bytes of the records so far; compare with `size`."""
        return self._position

    def _records(self, walk: _ImageWalk) -> Iterator[Record]:
        before = "" if self.name == "." else f"{self.name.rstrip('/')}/"
        for index, (path, problem) in enumerate(walk):
            place = escape_path(path)
            if problem:
                yield Record(index, place, b"", f"this folder cannot be read: {problem}")
                continue
            value = before + path
            if ":" in value.partition("/")[0]:  # else it would be taken for an address: "10:30.jpg"
                value = f"./{value}"
            yield make_path_record(index, place, self._key, value)


def _record_bytes(record: Record) -> int:
    return len(record.body) or len(record.problem)


class _ImageWalk:
    """Every picture below a folder: its path from there, and "". A folder that cannot be read: its path, and why.

    What is hidden is left out. Links are followed, but not in circles, nor to where the pictures come anyway.

    others  files so far that are no pictures by their names
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        self._visited_link_targets: set[str] = set()  # what links led to
        self.non_image_count = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        # Of each folder on the way down: its path, and the names that are still to come, the next one last. No
        # recursion: folders may lie deeper in each other than Python calls.
        on_the_way: list[tuple[str, list[str]]] = [("", [""])]
        while on_the_way:
            above, names = on_the_way[-1]
            if not names:
                on_the_way.pop()
                continue
            path = above + names.pop()
            if path and not path.endswith("/"):
                yield path, ""
            elif self._is_to_be_listed(path):
                try:
                    on_the_way.append((path, self._list_entries(path)))
                except OSError as error:
                    yield path, error.strerror or str(error)

    def _list_entries(self, path: str) -> list[str]:
        """Pictures and folders, the last one first. Folders end in "/", which sorts them as whole paths would be."""
        found = []
        with os.scandir(self._root / path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    found.append(f"{entry.name}/")
                elif is_image(entry.name):
                    found.append(entry.name)
                else:
                    self.non_image_count += 1
        found.sort(reverse=True)
        return found

    def _is_to_be_listed(self, path: str) -> bool:
        """Whether a folder is to be listed: always, unless it is a link. Each place is led to once, so that the walk
        ends whatever links there are."""
        folder = self._root / path
        if not path or not folder.is_symlink():
            return True
        target, here, root = (Path(os.path.realpath(each)) for each in (folder, folder.parent, self._root))
        is_circle = here.is_relative_to(target) or root.is_relative_to(target)
        comes_anyway = target.is_relative_to(root) and not any(
            name.startswith(".") for name in target.relative_to(root).parts
        )
        if is_circle or comes_anyway or str(target) in self._visited_link_targets:
            return False
        self._visited_link_targets.add(str(target))
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle; as a picture it says so itself
        return False
