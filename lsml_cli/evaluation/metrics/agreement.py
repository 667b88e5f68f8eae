"""People against people: how far those who annotated the same task agree. No model can be expected to do better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Agreement:
    """Over the tasks that several people annotated.

    measure  what `mean` is the mean of, over all pairs of annotations of a task
    alpha    Krippendorff's alpha for names: 1 is full agreement, 0 is what chance would give; None where there are no
             names, or only one
    """

    tasks: int
    measure: str
    mean: float
    alpha: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class NominalAgreement:
    """Of answers that are equal or not.

    alpha = 1 - (n - 1) * sum_u [disagreeing pairs of u / (m_u - 1)] / sum_c n_c (n - n_c)

    for tasks u with m_u >= 2 answers, n answers in all, n_c of them c (Krippendorff, 2011, "Computing Krippendorff's
    Alpha-Reliability", for nominal data), where pairs are ordered.
    """

    def __init__(self) -> None:
        self._tasks = 0
        self._agreement_sum = self._disagreement_sum = 0.0
        self._answers: Counter[Hashable] = Counter()

    def add(self, answers: Sequence[Hashable]) -> None:
        """All answers to one task."""
        several = len(answers)
        if several < 2:
            return
        counts = Counter(answers)
        agreeing = sum(count * (count - 1) for count in counts.values())
        self._tasks += 1
        self._agreement_sum += agreeing / (several * (several - 1))
        self._disagreement_sum += (several * (several - 1) - agreeing) / (several - 1)
        self._answers.update(counts)

    def compute(self) -> Agreement | None:
        if not self._tasks:
            return None
        total = self._answers.total()
        expected = sum(count * (total - count) for count in self._answers.values())
        alpha = 1 - (total - 1) * self._disagreement_sum / expected if expected else None
        return Agreement(self._tasks, "the same answer", self._agreement_sum / self._tasks, alpha)


class MeanAgreement:
    """Of answers of which every two are more or less alike."""

    def __init__(self, measure: str) -> None:
        self._measure = measure
        self._tasks = 0
        self._sum = 0.0

    def add(self, similarities: Sequence[float]) -> None:
        """How alike each two annotations of one task are."""
        if similarities:
            self._tasks += 1
            self._sum += sum(similarities) / len(similarities)

    def compute(self) -> Agreement | None:
        return Agreement(self._tasks, self._measure, self._sum / self._tasks) if self._tasks else None
