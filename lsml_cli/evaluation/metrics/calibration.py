"""Calibration of scores: of the answers with a score of 0.8, 80 % should be correct."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BIN_COUNT = 10  # bins of equal width


@dataclass(frozen=True)
class Bin:
    """Scores in (low, high], in the first bin also `low`: their number, their mean, and the share that is correct."""

    low: float
    high: float
    count: int
    score: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """The calibration of `count` scores.

    Attributes:
        ece: Expected calibration error (Guo et al., 2017): the mean difference of score and share that is correct.
        bins: Those that are not empty.
        right: Number of correct answers in each of 20 bins of scores, for a histogram.
        wrong: The same for wrong answers.
    """

    count: int
    ece: float
    bins: tuple[Bin, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compute_calibration(scores: npt.NDArray[np.float32], correct: npt.NDArray[np.float32]) -> Calibration | None:
    """Compute the calibration of scores.

    Args:
        scores: Probabilities in 0..1, shape (n,).
        correct: Whether each answer is correct, or the share of people who agree with it; in 0..1, shape (n,).

    Returns:
        None if n is 0. The bins are those of scikit-learn's `calibration_curve`.
    """
    import numpy as np

    if not len(scores):
        return None
    edges = np.linspace(0.0, 1.0, BIN_COUNT + 1)
    bin_index = np.searchsorted(edges[1:-1], scores)
    counts, score_sums, correct_sums = (
        np.bincount(bin_index, weights, BIN_COUNT) for weights in (None, scores, correct)
    )
    bins = tuple(
        Bin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(counts[i]),
            score=score_sums[i] / counts[i],
            right=correct_sums[i] / counts[i],
        )
        for i in range(BIN_COUNT)
        if counts[i]
    )
    ece = float(np.abs(score_sums - correct_sums).sum() / len(scores))
    fine_count = 2 * BIN_COUNT
    fine_index = np.minimum((np.clip(scores, 0, 1) * fine_count).astype(int), fine_count - 1)
    right, wrong = (
        np.bincount(fine_index[mask], minlength=fine_count).tolist() for mask in (correct >= 0.5, correct < 0.5)
    )
    return Calibration(len(scores), ece, bins, tuple(right), tuple(wrong))
