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
from lsml_cli.inference.replica import FETCHERS, Job, Plain, Replica, Setting, cores
from lsml_cli.inference.replica_process import Placement, ReplicaDied, ReplicaProcess
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Model, ModelSpec
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure

LOSSES_IN_A_ROW = 3  # single tasks that kill a replica, or hang in it, before it is the replica that is to blame

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


class Stuck(Exception):
    """A batch took longer than anybody wants to wait; its process was killed and started again."""


class Sent:
    """A batch on its way through a replica. `results` is done when it is back, or lost; `collect` it then."""

    def __init__(self, replica: Replica | ReplicaProcess, batch: list[Any], setting: Setting | None, job: Job) -> None:
        self.replica = replica
        self.batch = batch
        self.setting = setting
        self.job = job
        self.results: Future[list[Any]] = replica.submit(batch, setting, job)

    def collect(self, patience: float | None = None) -> list[Any]:
        """Wait for the results. A batch that was lost with its replica is done again, the guilty one item by item.

        patience  seconds that a batch which is done again may take, or one item of it, before it is given up; it is
                  not tried once more. None: for ever, as where nobody waits for anything else
        """
        try:
            return self.results.result()
        except ReplicaDied as death:
            assert isinstance(self.replica, ReplicaProcess)
            with self.replica.recovering:
                return self._again(self.replica, death, patience)

    def _again(self, replica: ReplicaProcess, death: ReplicaDied, patience: float | None) -> list[Any]:
        replica.restart()
        while not death.guilty:
            try:
                return self._answer(replica, self.batch, patience)
            except ReplicaDied as another:
                replica.restart()
                death = another
            except Stuck as stuck:
                return [self._failed(item, str(stuck)) for item in self.batch]
        return self._one_by_one(replica, patience)

    def _one_by_one(self, replica: ReplicaProcess, patience: float | None) -> list[Any]:
        results: list[Any] = []
        left = deque(self.batch)
        losses = 0
        while left:
            try:
                results += self._answer(replica, [left[0]], patience)
                losses = 0
            except ReplicaDied as death:
                if not death.alone:  # a batch of somebody else was there too
                    replica.restart()
                    continue
                losses += 1
                if losses == LOSSES_IN_A_ROW:
                    raise ModelError(
                        f"The model's process dies again and again ({death.how}).",
                        "Look at the memory of the machine, and try a smaller --batch-size.",
                    ) from None
                replica.restart()
                results.append(self._failed(left[0], f"the model's process died: {death.how}"))
            except Stuck as stuck:
                losses += 1
                if losses == LOSSES_IN_A_ROW:
                    raise ModelError(f"One task after the other is in vain: {stuck}.") from None
                results.append(self._failed(left[0], str(stuck)))
            left.popleft()
        return results

    def _answer(self, replica: ReplicaProcess, batch: list[Any], patience: float | None) -> list[Any]:
        """Raises Stuck when it was given up, ReplicaDied when it was lost for another reason."""
        results = replica.submit(batch, self.setting, self.job)
        while True:
            try:
                return results.result(patience)
            except TimeoutError:  # of this wait; none comes out of a replica
                assert patience is not None
                if replica.give_up(results):
                    raise Stuck(stuck_for(patience)) from None

    def _failed(self, item: Any, why: str) -> Any:
        task, _ = self.job.read(item)
        return self.job.write(item, task, Failure("forward", why))


def stuck_for(seconds: float) -> str:
    return f"the model was stuck for {seconds:.0f} s, and was started again"
