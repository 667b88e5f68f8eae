"""A note on this machine about a call that was sent and has not been answered.

Label Studio finishes a call whoever sent it, also when that was killed, and shows nothing of it until it is done. A
push that starts meanwhile would find nothing and send everything again. So each call leaves a note before it is sent,
and takes it away when it is answered: the next push of that version waits for the call that the note tells of.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import orjson

POLL_INTERVAL = 1.0  # seconds between two looks


@dataclass(frozen=True)
class PendingRequest:
    """began, ends: seconds since 1970, when it was sent and when it is surely over; before: what was counted then."""

    started_at: float
    deadline: float
    initial_count: int


class PendingImport:
    """The note about one version in one project. Where no file can be written there is none, and no harm done."""

    def __init__(self, url: str, project: int, version: str) -> None:
        home = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
        name = blake2b(f"{url.rstrip('/')}\0{project}\0{version}".encode(), digest_size=12).hexdigest()
        self.path = Path(home) / "lsml" / "push" / f"{name}.json"

    def record(self, initial_count: int, max_seconds: float) -> PendingRequest:
        call = PendingRequest(time.time(), time.time() + max_seconds, initial_count)
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = self.path.with_suffix(f".{os.getpid()}")
            aside.write_bytes(orjson.dumps(asdict(call)))
            aside.replace(self.path)
        return call

    def clear(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def load(self) -> PendingRequest | None:
        """The call of another push, or of an earlier one that was killed, if it may still be worked on."""
        try:
            call = PendingRequest(**orjson.loads(self.path.read_bytes()))
            return call if call.started_at <= time.time() < call.deadline else None
        except (OSError, ValueError, TypeError):
            return None


def wait_until_settled(request: PendingRequest, count: Callable[[], int]) -> bool:
    """Wait until what is counted has changed and stands still. False when the time is over and nothing has come."""
    last = request.initial_count
    while True:
        now = count()
        if now != request.initial_count and now == last:
            return True
        last = now
        if now == request.initial_count and time.time() >= request.deadline:
            return False
        time.sleep(POLL_INTERVAL)
