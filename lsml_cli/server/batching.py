"""Tasks of many requests -> batches for one replica, fair between the requests.

    request 1  ████████████████████████ 2,000 tasks ─┐
    request 2  █                                     ├─► batch, batch, … ─► replica ─► each result to its request
    request 3  █                                     ┘

A batch belongs to one `Setting` and takes an equal share of every request that waits for it, so that a single task
that arrives behind a large selection is in the next batch. All of it lives in one event loop; nothing is locked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lsml_cli.errors import LsmlError
from lsml_cli.inference.dispatch import BATCH_BYTES, Sent, stuck_for
from lsml_cli.inference.replica import AHEAD, Job, Setting, reason
from lsml_cli.inference.replica_process import ReplicaDied, ReplicaProcess
from lsml_cli.schema.predictions import Failure

FIRST_SIZE = 16  # tasks of the first batch, before anything is known of how long one takes
LONG_BATCH = 1.0  # seconds; a batch that takes longer keeps everybody else waiting, and the next one is smaller

log = logging.getLogger("lsml.serve")


class Ask(Protocol):
    """One task as a request brought it: what travels to the replica."""

    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True)
class Late:
    """In the place of a result that was not there when the request had to be answered."""


LATE = Late()


@dataclass(eq=False)
class Request:
    """The tasks of one request, and what has become of them.

    results  one for each task: what `job.write` made of it, a Failure, or LATE as long as there is none
    late     called with the position and the result of a task that comes back when nobody waits any more
    """

    tasks: Sequence[Any]
    setting: Setting
    job: Job
    late: Callable[[int, Any], None]

    def __post_init__(self) -> None:
        self.results: list[Any] = [LATE] * len(self.tasks)
        self.key = self.setting.key()
        self.left = deque(range(len(self.tasks)))  # positions that are in no batch yet
        self.missing = len(self.tasks)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settle()
        self.ended = False

    def skip(self, known: dict[int, Any]) -> None:
        """Take over results that are there already, by position."""
        for position, result in known.items():
            self.results[position] = result
        self.left = deque(position for position in self.left if position not in known)
        self.missing = len(self.left)
        self._settle()

    def take(self, position: int, result: Any) -> None:
        if self.ended:
            self.late(position, result)
            return
        self.results[position] = result
        self.missing -= 1
        self._settle()

    def _settle(self) -> None:
        if not self.missing and not self.done.done():
            self.done.set_result(None)


@dataclass(frozen=True)
class Batched:
    """What a batcher tells about each batch when it is back: its number of tasks, and how many seconds it took."""

    tasks: int
    seconds: float


class Batcher:
    """One replica and the requests that wait for it.

    batch_size  the most tasks of a batch; fewer where that many would take longer than `LONG_BATCH`
    max_wait    seconds that an idle replica waits for more than the first task
    stuck       seconds after which the batch that the replica works on is given up, and its process killed and started
                again; a batch behind it is sent once more
    seen        told of each batch that is back
    """

    def __init__(
        self,
        replica: ReplicaProcess,
        *,
        batch_size: int,
        max_wait: float,
        stuck: float,
        seen: Callable[[Batched], None] = lambda batched: None,
    ) -> None:
        self._replica = replica
        self._most = batch_size
        self._size = min(FIRST_SIZE, batch_size)
        self._max_wait = max_wait
        self._stuck = stuck
        self._seen = seen
        self._queues: dict[tuple[object, ...], deque[Request]] = {}  # the setting that was served last comes last
        self._running: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Tasks that are in no batch yet."""
        return sum(len(request.left) for queue in self._queues.values() for request in queue)

    def submit(self, request: Request) -> None:
        """Queue a request's tasks. `request.done` is done when all of them have a result."""
        if not request.left:
            return
        self._queues.setdefault(request.key, deque()).append(request)
        if not self._running and self._alarm is None and self._max_wait > 0:
            self._alarm = asyncio.get_running_loop().call_later(self._max_wait, self._wake)
        self._send(idle=self._alarm is None)

    def end(self, request: Request) -> None:
        """Nobody waits for this request any more: what is in no batch yet is dropped."""
        request.ended = True
        request.left.clear()
        queue = self._queues.get(request.key)
        if queue is not None and request in queue:
            queue.remove(request)
            if not queue:
                del self._queues[request.key]

    async def drain(self) -> None:
        """Wait until nothing is under way; no batch takes for ever (see `stuck`)."""
        while self._running:
            await asyncio.wait(self._running)

    def _wake(self) -> None:
        self._alarm = None
        self._send(idle=True)

    def _send(self, idle: bool) -> None:
        """Send what may go now: full batches always, others when the replica has nothing to do (`idle`)."""
        while self._queues and len(self._running) < AHEAD:
            key, queue = next(iter(self._queues.items()))
            full = sum(len(request.left) for request in queue) >= self._size
            if not full and (self._running or not idle):
                return
            batch = self._take(key, queue)
            task = asyncio.get_running_loop().create_task(self._work(batch))
            self._running.add(task)
            task.add_done_callback(self._returned)
        if self._alarm is not None and not self._queues:
            self._alarm.cancel()
            self._alarm = None

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._send(idle=True)

    def _take(self, key: tuple[object, ...], queue: deque[Request]) -> list[tuple[Request, int]]:
        """The next batch of one setting: an equal share of each request, until it is full."""
        batch: list[tuple[Request, int]] = []
        weight = 0
        del self._queues[key]
        while queue and len(batch) < self._size and weight < BATCH_BYTES:
            share = max(1, (self._size - len(batch)) // len(queue))
            request = queue.popleft()
            while request.left and share and weight < BATCH_BYTES:
                position = request.left.popleft()
                batch.append((request, position))
                weight += len(request.tasks[position].body)
                share -= 1
            if request.left:
                queue.append(request)
        if queue:
            self._queues[key] = queue
        return batch

    async def _work(self, batch: list[tuple[Request, int]]) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        results = await self._results(batch)
        took = loop.time() - begun
        for (request, position), result in zip(batch, results, strict=True):
            request.take(position, result)
        self._learn(len(batch), took)
        self._seen(Batched(len(batch), took))

    async def _results(self, batch: list[tuple[Request, int]]) -> list[Any]:
        """One result for each task; a Failure for all of them where the replica itself failed."""
        first = batch[0][0]
        try:
            sent = Sent(
                self._replica, [request.tasks[position] for request, position in batch], first.setting, first.job
            )
            waiting = asyncio.wrap_future(sent.results)
            waiting.add_done_callback(lambda back: back.cancelled() or back.exception())  # so that nobody complains
            while not waiting.done():
                await asyncio.wait([waiting], timeout=self._stuck)
                if not waiting.done() and await asyncio.to_thread(self._replica.give_up, sent.results):
                    log.warning("A batch of %d: %s.", len(batch), stuck_for(self._stuck))
                    return [Failure("forward", stuck_for(self._stuck))] * len(batch)
            try:
                return waiting.result()
            except ReplicaDied:
                return await asyncio.to_thread(sent.collect, self._stuck)
        except LsmlError as error:
            return [Failure("forward", str(error))] * len(batch)
        except Exception as error:  # whatever it is, it is not the end of the server
            return [Failure("forward", reason(error))] * len(batch)

    def _learn(self, tasks: int, took: float) -> None:
        """Batches of about half a second to a second: large enough for the device, short enough for who waits."""
        if took >= self._stuck:
            self._size = 1  # whichever task it was, the others should not share its fate again
        elif took > LONG_BATCH:
            self._size = max(1, min(self._size, tasks) // 2)
        elif took < LONG_BATCH / 2 and tasks >= self._size:
            self._size = min(self._most, self._size * 2)
