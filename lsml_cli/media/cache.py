"""Remote media kept on disk: written atomically, bounded, shared by processes."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

BOUND = 10 << 30  # bytes
SWEPT_EVERY = 32  # parts of the bound: so much is written by a process before it looks at the folder again
SWEPT_TO = 0.9  # of the bound
STALE = 3600.0  # seconds after which a file that nobody finished is somebody's who died

_KEPT = re.compile(r"[0-9a-f]{62}")
_UNFINISHED = re.compile(r"[0-9a-f]{62}\.\w+\.part")
_DIGEST = 32  # bytes in front of the content


@dataclass(frozen=True)
class Cache:
    """A folder of files that were fetched before. They are not asked for again.

    folder  made where it is missing; nothing in it but what this wrote is ever removed
    bound   bytes, more or less: a process may write a 32nd of it before it looks again. The files that were not used
            for longest go first

    Nothing that happens to the folder fails a task: what cannot be read is fetched, what cannot be written is not kept.
    """

    folder: Path
    bound: int = BOUND
    _written: _Written = field(default_factory=lambda: _Written(), init=False, compare=False, repr=False)

    def get(self, key: str) -> bytes | None:
        """What was put there, None when it is not there or damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            if content[:_DIGEST] != _digest(content[_DIGEST:]):
                path.unlink()
                return None
            os.utime(path)  # used now; mtime, because many file systems do not keep atime
        except OSError:
            return None
        return content[_DIGEST:]

    def put(self, key: str, content: bytes) -> None:
        """Keep it. It appears by rename, so that no reader in any process sees half of it."""
        if len(content) + _DIGEST > self.bound:
            return
        path = self._path(key)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, unfinished = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_digest(content))
                    file.write(content)
                os.replace(unfinished, path)  # noqa: PTH105
            except BaseException:
                os.unlink(unfinished)  # noqa: PTH108
                raise
            if self._written.add(len(content) + _DIGEST, self.bound // SWEPT_EVERY):
                self.sweep()

    def sweep(self) -> None:
        """Remove what was not used for longest, until the rest fits. Other processes may do the same meanwhile."""
        files = sorted(self._files())
        over = sum(size for _, size, _ in files) - self.bound
        if over <= 0:
            return
        over += int(self.bound * (1 - SWEPT_TO))
        for _, size, path in files:
            if over <= 0:
                break
            with suppress(OSError):  # another process was faster
                os.unlink(path)  # noqa: PTH108
            over -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(last used, bytes, path) of every file; those that nobody will finish are removed on the way."""
        for folder in _scan(self.folder):
            if not (len(folder.name) == 2 and folder.is_dir(follow_symlinks=False)):
                continue
            for entry in _scan(folder):
                with suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    if _KEPT.fullmatch(entry.name):
                        yield facts.st_mtime, facts.st_size, entry.path
                    elif _UNFINISHED.fullmatch(entry.name) and facts.st_mtime < time.time() - STALE:
                        os.unlink(entry.path)  # noqa: PTH108

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / name[2:]


class _Written:
    """Bytes that this process wrote since it last looked at the folder; at first it has never looked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes: int | None = None

    def add(self, size: int, enough: int) -> bool:
        """Whether it is time to look again."""
        with self._lock:
            due = self._bytes is None or self._bytes + size > enough
            self._bytes = 0 if due else (self._bytes or 0) + size
            return due

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Written, ()


def _scan(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _digest(content: bytes) -> bytes:
    """Of the content, in front of it: a power cut may leave a file of the right length full of zeros."""
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
