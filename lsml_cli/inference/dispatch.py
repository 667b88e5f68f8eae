"""Tasks in, outcomes out, in order, over one or several replicas."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lsml_cli.inference.in_flight_batch import InFlightBatch
from lsml_cli.inference.record_codec import BindingKey, RecordCodec, TaskCodec
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import ReplicaProcess

MAX_BATCH_BYTES = 8 << 20

T = TypeVar("T")


def predict_stream(
    replicas: Sequence[Replica | ReplicaProcess],
    items: Iterable[Any],
    *,
    batch_size: int,
    binding_key: BindingKey | None = None,
    codec: RecordCodec | None = None,
) -> Iterator[Any]:
    """Predict items as they come, and yield the results in the order of the items.

    Batch k holds the items k * batch_size to (k + 1) * batch_size - 1, whatever the number of replicas. Memory holds
    a few batches per replica. What goes wrong with one item costs only that item.

    Args:
        replicas: From `open_replicas`.
        items: Tasks, or `UnreadableRecord`s; with a `codec`, what that reads.
        batch_size: Items per batch.
        binding_key: What to bind the model to, if not to that of the replicas.
        codec: Turns items into tasks and outcomes into results; by default tasks go in and `(task, outcome)` comes
            out.

    Returns:
        For each item what `codec.write` returns, by default `(task, Prediction | Failure)`.

    Raises:
        LsmlError: Nothing more can be predicted.

    Example:
        >>> with open_replicas(find_model("models/news"), config) as replicas:
        ...     for task, outcome in predict_stream(replicas, read_tasks("tasks.json"), batch_size=32):
        ...         print(task.id, outcome)
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
    """Yield the results of `predict_stream` a batch at a time.

    Args:
        replicas: See `predict_stream`, as the other arguments.
        items: See above.
        batch_size: See above.
        binding_key: See above.
        codec: See above.
        item_bytes: Size of an item: a batch also ends when it holds more than `MAX_BATCH_BYTES`.
    """
    codec = codec or TaskCodec()
    in_flight: deque[InFlightBatch] = deque()
    max_in_flight = sum(replica.prefetch for replica in replicas)
    for batch in _batches(items, batch_size, item_bytes):
        replica = min(replicas, key=lambda candidate: candidate.pending_count)
        in_flight.append(InFlightBatch(replica, batch, binding_key, codec))
        while len(in_flight) > max_in_flight or (in_flight and in_flight[0].results.done()):
            yield in_flight.popleft().collect()
    while in_flight:
        yield in_flight.popleft().collect()


def _batches(items: Iterable[T], size: int, item_bytes: Callable[[T], int] | None) -> Iterator[list[T]]:
    batch: list[T] = []
    batch_bytes = 0
    for item in items:
        batch.append(item)
        batch_bytes += item_bytes(item) if item_bytes else 0
        if len(batch) == size or batch_bytes > MAX_BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch
