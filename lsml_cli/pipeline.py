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
from lsml_cli.label_config import LabelConfig
from lsml_cli.media import Media
from lsml_cli.models.base import Model, ModelSpec
from lsml_cli.predictions import Failure
from lsml_cli.replica import FETCHERS, Job, Plain, Replica, Setting, cores
from lsml_cli.replica_process import Placement, ReplicaDied, ReplicaProcess

DEATHS_IN_A_ROW = 3  # single tasks that kill a replica before it is the replica that is to blame

BATCH_BYTES = 8 << 20

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
    fetchers: int = FETCHERS,
) -> Iterator[list[Replica | ReplicaProcess]]:
    """Replicas of a model, bound to a label config and ready to predict; closed on leaving.

    devices  one replica (of a "process" model: `workers` of them) on each; naming a device twice makes two
    workers  for "process" models the number of replicas on each device, for "threads" models the number of
             threads that encode ahead. None: one process, or a thread for each core of the replica's share
    media    fetches what tasks point to; closed on leaving
    fetchers for "threads" models the number of threads that wait for media

    A single replica stays in this process. Raises ModelError when the model cannot be loaded.
    """
    setting = Setting(config, label_map or {}, project, threshold)
    threaded = spec.family().place == "threads"
    places = [device for device in devices for _ in range(1 if threaded else workers or 1)]
    share = len(places)
    threads = (workers or max(1, cores() // share)) if threaded else 0
    placements = [Placement(spec, setting, device, threads, media, fetchers, share) for device in places]
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


def find_devices(wanted: str, model: type[Model]) -> list[str]:
    """`--device` as a list: "auto" is the best one, "cuda" all there are; else one or several with commas.

    Raises UsageError when the model cannot use one of them, or when it is not there.
    """
    here = list(model.devices_here())
    if wanted == "auto":
        return here[:1]
    return [device for named in wanted.split(",") for device in _devices_named(named.strip(), model, here)]


def _devices_named(device: str, model: type[Model], here: Sequence[str]) -> list[str]:
    name, _, number = device.partition(":")
    if name not in model.devices or (number and not number.isdigit()):
        raise UsageError(
            f"{model.__name__} cannot run on {device!r}.", f"It runs on: auto, {', '.join(model.devices)}."
        )
    found = [each for each in here if device in (each, each.partition(":")[0])]
    if not found:
        raise UsageError(f"There is no device {device!r} here.", f"There is: {', '.join(here)}.")
    return found


def predict_stream(
    replicas: Sequence[Replica | ReplicaProcess],
    items: Iterable[Any],
    *,
    batch_size: int,
    setting: Setting | None = None,
    job: Job | None = None,
) -> Iterator[Any]:
    """What `job.write` makes of each item, by default `(task, outcome)`, in the order of `items`.

    Batch k holds the items k * batch_size to (k + 1) * batch_size - 1, whatever the number of replicas. Memory holds
    a few batches for each of them. Whatever goes wrong with one item costs that item only. Raises LsmlError when
    nothing more can be predicted.
    """
    for results in predict_batches(replicas, items, batch_size=batch_size, setting=setting, job=job):
        yield from results


def predict_batches(
    replicas: Sequence[Replica | ReplicaProcess],
    items: Iterable[Any],
    *,
    batch_size: int,
    setting: Setting | None = None,
    job: Job | None = None,
    weigh: Callable[[Any], int] | None = None,
) -> Iterator[list[Any]]:
    """`predict_stream`, a batch at a time, for who wants to know where batches end.

    weigh  the bytes of an item: a batch also ends when it holds more than BATCH_BYTES, whatever its number of items
    """
    job = job or Plain()
    waiting: deque[Sent] = deque()
    allowed = sum(replica.ahead for replica in replicas)
    for batch in _batches(items, batch_size, weigh):
        replica = min(replicas, key=lambda candidate: candidate.waiting)
        waiting.append(Sent(replica, batch, setting, job))
        while len(waiting) > allowed or (waiting and waiting[0].results.done()):
            yield waiting.popleft().collect()
    while waiting:
        yield waiting.popleft().collect()


def _batches(items: Iterable[T], size: int, weigh: Callable[[T], int] | None) -> Iterator[list[T]]:
    batch: list[T] = []
    weight = 0
    for item in items:
        batch.append(item)
        weight += weigh(item) if weigh else 0
        if len(batch) == size or weight > BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


class Sent:
    """A batch on its way through a replica. `results` is done when it is back, or lost; `collect` it then."""

    def __init__(self, replica: Replica | ReplicaProcess, batch: list[Any], setting: Setting | None, job: Job) -> None:
        self.replica = replica
        self.batch = batch
        self.setting = setting
        self.job = job
        self.results: Future[list[Any]] = replica.submit(batch, setting, job)

    def collect(self) -> list[Any]:
        """Wait for the results. A batch that was lost with its replica is done again, the guilty one item by item."""
        try:
            return self.results.result()
        except ReplicaDied as death:
            assert isinstance(self.replica, ReplicaProcess)
            with self.replica.recovering:
                return self._again(self.replica, death)

    def _again(self, replica: ReplicaProcess, death: ReplicaDied) -> list[Any]:
        replica.restart()
        while not death.guilty:
            try:
                return replica.submit(self.batch, self.setting, self.job).result()
            except ReplicaDied as another:
                replica.restart()
                death = another
        return self._one_by_one(replica)

    def _one_by_one(self, replica: ReplicaProcess) -> list[Any]:
        results: list[Any] = []
        left = deque(self.batch)
        deaths = 0
        while left:
            try:
                results += replica.submit([left[0]], self.setting, self.job).result()
                deaths = 0
            except ReplicaDied as death:
                if not death.alone:  # a batch of somebody else was there too
                    replica.restart()
                    continue
                deaths += 1
                if deaths == DEATHS_IN_A_ROW:
                    raise ModelError(
                        f"The model's process dies again and again ({death.how}).",
                        "Look at the memory of the machine, and try a smaller --batch-size.",
                    ) from None
                replica.restart()
                task, _ = self.job.read(left[0])
                failure = Failure("forward", f"the model's process died: {death.how}")
                results.append(self.job.write(left[0], task, failure))
            left.popleft()
        return results
