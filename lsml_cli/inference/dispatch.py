"""Tasks in, outcomes out, in order, over one or several replicas.

Where a replica lives makes no difference to the caller:

    in this process     `Replica`          called directly, or with threads that encode ahead of the forward lane
    in its own process  `ReplicaProcess`   for models that hold the GIL, for a second device, for isolation
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.inference.record_codec import BindingKey, RecordCodec, TaskCodec
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import ReplicaConfig, ReplicaDied, ReplicaProcess
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Model
from lsml_cli.models.spec import ModelSpec
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, available_cores
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure

MAX_CONSECUTIVE_LOSSES = 3  # single tasks that kill a replica, or hang in it, before it is the replica that is to blame

MAX_BATCH_BYTES = 8 << 20

T = TypeVar("T")


@contextmanager
def open_replicas(
    spec: ModelSpec,
    config: LabelConfig,
    *,
    label_map: Mapping[str, str] | None = None,
    project: str | None = None,
    threshold: float | None = None,
    devices: Sequence[str] = ("cpu",),
    workers: int | None = 1,
    media: Media | None = None,
    fetch_threads: int = DEFAULT_FETCH_THREADS,
) -> Iterator[list[Replica | ReplicaProcess]]:
    """Replicas of a model, bound to a label config and ready to predict; closed on leaving.

    devices  one replica (of a "process" model: `workers` of them) on each; naming a device twice makes two
    workers  for "process" models the number of replicas on each device, for "threads" models the number of
             threads that encode ahead. None: one process, or a thread for each core of the replica's share
    media    fetches what tasks point to; closed on leaving
    fetchers for "threads" models the number of threads that wait for media

    A single replica stays in this process. Raises ModelError when the model cannot be loaded.
    """
    setting = BindingKey(config, label_map or {}, project, threshold)
    threaded = spec.model_class().parallelism == "threads"
    places = [device for device in devices for _ in range(1 if threaded else workers or 1)]
    share = len(places)
    threads = (workers or max(1, available_cores() // share)) if threaded else 0
    placements = [ReplicaConfig(spec, setting, device, threads, media, fetch_threads, share) for device in places]
    with ExitStack() as stack:
        if media is not None:
            stack.callback(media.close)
        replicas: list[Replica | ReplicaProcess] = []
        for placement in placements:
            replica = placement.open() if len(placements) == 1 else ReplicaProcess(placement)
            stack.callback(replica.close)
            replicas.append(replica)
        for replica in replicas:  # all of them load at the same time
            if isinstance(replica, ReplicaProcess):
                replica.wait_until_ready()
        gc.freeze()  # what is loaded now stays; the collector need not walk it again and again
        stack.callback(gc.unfreeze)  # or it would still be there when Python ends, and some libraries complain
        yield replicas


def find_devices(requested: str, model: type[Model]) -> list[str]:
    """`--device` as a list: "auto" is the best one, "cuda" all there are; else one or several with commas.

    Raises UsageError when the model cannot use one of them, or when it is not there.
    """
    here = list(model.available_devices())
    if requested == "auto":
        return here[:1]
    return [device for named in requested.split(",") for device in _match_devices(named.strip(), model, here)]


def _match_devices(device: str, model: type[Model], available: Sequence[str]) -> list[str]:
    name, _, number = device.partition(":")
    if name not in model.devices or (number and not number.isdigit()):
        raise UsageError(
            f"{model.__name__} cannot run on {device!r}.", f"It runs on: auto, {', '.join(model.devices)}."
        )
    found = [each for each in available if device in (each, each.partition(":")[0])]
    if not found:
        raise UsageError(f"There is no device {device!r} here.", f"There is: {', '.join(available)}.")
    return found


def predict_stream(
    replicas: Sequence[Replica | ReplicaProcess],
    items: Iterable[Any],
    *,
    batch_size: int,
    binding_key: BindingKey | None = None,
    codec: RecordCodec | None = None,
) -> Iterator[Any]:
    """What `job.write` makes of each item, by default `(task, outcome)`, in the order of `items`.

    Batch k holds the items k * batch_size to (k + 1) * batch_size - 1, whatever the number of replicas. Memory holds
    a few batches for each of them. Whatever goes wrong with one item costs that item only. Raises LsmlError when
    nothing more can be predicted.
    """
    for results in predict_batches(replicas, items, batch_size=batch_size, binding_key=binding_key, codec=codec):
        yield from results


def predict_batches(
    replicas: Sequence[Replica | ReplicaProcess],
    items: Iterable[Any],
    *,
    batch_size: int,
    binding_key: BindingKey | None = None,
    codec: RecordCodec | None = None,
    item_bytes: Callable[[Any], int] | None = None,
) -> Iterator[list[Any]]:
    """`predict_stream`, a batch at a time, for who wants to know where batches end.

    weigh  the bytes of an item: a batch also ends when it holds more than BATCH_BYTES, whatever its number of items
    """
    codec = codec or TaskCodec()
    waiting: deque[InFlightBatch] = deque()
    allowed = sum(replica.prefetch for replica in replicas)
    for batch in _batches(items, batch_size, item_bytes):
        replica = min(replicas, key=lambda candidate: candidate.pending_count)
        waiting.append(InFlightBatch(replica, batch, binding_key, codec))
        while len(waiting) > allowed or (waiting and waiting[0].results.done()):
            yield waiting.popleft().collect()
    while waiting:
        yield waiting.popleft().collect()


def _batches(items: Iterable[T], size: int, item_bytes: Callable[[T], int] | None) -> Iterator[list[T]]:
    batch: list[T] = []
    weight = 0
    for item in items:
        batch.append(item)
        weight += item_bytes(item) if item_bytes else 0
        if len(batch) == size or weight > MAX_BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


class BatchTimeout(Exception):
    """A batch took longer than anybody wants to wait; its process was killed and started again."""


class InFlightBatch:
    """A batch on its way through a replica. `results` is done when it is back, or lost; `collect` it then."""

    def __init__(
        self, replica: Replica | ReplicaProcess, batch: list[Any], binding_key: BindingKey | None, codec: RecordCodec
    ) -> None:
        self.replica = replica
        self.batch = batch
        self.binding_key = binding_key
        self.codec = codec
        self.results: Future[list[Any]] = replica.submit(batch, binding_key, codec)

    def collect(self, timeout: float | None = None) -> list[Any]:
        """Wait for the results. A batch that was lost with its replica is done again, the guilty one item by item.

        patience  seconds that a batch which is done again may take, or one item of it, before it is given up; it is
                  not tried once more. None: for ever, as where nobody waits for anything else
        """
        try:
            return self.results.result()
        except ReplicaDied as death:
            assert isinstance(self.replica, ReplicaProcess)
            with self.replica.recovery_lock:
                return self._resubmit(self.replica, death, timeout)

    def _resubmit(self, replica: ReplicaProcess, death: ReplicaDied, timeout: float | None) -> list[Any]:
        replica.restart()
        while not death.is_suspect:
            try:
                return self._submit_and_wait(replica, self.batch, timeout)
            except ReplicaDied as another:
                replica.restart()
                death = another
            except BatchTimeout as stuck:
                return [self._failure_result(item, str(stuck)) for item in self.batch]
        return self._submit_one_by_one(replica, timeout)

    def _submit_one_by_one(self, replica: ReplicaProcess, timeout: float | None) -> list[Any]:
        results: list[Any] = []
        left = deque(self.batch)
        losses = 0
        while left:
            try:
                results += self._submit_and_wait(replica, [left[0]], timeout)
                losses = 0
            except ReplicaDied as death:
                if not death.is_only_batch:  # a batch of somebody else was there too
                    replica.restart()
                    continue
                losses += 1
                if losses == MAX_CONSECUTIVE_LOSSES:
                    raise ModelError(
                        f"The model's process dies again and again ({death.cause}).",
                        "Look at the memory of the machine, and try a smaller --batch-size.",
                    ) from None
                replica.restart()
                results.append(self._failure_result(left[0], f"the model's process died: {death.cause}"))
            except BatchTimeout as stuck:
                losses += 1
                if losses == MAX_CONSECUTIVE_LOSSES:
                    raise ModelError(f"One task after the other is in vain: {stuck}.") from None
                results.append(self._failure_result(left[0], str(stuck)))
            left.popleft()
        return results

    def _submit_and_wait(self, replica: ReplicaProcess, batch: list[Any], timeout: float | None) -> list[Any]:
        """Raises Stuck when it was given up, ReplicaDied when it was lost for another reason."""
        results = replica.submit(batch, self.binding_key, self.codec)
        while True:
            try:
                return results.result(timeout)
            except TimeoutError:  # of this wait; none comes out of a replica
                assert timeout is not None
                if replica.kill_if_stuck(results):
                    raise BatchTimeout(timeout_message(timeout)) from None

    def _failure_result(self, item: Any, why: str) -> Any:
        task, _ = self.codec.read(item)
        return self.codec.write(item, task, Failure("forward", why))


def timeout_message(seconds: float) -> str:
    return f"the model was stuck for {seconds:.0f} s, and was started again"
