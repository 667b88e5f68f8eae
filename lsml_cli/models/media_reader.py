"""Fetching for a training: what tasks point to, with patience."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lsml_cli.errors import TransientError
from lsml_cli.inference.replica import OUTAGE_THRESHOLD, FetchMedia


@dataclass
class MediaReader:
    """Where the bytes of tasks come from. What fails for a moment is tried again, unless everything fails."""

    fetch: FetchMedia
    retry_delays: tuple[float, ...]
    _consecutive_failures: int = field(default=0, init=False)  # values in a row for which trying again did not help

    def read(self, value: str, task_id: int | None) -> bytes:
        """What a value of a task points to, by the id of the task. Raises what fetching raises."""
        for delay in self.retry_delays if self._consecutive_failures < OUTAGE_THRESHOLD else ():
            try:
                return self._fetch_once(value, task_id)
            except (TransientError, ConnectionError, TimeoutError):
                time.sleep(delay)
        try:
            return self._fetch_once(value, task_id)
        except (TransientError, ConnectionError, TimeoutError):
            self._consecutive_failures += 1
            raise

    def _fetch_once(self, value: str, task_id: int | None) -> bytes:
        found = self.fetch(value, task_id)
        self._consecutive_failures = 0
        return found
