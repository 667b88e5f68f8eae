"""Results that nobody received: what is kept, for how long, and in how much memory."""

from __future__ import annotations

import tracemalloc

import pytest

from lsml_cli.server.result_cache import ResultCache, cache_key

SMALL = b'{"result":[],"score":null,"model_version":"m@2026"}'


@pytest.mark.parametrize("result", [b"", SMALL, SMALL * 100])
def test_the_memory_it_takes_is_bounded_however_small_the_results_are(result: bytes) -> None:
    most = 4 << 20
    tracemalloc.start()
    try:
        kept = ResultCache(most)
        for number in range(40_000):
            kept.put(cache_key("m", (1,), b"%d" % number), bytes(bytearray(result)))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.5 * most < taken < 1.1 * most
    assert kept.get(cache_key("m", (1,), b"39999")) == result
    assert kept.get(cache_key("m", (1,), b"0")) is None


def test_what_is_too_old_is_forgotten() -> None:
    now = 0.0
    kept = ResultCache(ttl=10, clock=lambda: now)
    kept.put(b"a", b"1")
    now = 9.0
    kept.put(b"b", b"2")
    kept.put(b"b", b"3")
    now = 11.0
    assert (kept.get(b"a"), kept.get(b"b"), len(kept)) == (None, b"3", 1)
