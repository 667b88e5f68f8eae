"""What rates and remaining times are computed from the progress of a phase, against a clock of the test's own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from lsml_cli.progress import Estimate, ProgressTracker

BATCH = 32


def estimates(
    times: Sequence[float], shares: Sequence[float], *, done: int = 0, share: float = 0.0
) -> Iterator[tuple[float, Estimate]]:
    """Finish a batch at each time; yield for each part of the whole time what was left, and what was estimated.

    Args:
        times: When a batch is finished, in seconds after the start.
        shares: At which parts (0..1) of the time to estimate.
        done: What an earlier run had done.
        share: Which part of the work that was.
    """
    tracker = ProgressTracker(1000.0, done)
    finished = 0
    for at in shares:
        now = at * times[-1]
        while finished < len(times) and times[finished] <= now:
            time, finished = times[finished], finished + 1
            part = share + (1 - share) * finished / len(times)
            tracker.update(1000.0 + time, done + BATCH * finished, 0, part)
        yield times[-1] - now, tracker.estimate(1000.0 + now)


STEADY = [2.0 * n for n in range(1, 101)]
NOISE = random.Random(5)
RUNS = {
    "steady": (STEADY, 0.02),
    "noisy": ([time + NOISE.uniform(-1, 1) for time in STEADY], 0.1),
    "a slow first batch": ([30 + 0.5 * n for n in range(200)], 0.05),
    "four processes": ([10.0 * (n // 4 + 1) + 0.01 * (n % 4) for n in range(80)], 0.1),
    "one batch takes minutes": ([150.0 * n for n in range(1, 41)], 0.05),
}


@pytest.mark.parametrize("name", RUNS)
def test_remaining_time_is_true(name: str) -> None:
    times, tolerance = RUNS[name]
    for truth, estimate in estimates(times, (0.52, 0.77, 0.92)):
        assert estimate.remaining_seconds == pytest.approx(truth, rel=tolerance, abs=0.02 * times[-1])


def test_first_batch_that_is_slow_counts_for_a_few_seconds_only() -> None:
    times = [30 + 0.5 * n for n in range(200)]
    [(truth, estimate)] = estimates(times, (0.27,))
    assert truth == pytest.approx(94, abs=1)
    assert estimate.remaining_seconds == pytest.approx(truth, rel=0.02)


def test_remaining_time_adapts_to_slower_work() -> None:
    """A third of the tasks takes one second each, the others two."""
    times = [*range(1, 101), *(100 + 2 * n for n in range(1, 201))]
    for truth, estimate in estimates(times, (0.5, 0.75, 0.9)):
        assert estimate.remaining_seconds == pytest.approx(truth, rel=0.02)


def test_remaining_time_counts_down_between_updates_and_grows_when_they_stop() -> None:
    tracker = ProgressTracker(0.0)
    for time in range(10, 110, 10):
        tracker.update(float(time), time, 0, time / 200)
    left = [tracker.estimate(now).remaining_seconds for now in (100.0, 105.0, 115.0, 400.0)]
    assert left[:3] == [100.0, 95.0, 85.0]
    assert left[3] is not None
    assert left[3] > 300


@pytest.mark.parametrize(
    ("times", "now"),
    [
        ([], 60.0),  # nothing is done
        ([3.0], 60.0),  # a single batch
        ([1.0, 2.0, 3.0], 3.5),  # too early
        ([20.0, 20.01, 20.02], 20.1),  # the first batches of several processes
    ],
)
def test_no_remaining_time_from_too_little(times: Sequence[float], now: float) -> None:
    tracker = ProgressTracker(0.0)
    for number, time in enumerate(times, 1):
        tracker.update(time, BATCH * number, 0, number / 100)
    assert tracker.estimate(now).remaining_seconds is None


def test_no_remaining_time_without_total() -> None:
    tracker = ProgressTracker(0.0)
    for time in range(100):
        tracker.update(float(time), time)
    estimate = tracker.estimate(100.0)
    assert (estimate.share, estimate.remaining_seconds) == (None, None)
    assert estimate.rate == pytest.approx(1.0)


def test_resumed_work_counts_for_share_only() -> None:
    """90 % were done before; the rest takes as long per task as any other."""
    before = 9 * BATCH * len(STEADY)
    for truth, estimate in estimates(STEADY, (0.1, 0.5, 0.9), done=before, share=0.9):
        assert estimate.remaining_seconds == pytest.approx(truth, rel=0.02)
        assert estimate.rate == pytest.approx(BATCH / 2)
        assert estimate.done > before
        assert estimate.share is not None
        assert estimate.share > 0.9


def test_recent_rate_follows_last_half_minute() -> None:
    tracker = ProgressTracker(0.0)
    for time in range(1, 101):
        tracker.update(float(time), 10 * time)
        assert (tracker.estimate(float(time)).recent_rate is not None) == (time >= 30)
    for time in range(1, 41):
        tracker.update(100.0 + time, 1000 + time)
    estimate = tracker.estimate(140.0)
    assert estimate.recent_rate == pytest.approx(1.0)
    assert estimate.rate == pytest.approx(1040 / 140)
    assert tracker.estimate(200.0).recent_rate == 0.0  # nothing came for a minute


def test_recent_rate_is_unknown_if_one_batch_takes_longer() -> None:
    tracker = ProgressTracker(0.0)
    for time in (40, 80, 120):
        tracker.update(float(time), time)
    assert tracker.estimate(125.0).recent_rate is None


def test_memory_does_not_grow_with_updates() -> None:
    tracker = ProgressTracker(0.0)
    for n in range(50_000):
        tracker.update(n / 250, n, 0, n / 50_000)
    assert len(tracker._recent) < 300
