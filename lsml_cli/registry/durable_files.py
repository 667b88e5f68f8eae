"""Write files so that they survive a power cut, and say why writing failed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from lsml_cli.errors import OutputError, UsageError
from lsml_cli.runtime import DISK_FULL_ERRNOS, open_for_writing


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open_for_writing(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_path(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raise_write_error(error: OSError, root: Path) -> NoReturn:
    """Translate a failed attempt to write below `root`.

    Raises:
        UsageError: `root` is not a folder.
        OutputError: The disk is full, or writing is not allowed.
    """
    if isinstance(error, FileExistsError | NotADirectoryError):
        raise UsageError(
            f"{root} is not a folder, so no version can be written there.", "Choose another --output."
        ) from error
    if error.errno in DISK_FULL_ERRNOS:
        raise OutputError(
            f"The version cannot be written to {root}: the disk is full, or a limit is reached ({error.strerror}).",
            "Make room, or choose another --output; nothing was left behind.",
        ) from error
    raise OutputError(f"The version cannot be written to {root}: {error.strerror}.") from error
