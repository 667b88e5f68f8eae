"""Run PyTorch on this machine: devices, precisions, and one lane per CPU core."""

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
    """Call a function on the chunks of a batch, each on its own CPU core, and return the results in order.

    If all cores shared one chunk, they would wait for each other after every layer, and most of all for a core that
    is busy decoding an image. Several cores work on one chunk only where there are fewer chunks than cores, which may
    change the last bits of a score. So equal batches get equal scores on one machine, whatever else it is doing.

    Args:
        batch: The items to split.
        chunk_size: The largest number of items in a chunk.
        function: Called in a thread with one chunk.
    """
    import torch

    chunks = _split_batch(batch, chunk_size)
    threads_per_chunk = max(1, available_cores() // len(chunks))

    def run_in_lane(chunk: Sequence[T]) -> R:
        if torch.get_num_threads() != threads_per_chunk:
            torch.set_num_threads(threads_per_chunk)  # of the calling thread
        return function(chunk)

    try:
        return list(_thread_pool().map(run_in_lane, chunks))
    finally:
        torch.set_num_threads(available_cores())  # a lane's number has become the default of every new thread


def use_all_cpu_cores(device: str) -> None:
    """Let PyTorch use all cores of a CPU, although decoding competes for them: its threads wait for each other."""
    import torch

    if device == "cpu":
        torch.set_num_threads(available_cores())


def _split_batch(batch: Sequence[T], chunk_size: int) -> list[Sequence[T]]:
    """Split a batch into as few chunks as possible, all about equally long."""
    count = max(1, -(-len(batch) // chunk_size))
    edges = [len(batch) * number // count for number in range(count + 1)]
    return [batch[first:last] for first, last in pairwise(edges)]


@cache
def _thread_pool() -> ThreadPoolExecutor:
    """Return the threads that all models of this process share, one per core."""
    return ThreadPoolExecutor(available_cores(), "forward")


def autocast(device_type: str, precision: Precision) -> AbstractContextManager[Any]:
    """Return autocast for a device type ("cpu", "cuda", "mps"); a null context for fp32."""
    import torch

    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    context: AbstractContextManager[Any] = torch.autocast(device_type, dtype)
    return context


def lower_precisions(device_type: str) -> tuple[Precision, ...]:
    """Return the precisions that may be faster than fp32 on a device type."""
    return ("fp16", "bf16") if device_type == "cuda" else ("fp16",) if device_type == "mps" else ("bf16",)


def free_memory() -> None:
    """Release the memory that PyTorch's CUDA allocator caches."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def available_devices() -> tuple[str, ...]:
    """Return the devices of this machine, the fastest kind first: ("cuda:0", "cuda:1", "cpu")."""
    import torch

    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return (*devices, "cpu")


def probe() -> str:
    """Describe the installed PyTorch and its devices; `lsml doctor` calls this in a process of its own.

    Raises:
        Exception: PyTorch or torchvision does not work.
    """
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)  # fails where the two releases do not match
    assert kept.tolist() == [0]
    return f"PyTorch {torch.__version__} on {', '.join(available_devices())}"
