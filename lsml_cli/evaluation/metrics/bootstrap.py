"""How far a number may be off: it is computed again for samples of the same size, drawn from the tasks with repetition.

The percentile bootstrap of Efron (1979) over tasks: an interval reaches from the 2.5th to the 97.5th percentile. Two
models are compared on the same samples, so that what is hard for both does not blur the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_RESAMPLES = 1000
MIN_RESAMPLES = 200  # also where there are so many tasks that a thousand samples would take minutes
MAX_DRAWS = 100_000_000  # tasks that are drawn in all
MAX_BLOCK_WEIGHTS = 2_000_000  # weights in memory at a time


@dataclass(frozen=True)
class Interval:
    """Where a number is with a probability of 95 %."""

    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class WeightedCounts(Protocol):
    """What is measured. See `choices.ChoiceCounts` for `values`.

    kinds  a number for each task, equal for tasks that add the same to every number; None where each is different
    """

    def task_groups(self) -> npt.NDArray[np.int32] | None: ...

    def weighted_values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float64]]: ...


def resample_count(task_count: int) -> int:
    return max(MIN_RESAMPLES, min(MAX_RESAMPLES, MAX_DRAWS // max(task_count, 1)))


def draw_weights(group_sizes: npt.NDArray[np.int64], seed: int) -> Iterator[npt.NDArray[np.int32]]:
    """How often each kind of task is in each sample, some samples at a time: shape (n, kinds). Equal for equal seeds.

    sizes  how many tasks there are of each kind
    """
    import numpy as np

    random = np.random.default_rng(seed)
    tasks = int(group_sizes.sum())
    left = resample_count(tasks)
    while left:
        n = min(left, max(1, MAX_BLOCK_WEIGHTS // max(len(group_sizes), 1)))
        if len(group_sizes) == tasks:
            drawn = [np.bincount(random.integers(0, tasks, tasks), minlength=tasks) for _ in range(n)]
            yield np.stack(drawn).astype(np.int32)
        else:  # the same draw, of which only is counted how often it meets each kind
            yield random.multinomial(tasks, group_sizes / tasks, n).astype(np.int32)
        left -= n


def resample_metrics(
    counts: Mapping[str, WeightedCounts], task_count: int, seed: int
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """{name: {metric: its values in all samples}}; sample i is the same for each of them."""
    import numpy as np

    parts: dict[str, dict[str, list[Any]]] = {name: {} for name in counts}
    if not counts:
        return {}
    kinds = [found for each in counts.values() if (found := each.task_groups()) is not None]
    if len(kinds) == len(counts):
        together = np.stack(kinds)
        _, first, sizes = np.unique(together, axis=1, return_index=True, return_counts=True)
    else:
        first, sizes = np.arange(task_count), np.ones(task_count, np.int64)
    for weights in draw_weights(sizes, seed):
        for name, each in counts.items():
            for metric, values in each.weighted_values(weights, first).items():
                parts[name].setdefault(metric, []).append(values)
    return {
        name: {metric: np.concatenate(several) for metric, several in found.items()} for name, found in parts.items()
    }


def percentile_interval(values: npt.NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of the values that are numbers; None where there are none."""
    import numpy as np

    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return Interval(float(low), float(high))
