"""Confidence intervals that stay honest for few tasks.

The bootstrap cannot show what no task of the sample shows: where 5 of 5 are right, every resample is right. So it gets
a floor, the score interval of the same share (Wilson, 1927). The floor of a difference reaches from the lowest to the
highest difference of numbers within both score intervals. That is rather too wide, because it does not know that both
sides were measured on the same tasks.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass

FEW_TASKS = 30  # below this many tasks, numbers come with a note
Z_95 = 1.959964  # of the normal distribution, for a two-sided interval of 95 %
PROPORTIONS = frozenset({"accuracy", "precision", "recall", "exact"})  # shares of things that are right or wrong


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def wilson_interval(share: float, count: float) -> Interval:
    """Return the interval of a share in 0..1 of `count` independent things, count > 0 (Wilson, 1927)."""
    square = Z_95 * Z_95
    center = (share + square / (2 * count)) / (1 + square / count)
    half_width = Z_95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return Interval(min(share, max(0.0, center - half_width)), max(share, min(1.0, center + half_width)))


def widen_interval(metric: str, value: float | None, bootstrap: Interval | None, count: int) -> Interval | None:
    """Give the bootstrap interval of a metric its floor.

    Args:
        metric: "accuracy", "f1:spam". A proportion is at least as uncertain as Wilson says; any other metric in 0..1
            gets that interval only where all resamples agree.
        value: The metric; None if there is nothing to count.
        bootstrap: Its bootstrap interval.
        count: Number of independent things behind the metric, at most the number of tasks.
    """
    if bootstrap is None or value is None or not count or not 0 <= value <= 1:
        return bootstrap
    is_proportion = metric.partition(":")[0] in PROPORTIONS
    if not is_proportion and bootstrap.high - bootstrap.low > 1e-9:
        return bootstrap
    floor = wilson_interval(value, count)
    return Interval(min(bootstrap.low, floor.low), max(bootstrap.high, floor.high))


def widen_difference(candidate: float, baseline: float, bootstrap: Interval | None, count: int) -> Interval | None:
    """Give the bootstrap interval of a difference its floor where tasks are few, or where all resamples agree.

    Two sides that are equal on every resample keep the interval 0 to 0: they are the same on every task.
    """
    if bootstrap is None or not count or bootstrap.low == bootstrap.high == candidate - baseline == 0:
        return bootstrap
    if count >= FEW_TASKS and bootstrap.high - bootstrap.low > 1e-9:
        return bootstrap
    if not (0 <= candidate <= 1 and 0 <= baseline <= 1):
        return bootstrap
    of_candidate, of_baseline = wilson_interval(candidate, count), wilson_interval(baseline, count)
    difference = candidate - baseline
    below = candidate - of_candidate.low + of_baseline.high - baseline
    above = of_candidate.high - candidate + baseline - of_baseline.low
    return Interval(min(bootstrap.low, difference - below), max(bootstrap.high, difference + above))


def few_tasks_note(counts: Collection[int]) -> str | None:
    """Return a note if some control was measured on few tasks; `counts` are the numbers of tasks of each control."""
    fewest = min(counts, default=FEW_TASKS)
    if fewest >= FEW_TASKS:
        return None
    tasks = "1 task says" if fewest == 1 else f"{fewest:,} tasks say"
    return f"{tasks} little: measure on {FEW_TASKS} or more before the numbers decide anything."
