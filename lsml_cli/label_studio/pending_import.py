"""A file on this machine about an import request that was sent and has not been answered.

Label Studio finishes a request even if its sender is gone, and shows nothing of it until it is done. A push that starts
meanwhile would find no predictions and send all of them again. So each request leaves a file before it is sent and
removes it when it is answered: the next push of that version waits for the request that the file describes.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import orjson

from lsml_cli.errors import UsageError
from lsml_cli.runtime import open_own_file, write_atomically

POLL_INTERVAL = 1.0  # seconds between two counts


@dataclass(frozen=True)
class PendingRequest:
    """A request that may still be worked on.

    Attributes:
        started_at: When it was sent, in seconds since 1970.
        deadline: When the server is surely done with it, in seconds since 1970.
        initial_count: Items that the project had before.
    """

    started_at: float
    deadline: float
    initial_count: int


class PendingImport:
    """The pending request of one version in one project. Without a writable folder none is ever recorded."""

    def __init__(self, url: str, project: int, version: str) -> None:
        home = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
        name = blake2b(f"{url.rstrip('/')}\0{project}\0{version}".encode(), digest_size=12).hexdigest()
        self.path = Path(home) / "lsml" / "push" / f"{name}.json"

    @contextmanager
    def exclusive(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Let one push of this version into this project at a time run on this machine.

        Two at once would both find nothing, and both send everything. The lock ends with its process, however that
        ends. Without a writable folder nothing is locked.

        Args:
            on_wait: Called once if another push has the lock, before waiting for it.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = open_own_file(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
        except (OSError, UsageError):
            yield
            return
        try:
            _lock(descriptor, on_wait)
            yield
        finally:
            os.close(descriptor)

    def record(self, initial_count: int, max_seconds: float) -> PendingRequest:
        """Record a request that is about to be sent and is surely over after `max_seconds`."""
        request = PendingRequest(time.time(), time.time() + max_seconds, initial_count)
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.path, orjson.dumps(request))
        return request

    def clear(self) -> None:
        """Forget the request: it was answered."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def load(self) -> PendingRequest | None:
        """Return the request of another push, or of one that was killed, if the server may still work on it."""
        try:
            request = PendingRequest(**orjson.loads(self.path.read_bytes()))
            return request if request.started_at <= time.time() < request.deadline else None
        except (OSError, ValueError, TypeError):
            return None


def _lock(descriptor: int, on_wait: Callable[[], None]) -> None:
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def wait_until_settled(request: PendingRequest, count: Callable[[], int]) -> bool:
    """Wait until the count has changed and stopped changing.

    Args:
        request: What is waited for.
        count: Counts the items that the request adds.

    Returns:
        False if nothing has arrived by the deadline.
    """
    previous = request.initial_count
    while True:
        current = count()
        if current != request.initial_count and current == previous:
            return True
        previous = current
        if current == request.initial_count and time.time() >= request.deadline:
            return False
        time.sleep(POLL_INTERVAL)
