"""A replica in a process of its own: the same calls, answered from the other side of a pipe."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.inference.replica import AHEAD, FETCHERS, Job, Replica, Setting, cores, reason
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import ModelSpec

GC_THRESHOLD = (100_000, 20, 100)  # a batch makes and drops thousands of objects and no cycles: 5 % of the time
GOODBYE = 5.0  # seconds that a process gets to end by itself
LAST_WORDS = 1.0  # seconds to read what a process had answered before it was killed


@dataclass(frozen=True)
class Placement:
    """Where a replica goes and what it is made of. Picklable.

    share  replicas, this one among them, that have the cores of the machine between them
    """

    spec: ModelSpec
    setting: Setting | None  # None: every batch brings its own
    device: str
    threads: int = 0
    media: Media | None = None
    fetchers: int = FETCHERS
    share: int = 1

    def open(self) -> Replica:
        """The replica, loaded and bound. Raises ModelError with the reason when it cannot be."""
        try:
            model = self.spec.open(self.device)
        except LsmlError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{self.spec.name} cannot be loaded: {reason(error)}.") from error
        return Replica(
            model,
            self.setting,
            fetch=self.media.fetch if self.media else None,
            threads=self.threads,
            fetchers=self.fetchers,
        )


class ReplicaDied(Exception):
    """The process behind a replica ended.

    guilty  this batch was the first of those that had no answer, so probably the one it was working on
    alone   this batch was the only one, so nothing else can be to blame
    """

    def __init__(self, how: str, guilty: bool, alone: bool) -> None:
        super().__init__(how)
        self.how = how
        self.guilty = guilty
        self.alone = alone


class ReplicaProcess:
    """A replica in a spawned process. Batches and results are pickled; the model is built over there from its spec."""

    ahead = AHEAD

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._life = _Life(placement)
        self._restarting = threading.Lock()
        self._closed = False
        self.recovering = threading.Lock()  # held while a lost batch is done again: two at a time would kill each other

    @property
    def waiting(self) -> int:
        """Batches that were submitted and have not come back."""
        return len(self._life.pending)

    def wait_until_ready(self) -> None:
        """Raises what opening the replica raised over there."""
        try:
            self._life.ready.result()
        except ReplicaDied as death:
            raise ModelError(
                f"The process of {self._placement.spec.name} died while it loaded ({death.how})."
            ) from None

    def submit(self, batch: Sequence[Any], setting: Setting | None, job: Job) -> Future[list[Any]]:
        return self._life.submit(list(batch), setting, job)

    def restart(self) -> None:
        """A new process in the place of a dead one; nothing if it is alive. Raises ModelError after `close`."""
        with self._restarting:  # several batches may have been lost, each with somebody who waits for it
            self._renew()

    def give_up(self, results: Future[list[Any]]) -> bool:
        """Kill the process that is stuck at the batch with these results, and start another one.

        False, and nothing is done, where it works on another batch or has none any more: a batch that only stands
        behind a stuck one is none that is stuck. Raises ModelError when the new process does not load.
        """
        with self._restarting:
            if not self._life.works_on(results):
                return False
            self._life.kill()
            self._renew()
        return True

    def close(self) -> None:
        """End the process, at once where it still has batches: whoever waits for one is told that it died."""
        self._closed = True  # first, as `_renew` looks at it last: one of the two sees what the other has done
        self._life.close()

    def _renew(self) -> None:
        if self._life.dead and not self._closed:
            self._life.close()
            self._life = _Life(self._placement)
            if not self._closed:
                self.wait_until_ready()
        if self._closed:
            self._life.close()
            raise ModelError(f"{self._placement.spec.name} was unloaded.")


class _Life:
    """One process from its start to its end, with a thread that sends to it and one that listens."""

    def __init__(self, placement: Placement) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process: BaseProcess = context.Process(target=_live, args=(there, placement), daemon=True)
        _start_deaf_to_ctrl_c(self._process)
        there.close()  # so that the end of the process is the end of the pipe
        self.ready: Future[list[Any]] = Future()
        self.pending: deque[Future[list[Any]]] = deque([self.ready])
        self.dead = False
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sending, self._listening = (
            threading.Thread(target=work, name=f"replica-{work.__name__}", daemon=True)
            for work in (self._send, self._listen)
        )
        sending.start()
        self._listening.start()

    def submit(self, batch: list[Any], setting: Setting | None, job: Job) -> Future[list[Any]]:
        message = ForkingPickler.dumps((batch, setting, job))  # here, so that what cannot travel is the caller's to see
        results: Future[list[Any]] = Future()
        results.set_running_or_notify_cancel()  # whoever loses interest cannot take the answer from the pipe
        with self._lock:
            if self.dead:
                results.set_exception(ReplicaDied("it was dead already", guilty=False, alone=False))
                return results
            self.pending.append(results)
        self._outbox.put(message)
        return results

    def works_on(self, results: Future[list[Any]]) -> bool:
        """Whether this is the batch that the process has to answer next."""
        with self._lock:
            return bool(self.pending) and self.pending[0] is results

    def kill(self) -> None:
        """End the process at once; when this returns it is known to be dead, and everybody who waits has been told."""
        self._process.kill()
        self._listening.join(LAST_WORDS)
        self._bury()  # for what the model has started may hold the other end of the pipe, which then does not end

    def close(self) -> None:
        self._outbox.put(ForkingPickler.dumps(None))
        if not self.dead:
            self._process.join(GOODBYE if not self.pending else 0)
            self.kill()  # which only says so where it has ended

    def _send(self) -> None:
        while not self.dead:
            message = self._outbox.get()
            try:
                self._here.send_bytes(message)
            except OSError:  # the process is gone: the listening thread tells everybody who waits
                return

    def _listen(self) -> None:
        while True:
            try:
                answer = self._here.recv()
            except (EOFError, OSError):
                self._bury()
                return
            except Exception as error:  # an answer that only its own process understands
                answer = _told(error)
            with self._lock:
                if self.dead:  # what is answered now comes too late
                    return
                waiting = self.pending.popleft()
            if isinstance(answer, BaseException):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

    def _bury(self) -> None:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        with self._lock:
            if self.dead:
                return
            self.dead = True
            lost = list(self.pending)
            self.pending.clear()
        for position, results in enumerate(lost):
            results.set_exception(ReplicaDied(how, guilty=position == 0, alone=len(lost) == 1))


def _start_deaf_to_ctrl_c(process: BaseProcess) -> None:
    """Start a process that ignores SIGINT from its first moment: ctrl-C is the parent's to handle."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        process.start()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _live(pipe: Connection, placement: Placement) -> None:
    """The other side: open the replica, then answer batches in order until the pipe ends."""
    if placement.share > 1:  # or the threads of each would wait for those of the others
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // placement.share))
    try:
        replica = placement.open()
    except BaseException as error:  # also a model that calls sys.exit
        with suppress(OSError):  # the parent may be gone already
            pipe.send(_told(error))
        return
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    with suppress(OSError):
        pipe.send([])
    done: queue.SimpleQueue[Future[list[Any]] | None] = queue.SimpleQueue()
    answering = threading.Thread(target=_answer, args=(pipe, done), daemon=True)
    answering.start()
    while (message := _received(pipe)) is not None:
        done.put(message if isinstance(message, Future) else _submitted(replica, *message))
    done.put(None)
    answering.join()
    replica.close()


