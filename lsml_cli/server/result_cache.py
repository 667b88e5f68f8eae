"""Keep finished results that no client received, so that the next request does not compute them again.

Label Studio discards an answer that comes too late, and sends the same tasks again at the next click.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b

from cachetools import TTLCache

CACHE_TTL = 900.0  # seconds
MAX_CACHE_BYTES = 64 << 20
ENTRY_OVERHEAD = 480  # bytes of memory that an entry takes besides its result: key, link, slots; measured


class ResultCache:
    """Rendered predictions by `cache_key`, limited in age and memory.

    Args:
        max_bytes: Memory for results and their overhead; beyond it the least recently used results are dropped.
        ttl: Seconds that a result is kept.
        clock: Current time in seconds.
    """

    def __init__(
        self, max_bytes: int = MAX_CACHE_BYTES, ttl: float = CACHE_TTL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._results: TTLCache[bytes, bytes] = TTLCache(max_bytes, ttl, timer=clock, getsizeof=_entry_size)

    def __len__(self) -> int:
        return len(self._results)

    def put(self, key: bytes, result: bytes) -> None:
        """Keep a result, unless it alone exceeds the limit."""
        with suppress(ValueError):
            self._results[key] = result

    def get(self, key: bytes) -> bytes | None:
        """Return the result for a key, None when there is none or it has expired."""
        return self._results.get(key)


def cache_key(model_digest: str, binding_key: tuple[object, ...], body: bytes) -> bytes:
    """Hash everything that a result depends on: the model's digest, its binding, and the bytes of the task."""
    digest = blake2b(f"{model_digest}\0{binding_key!r}\0".encode(), digest_size=16)
    digest.update(body)
    return digest.digest()


def _entry_size(result: bytes) -> int:
    return len(result) + ENTRY_OVERHEAD
