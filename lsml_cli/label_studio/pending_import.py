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

POLL = 1.0  # seconds between two looks


@dataclass(frozen=True)
class Call:
    """began, ends: seconds since 1970, when it was sent and when it is surely over; before: what was counted then."""

    began: float
    ends: float
    before: int


class Underway:
    """The note about one version in one project. Where no file can be written there is none, and no harm done."""

    def __init__(self, url: str, project: int, version: str) -> None:
        home = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
        name = blake2b(f"{url.rstrip('/')}\0{project}\0{version}".encode(), digest_size=12).hexdigest()
        self.path = Path(home) / "lsml" / "push" / f"{name}.json"

    def begin(self, before: int, patience: float) -> Call:
        call = Call(time.time(), time.time() + patience, before)
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = self.path.with_suffix(f".{os.getpid()}")
            aside.write_bytes(orjson.dumps(asdict(call)))
            aside.replace(self.path)
        return call

    def end(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def found(self) -> Call | None:
        """The call of another push, or of an earlier one that was killed, if it may still be worked on."""
        try:
            call = Call(**orjson.loads(self.path.read_bytes()))
            return call if call.began <= time.time() < call.ends else None
        except (OSError, ValueError, TypeError):
            return None


def wait_for(call: Call, count: Callable[[], int]) -> bool:
    """Wait until what is counted has changed and stands still. False when the time is over and nothing has come."""
    last = call.before
    while True:
        now = count()
        if now != call.before and now == last:
            return True
        last = now
        if now == call.before and time.time() >= call.ends:
            return False
        time.sleep(POLL)