def _received(pipe: Connection) -> Any:
    """The next batch, None at the end, or a future with the reason why the batch cannot be understood here."""
    try:
        return pipe.recv()
    except (EOFError, OSError):  # the parent is gone, however it went
        return None
    except Exception as error:
        failed: Future[list[Any]] = Future()
        failed.set_exception(error)
        return failed


def _submitted(replica: Replica, batch: list[Any], setting: Setting | None, job: Job) -> Future[list[Any]]:
    try:
        return replica.submit(batch, setting, job)
    except BaseException as error:  # nothing may end this process but the end of the pipe
        failed: Future[list[Any]] = Future()
        failed.set_exception(error)
        return failed


def _answer(pipe: Connection, done: queue.SimpleQueue[Future[list[Any]] | None]) -> None:
    while (results := done.get()) is not None:
        try:
            answer: Any = results.result()
        except BaseException as error:
            answer = _told(error)
        try:
            pipe.send(answer)
        except OSError:  # nobody listens any more
            return
        except Exception as error:  # somebody else's object may refuse to be pickled in any way
            pipe.send(ModelError(f"What the model returned cannot leave its process: {reason(error)}."))


def _told(error: BaseException) -> BaseException:
    if type(error).__module__ == LsmlError.__module__:
        return error
    return ModelError(f"{reason(error)}.")  # a class of somebody else's might not survive the journey
