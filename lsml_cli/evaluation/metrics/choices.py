"""Metrics of labels of whole tasks.

Counts per class are divided at the end, as in scikit-learn's `precision_recall_fscore_support`:

    precision = correct / predicted      recall = correct / true      F1 = 2 correct / (predicted + true)

where 0 / 0 is 0.
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

MAX_MATRIX_CLASSES = 1000  # above, there is no confusion matrix: it would have billions of cells for 50,000 classes
MAX_RESAMPLED_CLASSES = 500  # of each control; rarer classes have metrics, but no intervals
MAX_TOTALS = 4_000_000  # numbers in memory at a time while metrics are resampled

LabelSet = frozenset[str]
LabelPair = tuple[LabelSet, LabelSet]  # true labels, predicted labels


class _NoLabels(frozenset[str]):
    """The labels of a failed prediction: none, and yet not those of a task to which no label applies."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


NO_LABELS = _NoLabels()


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class. `support` is how often it is true, `predicted` how often it was predicted."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int

    def values(self) -> dict[str, float | None]:
        """Return the metrics by the name that gates use."""
        return {"f1": self.f1, "precision": self.precision, "recall": self.recall}


@dataclass(frozen=True)
class ChoiceMetrics:
    """The metrics of one control over `count` annotations.

    Attributes:
        accuracy: Share of tasks whose set of labels (of a single choice: whose label) is exactly right.
        macro_f1: Mean of F1 over the classes that are true or predicted at least once; None without any.
        classes: These classes, in alphabetical order.
        micro_f1: F1 of all labels together, regardless of their class; None without any.
    """

    kind: ClassVar[str] = "choices"
    count: int
    accuracy: float | None
    macro_f1: float | None
    classes: tuple[ClassMetrics, ...]
    micro_f1: float | None = None

    def values(self) -> dict[str, float | None]:
        """Return the headline metrics by the name that gates use."""
        return {"accuracy": self.accuracy, "macro-f1": self.macro_f1, "micro-f1": self.micro_f1}

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"classes": [asdict(metrics) for metrics in self.classes]}


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often each class was predicted for each true one: `counts[i][j]` for true `rows[i]`, predicted `columns[j]`.

    Only of single choices. If there are tasks without a predicted label, a last column "" counts them.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"true": list(self.rows), "predicted": list(self.columns), "counts": [list(row) for row in self.counts]}


def classification_metrics(pairs: Iterable[tuple[Collection[str], Collection[str]]]) -> ChoiceMetrics:
    """Compute the metrics of (true labels, predicted labels) pairs, one for each task.

    A single choice is a set of one label, or of none if nothing was predicted. The results equal scikit-learn's
    `accuracy_score` and `f1_score(average="macro", zero_division=0)` on the same data, over the labels that occur.
    """
    return _compute_metrics(Counter((frozenset(truth), frozenset(predicted)) for truth, predicted in pairs))


def _compute_metrics(pairs: Mapping[LabelPair, int]) -> ChoiceMetrics:
    """Compute the metrics of pairs that occur as often as their count."""
    total = exact = 0
    true: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for (true_labels, predicted_labels), count in pairs.items():
        total += count
        exact += count * (true_labels == predicted_labels)
        for counter, labels in (
            (true, true_labels),
            (predicted, predicted_labels),
            (correct, true_labels & predicted_labels),
        ):
            for label in labels:
                counter[label] += count
    classes = tuple(
        ClassMetrics(
            name,
            _ratio(correct[name], predicted[name]),
            _ratio(correct[name], true[name]),
            _ratio(2 * correct[name], predicted[name] + true[name]),
            true[name],
            predicted[name],
        )
        for name in sorted(true.keys() | predicted.keys())
    )
    macro_f1 = sum(metrics.f1 for metrics in classes) / len(classes) if classes else None
    micro_f1 = _ratio(2 * correct.total(), predicted.total() + true.total()) if classes else None
    return ChoiceMetrics(total, exact / total if total else None, macro_f1, classes, micro_f1)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


