"""Confidence intervals of metrics by the percentile bootstrap over tasks (Efron, 1979).

Metrics are computed for samples of the same size, drawn from the tasks with replacement; an interval reaches from the
2.5th to the 97.5th percentile. Two models are compared on the same samples, so that tasks that are hard for both do not
blur the difference. `intervals` gives the intervals their floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lsml_cli.evaluation.metrics.intervals import Interval

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_RESAMPLES = 1000
MIN_RESAMPLES = 200  # for so many tasks that a thousand samples would take minutes
MAX_DRAWS = 100_000_000  # tasks drawn in total
MAX_BLOCK_WEIGHTS = 2_000_000  # weights in memory at a time


class WeightedCounts(Protocol):
    """Counts of many tasks, from which metrics can be computed for any weights of the tasks."""

    def task_groups(self) -> npt.NDArray[np.int32] | None:
        """Return a group for each task, shape (tasks,); tasks of one group add the same to every metric.

        None if every task is different.
        """

    def weighted_values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Return metrics as if each task occurred as often as its weight says.

        Args:
            weights: Shape (resamples, tasks).
            tasks: The indices of the weighted tasks, shape (tasks,); None for all tasks.

        Returns:
            By metric name, those of a class as "f1:CLASS"; shape (resamples,), NaN where there is nothing to count.
        """


def resample_count(task_count: int) -> int:
    """Return the number of bootstrap samples for a number of tasks."""
    return max(MIN_RESAMPLES, min(MAX_RESAMPLES, MAX_DRAWS // max(task_count, 1)))


def draw_weights(group_sizes: npt.NDArray[np.int64], seed: int) -> Iterator[npt.NDArray[np.int32]]:
    """Draw bootstrap samples; equal seeds draw equal samples.

    Args:
        group_sizes: Number of tasks in each group, see `WeightedCounts.task_groups`; shape (groups,).
        seed: Of the random generator.

    Yields:
        How often each group occurs in each of some samples, shape (n, groups).
    """
    import numpy as np

    random = np.random.default_rng(seed)
    tasks = int(group_sizes.sum())
    remaining = resample_count(tasks)
    while remaining:
        n = min(remaining, max(1, MAX_BLOCK_WEIGHTS // max(len(group_sizes), 1)))
        if len(group_sizes) == tasks:
            drawn = [np.bincount(random.integers(0, tasks, tasks), minlength=tasks) for _ in range(n)]
            yield np.stack(drawn).astype(np.int32)
        else:  # the distribution of the same draw, counted by group
            yield random.multinomial(tasks, group_sizes / tasks, n).astype(np.int32)
        remaining -= n


def resample_metrics(
    counts: Mapping[str, WeightedCounts], task_count: int, seed: int
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Compute metrics on bootstrap samples.

    Args:
        counts: What to resample, by name.
        task_count: Number of tasks in each of `counts`.
        seed: Of the random generator.

    Returns:
        {name: {metric: values}}, shape (resamples,); sample i is the same for each name.
    """
    import numpy as np

    blocks: dict[str, dict[str, list[Any]]] = {name: {} for name in counts}
    if not counts:
        return {}
    groups = [of_tasks for resampled in counts.values() if (of_tasks := resampled.task_groups()) is not None]
    if len(groups) == len(counts):
        _, first_tasks, sizes = np.unique(np.stack(groups), axis=1, return_index=True, return_counts=True)
    else:
        first_tasks, sizes = np.arange(task_count), np.ones(task_count, np.int64)
    for weights in draw_weights(sizes, seed):
        for name, resampled in counts.items():
            for metric, values in resampled.weighted_values(weights, first_tasks).items():
                blocks[name].setdefault(metric, []).append(values)
    return {
        name: {metric: np.concatenate(parts) for metric, parts in by_metric.items()}
        for name, by_metric in blocks.items()
    }


def percentile_interval(values: npt.NDArray[np.float64]) -> Interval | None:
    """Return the interval of the middle 95 % of the finite values; None without any."""
    import numpy as np

    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, (2.5, 97.5))
    return Interval(float(low), float(high))
