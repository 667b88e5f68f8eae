"""Write a trained version: into a hidden folder, which is renamed when all of it is on the disk.

The layout is described in `versions`, which reads it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from lsml_cli.errors import UsageError
from lsml_cli.registry.digests import DIGEST_BYTES, file_digest
from lsml_cli.registry.durable_files import fsync_path, raise_write_error, write_synced
from lsml_cli.registry.versions import (
    FORMAT,
    HELD_OUT_TASKS_FILE,
    HIDDEN_FILE_PREFIX,
    HIDDEN_FOLDER_PREFIX,
    METADATA_FILE,
    TRAINED_TASKS_FILE,
    Version,
    is_version_folder,
)

_STALE_SECONDS = 24 * 3600  # after which a killed run is assumed on a file system without locks


class VersionWriter:
    """A version that is being written. Write the weights into `folder`, then call `commit`.

    Args:
        root: Folder of the model's versions.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started_at = time.time()
        self.folder, self._lock = _create_locked_folder(root)

    def clear(self) -> None:
        """Remove what was written so far."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def close(self) -> None:
        """Remove the folder, unless it was committed, and release its lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def commit(
        self, *, family: str, label_config: str, state: Mapping[str, Any], params: Mapping[str, Any], **facts: Any
    ) -> Version:
        """Describe the version and rename its folder; from then on it exists.

        Args:
            family, label_config, state, params, facts: Fields of `Version`.

        Raises:
            OutputError: It cannot be written.
        """
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name != METADATA_FILE)
        files = {path.relative_to(self.folder).as_posix(): path for path in paths}
        digests = {name: file_digest(path) for name, path in files.items()}
        digest = blake2b(digest_size=DIGEST_BYTES)
        for name, content in digests.items():
            if name in (TRAINED_TASKS_FILE, HELD_OUT_TASKS_FILE):
                continue  # they say where the model comes from, not what it is
            digest.update(f"{name}\0{content}\0".encode())
        digest.update(orjson.dumps([family, label_config, state, params], option=orjson.OPT_SORT_KEYS))
        when = time.gmtime(self.started_at)
        version = Version(
            folder=self.folder,
            name=os.fsencode(self.root.resolve().name).decode("utf-8", "replace"),
            version="",
            family=family,
            label_config=label_config,
            state=state,
            params=params,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", when),
            files={name: path.stat().st_size for name, path in files.items()},
            digest=digest.hexdigest(),
            digests=digests,
            **facts,
        )
        try:
            for path in paths:
                fsync_path(path)
            return self._rename_to_free_name(version, time.strftime("%Y%m%dT%H%M%S", when))
        except OSError as error:
            raise_write_error(error, self.root)

    def _rename_to_free_name(self, version: Version, timestamp: str) -> Version:
        """Rename the folder to the first free name; other runs may do the same at this moment."""
        number = 1
        while True:
            name = timestamp if number == 1 else f"{timestamp}-{number}"
            done = Version(**(_field_values(version) | {"folder": self.root / name, "version": name}))
            write_synced(self.folder / METADATA_FILE, _to_json(done))
            fsync_path(self.folder)
            try:
                if not done.folder.exists():  # renaming onto an empty folder would succeed
                    self.folder.rename(done.folder)
                    fsync_path(self.root)
                    return done
            except OSError:
                if not done.folder.exists():
                    raise
            number += 1


@contextmanager
def open_version_writer(root: Path) -> Iterator[VersionWriter]:
    """Start a version below `root`, which is created if necessary; without `commit` both are removed on leaving.

    Raises:
        OutputError: `root` cannot be written to.
        UsageError: `root` is not a folder.
    """
    created: list[Path] = []
    try:
        try:
            created = [folder for folder in (root, *root.parents) if not folder.exists()]
            root.mkdir(parents=True, exist_ok=True)
            remove_unfinished(root)
            writer = VersionWriter(root)
        except OSError as error:
            raise_write_error(error, root)
        try:
            yield writer
        finally:
            writer.close()
    finally:
        for folder in created:
            with suppress(OSError):  # not empty: it holds a version of this run or of another one
                folder.rmdir()


def require_version_root(root: Path) -> None:
    """Refuse a folder that is itself a version.

    Raises:
        UsageError: `root` is a version.
    """
    try:
        is_version = is_version_folder(root)
    except OSError as error:
        raise_write_error(error, root)
    if is_version:
        raise UsageError(
            f"{root} is one version of a model, and no place for another.",
            f"Name the folder above, where the versions live: --output {root.resolve().parent}",
        )


def remove_unfinished(root: Path) -> None:
    """Remove what killed runs left behind: the folders that no process has locked."""
    for folder in root.glob(HIDDEN_FOLDER_PREFIX + "*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _is_abandoned(folder, descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
    for file in root.glob(HIDDEN_FILE_PREFIX + "*"):
        with suppress(OSError):
            if _is_stale(file):
                file.unlink()


def _create_locked_folder(root: Path) -> tuple[Path, int]:
    """Create a hidden folder below `root` and lock it; the lock says that its process is alive.

    Returns:
        The folder, and the descriptor that holds its lock.
    """
    while True:
        folder = root / f"{HIDDEN_FOLDER_PREFIX}{os.getpid()}-{time.time_ns():x}"
        folder.mkdir(parents=True)  # with parents: another run that created `root` may have removed it again
        descriptor = -1
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(folder.lstat(), os.fstat(descriptor)):
                return folder, descriptor
        except FileNotFoundError:  # another run swept it between its creation and its lock
            pass
        if descriptor >= 0:
            os.close(descriptor)


def _is_abandoned(folder: Path, descriptor: int) -> bool:
    """Return whether the process that made a hidden folder is gone: nobody holds its lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return _is_stale(folder)
    return True


def _is_stale(path: Path) -> bool:
    return path.lstat().st_mtime < time.time() - _STALE_SECONDS


def _field_values(version: Version) -> dict[str, Any]:
    return {attribute.name: getattr(version, attribute.name) for attribute in fields(version)}


def _to_json(version: Version) -> bytes:
    content = {"format": FORMAT} | asdict(version)
    del content["folder"]
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
