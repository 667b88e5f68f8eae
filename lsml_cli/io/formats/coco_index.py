"""Find the entries of a large COCO file without loading it: positions in arrays, entries parsed when they are needed.

A parser that only streams (ijson) would not do: annotations come in any order, and those of an image have to be found.
"""

from __future__ import annotations

import mmap
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from lsml_cli.errors import InputError
from lsml_cli.schema.json_codec import loads
from lsml_cli.schema.value_checks import is_integer

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_KEYPOINTS = re.compile(rb'"keypoints"\s*:\s*\[\s*[^\s\]]')
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\]]', re.DOTALL)


class CocoImage(NamedTuple):
    """An image with its annotations.

    Attributes:
        image: The entry of the image.
        annotations: Those that belong to it.
        share: Which part (0..1) of all images ends with it.
        problem: Why an entry cannot be read, "" if all can.
    """

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    share: float
    problem: str = ""


class CocoIndex:
    """The entries of a COCO file, and of a file of results instead of its annotations.

    Attributes:
        path: The file of annotations.
        categories: The valid categories.
        notes: What is left out.
        has_boxes: Whether some annotation has nothing but a box; likewise has_polygons and has_masks.
        has_keypoints: Whether some annotation has keypoints.
    """

    def __init__(self, path: Path, results: Path | None = None) -> None:
        """Go through the file once.

        Raises:
            InputError: It is no COCO file, or damaged.
        """
        self.path = path
        self.notes: tuple[str, ...] = ()
        self._file = _MappedFile(path)
        self._results = _MappedFile(results) if results else self._file
        try:
            self._build(results)
        except BaseException:
            self.close()
            raise

    def _build(self, results: Path | None) -> None:
        lists = dict(_find_lists(self._file))
        if "images" not in lists or "categories" not in lists:
            raise InputError(
                f'{self.path} is no COCO file: it has no list of "images" or of "categories".',
                "Name a file such as instances.json, or its folder.",
            )
        self._images = _Spans(_iter_objects(self._file, lists["images"]))
        try:
            entries = [self._file.parse(span) for span in _iter_objects(self._file, lists["categories"])]
        except ValueError as error:
            raise InputError(f"A category cannot be read: {error}.") from None
        self.categories = [
            entry for entry in entries if isinstance(entry.get("name"), str) and _as_key(entry.get("id")) is not None
        ]
        start = 0 if results else lists.get("annotations")
        self._annotations = _Spans([] if start is None else _iter_objects(self._results, start))
        self.has_boxes = self.has_polygons = self.has_masks = self.has_keypoints = False
        self._group()

    def _group(self) -> None:
        """Sort the annotations by image."""
        import numpy as np

        positions: dict[int | str, int] = {}
        for position, span in enumerate(self._images):
            image_id = _find_key(self._file, span, "id")
            if image_id is not None:
                positions.setdefault(image_id, position)
        owners = array("q")
        orphans = 0
        for span in self._annotations:
            image_id = _find_key(self._results, span, "image_id")
            owner = -1 if image_id is None else positions.get(image_id, -1)
            orphans += owner < 0
            owners.append(owner)
            self._note_kind(self._results.read(span))
        if orphans:
            entries = "1 annotation belongs" if orphans == 1 else f"{orphans:,} annotations belong"
            self.notes = (f"{entries} to no image of {self.path}, and cannot be read.",)
        order = np.argsort(np.frombuffer(owners, np.int64) if owners else np.zeros(0, np.int64), kind="stable")
        self._order = order[orphans:]
        sorted_owners = np.frombuffer(owners, np.int64)[self._order] if owners else np.zeros(0, np.int64)
        self._starts = np.searchsorted(sorted_owners, np.arange(len(self._images) + 1))

    def _note_kind(self, body: bytes) -> None:
        match = re.search(rb'"segmentation"\s*:\s*(\[\s*\]|\[|\{|null)', body)
        kind = match.group(1)[:1] + match.group(1)[-1:] if match else b""
        self.has_keypoints |= _KEYPOINTS.search(body) is not None
        self.has_polygons |= kind == b"[["
        self.has_masks |= kind == b"{{"
        self.has_boxes |= kind not in (b"[[", b"{{")

    def __iter__(self) -> Iterator[CocoImage]:
        for position, span in enumerate(self._images):
            entries = self._order[self._starts[position] : self._starts[position + 1]]
            share = (position + 1) / len(self._images)
            try:
                image = self._file.parse(span)
                annotations = [self._results.parse(self._annotations[int(entry)]) for entry in entries]
            except ValueError as error:
                yield CocoImage({}, [], share, str(error))
                continue
            yield CocoImage(image, annotations, share)

    def first_file_name(self) -> str | None:
        """Return the file name of the first image, None without one."""
        try:
            name = self._file.parse(self._images[0]).get("file_name") if len(self._images) else None
        except ValueError:
            return None
        return name if isinstance(name, str) else None

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._results.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


