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

RESAMPLES = 1000
FEWEST = 200  # also where there are so many tasks that a thousand samples would take minutes
DRAWS = 100_000_000  # tasks that are drawn in all
BLOCK = 2_000_000  # weights in memory at a time


@dataclass(frozen=True)
class Interval:
    """Where a number is with a probability of 95 %."""

    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Weighable(Protocol):
    """What is measured. See `choices.ChoiceCounts` for `values`.

    kinds  a number for each task, equal for tasks that add the same to every number; None where each is different
    """

    def kinds(self) -> npt.NDArray[np.int32] | None: ...

    def values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float64]]: ...


def resamples(tasks: int) -> int:
    return max(FEWEST, min(RESAMPLES, DRAWS // max(tasks, 1)))


def samples(sizes: npt.NDArray[np.int64], seed: int) -> Iterator[npt.NDArray[np.int32]]:
    """How often each kind of task is in each sample, some samples at a time: shape (n, kinds). Equal for equal seeds.

    sizes  how many tasks there are of each kind
    """
    import numpy as np

    random = np.random.default_rng(seed)
    tasks = int(sizes.sum())
    left = resamples(tasks)
    while left:
        n = min(left, max(1, BLOCK // max(len(sizes), 1)))
        if len(sizes) == tasks:
            drawn = [np.bincount(random.integers(0, tasks, tasks), minlength=tasks) for _ in range(n)]
            yield np.stack(drawn).astype(np.int32)
        else:  # the same draw, of which only is counted how often it meets each kind
            yield random.multinomial(tasks, sizes / tasks, n).astype(np.int32)
        left -= n


def distributions(
    measured: Mapping[str, Weighable], tasks: int, seed: int
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """{name: {metric: its values in all samples}}; sample i is the same for each of them."""
    import numpy as np

    parts: dict[str, dict[str, list[Any]]] = {name: {} for name in measured}
    if not measured:
        return {}
    kinds = [found for each in measured.values() if (found := each.kinds()) is not None]
    if len(kinds) == len(measured):
        together = np.stack(kinds)
        _, first, sizes = np.unique(together, axis=1, return_index=True, return_counts=True)
    else:
        first, sizes = np.arange(tasks), np.ones(tasks, np.int64)
    for weights in samples(sizes, seed):
        for name, each in measured.items():
            for metric, values in each.values(weights, first).items():
                parts[name].setdefault(metric, []).append(values)
    return {
        name: {metric: np.concatenate(several) for metric, several in found.items()} for name, found in parts.items()
    }


def interval(values: npt.NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of the values that are numbers; None where there are none."""
    import numpy as np

    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return Interval(float(low), float(high))
