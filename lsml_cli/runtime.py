"""What several layers share about this machine: cores, retries, and the text of an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from lsml_cli.errors import LsmlError, TransientError

OUTAGE_THRESHOLD = 3  # steps in a row that failed although they were retried

DEFAULT_FETCH_THREADS = 16  # threads that wait for media

TRANSIENT_ERRORS = (TransientError, ConnectionError, TimeoutError)

T = TypeVar("T")

FetchMedia = Callable[[str, int | None], bytes]  # a value, and the id of its task


def error_reason(error: BaseException) -> str:
    """An exception as a sentence: its text where the text was written for people, with its type otherwise."""
    try:
        text = " ".join(str(error).split()).encode("utf-8", "replace").decode()
    except Exception:  # an exception of somebody else's may not even have a text
        text = ""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | LsmlError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def available_cores() -> int:
    """Cores that this process may use: those it is allowed on, or fewer where OMP_NUM_THREADS says so.

    The processes of a run are told theirs that way, since whatever computes in them listens to it: PyTorch, NumPy.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(here, int(told)) if told.isdecimal() and int(told) else here


class Retrier:
    """Retry steps that fail for a passing reason, until it is clear that something is down.

    After `OUTAGE_THRESHOLD` steps of one kind in a row that retrying did not help, the next ones are tried only once,
    until one succeeds. Otherwise a hundred tasks would wait for a server that is down, one after the other.

    Args:
        delays: Seconds before each further try.
        errors: Exceptions that count as passing.
    """

    def __init__(self, delays: Sequence[float], errors: tuple[type[BaseException], ...] = TRANSIENT_ERRORS) -> None:
        self._delays = delays
        self._errors = errors
        self._consecutive_failures: dict[str, int] = {}
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop waiting: a step that fails from now on is not retried."""
        self._cancelled.set()

    def call(self, step: Callable[[], T], kind: str = "") -> T:
        """Return what `step` returns.

        Args:
            step: What to try; called again after each delay while it raises one of `errors`.
            kind: Steps of different kinds are counted apart.

        Raises:
            Exception: What `step` raised at its last try.
        """
        delays = iter(self._delays if self._consecutive_failures.get(kind, 0) < OUTAGE_THRESHOLD else ())
        while True:
            try:
                result = step()
            except self._errors:
                delay = next(delays, None)
                if delay is None or self._cancelled.wait(delay):
                    self._consecutive_failures[kind] = self._consecutive_failures.get(kind, 0) + 1
                    raise
            else:
                if self._consecutive_failures:
                    self._consecutive_failures.pop(kind, None)
                return result
