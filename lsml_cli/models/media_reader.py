"""Fetch media during training."""

from __future__ import annotations

from collections.abc import Sequence

from lsml_cli.runtime import FetchMedia, Retrier


class MediaReader:
    """Fetch what tasks point to, and retry transient failures.

    Args:
        fetch: Called with a value and its task's id; returns the bytes.
        retry_delays: Seconds before each further try.
    """

    def __init__(self, fetch: FetchMedia, retry_delays: Sequence[float]) -> None:
        self._fetch = fetch
        self._retrier = Retrier(retry_delays)

    def read(self, value: str, task_id: int | None) -> bytes:
        """Return the bytes that a value of a task points to. It raises what `fetch` raises."""
        return self._retrier.call(lambda: self._fetch(value, task_id))
