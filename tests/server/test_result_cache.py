"""`ResultCache`: its limits in memory and age."""

from __future__ import annotations

import tracemalloc

import pytest

from lsml_cli.server.result_cache import ResultCache, cache_key

SMALL = b'{"result":[],"score":null,"model_version":"m@2026"}'


@pytest.mark.parametrize("result", [b"", SMALL, SMALL * 100])
def test_memory_is_bounded_for_any_size_of_results(result: bytes) -> None:
    max_bytes = 4 << 20
    tracemalloc.start()
    try:
        cache = ResultCache(max_bytes)
        for number in range(40_000):
            cache.put(cache_key("m", (1,), b"%d" % number), bytes(bytearray(result)))
        used_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.5 * max_bytes < used_bytes < 1.1 * max_bytes
    assert cache.get(cache_key("m", (1,), b"39999")) == result
    assert cache.get(cache_key("m", (1,), b"0")) is None


def test_results_expire() -> None:
    now = 0.0
    cache = ResultCache(ttl=10, clock=lambda: now)
    cache.put(b"a", b"1")
    now = 9.0
    cache.put(b"b", b"2")
    cache.put(b"b", b"3")
    now = 11.0
    assert (cache.get(b"a"), cache.get(b"b"), len(cache)) == (None, b"3", 1)


def test_result_larger_than_the_cache_is_not_kept() -> None:
    cache = ResultCache(1000)
    cache.put(b"a", b"1")
    cache.put(b"b", bytes(1001))
    assert (cache.get(b"a"), cache.get(b"b")) == (b"1", None)
