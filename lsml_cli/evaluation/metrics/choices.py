"""Labels of whole tasks against labels of whole tasks.

Everything is counted per class and divided at the end, as in scikit-learn's `precision_recall_fscore_support`:

    precision = right / predicted      recall = right / true      F1 = 2 right / (predicted + true)

where nothing divided by nothing is 0.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LabelSet = frozenset[str]
LabelPair = tuple[LabelSet, LabelSet]  # what is true, what was predicted


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class was found. `support` is how often it is true, `predicted` how often it was predicted."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int

    def values(self) -> dict[str, float | None]:
        """By the name that a gate has for them."""
        return {"f1": self.f1, "precision": self.precision, "recall": self.recall}


@dataclass(frozen=True)
class ChoiceMetrics:
    """How well one control was filled, over `count` tasks.

    accuracy  share of tasks whose set of labels is exactly right (of a single choice: whose label is)
    macro_f1  mean of F1 over the classes that are true or predicted at least once; None without any
    micro_f1  F1 of all labels together, whatever their class; None without any
    classes   those classes, in alphabetical order
    """

    kind: ClassVar[str] = "choices"
    count: int
    accuracy: float | None
    macro_f1: float | None
    classes: tuple[ClassMetrics, ...]
    micro_f1: float | None = None

    def values(self) -> dict[str, float | None]:
        """The headline numbers, by the name that a gate has for them."""
        return {"accuracy": self.accuracy, "macro-f1": self.macro_f1, "micro-f1": self.micro_f1}

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"classes": [asdict(each) for each in self.classes]}


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often what was predicted for what is true: `counts[i][j]` for `rows[i]` and `columns[j]`.

    Only of single choices. A last column without a name counts the tasks for which nothing was predicted, if any.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"true": list(self.rows), "predicted": list(self.columns), "counts": [list(row) for row in self.counts]}


def classification_metrics(pairs: Iterable[tuple[Collection[str], Collection[str]]]) -> ChoiceMetrics:
    """Metrics of (true labels, predicted labels) pairs, one for each task.

    A single choice is a set of one label, or of none where nothing was predicted. Equal to scikit-learn's
    `accuracy_score` and `f1_score(average="macro", zero_division=0)` on the same data, over the labels that occur.
    """
    return _compute_metrics(Counter((frozenset(truth), frozenset(guess)) for truth, guess in pairs))


def _compute_metrics(pairs: Mapping[LabelPair, int]) -> ChoiceMetrics:
    """Of pairs, with how often there is each."""
    count = exact = 0
    true: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for (truth, guess), times in pairs.items():
        count += times
        exact += times * (truth == guess)
        for counter, names in ((true, truth), (predicted, guess), (right, truth & guess)):
            for name in names:
                counter[name] += times
    classes = tuple(
        ClassMetrics(
            name,
            _ratio(right[name], predicted[name]),
            _ratio(right[name], true[name]),
            _ratio(2 * right[name], predicted[name] + true[name]),
            true[name],
            predicted[name],
        )
        for name in sorted(true.keys() | predicted.keys())
    )
    macro_f1 = sum(each.f1 for each in classes) / len(classes) if classes else None
    micro_f1 = _ratio(2 * right.total(), predicted.total() + true.total()) if classes else None
    return ChoiceMetrics(count, exact / count if count else None, macro_f1, classes, micro_f1)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


class ChoiceCounts:
    """The answers to one <Choices>, task by task, in eight bytes each: tasks with the same answers share a cell."""

    def __init__(self) -> None:
        self._table_cache: tuple[list[str], npt.NDArray[np.float64]] | None = None
        self._cells: dict[tuple[LabelPair, ...], int] = {}
        self._cell_by_task = array("i")  # by task; -1 where it does not count
        self._scores = array("f")  # of what was predicted; NaN where there is none

    def add(self, pairs: Sequence[LabelPair], score: float | None = None) -> None:
        """The next task: a pair for each annotation that counts, none where the task does not count here."""
        cell = self._cells.setdefault(tuple(pairs), len(self._cells)) if pairs else -1
        self._cell_by_task.append(cell)
        self._scores.append(float("nan") if score is None or not pairs else score)

    @property
    def has_truth(self) -> bool:
        """Whether any annotation gives a label."""
        return any(truth for pairs in self._cells for truth, _ in pairs)

    @property
    def has_predictions(self) -> bool:
        return any(guess for pairs in self._cells for _, guess in pairs)

    def metrics(self) -> ChoiceMetrics:
        return _compute_metrics(self._pair_counts())

    def confusion(self) -> ConfusionMatrix:
        """Of a single choice: of several labels the first in alphabetical order counts."""
        counts: Counter[tuple[str, str]] = Counter()
        for (truth, guess), times in self._pair_counts().items():
            counts[min(truth, default=""), min(guess, default="")] += times
        rows = sorted({truth for truth, _ in counts} | {guess for _, guess in counts if guess})
        columns = [*rows, *([""] if any(not guess for _, guess in counts) else [])]
        return ConfusionMatrix(
            tuple(rows), tuple(columns), tuple(tuple(counts[row, column] for column in columns) for row in rows)
        )

    def calibration_data(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(scores, whether it is right in 0..1), of the tasks that have a score; shapes (n,) and (n,)."""
        import numpy as np

        cells, scores = np.frombuffer(self._cell_by_task, np.int32), np.frombuffer(self._scores, np.float32)
        kept = np.isfinite(scores)
        exact = [sum(truth == guess for truth, guess in pairs) / len(pairs) for pairs in self._cells]
        return scores[kept], np.array(exact, np.float32)[cells[kept]]

    def task_groups(self) -> npt.NDArray[np.int32]:
        import numpy as np

        return np.frombuffer(self._cell_by_task, np.int32)

    def weighted_values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float64]]:
        """The headline numbers when every task counts as often as it says.

        weights  shape (resamples, tasks); the numbers have the shape (resamples,), NaN where there is nothing to count
        tasks    which tasks the weights are of, shape (tasks,); None: all of them

        Those of a class are called "f1:CLASS", "precision:CLASS", "recall:CLASS".
        """
        import numpy as np

        cells = self.task_groups() if tasks is None else self.task_groups()[tasks]
        counting = cells >= 0
        where = cells[counting]
        per_cell = np.stack([np.bincount(where, row, len(self._cells)) for row in weights[:, counting]])
        names, table = self._table()
        totals = per_cell @ table  # (resamples, 2 + 3 * classes)
        count, exact = totals[:, 0], totals[:, 1]
        true, predicted, right = np.split(totals[:, 2:], 3, axis=1)
        there = true + predicted
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = {"f1": 2 * right / there, "precision": right / predicted, "recall": right / true}
            shares = {name: np.nan_to_num(share) for name, share in shares.items()}
            found = {
                "accuracy": exact / count,
                "macro-f1": shares["f1"].sum(axis=1) / (there > 0).sum(axis=1),
                "micro-f1": 2 * right.sum(axis=1) / there.sum(axis=1),
            }
        return found | {f"{of}:{name}": share[:, i] for of, share in shares.items() for i, name in enumerate(names)}

    def _table(self) -> tuple[list[str], npt.NDArray[np.float64]]:
        """The classes, and what one task of each cell adds: pairs, exact ones, then true, predicted and right ones by
        class; shape (cells, 2 + 3 * classes)."""
        import numpy as np

        if self._table_cache is not None and len(self._table_cache[1]) == len(self._cells):
            return self._table_cache
        names = sorted({name for pairs in self._cells for pair in pairs for side in pair for name in side})
        column = {name: i for i, name in enumerate(names)}
        table = np.zeros((len(self._cells), 2 + 3 * len(names)))
        for row, pairs in zip(table, self._cells, strict=True):
            for truth, guess in pairs:
                row[:2] += 1, truth == guess
                for part, labels in enumerate((truth, guess, truth & guess)):
                    for name in labels:
                        row[2 + part * len(names) + column[name]] += 1
        self._table_cache = names, table
        return self._table_cache

    def _pair_counts(self) -> Counter[LabelPair]:
        found: Counter[LabelPair] = Counter()
        tasks = Counter(self._cell_by_task)
        for pairs, cell in self._cells.items():
            for pair in pairs:
                found[pair] += tasks[cell]
        return found
