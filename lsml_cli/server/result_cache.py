"""Results that nobody received: kept for a while, so that the next request does not compute them again.

Label Studio drops a whole answer that comes too late, and asks for the same tasks again at the next click.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

CACHE_TTL = 900.0  # seconds
MAX_CACHE_BYTES = 64 << 20
ENTRY_OVERHEAD = 350  # bytes that one result takes beside its own: its key, when it came, its place in the table


class ResultCache:
    """Rendered predictions by what they were made from. The oldest go first when they take too much memory.

    most  bytes of memory, with what keeping each of them takes
    """

    def __init__(
        self, max_bytes: int = MAX_CACHE_BYTES, ttl: float = CACHE_TTL, clock: Callable[[], float] = time.monotonic
    ):
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._used_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: bytes, result: bytes) -> None:
        self._remove(key)
        self._entries[key] = (self._clock(), result)
        self._used_bytes += len(result) + ENTRY_OVERHEAD
        while self._used_bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))

    def get(self, key: bytes) -> bytes | None:
        self._evict_expired()
        found = self._entries.get(key)
        return found[1] if found else None

    def _evict_expired(self) -> None:
        oldest = self._clock() - self._ttl
        while self._entries and next(iter(self._entries.values()))[0] < oldest:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._used_bytes -= len(found[1]) + ENTRY_OVERHEAD


def cache_key(model_digest: str, binding_key: tuple[object, ...], body: bytes) -> bytes:
    """What a result depends on: the model's digest, what it is bound to, and every byte of the task."""
    digest = blake2b(f"{model_digest}\0{binding_key!r}\0".encode(), digest_size=16)
    digest.update(body)
    return digest.digest()
