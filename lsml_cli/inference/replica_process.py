"""A replica in a process of its own: the same calls, answered through a pipe."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.inference.record_codec import BindingKey, RecordCodec
from lsml_cli.inference.replica import PREFETCH_BATCHES, Replica
from lsml_cli.media.fetcher import Media
from lsml_cli.models.spec import ModelSpec
from lsml_cli.runtime import (
    DEFAULT_FETCH_THREADS,
    available_cores,
    error_reason,
    restore_child_environment,
    safe_child_import_path,
)

# For gc.set_threshold: a batch makes thousands of objects and no cycles, and collecting took 5 % of the time.
GC_THRESHOLD = (100_000, 20, 100)
SHUTDOWN_TIMEOUT = 5.0  # seconds for a process to end by itself
DRAIN_TIMEOUT = 1.0  # seconds to read what a process had answered before it was killed

_main_lock = threading.Lock()  # held while `__main__` is replaced


@dataclass(frozen=True)
class ReplicaConfig:
    """What a replica is made of and where it goes; picklable.

    Args:
        spec: The model.
        binding_key: What to bind it to; None: every batch brings its own.
        device: "cpu", "cuda:0", ...
        encode_threads: Threads that encode, 0 for none at all.
        media: Fetches what tasks point to.
        fetch_threads: Threads that wait for media.
        replicas_on_host: Replicas that share the cores of this machine, this one included.
    """

    spec: ModelSpec
    binding_key: BindingKey | None
    device: str
    encode_threads: int = 0
    media: Media | None = None
    fetch_threads: int = DEFAULT_FETCH_THREADS
    replicas_on_host: int = 1

    def open(self) -> Replica:
        """Load and bind the replica in this process; raise ModelError when it cannot be loaded."""
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
    """The process of a replica ended before it answered a batch.

    Args:
        cause: "killed by SIGKILL", "exit code 1", ...
        is_suspect: This batch was the first without an answer, so probably the one that the process was working on.
        is_only_batch: This batch was the only one, so no other can be to blame.
    """

    def __init__(self, cause: str, is_suspect: bool, is_only_batch: bool) -> None:
        super().__init__(cause)
        self.cause = cause
        self.is_suspect = is_suspect
        self.is_only_batch = is_only_batch


class ReplicaProcess:
    """A replica in a spawned process: batches and results are pickled, the model is built there from its spec."""

    prefetch = PREFETCH_BATCHES

    def __init__(self, config: ReplicaConfig) -> None:
        self._config = config
        self._worker = _WorkerProcess(config)
        self._restart_lock = threading.Lock()
        self._closed = False
        self.recovery_lock = threading.Lock()  # for submitting a lost batch again: two at a time would kill each other

    @property
    def pending_count(self) -> int:
        """Number of batches that were submitted and have not come back."""
        return len(self._worker.pending)

    def wait_until_ready(self) -> None:
        """Wait until the process has loaded the model; raise what loading raised there."""
        try:
            self._worker.ready.result()
        except ReplicaDied as death:
            raise ModelError(f"The process of {self._config.spec.name} died while it loaded ({death.cause}).") from None

    def submit(self, batch: Sequence[Any], binding_key: BindingKey | None, codec: RecordCodec) -> Future[list[Any]]:
        """Send a batch; the future raises ReplicaDied when the process ends before it answers."""
        return self._worker.submit(list(batch), binding_key, codec)

    def restart(self) -> None:
        """Replace a dead process; do nothing if it is alive. Raise ModelError after `close`."""
        with self._restart_lock:  # several batches may have been lost, each with a caller that restarts
            self._replace_dead_worker()

    def kill_if_stuck(self, results: Future[list[Any]]) -> bool:
        """Kill the process if it is working on the batch with these results, and start another one.

        Returns:
            False, and nothing is done, where it works on another batch: a batch behind a stuck one is not stuck.

        Raises:
            ModelError: The new process does not load.
        """
        with self._restart_lock:
            if not self._worker.is_working_on(results):
                return False
            self._worker.kill()
            self._replace_dead_worker()
        return True

    def close(self) -> None:
        """End the process, at once where it still has batches; their futures raise ReplicaDied."""
        self._closed = True  # first, since `_replace_dead_worker` reads it last: one of the two sees the other
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
    """One process from its start to its end, with a thread that sends to it and one that receives."""

    def __init__(self, config: ReplicaConfig) -> None:
        if multiprocessing.current_process().daemon:
            raise ModelError(
                "The file of a model starts processes while it is imported, by load_model or open_replicas.",
                'In the script that defines the model, put what it runs below `if __name__ == "__main__":`, '
                "or keep the model in a file of its own.",
            )
        context = multiprocessing.get_context("spawn")
        self._connection, worker_end = context.Pipe()
        self._process: BaseProcess = context.Process(target=_run_worker, args=(worker_end, config), daemon=True)
        with _without_main(config):
            _start_ignoring_sigint(self._process)
        worker_end.close()  # so that the end of the process is the end of the pipe
        self.ready: Future[list[Any]] = Future()
        self.pending: deque[Future[list[Any]]] = deque([self.ready])
        self.is_dead = False
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._listener_thread = threading.Thread(target=self._listen, name="replica-listener", daemon=True)
        threading.Thread(target=self._send, name="replica-sender", daemon=True).start()
        self._listener_thread.start()

    def submit(self, batch: list[Any], binding_key: BindingKey | None, codec: RecordCodec) -> Future[list[Any]]:
        # Pickled here, so that the caller sees the error about what cannot be pickled.
        message = ForkingPickler.dumps((batch, binding_key, codec))
        results: Future[list[Any]] = Future()
        results.set_running_or_notify_cancel()  # it can no longer be cancelled: the answer will come through the pipe
        with self._lock:
            if self.is_dead:
                results.set_exception(ReplicaDied("it was dead already", is_suspect=False, is_only_batch=False))
                return results
            self.pending.append(results)
        self._outbox.put(message)
        return results

    def is_working_on(self, results: Future[list[Any]]) -> bool:
        """Return whether this is the batch that the process has to answer next."""
        with self._lock:
            return bool(self.pending) and self.pending[0] is results

    def kill(self) -> None:
        """End the process at once; when this returns, every batch without an answer has failed."""
        self._process.kill()
        self._listener_thread.join(DRAIN_TIMEOUT)
        self._mark_dead()  # a process that the model has started may keep the pipe open, so that it does not end

    def close(self) -> None:
        self._outbox.put(ForkingPickler.dumps(None))
        if not self.is_dead:
            self._process.join(SHUTDOWN_TIMEOUT if not self.pending else 0)
            self.kill()  # of a process that has ended, only marks it dead

    def _send(self) -> None:
        while not self.is_dead:
            message = self._outbox.get()
            try:
                self._connection.send_bytes(message)
            except OSError:  # the process is gone: the listener fails the batches
                return

    def _listen(self) -> None:
        while True:
            try:
                answer = self._connection.recv()
            except (EOFError, OSError):
                self._mark_dead()
                return
            except Exception as error:  # an answer that cannot be unpickled here
                answer = _to_picklable_error(error)
            with self._lock:
                if self.is_dead:  # too late: the batch has failed already
                    return
                results = self.pending.popleft()
            if isinstance(answer, BaseException):
                results.set_exception(answer)
            else:
                results.set_result(answer)

    def _mark_dead(self) -> None:
        """Wait for the end of the process, and fail every batch without an answer."""
        self._process.join()
        exit_code = self._process.exitcode or 0
        cause = f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
        with self._lock:
            if self.is_dead:
                return
            self.is_dead = True
            lost = list(self.pending)
            self.pending.clear()
        for position, results in enumerate(lost):
            results.set_exception(ReplicaDied(cause, is_suspect=position == 0, is_only_batch=len(lost) == 1))


class _MainStandIn(ModuleType):
    """Stands for `__main__`: has all that it has, but neither a file nor a spec."""

    def __init__(self, main: ModuleType) -> None:
        super().__init__(main.__name__)
        self._main = main

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":
            raise AttributeError(name)
        return getattr(self._main, name)


@contextmanager
def _without_main(config: ReplicaConfig) -> Iterator[None]:
    """Keep a process that is started here from importing the script that runs.

    A replica finds its model by name and needs nothing of the script: with it, each would import the whole command
    line, or run a user's script that has no `if __name__ == "__main__":` once more. multiprocessing has no option for
    that; it takes the script from the `__file__` and the `__spec__` of `__main__`.
    """
    if b"__main__" in bytes(ForkingPickler.dumps(config)):  # a subclass of `Media` that the script defines
        yield
        return
    with _main_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = _MainStandIn(main)
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _start_ignoring_sigint(process: BaseProcess) -> None:
    """Start a process that ignores SIGINT from its first moment: the parent handles ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        with safe_child_import_path():
            process.start()
        return
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with safe_child_import_path():
            process.start()
    finally:
        signal.signal(signal.SIGINT, previous_handler)


