"""Group the tasks of concurrent requests into batches for one replica, fairly.

    request 1  ████████████████████████ 2,000 tasks ─┐
    request 2  █                                     ├─► batch, batch, … ─► replica ─► results, each to its request
    request 3  █                                     ┘

A batch has one `BindingKey` and takes an equal share of every request that waits with it, so that a single task that
arrives behind a large request is in the next batch. Everything runs in one event loop, without locks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lsml_cli.errors import LsmlError
from lsml_cli.inference.dispatch import MAX_BATCH_BYTES
from lsml_cli.inference.in_flight_batch import InFlightBatch, timeout_message
from lsml_cli.inference.record_codec import BindingKey, RecordCodec
from lsml_cli.inference.replica import PREFETCH_BATCHES
from lsml_cli.inference.replica_process import ReplicaDied, ReplicaProcess
from lsml_cli.runtime import error_reason
from lsml_cli.schema.predictions import Failure

INITIAL_BATCH_SIZE = 16  # tasks of the first batch, before the time that a task takes is known
MAX_BATCH_SECONDS = 1.0  # a longer batch delays all other requests, so the next one is smaller

log = logging.getLogger("lsml.serve")


@dataclass(frozen=True)
class TimedOut:
    """Stands for a result that was not ready when the request had to be answered."""


TIMED_OUT = TimedOut()


@dataclass(eq=False)
class PendingRequest:
    """The tasks of one request and their results.

    Attributes:
        on_late_result: Called with the position and result of a task that finishes after `close_request`.
        results: One for each task: what `codec.write` returned, a Failure, or TIMED_OUT until there is one.
        key: Hashable form of `binding_key`.
        queued_positions: Positions of tasks that are in no batch yet.
        pending_count: Number of tasks without a result.
        done: Resolved when every task has a result.
    """

    tasks: Sequence[Any]
    binding_key: BindingKey
    codec: RecordCodec
    on_late_result: Callable[[int, Any], None]

    def __post_init__(self) -> None:
        self.results: list[Any] = [TIMED_OUT] * len(self.tasks)
        self.key = self.binding_key.cache_key()
        self.queued_positions = deque(range(len(self.tasks)))
        self.pending_count = len(self.tasks)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resolve_if_complete()
        self.is_closed = False

    def set_cached_results(self, cached: dict[int, Any]) -> None:
        """Set results that are known already, by position; call before `Batcher.submit`."""
        for position, result in cached.items():
            self.results[position] = result
        self.queued_positions = deque(position for position in self.queued_positions if position not in cached)
        self.pending_count = len(self.queued_positions)
        self._resolve_if_complete()

    def set_result(self, position: int, result: Any) -> None:
        """Set the result of one task."""
        if self.is_closed:
            self.on_late_result(position, result)
            return
        self.results[position] = result
        self.pending_count -= 1
        self._resolve_if_complete()

    def _resolve_if_complete(self) -> None:
        if not self.pending_count and not self.done.done():
            self.done.set_result(None)


@dataclass(frozen=True)
class BatchStats:
    """Number of tasks of a finished batch, and the seconds that it took."""

    task_count: int
    seconds: float


class Batcher:
    """Feed one replica with the tasks of the requests that wait for it.

    Args:
        batch_size: Maximum number of tasks of a batch; fewer when that many take longer than `MAX_BATCH_SECONDS`.
        max_wait: Seconds that an idle replica waits for more than the first task.
        batch_timeout: Seconds after which the batch that the replica works on fails, and the replica's process is
            killed and restarted; the batch that is queued behind it is sent again.
        on_batch: Called after each batch.
    """

    def __init__(
        self,
        replica: ReplicaProcess,
        *,
        batch_size: int,
        max_wait: float,
        batch_timeout: float,
        on_batch: Callable[[BatchStats], None] = lambda stats: None,
    ) -> None:
        self._replica = replica
        self._max_batch_size = batch_size
        self._batch_size = min(INITIAL_BATCH_SIZE, batch_size)
        self._max_wait = max_wait
        self._batch_timeout = batch_timeout
        self._on_batch = on_batch
        # By binding key; the one that was served last is last.
        self._queues: dict[tuple[object, ...], deque[PendingRequest]] = {}
        self._running_batches: set[asyncio.Task[None]] = set()
        self._max_wait_timer: asyncio.TimerHandle | None = None

    @property
    def queued_task_count(self) -> int:
        """Number of tasks that are in no batch yet."""
        return sum(len(request.queued_positions) for queue in self._queues.values() for request in queue)

    def submit(self, request: PendingRequest) -> None:
        """Queue a request's tasks; `request.done` is resolved when all of them have a result."""
        if not request.queued_positions:
            return
        self._queues.setdefault(request.key, deque()).append(request)
        if not self._running_batches and self._max_wait_timer is None and self._max_wait > 0:
            self._max_wait_timer = asyncio.get_running_loop().call_later(self._max_wait, self._on_max_wait)
        self._dispatch(replica_is_idle=self._max_wait_timer is None)

    def close_request(self, request: PendingRequest) -> None:
        """Stop working for a request, finished or not: tasks that are in no batch yet are dropped."""
        request.is_closed = True
        request.queued_positions.clear()
        queue = self._queues.get(request.key)
        if queue is not None and request in queue:
            queue.remove(request)
            if not queue:
                del self._queues[request.key]

    async def drain(self) -> None:
        """Wait until no batch is running, which takes at most about `batch_timeout`."""
        while self._running_batches:
            await asyncio.wait(self._running_batches)

    def _on_max_wait(self) -> None:
        self._max_wait_timer = None
        self._dispatch(replica_is_idle=True)

    def _dispatch(self, replica_is_idle: bool) -> None:
        """Send full batches, and a partial one if the replica has nothing to do."""
        while self._queues and len(self._running_batches) < PREFETCH_BATCHES:
            key, queue = next(iter(self._queues.items()))
            full = sum(len(request.queued_positions) for request in queue) >= self._batch_size
            if not full and (self._running_batches or not replica_is_idle):
                return
            batch = self._next_batch(key, queue)
            task = asyncio.get_running_loop().create_task(self._run_batch(batch))
            self._running_batches.add(task)
            task.add_done_callback(self._on_batch_task_done)
        if self._max_wait_timer is not None and not self._queues:
            self._max_wait_timer.cancel()
            self._max_wait_timer = None

    def _on_batch_task_done(self, task: asyncio.Task[None]) -> None:
        self._running_batches.discard(task)
        self._dispatch(replica_is_idle=True)

    def _next_batch(self, key: tuple[object, ...], queue: deque[PendingRequest]) -> list[tuple[PendingRequest, int]]:
        """Take the next batch of one binding key: an equal share of each request, until it is full."""
        batch: list[tuple[PendingRequest, int]] = []
        weight = 0
        del self._queues[key]
        while queue and len(batch) < self._batch_size and weight < MAX_BATCH_BYTES:
            share = max(1, (self._batch_size - len(batch)) // len(queue))
            request = queue.popleft()
            while request.queued_positions and share and weight < MAX_BATCH_BYTES:
                position = request.queued_positions.popleft()
                batch.append((request, position))
                weight += len(request.tasks[position].body)
                share -= 1
            if request.queued_positions:
                queue.append(request)
        if queue:
            self._queues[key] = queue
        return batch

    async def _run_batch(self, batch: list[tuple[PendingRequest, int]]) -> None:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        results = await self._predict_batch(batch)
        seconds = loop.time() - started_at
        for (request, position), result in zip(batch, results, strict=True):
            request.set_result(position, result)
        self._adapt_batch_size(len(batch), seconds)
        self._on_batch(BatchStats(len(batch), seconds))

    async def _predict_batch(self, batch: list[tuple[PendingRequest, int]]) -> list[Any]:
        """Return one result for each task; a Failure for all of them when the replica itself failed."""
        first = batch[0][0]
        try:
            in_flight = InFlightBatch(
                self._replica, [request.tasks[position] for request, position in batch], first.binding_key, first.codec
            )
            results = asyncio.wrap_future(in_flight.results)
            # Retrieve the exception, or asyncio logs that nothing did when this batch is given up.
            results.add_done_callback(lambda future: future.cancelled() or future.exception())
            while not results.done():
                await asyncio.wait([results], timeout=self._batch_timeout)
                if not results.done() and await asyncio.to_thread(self._replica.kill_if_stuck, in_flight.results):
                    log.warning("A batch of %d: %s.", len(batch), timeout_message(self._batch_timeout))
                    return [Failure("forward", timeout_message(self._batch_timeout))] * len(batch)
            try:
                return results.result()
            except ReplicaDied:
                return await asyncio.to_thread(in_flight.collect, self._batch_timeout)
        except LsmlError as error:
            return [Failure("forward", str(error))] * len(batch)
        except Exception as error:  # an error of a model must not end the server
            return [Failure("forward", error_reason(error))] * len(batch)

    def _adapt_batch_size(self, task_count: int, seconds: float) -> None:
        """Aim at batches of half a second to a second: large enough for the device, short enough for other requests."""
        if seconds >= self._batch_timeout:
            self._batch_size = 1  # one task is stuck; it must not take others with it again
        elif seconds > MAX_BATCH_SECONDS:
            self._batch_size = max(1, min(self._batch_size, task_count) // 2)
        elif seconds < MAX_BATCH_SECONDS / 2 and task_count >= self._batch_size:
            self._batch_size = min(self._max_batch_size, self._batch_size * 2)
