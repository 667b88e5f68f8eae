"""Files on this machine, below a folder that a path must not leave."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ConfinedPath:
    """A path that is meant to lie below a folder: relative to it, or absolute.

    confined  whether it has to lie there; if not, the folder is only where a relative path begins
    """

    folder: Path
    path: str
    confined: bool = True

    def resolve(self) -> Path:
        """Where it is, links followed. Raises ValueError when that is outside of the folder, or may be."""
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
    """The first that is a file. Raises ValueError for one that leads out of its folder."""
    return next((path for candidate in candidates if os.path.isfile(path := candidate.resolve())), None)  # noqa: PTH113


def find_problem(path: Path, max_bytes: int) -> str | None:
    """Why `read` would fail, without reading the file; None when it would not."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: {error.strerror}"
    if size > max_bytes:
        return _too_large_message(path, max_bytes)
    return None if os.access(path, os.R_OK) else f"{path} may not be read"


def read(path: Path, max_bytes: int) -> bytes:
    """The bytes of a resolved path. Raises OSError, and ValueError when it is too large or no file.

    A FIFO or a device would make a worker wait for ever, so only a regular file is read; and what became a link since
    it was resolved is not followed.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"{path} is not a file")
        content = file.read(max_bytes + 1) if facts.st_size <= max_bytes else b""
    if len(content) > max_bytes or facts.st_size > max_bytes:
        raise ValueError(_too_large_message(path, max_bytes))
    return content


def _too_large_message(path: Path, max_bytes: int) -> str:
    return f"{path} has more than {max_bytes:,} bytes"
