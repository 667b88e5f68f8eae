"""Show that a training attempt is alive, and end it when it no longer counts or its worker has died."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType

from lsml_cli.errors import LsmlError
from lsml_cli.server.job_record import Job
from lsml_cli.server.job_store import JobStore, StaleAttempt

HEARTBEAT_INTERVAL = 2.0  # seconds
PROGRESS_INTERVAL = 0.2  # minimum seconds between two stored progress messages
ABANDON_GRACE = 10.0  # seconds that an attempt which ends itself has for cleaning up before it is killed
ABANDON_SIGNAL = signal.SIGUSR1  # with which the heartbeat's thread interrupts the training in the main thread


class AttemptAbandoned(BaseException):
    """The attempt is to end without a result. Like KeyboardInterrupt, no `except Exception` of a model catches it."""


class Heartbeat:
    """Write heartbeats and progress messages from a thread, from entering until leaving the context.

    With each heartbeat it checks whether the attempt still counts. If not, `AttemptAbandoned` is raised in the main
    thread, until that calls `finish`; code that does not return to Python within `ABANDON_GRACE` seconds is killed.
    Both need the main thread to have entered the context; elsewhere a stale attempt goes on, and its result is
    discarded.

    Args:
        parent: The process whose death ends the attempt, None for no such process.
    """

    def __init__(self, store: JobStore, job: Job, parent: int | None = None) -> None:
        self._store = store
        self._job = job
        self._parent = parent
        self._progress: str | None = None
        self._progress_changed = threading.Event()
        self._stopped = threading.Event()
        self._abandon_reason: str | None = None
        self._is_finishing = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._is_in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Heartbeat:
        if self._is_in_main_thread:
            self._previous_handler = signal.signal(ABANDON_SIGNAL, self._raise_abandoned)
        self._store.write_heartbeat(self._job, 0)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.finish()
        self._stopped.set()
        self._progress_changed.set()
        self._thread.join()
        if self._is_in_main_thread:
            signal.signal(ABANDON_SIGNAL, self._previous_handler)

    def finish(self) -> None:
        """Raise `AttemptAbandoned` no more: a version comes into being, which only storing the result can discard."""
        self._is_finishing = True

    def report_progress(self, progress: str) -> None:
        """Set the progress message; of several in quick succession only the last one is stored."""
        self._progress = progress
        self._progress_changed.set()

    def _run(self) -> None:
        stored, number = None, 0
        while not self._stopped.is_set():
            self._progress_changed.wait(HEARTBEAT_INTERVAL)
            self._progress_changed.clear()
            if self._stopped.is_set():
                return
            if (reason := self._find_abandon_reason()) is not None:
                self._abandon(reason)
                return
            number += 1
            self._store.write_heartbeat(self._job, number)
            if (progress := self._progress) != stored:
                with suppress(LsmlError, StaleAttempt):  # storing the result will fail as well, and report it
                    self._store.update(self._job, progress=progress)
                stored = progress
                time.sleep(PROGRESS_INTERVAL)

    def _find_abandon_reason(self) -> str | None:
        """Return why the attempt has to end, None if it has not."""
        if not self._is_in_main_thread:
            return None
        if self._store.is_stale(self._job):
            return "it no longer counts."
        if self._parent is not None and os.getppid() != self._parent:
            return "its worker has died."
        return None

    def _abandon(self, reason: str) -> None:
        self._abandon_reason = reason
        signal.pthread_kill(threading.main_thread().ident or 0, ABANDON_SIGNAL)
        is_stopped = self._stopped.wait(ABANDON_GRACE)
        if not self._store.is_stale(self._job):
            self._store.write_last_heartbeat(self._job)
        if is_stopped:
            return
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)  # with the processes that the training has started
        os.kill(os.getpid(), signal.SIGKILL)

    def _raise_abandoned(self, number: int, frame: FrameType | None) -> None:
        if self._is_finishing:
            return
        raise AttemptAbandoned(self._abandon_reason or "it was told to.")
