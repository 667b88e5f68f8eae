"""The folder of a data set that is written: it appears under its name when it is complete, and files stay in it."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from lsml_cli.errors import OutputError, UsageError
from lsml_cli.runtime import DISK_FULL_ERRNOS

SHOWN_MODE = 0o777  # of the finished folder, less the umask


class OutputFolder:
    """A folder that is filled under another name, and renamed by `publish`.

    Use it as a context manager: left without `publish`, nothing remains.

    Args:
        path: Where the folder will be. An empty folder may be there already.

    Attributes:
        path: The same, with links followed.

    Raises:
        UsageError: Something is there already, or no folder can be made there.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{path} is a file, and a folder is to be made.", "Name another folder with --output.")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(f"The folder {path} is not empty.", "Name another folder, or remove this one first.")
        parent = self.path.parent
        if not parent.is_dir():
            raise UsageError(f"There is no folder {parent}.", f"Create it first: mkdir -p {parent}")
        self._part = parent / f".{self.path.name[:100]}-{secrets.token_hex(8)}.new"
        self._part_name = str(self._part)
        self._made_folders: set[str] = set()
        try:
            self._part.mkdir(0o700)
        except OSError as error:
            raise UsageError(f"No folder can be made in {parent}: {error.strerror}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            raise OutputError(
                f"The disk is full: {self.path} cannot be written.", "Make room, then try again."
            ) from None

    def exists(self, name: str) -> bool:
        """Return whether a file of that name was made."""
        return os.path.lexists(self._locate(name))

    def create(self, name: str) -> BinaryIO:
        """Create a file, with the folders above it, and return it open for writing.

        Args:
            name: Path below the folder: "labels/train/a.txt". Names that come from tasks are made by `confine_name`.
        """
        path = self._locate(name, with_folder=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(path, flags, 0o666), "w+b")

    def write(self, name: str, content: bytes) -> None:
        """Create a file with a content."""
        with self.create(name) as file:
            file.write(content)

    def make_folder(self, name: str) -> None:
        """Make a folder in the folder, if it is not there."""
        os.makedirs(self._locate(name), exist_ok=True)  # noqa: PTH103 - strings are faster, see `_locate`

    def link(self, name: str, target: Path) -> None:
        """Make a file of that name which is the same as `target`: a hard link, else a symbolic one."""
        path = self._locate(name, with_folder=True)
        try:
            os.link(target, path, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # another file system, or a file of somebody else
            Path(path).symlink_to(target.absolute())

    def remove(self, name: str) -> None:
        """Remove a file."""
        Path(self._locate(name)).unlink()

    def publish(self) -> None:
        """Let the folder appear under its name.

        Raises:
            OutputError: Something has that name by now.
        """
        umask = os.umask(0)
        os.umask(umask)
        self._part.chmod(SHOWN_MODE & ~umask)
        try:
            self._part.rename(self.path)
        except OSError as error:
            raise OutputError(f"The folder {self.path} cannot be made: {error.strerror}.") from None

    def _locate(self, name: str, *, with_folder: bool = False) -> str:
        """Return the path of a file in the folder; a string, since a data set has a hundred thousand files."""
        parts = name.split("/")
        if name.startswith("/") or not {"", ".", ".."}.isdisjoint(parts):
            raise ValueError(f"{name!r} is no name of a file in the folder")
        folder = "/".join(parts[:-1])
        if with_folder and folder not in self._made_folders:
            os.makedirs(f"{self._part_name}/{folder}", exist_ok=True)  # noqa: PTH103
            self._made_folders.add(folder)
        return f"{self._part_name}/{name}"
