"""Agreement of people who annotated the same tasks. No model can be expected to do better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Agreement:
    """The agreement on the tasks that several people annotated.

    Attributes:
        tasks: Number of these tasks.
        measure: What `mean` is the mean of, over all pairs of annotations of a task.
        mean: In 0..1.
        alpha: Krippendorff's alpha for nominal data: 1 is full agreement, 0 is agreement by chance; None if there are
            no nominal data, or only one value.
    """

    tasks: int
    measure: str
    mean: float
    alpha: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class NominalAgreement:
    """Accumulates nominal data: answers that are either equal or not.

    alpha = 1 - (n - 1) * sum_u [disagreeing pairs of u / (m_u - 1)] / sum_c n_c (n - n_c)

    for tasks u with m_u >= 2 answers, n answers in all, n_c of them c (Krippendorff, 2011, "Computing Krippendorff's
    Alpha-Reliability", for nominal data), where pairs are ordered.
    """

    def __init__(self) -> None:
        self._tasks = 0
        self._agreement_sum = self._disagreement_sum = 0.0
        self._answers: Counter[Hashable] = Counter()

    def add(self, answers: Sequence[Hashable]) -> None:
        """Add all answers to one task; fewer than two are ignored."""
        answer_count = len(answers)
        if answer_count < 2:
            return
        counts = Counter(answers)
        pairs = answer_count * (answer_count - 1)
        agreeing_pairs = sum(count * (count - 1) for count in counts.values())
        self._tasks += 1
        self._agreement_sum += agreeing_pairs / pairs
        self._disagreement_sum += (pairs - agreeing_pairs) / (answer_count - 1)
        self._answers.update(counts)

    def compute(self) -> Agreement | None:
        if not self._tasks:
            return None
        total = self._answers.total()
        expected = sum(count * (total - count) for count in self._answers.values())
        alpha = 1 - (total - 1) * self._disagreement_sum / expected if expected else None
        return Agreement(self._tasks, "the same answer", self._agreement_sum / self._tasks, alpha)


class MeanAgreement:
    """Accumulates answers whose similarity is measured pair by pair."""

    def __init__(self, measure: str) -> None:
        self._measure = measure
        self._tasks = 0
        self._sum = 0.0

    def add(self, similarities: Sequence[float]) -> None:
        """Add the similarities, in 0..1, of all pairs of annotations of one task."""
        if similarities:
            self._tasks += 1
            self._sum += sum(similarities) / len(similarities)

    def compute(self) -> Agreement | None:
        return Agreement(self._tasks, self._measure, self._sum / self._tasks) if self._tasks else None
