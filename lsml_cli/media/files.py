"""Read files on this machine, confined to a folder that a path must not leave."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ConfinedPath:
    """A path below a folder, relative to it or absolute.

    Attributes:
        folder: Where a relative path begins.
        path: The path as it was written.
        confined: Whether the path has to lie below the folder.
    """

    folder: Path
    path: str
    confined: bool = True

    def resolve(self) -> Path:
        """Return the path with links followed; raise ValueError if that leaves the folder, or could."""
        if "\0" in self.path:
            raise ValueError(f"{self.path!r} holds a NUL character")
        folder = Path(os.path.realpath(self.folder))  # unlike Path.resolve, no error for links in a circle
        path = Path(os.path.realpath(folder / self.path))
        if not self.confined:
            return path
        if not path.is_relative_to(folder):
            raise ValueError(f"{self.path} lies outside of {folder}")
        if ".." in Path(self.path).parts:  # what is inside today is outside when a link changes
            raise ValueError(f"{self.path} leads upwards (..), which could be out of {folder}")
        return path


def first_existing(candidates: Iterable[ConfinedPath]) -> Path | None:
    """Return the first path that is a file, None without one; raise ValueError if one leaves its folder."""
    return next((path for candidate in candidates if os.path.isfile(path := candidate.resolve())), None)  # noqa: PTH113


def find_problem(path: Path, max_bytes: int) -> str | None:
    """Return why `read` would fail, without reading the file; None if it would not."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: {error.strerror}"
    if size > max_bytes:
        return _too_large_message(path, max_bytes)
    return None if os.access(path, os.R_OK) else f"{path} may not be read"


def read(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a resolved path.

    Only regular files are read, because a FIFO or a device could make a worker wait for ever. A path that became a
    link since it was resolved is not followed.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is too large, or not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a file")
        content = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
    if len(content) > max_bytes or status.st_size > max_bytes:
        raise ValueError(_too_large_message(path, max_bytes))
    return content


def _too_large_message(path: Path, max_bytes: int) -> str:
    return f"{path} has more than {max_bytes:,} bytes"
