"""Promote a version of a model, and remove old ones."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lsml_cli.errors import OutputError, UnknownModel, UsageError
from lsml_cli.registry.durable_files import fsync_path, raise_write_error, write_synced
from lsml_cli.registry.version_writer import remove_unfinished
from lsml_cli.registry.versions import (
    CURRENT_FILE,
    HIDDEN_FILE_PREFIX,
    HIDDEN_FOLDER_PREFIX,
    find_version,
    read,
    scan_versions,
    verify,
)


def promote(root: Path, version: str) -> None:
    """Make `version` the one that the model's name means from now on.

    Raises:
        UnknownModel: There is no such version.
        ModelError: The version is damaged.
        OutputError: `root` cannot be written to.
    """
    temporary = root / f"{HIDDEN_FILE_PREFIX}{os.getpid()}-{time.time_ns():x}"
    with _exclusive_lock(root):
        verify(read(find_version(root, version)))
        try:
            write_synced(temporary, f"{version}\n".encode())
            temporary.replace(root / CURRENT_FILE)
            fsync_path(root)
        except OSError as error:
            raise_write_error(error, root)
        finally:
            temporary.unlink(missing_ok=True)


def prune(root: Path, keep: int) -> list[str]:
    """Remove all but the newest `keep` versions and the promoted one, and what killed runs left behind.

    Damaged versions are not counted as kept: they are removed when they are older than the versions that stay.

    Returns:
        The names of the removed versions, oldest first.

    Raises:
        OutputError: A version cannot be removed.
    """
    removed: list[str] = []
    intact = 0
    remove_unfinished(root)
    with _exclusive_lock(root):
        for entry in reversed(scan_versions(root)):
            if intact >= keep and not entry.is_promoted:
                _remove(root, entry.name)
                removed.insert(0, entry.name)
            intact += entry.version is not None
    return removed


def discard(root: Path, version: str) -> None:
    """Remove a version that nobody waits for any more, unless it is gone already or was promoted meanwhile.

    Raises:
        OutputError: It cannot be removed.
    """
    with _exclusive_lock(root):
        if any(entry.name == version and not entry.is_promoted for entry in scan_versions(root)):
            _remove(root, version)


def _remove(root: Path, version: str) -> None:
    """Remove a version's folder: hidden first, then deleted, so that a reader never sees a part of a version."""
    hidden = root / f"{HIDDEN_FOLDER_PREFIX}{os.getpid()}-{time.time_ns():x}"
    try:
        (root / version).rename(hidden)
    except OSError as error:
        raise OutputError(f"{root / version} cannot be removed: {error.strerror}.") from error
    shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _exclusive_lock(root: Path) -> Iterator[None]:
    """Exclude other calls of `promote` and `prune`, so that no version is promoted while it is removed."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise UnknownModel(f"There is no folder {root}.", "Name a folder that `lsml fit` wrote.") from None
    except OSError as error:
        raise UsageError(f"{root} cannot be opened as a folder: {error.strerror}.") from error
    try:
        with suppress(OSError):  # a file system without locks; `promote` alone is atomic there as well
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which releases the lock
