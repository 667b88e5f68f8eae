"""Numbers from pairs of truth and prediction.

Everything is counted per class and divided at the end, as in scikit-learn's `precision_recall_fscore_support`:

    precision = right / predicted      recall = right / true      F1 = 2 right / (predicted + true)

where nothing divided by nothing is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class was found. `support` is how often it is true, `predicted` how often it was predicted."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True)
class Metrics:
    """How well one control was filled, over `count` tasks.

    accuracy  share of tasks whose set of labels is exactly right (of a single choice: whose label is)
    macro_f1  mean of F1 over the classes that are true or predicted at least once; None without any
    classes   those classes, in alphabetical order
    """

    count: int
    accuracy: float | None
    macro_f1: float | None
    classes: tuple[ClassMetrics, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"classes": [asdict(each) for each in self.classes]}


def classification(pairs: Iterable[tuple[Collection[str], Collection[str]]]) -> Metrics:
    """Metrics of (true labels, predicted labels) pairs, one for each task.

    A single choice is a set of one label, or of none where nothing was predicted. Equal to scikit-learn's
    `accuracy_score` and `f1_score(average="macro", zero_division=0)` on the same data, over the labels that occur.
    """
    count = exact = 0
    true: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for truth, guess in pairs:
        truth, guess = set(truth), set(guess)
        count += 1
        exact += truth == guess
        true.update(truth)
        predicted.update(guess)
        right.update(truth & guess)
    classes = tuple(
        ClassMetrics(
            name,
            _share(right[name], predicted[name]),
            _share(right[name], true[name]),
            _share(2 * right[name], predicted[name] + true[name]),
            true[name],
            predicted[name],
        )
        for name in sorted(true.keys() | predicted.keys())
    )
    macro_f1 = sum(each.f1 for each in classes) / len(classes) if classes else None
    return Metrics(count, exact / count if count else None, macro_f1, classes)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
