"""PyTorch on this machine: devices, precisions, a lane for each core of a CPU. What the families that use it share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import pairwise
from typing import Any, Literal, TypeVar

from lsml_cli.runtime import available_cores

T = TypeVar("T")
R = TypeVar("R")

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


def map_batch_chunks(batch: Sequence[T], chunk_size: int, function: Callable[[Sequence[T]], R]) -> list[R]:
    """What `look` says about the parts of a batch, each of at most `size` and on a core of a CPU of its own, in order.

    When all cores share one part they wait for each other after every layer, for the one that has just been decoding a
    picture most of all. Only when there are fewer parts than cores do several of them work on one, which may change
    the last bits of a score. So the same pictures in the same batches get the same scores on the same machine, whoever
    decodes meanwhile.
    """
    import torch

    parts = _split_batch(batch, chunk_size)
    threads = max(1, available_cores() // len(parts))

    def in_lane(part: Sequence[T]) -> R:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # of this thread
        return function(part)

    try:
        return list(_thread_pool().map(in_lane, parts))
    finally:
        torch.set_num_threads(available_cores())  # a lane's own number has become that of every thread to come


def use_all_cpu_cores(device: str) -> None:
    """On a CPU, decoding and the net want the same cores; the net's threads wait for each other, so it gets all."""
    import torch

    if device == "cpu":
        torch.set_num_threads(available_cores())


def _split_batch(batch: Sequence[T], chunk_size: int) -> list[Sequence[T]]:
    """A batch in as few parts of at most `size` as there can be, all about equally long."""
    count = max(1, -(-len(batch) // chunk_size))
    edges = [len(batch) * number // count for number in range(count + 1)]
    return [batch[first:last] for first, last in pairwise(edges)]


@cache
def _thread_pool() -> ThreadPoolExecutor:
    """A thread for each core; all nets of this process share them."""
    return ThreadPoolExecutor(available_cores(), "look")


def autocast(device_type: str, precision: Precision) -> AbstractContextManager[Any]:
    """Autocast for a kind of device, nothing for fp32."""
    import torch

    if precision == "fp32":
        return nullcontext()
    found: AbstractContextManager[Any] = torch.autocast(
        device_type, torch.bfloat16 if precision == "bf16" else torch.float16
    )
    return found


def lower_precisions(device_type: str) -> tuple[Precision, ...]:
    """Those that may be quicker than fp32 on a kind of device."""
    return ("fp16", "bf16") if device_type == "cuda" else ("fp16",) if device_type == "mps" else ("bf16",)


def free_memory() -> None:
    """Hand back what the device's allocator keeps for later."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def available_devices() -> tuple[str, ...]:
    """The devices of this machine, the quickest kind first: ("cuda:0", "cuda:1", "cpu")."""
    import torch

    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return (*found, "cpu")


def probe() -> str:
    """What works here, in a few words. Raises whatever is wrong: `lsml doctor` asks in a process of its own."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)  # fails where the two do not belong together
    assert kept.tolist() == [0]
    return f"PyTorch {torch.__version__} on {', '.join(available_devices())}"
