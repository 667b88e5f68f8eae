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
from lsml_cli.inference.record_codec import BindingKey, RecordCodec
from lsml_cli.inference.replica import PREFETCH_BATCHES, Replica
from lsml_cli.media.fetcher import Media
from lsml_cli.models.spec import ModelSpec
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, available_cores, error_reason

GC_THRESHOLD = (100_000, 20, 100)  # a batch makes and drops thousands of objects and no cycles: 5 % of the time
SHUTDOWN_TIMEOUT = 5.0  # seconds that a process gets to end by itself
DRAIN_TIMEOUT = 1.0  # seconds to read what a process had answered before it was killed


@dataclass(frozen=True)
class ReplicaConfig:
    """Where a replica goes and what it is made of. Picklable.

    share  replicas, this one among them, that have the cores of the machine between them
    """

    spec: ModelSpec
    binding_key: BindingKey | None  # None: every batch brings its own
    device: str
    encode_threads: int = 0
    media: Media | None = None
    fetch_threads: int = DEFAULT_FETCH_THREADS
    replicas_on_host: int = 1

    def open(self) -> Replica:
        """The replica, loaded and bound. Raises ModelError with the reason when it cannot be."""
        try:
            model = self.spec.open(self.device)
        except LsmlError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{self.spec.name} cannot be loaded: {error_reason(error)}.") from error
        return Replica(
            model,
            self.binding_key,
            fetch=self.media.fetch if self.media else None,
            encode_threads=self.encode_threads,
            fetch_threads=self.fetch_threads,
        )


class ReplicaDied(Exception):
    """The process behind a replica ended.

    guilty  this batch was the first of those that had no answer, so probably the one it was working on
    alone   this batch was the only one, so nothing else can be to blame
    """

    def __init__(self, cause: str, is_suspect: bool, is_only_batch: bool) -> None:
        super().__init__(cause)
        self.cause = cause
        self.is_suspect = is_suspect
        self.is_only_batch = is_only_batch


class ReplicaProcess:
    """A replica in a spawned process. Batches and results are pickled; the model is built over there from its spec."""

    prefetch = PREFETCH_BATCHES

    def __init__(self, config: ReplicaConfig) -> None:
        self._config = config
        self._worker = _WorkerProcess(config)
        self._restart_lock = threading.Lock()
        self._closed = False
        self.recovery_lock = (
            threading.Lock()
        )  # held while a lost batch is done again: two at a time would kill each other

    @property
    def pending_count(self) -> int:
        """Batches that were submitted and have not come back."""
        return len(self._worker.pending)

    def wait_until_ready(self) -> None:
        """Raises what opening the replica raised over there."""
        try:
            self._worker.ready.result()
        except ReplicaDied as death:
            raise ModelError(f"The process of {self._config.spec.name} died while it loaded ({death.cause}).") from None

    def submit(self, batch: Sequence[Any], binding_key: BindingKey | None, codec: RecordCodec) -> Future[list[Any]]:
        return self._worker.submit(list(batch), binding_key, codec)

    def restart(self) -> None:
        """A new process in the place of a dead one; nothing if it is alive. Raises ModelError after `close`."""
        with self._restart_lock:  # several batches may have been lost, each with somebody who waits for it
            self._replace_dead_worker()

    def kill_if_stuck(self, results: Future[list[Any]]) -> bool:
        """Kill the process that is stuck at the batch with these results, and start another one.

        False, and nothing is done, where it works on another batch or has none any more: a batch that only stands
        behind a stuck one is none that is stuck. Raises ModelError when the new process does not load.
        """
        with self._restart_lock:
            if not self._worker.is_working_on(results):
                return False
            self._worker.kill()
            self._replace_dead_worker()
        return True

    def close(self) -> None:
        """End the process, at once where it still has batches: whoever waits for one is told that it died."""
        self._closed = True  # first, as `_renew` looks at it last: one of the two sees what the other has done
        self._worker.close()

    def _replace_dead_worker(self) -> None:
        if self._worker.is_dead and not self._closed:
            self._worker.close()
            self._worker = _WorkerProcess(self._config)
            if not self._closed:
                self.wait_until_ready()
        if self._closed:
            self._worker.close()
            raise ModelError(f"{self._config.spec.name} was unloaded.")


