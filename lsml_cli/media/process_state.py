"""What a process keeps between two fetches: its HTTP fetcher, its requests in flight, and what buckets refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lsml_cli.media.web import HttpFetcher


class ProcessState:
    """The connections and requests of one process, shared by its threads. Pickling yields an empty state."""

    def __init__(self) -> None:
        self.closed_buckets: set[str] = set()  # buckets that the credentials of this machine do not open
        self._lock = threading.Lock()
        self._fetcher: HttpFetcher | None = None
        self._in_flight: dict[str, Future[bytes]] = {}

    def get_fetcher(self, create: Callable[[], HttpFetcher]) -> HttpFetcher:
        """Return the fetcher of this process, created at the first call."""
        with self._lock:
            if self._fetcher is None:
                self._fetcher = create()
            return self._fetcher

    def run_once(self, value: str, fetch: Callable[[], bytes]) -> bytes:
        """Return or raise what `fetch` does; threads that want the same value at the same time share one call."""
        with self._lock:
            running = self._in_flight.get(value)
            if running is None:
                future = self._in_flight[value] = Future()
        if running is not None:
            return running.result()
        try:
            future.set_result(fetch())
        except BaseException as error:
            future.set_exception(error)
        finally:
            with self._lock:
                del self._in_flight[value]
        return future.result()

    def close(self) -> None:
        """Close the connections; the next `get_fetcher` opens new ones."""
        with self._lock:
            fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            fetcher.close()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return ProcessState, ()