def _run_worker(pipe: Connection, config: ReplicaConfig) -> None:
    """Run in the worker process: open the replica, then answer batches in order until the pipe ends."""
    restore_child_environment()
    if config.replicas_on_host > 1:  # otherwise the threads of the replicas would compete for the cores
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
    sender = threading.Thread(target=_send_results, args=(pipe, done), daemon=True)
    sender.start()
    while (message := _receive_batch(pipe)) is not None:
        done.put(message if isinstance(message, Future) else _submit_safely(replica, *message))
    done.put(None)
    sender.join()
    replica.close()


def _receive_batch(pipe: Connection) -> Any:
    """Return the next batch, None at the end, or a failed future for a batch that cannot be unpickled here."""
    try:
        return pipe.recv()
    except (EOFError, OSError):  # the parent is gone
        return None
    except Exception as error:
        failed: Future[list[Any]] = Future()
        failed.set_exception(error)
        return failed


def _submit_safely(
    replica: Replica, batch: list[Any], binding_key: BindingKey | None, codec: RecordCodec
) -> Future[list[Any]]:
    """Submit a batch; whatever that raises becomes its answer, since only the end of the pipe may end this process."""
    try:
        return replica.submit(batch, binding_key, codec)
    except BaseException as error:
        failed: Future[list[Any]] = Future()
        failed.set_exception(error)
        return failed


def _send_results(pipe: Connection, done: queue.SimpleQueue[Future[list[Any]] | None]) -> None:
    """Send the results of batches in order, until None comes."""
    while (results := done.get()) is not None:
        try:
            answer: Any = results.result()
        except BaseException as error:
            answer = _to_picklable_error(error)
        try:
            pipe.send(answer)
        except OSError:  # the parent is gone
            return
        except Exception as error:  # pickling a foreign object may raise anything
            pipe.send(ModelError(f"What the model returned cannot leave its process: {error_reason(error)}."))


def _to_picklable_error(error: BaseException) -> BaseException:
    """Return the error itself if it is one of lsml's, else a ModelError with its reason: its class may not unpickle."""
    if type(error).__module__ == LsmlError.__module__:
        return error
    return ModelError(f"{error_reason(error)}.")