class _WorkerProcess:
    """One process from its start to its end, with a thread that sends to it and one that listens."""

    def __init__(self, config: ReplicaConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process: BaseProcess = context.Process(target=_run_worker, args=(there, config), daemon=True)
        _start_ignoring_sigint(self._process)
        there.close()  # so that the end of the process is the end of the pipe
        self.ready: Future[list[Any]] = Future()
        self.pending: deque[Future[list[Any]]] = deque([self.ready])
        self.is_dead = False
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sending, self._listener_thread = (
            threading.Thread(target=work, name=f"replica-{work.__name__}", daemon=True)
            for work in (self._send, self._listen)
        )
        sending.start()
        self._listener_thread.start()

    def submit(self, batch: list[Any], binding_key: BindingKey | None, codec: RecordCodec) -> Future[list[Any]]:
        message = ForkingPickler.dumps(
            (batch, binding_key, codec)
        )  # here, so that what cannot travel is the caller's to see
        results: Future[list[Any]] = Future()
        results.set_running_or_notify_cancel()  # whoever loses interest cannot take the answer from the pipe
        with self._lock:
            if self.is_dead:
                results.set_exception(ReplicaDied("it was dead already", is_suspect=False, is_only_batch=False))
                return results
            self.pending.append(results)
        self._outbox.put(message)
        return results

    def is_working_on(self, results: Future[list[Any]]) -> bool:
        """Whether this is the batch that the process has to answer next."""
        with self._lock:
            return bool(self.pending) and self.pending[0] is results

    def kill(self) -> None:
        """End the process at once; when this returns it is known to be dead, and everybody who waits has been told."""
        self._process.kill()
        self._listener_thread.join(DRAIN_TIMEOUT)
        self._mark_dead()  # for what the model has started may hold the other end of the pipe, which then does not end

    def close(self) -> None:
        self._outbox.put(ForkingPickler.dumps(None))
        if not self.is_dead:
            self._process.join(SHUTDOWN_TIMEOUT if not self.pending else 0)
            self.kill()  # which only says so where it has ended

    def _send(self) -> None:
        while not self.is_dead:
            message = self._outbox.get()
            try:
                self._connection.send_bytes(message)
            except OSError:  # the process is gone: the listening thread tells everybody who waits
                return

    def _listen(self) -> None:
        while True:
            try:
                answer = self._connection.recv()
            except (EOFError, OSError):
                self._mark_dead()
                return
            except Exception as error:  # an answer that only its own process understands
                answer = _to_picklable_error(error)
            with self._lock:
                if self.is_dead:  # what is answered now comes too late
                    return
                waiting = self.pending.popleft()
            if isinstance(answer, BaseException):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

    def _mark_dead(self) -> None:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        with self._lock:
            if self.is_dead:
                return
            self.is_dead = True
            lost = list(self.pending)
            self.pending.clear()
        for position, results in enumerate(lost):
            results.set_exception(ReplicaDied(how, is_suspect=position == 0, is_only_batch=len(lost) == 1))


def _start_ignoring_sigint(process: BaseProcess) -> None:
    """Start a process that ignores SIGINT from its first moment: ctrl-C is the parent's to handle."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        process.start()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _run_worker(pipe: Connection, config: ReplicaConfig) -> None:
    """The other side: open the replica, then answer batches in order until the pipe ends."""
    if config.replicas_on_host > 1:  # or the threads of each would wait for those of the others
        os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores() // config.replicas_on_host))
    try:
        replica = config.open()
    except BaseException as error:  # also a model that calls sys.exit
        with suppress(OSError):  # the parent may be gone already
            pipe.send(_to_picklable_error(error))
        return
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    with suppress(OSError):
        pipe.send([])
    done: queue.SimpleQueue[Future[list[Any]] | None] = queue.SimpleQueue()
    answering = threading.Thread(target=_send_results, args=(pipe, done), daemon=True)
    answering.start()
    while (message := _receive_batch(pipe)) is not None:
        done.put(message if isinstance(message, Future) else _submit_safely(replica, *message))
    done.put(None)
    answering.join()
    replica.close()


def _receive_batch(pipe: Connection) -> Any:
    """The next batch, None at the end, or a future with the reason why the batch cannot be understood here."""
    try:
        return pipe.recv()
    except (EOFError, OSError):  # the parent is gone, however it went
        return None
    except Exception as error:
        failed: Future[list[Any]] = Future()
        failed.set_exception(error)
        return failed


def _submit_safely(
    replica: Replica, batch: list[Any], binding_key: BindingKey | None, codec: RecordCodec
) -> Future[list[Any]]:
    try:
        return replica.submit(batch, binding_key, codec)
    except BaseException as error:  # nothing may end this process but the end of the pipe
        failed: Future[list[Any]] = Future()
        failed.set_exception(error)
        return failed


def _send_results(pipe: Connection, done: queue.SimpleQueue[Future[list[Any]] | None]) -> None:
    while (results := done.get()) is not None:
        try:
            answer: Any = results.result()
        except BaseException as error:
            answer = _to_picklable_error(error)
        try:
            pipe.send(answer)
        except OSError:  # nobody listens any more
            return
        except Exception as error:  # somebody else's object may refuse to be pickled in any way
            pipe.send(ModelError(f"What the model returned cannot leave its process: {error_reason(error)}."))


def _to_picklable_error(error: BaseException) -> BaseException:
    if type(error).__module__ == LsmlError.__module__:
        return error
    return ModelError(f"{error_reason(error)}.")  # a class of somebody else's might not survive the journey
