"""Fetching for a training: what tasks point to, with patience."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lsml_cli.errors import TransientError
from lsml_cli.inference.replica import OUTAGE, Fetch


@dataclass
class Source:
    """Where the bytes of tasks come from. What fails for a moment is tried again, unless everything fails."""

    fetch: Fetch
    delays: tuple[float, ...]
    _in_vain: int = field(default=0, init=False)  # values in a row for which trying again did not help

    def content(self, value: str, task: int | None) -> bytes:
        """What a value of a task points to, by the id of the task. Raises what fetching raises."""
        for delay in self.delays if self._in_vain < OUTAGE else ():
            try:
                return self._fetched(value, task)
            except (TransientError, ConnectionError, TimeoutError):
                time.sleep(delay)
        try:
            return self._fetched(value, task)
        except (TransientError, ConnectionError, TimeoutError):
            self._in_vain += 1
            raise

    def _fetched(self, value: str, task: int | None) -> bytes:
        found = self.fetch(value, task)
        self._in_vain = 0
        return found
