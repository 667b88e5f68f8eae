"""Whether scores are the probabilities that they claim to be: of answers with a score of 0.8, 80 % should be right."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BIN_COUNT = 10  # of equal width


@dataclass(frozen=True)
class Bin:
    """Scores in (low, high], the first bin with its lower end: how many, their mean, and the share that is right."""

    low: float
    high: float
    count: int
    score: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """ece is the expected calibration error (Guo et al., 2017): by how much score and share differ, over all answers.

    bins  those that are not empty
    wrong, right  how many answers there are in each of 20 bins of scores, for a histogram
    """

    count: int
    ece: float
    bins: tuple[Bin, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compute_calibration(scores: npt.NDArray[np.float32], correct: npt.NDArray[np.float32]) -> Calibration | None:
    """scores  probabilities in 0..1, shape (n,)
    right   whether each answer is right, in 0..1 where several people disagree, shape (n,)

    None without any. The bins are those of scikit-learn's `calibration_curve`.
    """
    import numpy as np

    if not len(scores):
        return None
    edges = np.linspace(0.0, 1.0, BIN_COUNT + 1)
    of_bin = np.searchsorted(edges[1:-1], scores)
    counts, sums, rights = (np.bincount(of_bin, each, BIN_COUNT) for each in (None, scores, correct))
    bins = tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(counts[i]), sums[i] / counts[i], rights[i] / counts[i])
        for i in range(BIN_COUNT)
        if counts[i]
    )
    ece = float(np.abs(sums - rights).sum() / len(scores))
    fine = np.minimum((np.clip(scores, 0, 1) * 2 * BIN_COUNT).astype(int), 2 * BIN_COUNT - 1)
    good, bad = (
        np.bincount(fine[chosen], minlength=2 * BIN_COUNT).tolist() for chosen in (correct >= 0.5, correct < 0.5)
    )
    return Calibration(len(scores), ece, bins, tuple(good), tuple(bad))
