"""Keep remote media on disk: written atomically, bounded in size, shared by processes."""

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

DEFAULT_MAX_BYTES = 10 << 30  # bytes
EVICTION_CHECK_DIVISOR = 32  # a process checks the size of the folder after writing this part of the bound
EVICTION_TARGET_FRACTION = 0.9  # of the bound
STALE_PART_SECONDS = 3600.0  # seconds after which an unfinished file is left over from a process that died

_ENTRY_NAME = re.compile(r"[0-9a-f]{62}")
_PART_NAME = re.compile(r"[0-9a-f]{62}\.\w+\.part")
_DIGEST_BYTES = 32  # bytes in front of the content


@dataclass(frozen=True)
class Cache:
    """A folder of files that were fetched before.

    No problem with the folder fails a task: a file that cannot be read is fetched, one that cannot be written is not
    kept.

    Attributes:
        folder: Created if it is missing. Only files that a cache wrote are ever removed from it.
        max_bytes: Approximate bound: each process may write a 32nd of it before it checks. The least recently used
            files are evicted first.
    """

    folder: Path
    max_bytes: int = DEFAULT_MAX_BYTES
    _write_counter: _WriteCounter = field(
        default_factory=lambda: _WriteCounter(), init=False, compare=False, repr=False
    )

    def get(self, key: str) -> bytes | None:
        """Return the content kept under a key, None if there is none or it is damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            if content[:_DIGEST_BYTES] != _digest(content[_DIGEST_BYTES:]):
                path.unlink()
                return None
            os.utime(path)  # marks it as used; mtime, because many file systems do not keep atime
        except OSError:
            return None
        return content[_DIGEST_BYTES:]

    def put(self, key: str, content: bytes) -> None:
        """Keep content under a key. It appears by rename, so no reader in any process sees half of it."""
        if len(content) + _DIGEST_BYTES > self.max_bytes:
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
            if self._write_counter.add(len(content) + _DIGEST_BYTES, self.max_bytes // EVICTION_CHECK_DIVISOR):
                self.evict()

    def evict(self) -> None:
        """Remove the least recently used files until the rest fits. Other processes may do the same meanwhile."""
        files = sorted(self._iter_entries())
        excess = sum(size for _, size, _ in files) - self.max_bytes
        if excess <= 0:
            return
        excess += int(self.max_bytes * (1 - EVICTION_TARGET_FRACTION))
        for _, size, path in files:
            if excess <= 0:
                break
            with suppress(OSError):  # another process was faster
                os.unlink(path)  # noqa: PTH108
            excess -= size

    def _iter_entries(self) -> Iterator[tuple[float, int, str]]:
        """Yield (time of last use, bytes, path) of every file; remove stale unfinished ones on the way."""
        for folder in _scan(self.folder):
            if not (len(folder.name) == 2 and folder.is_dir(follow_symlinks=False)):
                continue
            for entry in _scan(folder):
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if _ENTRY_NAME.fullmatch(entry.name):
                        yield status.st_mtime, status.st_size, entry.path
                    elif _PART_NAME.fullmatch(entry.name) and status.st_mtime < time.time() - STALE_PART_SECONDS:
                        os.unlink(entry.path)  # noqa: PTH108

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / name[2:]


class _WriteCounter:
    """Bytes that this process wrote since it last checked the folder; None before the first check."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes_written: int | None = None

    def add(self, size: int, limit: int) -> bool:
        """Count a write; return whether the folder is due for a check."""
        with self._lock:
            due = self._bytes_written is None or self._bytes_written + size > limit
            self._bytes_written = 0 if due else (self._bytes_written or 0) + size
            return due

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _WriteCounter, ()


def _scan(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _digest(content: bytes) -> bytes:
    """Return the digest stored before the content: after a power cut a file of the right size may be full of zeros."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