Span = tuple[int, int]


class _Spans:
    """Where objects begin and end, 16 bytes each."""

    def __init__(self, spans: Any) -> None:
        self._bounds = array("q")
        for span in spans:
            self._bounds.extend(span)

    def __len__(self) -> int:
        return len(self._bounds) // 2

    def __getitem__(self, position: int) -> Span:
        return self._bounds[2 * position], self._bounds[2 * position + 1]

    def __iter__(self) -> Iterator[Span]:
        return map(self.__getitem__, range(len(self)))


class _MappedFile:
    """A file that the system maps into memory, page by page as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            reason = error.strerror if isinstance(error, OSError) else "it is empty"
            raise InputError(f"{path} cannot be read: {reason}.") from None
        if self.content[:2] == b"\x1f\x8b":
            self.close()
            raise InputError(f"{path} is compressed.", f"Unpack it first: gunzip {path}")

    def read(self, span: Span) -> bytes:
        body: bytes = self.content[span[0] : span[1]]
        return body

    def parse(self, span: Span) -> dict[str, Any]:
        """Return an object; raise ValueError if it is no JSON."""
        try:
            entry: dict[str, Any] = loads(self.read(span))
        except ValueError as error:
            raise ValueError(f"byte {span[0]:,} of {self.path}: {error}") from None
        return entry

    def close(self) -> None:
        self.content.close()


def _find_lists(file: _MappedFile) -> Iterator[tuple[str, int]]:
    """Yield the keys of the outermost object that lists follow, each with the position of the list's bracket."""
    position = 0
    depth = 0
    key = ""
    is_value = False
    while match := _TOKEN.search(file.content, position):
        token = match.group()
        position = match.end()
        if depth == 1 and token == b":":
            is_value = True
        elif depth == 1 and token == b",":
            is_value = False
        elif depth == 1 and token[:1] == b'"' and not is_value:
            key = token[1:-1].decode("utf-8", "replace")
        elif token in (b"{", b"["):
            if depth == 1 and is_value:
                if token == b"[":
                    yield key, match.start()
                position = _skip(file, match.start())
            else:
                depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth <= 0:
                return
    raise InputError(f"{file.path} ends in the middle of its JSON.", "Copy it again.")


def _skip(file: _MappedFile, start: int) -> int:
    """Return the position after the list or object that begins at `start`."""
    depth = 0
    for match in _BRACKETS.finditer(file.content, start):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if not depth:
                return match.end()
    raise InputError(f"{file.path} ends in the middle of its JSON.", "Copy it again.")


def _iter_objects(file: _MappedFile, start: int) -> Iterator[Span]:
    """Yield where the objects of a list begin and end; `start` is before the bracket of the list."""
    depth = 0
    begin = 0
    for match in _BRACKETS.finditer(file.content, start):
        token = match.group()
        if token in (b"{", b"["):
            if depth == 1:
                begin = match.start()
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 1 and token == b"}":
                yield begin, match.end()
            elif not depth:
                return
    raise InputError(f"{file.path} ends in the middle of its JSON.", "Copy it again.")


def _find_key(file: _MappedFile, span: Span, name: str) -> int | str | None:
    """Return what an object has as an id, None if it has none."""
    try:
        return _as_key(file.parse(span).get(name))
    except ValueError:
        return None


def _as_key(value: object) -> int | str | None:
    """Return an id: mostly a number, in some files a text."""
    return value if is_integer(value) or isinstance(value, str) else None