class ChoiceCounts:
    """Accumulates the labels of one <Choices>, in eight bytes per task: tasks with equal label pairs share a cell."""

    def __init__(self) -> None:
        self._table_cache: tuple[list[str], Any] | None = None
        self._cells: dict[tuple[LabelPair, ...], int] = {}
        self._cell_by_task = array("i")  # by task; -1 if it does not count
        self._scores = array("f")  # of the prediction of each task; NaN without one

    def add(self, pairs: Sequence[LabelPair], score: float | None = None) -> None:
        """Add a task: a pair for each selected annotation, none if the task is not to count."""
        cell = self._cells.setdefault(tuple(pairs), len(self._cells)) if pairs else -1
        self._cell_by_task.append(cell)
        self._scores.append(float("nan") if score is None or not pairs else score)

    @property
    def has_truth(self) -> bool:
        """Tell whether any annotation has a label."""
        return any(truth for pairs in self._cells for truth, _ in pairs)

    @property
    def has_predictions(self) -> bool:
        return any(predicted for pairs in self._cells for _, predicted in pairs)

    def metrics(self) -> ChoiceMetrics:
        return _compute_metrics(self._pair_counts())

    def confusion(self) -> ConfusionMatrix | None:
        """Return the confusion matrix of a single choice. Of several labels the alphabetically first counts.

        There is none of more than `MAX_MATRIX_CLASSES` classes.
        """
        counts: Counter[tuple[str, str]] = Counter()
        for (truth, predicted), count in self._pair_counts().items():
            counts[min(truth, default=""), min(predicted, default="")] += count
        rows = sorted({truth for truth, _ in counts} | {predicted for _, predicted in counts if predicted})
        if len(rows) > MAX_MATRIX_CLASSES:
            return None
        columns = [*rows, *([""] if any(not predicted for _, predicted in counts) else [])]
        return ConfusionMatrix(
            tuple(rows), tuple(columns), tuple(tuple(counts[row, column] for column in columns) for row in rows)
        )

    def calibration_data(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return score and share of agreeing annotations (0..1) of each task with a score; shapes (n,) and (n,)."""
        import numpy as np

        cells, scores = np.frombuffer(self._cell_by_task, np.int32), np.frombuffer(self._scores, np.float32)
        kept = np.isfinite(scores)
        exact = [sum(truth == predicted for truth, predicted in pairs) / len(pairs) for pairs in self._cells]
        return scores[kept], np.array(exact, np.float32)[cells[kept]]

    def task_groups(self) -> npt.NDArray[np.int32]:
        """Return the cell of each task."""
        import numpy as np

        return np.frombuffer(self._cell_by_task, np.int32)

    def weighted_values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Return the metrics of all tasks, weighted; see `WeightedCounts`.

        Those of a class are called "f1:CLASS"; they are there for the `MAX_RESAMPLED_CLASSES` most frequent classes.
        """
        import numpy as np

        block_size = max(1, MAX_TOTALS // self._table()[1].shape[1])
        blocks = [
            self._weighted_block(weights[first : first + block_size], tasks)
            for first in range(0, len(weights), block_size)
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _weighted_block(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None
    ) -> dict[str, npt.NDArray[np.float64]]:
        import numpy as np

        cells = self.task_groups() if tasks is None else self.task_groups()[tasks]
        is_counted = cells >= 0
        counted_cells = cells[is_counted]
        per_cell = np.stack([np.bincount(counted_cells, row, len(self._cells)) for row in weights[:, is_counted]])
        labels, table = self._table()
        totals = per_cell @ table  # (resamples, 2 + 3 * classes)
        count, exact = totals[:, 0], totals[:, 1]
        true, predicted, correct = np.split(totals[:, 2:], 3, axis=1)
        occurrences = true + predicted
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = {"f1": 2 * correct / occurrences, "precision": correct / predicted, "recall": correct / true}
            shares = {metric: np.nan_to_num(share) for metric, share in shares.items()}
            values = {
                "accuracy": exact / count,
                "macro-f1": shares["f1"].sum(axis=1) / (occurrences > 0).sum(axis=1),
                "micro-f1": 2 * correct.sum(axis=1) / occurrences.sum(axis=1),
            }
        frequent = range(len(labels))
        if len(labels) > MAX_RESAMPLED_CLASSES:
            tasks_per_cell = np.bincount(self.task_groups()[self.task_groups() >= 0], minlength=len(self._cells))
            support = (tasks_per_cell @ table)[2 : 2 + len(labels)]
            frequent = np.sort(np.argsort(-support, kind="stable")[:MAX_RESAMPLED_CLASSES]).tolist()
        of_classes = {f"{metric}:{labels[i]}": share[:, i].copy() for metric, share in shares.items() for i in frequent}
        return values | of_classes

    def _table(self) -> tuple[list[str], Any]:
        """Return the classes, and what one task of each cell adds to the totals.

        Its columns are the number of pairs, of exact ones, then of true, predicted and correct labels by class; shape
        (cells, 2 + 3 * classes), and sparse, because a cell has few of the classes.
        """
        from scipy.sparse import csr_array  # type: ignore[import-untyped]

        if self._table_cache is not None and self._table_cache[1].shape[0] == len(self._cells):
            return self._table_cache
        labels = sorted({label for pairs in self._cells for pair in pairs for side in pair for label in side})
        column = {label: i for i, label in enumerate(labels)}
        columns, row_ends = array("q"), array("q", [0])
        for pairs in self._cells:
            for truth, predicted in pairs:
                columns.extend((0, 1) if truth == predicted else (0,))
                for part, side in enumerate((truth, predicted, truth & predicted)):
                    columns.extend(2 + part * len(labels) + column[label] for label in side)
            row_ends.append(len(columns))
        shape = (len(self._cells), 2 + 3 * len(labels))
        table = csr_array(([1.0] * len(columns), columns, row_ends), shape=shape)
        table.sum_duplicates()
        self._table_cache = labels, table
        return self._table_cache

    def _pair_counts(self) -> Counter[LabelPair]:
        counts: Counter[LabelPair] = Counter()
        tasks_per_cell = Counter(self._cell_by_task)
        for pairs, cell in self._cells.items():
            for pair in pairs:
                counts[pair] += tasks_per_cell[cell]
        return counts
