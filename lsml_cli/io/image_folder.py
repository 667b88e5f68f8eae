"""A folder of images -> the bytes of one task each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.foreign_formats import find_dataset, recognize_folder
from lsml_cli.io.image_paths import IMAGE_SUFFIXES, escape_path, is_image, make_path_record
from lsml_cli.io.json_records import Record


class ImageFolderSource:
    """The images below a folder, as a source of records (a `TaskSource`).

    They come in the order of their paths, as `find | LC_ALL=C sort` prints them; memory holds the names of one folder
    per level. The value in a task is the path as one would type it: "photos/a.jpg" for the folder "photos".

    Attributes:
        name: The folder.
        size: Bytes of all records.
        notes: How many files are no images, if any.
        blank_lines: None.
    """

    blank_lines = 0

    def __init__(self, folder: str, key: str) -> None:
        """Walk through the folder once, so that its problems are known before a model is loaded.

        That takes seconds for a million images.

        Args:
            folder: The folder.
            key: The key of a task's data that gets the path.

        Raises:
            UsageError: The folder cannot be read, or holds the annotations of a data set of another format.
            InputError: There is no image below it.
        """
        self.name = str(Path(folder))
        self._key = key
        try:
            os.scandir(folder).close()
        except OSError as error:
            raise UsageError(f"The folder {folder} cannot be read: {error.strerror}.") from None
        walk = ImageWalk(self.name)
        self.size = sum(map(_record_bytes, self._iter_records(walk)))
        skipped = f"{walk.non_image_count:,} files are no images by their names"
        skipped = "1 file is no image by its name" if walk.non_image_count == 1 else skipped
        if not self.size:
            raise recognize_folder(folder) or InputError(
                f"There is no image below {self.name}" + (f": {skipped}." if walk.non_image_count else "."),
                f"Images are known by their suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.",
            )
        notes = [f"{skipped}."] if walk.non_image_count else []
        if walk.non_image_count and (dataset := find_dataset(folder)):
            notes.append(f"{self.name} is a {dataset} data set: its images are read, its annotations are not.")
        self.notes = tuple(notes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pass

    def __iter__(self) -> Iterator[Record]:
        end = 0
        for record in self._iter_records(ImageWalk(self.name)):
            end += _record_bytes(record)
            yield record._replace(end=end)

    def share(self, end: int) -> float | None:
        """Return which part (0..1) of all records ends at the `end` of one."""
        return min(1.0, end / self.size)

    def _iter_records(self, walk: ImageWalk) -> Iterator[Record]:
        prefix = "" if self.name == "." else f"{self.name.rstrip('/')}/"
        for index, (path, problem) in enumerate(walk):
            location = escape_path(path)
            if problem:
                yield Record(index, location, b"", f"this folder cannot be read: {problem}")
                continue
            value = prefix + path
            if ":" in value.partition("/")[0]:  # "10:30.jpg" would be taken for a URL
                value = f"./{value}"
            yield make_path_record(index, location, self._key, value)


def _record_bytes(record: Record) -> int:
    return len(record.body) or len(record.problem)


class ImageWalk:
    """Yields (path below the root, "") for each image, and (path, reason) for a folder that cannot be read.

    Hidden files and folders are skipped. Links are followed, unless they lead in a circle or to a folder whose images
    come anyway.

    Attributes:
        non_image_count: Files so far without an image suffix.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        self._visited_link_targets: set[str] = set()
        self.non_image_count = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        # Per level: the path of a folder, and the names in it that are still to come, the next one last.
        # No recursion: folders may be nested deeper than Python calls.
        levels: list[tuple[str, list[str]]] = [("", [""])]
        while levels:
            parent, names = levels[-1]
            if not names:
                levels.pop()
                continue
            path = parent + names.pop()
            if path and not path.endswith("/"):
                yield path, ""
            elif self._is_to_be_listed(path):
                try:
                    levels.append((path, self._list_entries(path)))
                except OSError as error:
                    yield path, error.strerror or str(error)

    def _list_entries(self, path: str) -> list[str]:
        """Return the images and folders in a folder, in descending order.

        A folder's name ends in "/", so that names sort as whole paths would.
        """
        names = []
        with os.scandir(self._root / path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    names.append(f"{entry.name}/")
                elif is_image(entry.name):
                    names.append(entry.name)
                else:
                    self.non_image_count += 1
        names.sort(reverse=True)
        return names

    def _is_to_be_listed(self, path: str) -> bool:
        """Return whether to list a folder: always, unless it is a link to one that is listed anyway.

        Each target is followed once, so that the walk ends whatever links there are.
        """
        folder = self._root / path
        if not path or not folder.is_symlink():
            return True
        target, parent, root = (Path(os.path.realpath(name)) for name in (folder, folder.parent, self._root))
        is_circle = parent.is_relative_to(target) or root.is_relative_to(target)
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
    except OSError:  # links in a circle: taken as a file, it fails visibly when it is read
        return False
