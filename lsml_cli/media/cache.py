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

DEFAULT_MAX_BYTES = 10 << 30  # bytes
EVICTION_CHECK_DIVISOR = 32  # parts of the bound: so much is written by a process before it looks at the folder again
EVICTION_TARGET_FRACTION = 0.9  # of the bound
STALE_PART_SECONDS = 3600.0  # seconds after which a file that nobody finished is somebody's who died

_ENTRY_NAME = re.compile(r"[0-9a-f]{62}")
_PART_NAME = re.compile(r"[0-9a-f]{62}\.\w+\.part")
_DIGEST_BYTES = 32  # bytes in front of the content


@dataclass(frozen=True)
class Cache:
    """A folder of files that were fetched before. They are not asked for again.

    folder  made where it is missing; nothing in it but what this wrote is ever removed
    bound   bytes, more or less: a process may write a 32nd of it before it looks again. The files that were not used
            for longest go first

    Nothing that happens to the folder fails a task: what cannot be read is fetched, what cannot be written is not kept.
    """

    folder: Path
    max_bytes: int = DEFAULT_MAX_BYTES
    _write_counter: _WriteCounter = field(
        default_factory=lambda: _WriteCounter(), init=False, compare=False, repr=False
    )

    def get(self, key: str) -> bytes | None:
        """What was put there, None when it is not there or damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            if content[:_DIGEST_BYTES] != _digest(content[_DIGEST_BYTES:]):
                path.unlink()
                return None
            os.utime(path)  # used now; mtime, because many file systems do not keep atime
        except OSError:
            return None
        return content[_DIGEST_BYTES:]

    def put(self, key: str, content: bytes) -> None:
        """Keep it. It appears by rename, so that no reader in any process sees half of it."""
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
        """Remove what was not used for longest, until the rest fits. Other processes may do the same meanwhile."""
        files = sorted(self._iter_entries())
        over = sum(size for _, size, _ in files) - self.max_bytes
        if over <= 0:
            return
        over += int(self.max_bytes * (1 - EVICTION_TARGET_FRACTION))
        for _, size, path in files:
            if over <= 0:
                break
            with suppress(OSError):  # another process was faster
                os.unlink(path)  # noqa: PTH108
            over -= size

    def _iter_entries(self) -> Iterator[tuple[float, int, str]]:
        """(last used, bytes, path) of every file; those that nobody will finish are removed on the way."""
        for folder in _scan(self.folder):
            if not (len(folder.name) == 2 and folder.is_dir(follow_symlinks=False)):
                continue
            for entry in _scan(folder):
                with suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    if _ENTRY_NAME.fullmatch(entry.name):
                        yield facts.st_mtime, facts.st_size, entry.path
                    elif _PART_NAME.fullmatch(entry.name) and facts.st_mtime < time.time() - STALE_PART_SECONDS:
                        os.unlink(entry.path)  # noqa: PTH108

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / name[2:]


class _WriteCounter:
    """Bytes that this process wrote since it last looked at the folder; at first it has never looked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes_written: int | None = None

    def add(self, size: int, limit: int) -> bool:
        """Whether it is time to look again."""
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
    """Of the content, in front of it: a power cut may leave a file of the right length full of zeros."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
