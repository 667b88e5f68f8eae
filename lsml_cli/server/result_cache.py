"""Results that nobody received: kept for a while, so that the next request does not compute them again.

Label Studio drops a whole answer that comes too late, and asks for the same tasks again at the next click.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

KEPT_FOR = 900.0  # seconds
KEPT_BYTES = 64 << 20
OVERHEAD = 350  # bytes that one result takes beside its own: its key, when it came, its place in the table


class Finished:
    """Rendered predictions by what they were made from. The oldest go first when they take too much memory.

    most  bytes of memory, with what keeping each of them takes
    """

    def __init__(self, most: int = KEPT_BYTES, seconds: float = KEPT_FOR, clock: Callable[[], float] = time.monotonic):
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, identity: bytes, result: bytes) -> None:
        self._drop(identity)
        self._kept[identity] = (self._clock(), result)
        self._bytes += len(result) + OVERHEAD
        while self._bytes > self._most:
            self._drop(next(iter(self._kept)))

    def find(self, identity: bytes) -> bytes | None:
        self._forget()
        found = self._kept.get(identity)
        return found[1] if found else None

    def _forget(self) -> None:
        oldest = self._clock() - self._seconds
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self._drop(next(iter(self._kept)))

    def _drop(self, identity: bytes) -> None:
        found = self._kept.pop(identity, None)
        if found is not None:
            self._bytes -= len(found[1]) + OVERHEAD


def identity(model: str, setting: tuple[object, ...], body: bytes) -> bytes:
    """What a result depends on: the model's digest, what it is bound to, and every byte of the task."""
    digest = blake2b(f"{model}\0{setting!r}\0".encode(), digest_size=16)
    digest.update(body)
    return digest.digest()
