"""Metrics of labelled regions on images: average precision as in COCO, precision, recall and F1.

mAP is the mean of AP (`average_precision`) over IoU 0.50, 0.55, ..., 0.95 and over the classes. Precision, recall and
F1 are those at IoU 0.5, of detections with at least the score `threshold`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lsml_cli.evaluation.metrics.average_precision import average_precision
from lsml_cli.evaluation.metrics.geometry import ImageSize, iou_matrix
from lsml_cli.evaluation.metrics.matching import IOU_THRESHOLDS, ScoredRegion, match_by_label, match_detections
from lsml_cli.evaluation.metrics.numeric import nan_to_none
from lsml_cli.schema.shapes import Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

MAX_BLOCK_NUMBERS = 2_000_000  # numbers in memory at a time
MAX_DETECTIONS = 100  # detections of a class on one image that count, those with the highest scores
METRIC_NAMES = ("map", "map50", "precision", "recall", "f1")


@dataclass(frozen=True)
class RegionClassMetrics:
    """The metrics of one class; `ap` is the mean over IoU 0.50 to 0.95.

    `ap`, `ap50` and `recall` are None if no true region has the class.
    """

    name: str
    ap: float | None
    ap50: float | None
    precision: float
    recall: float | None
    f1: float
    support: int
    predicted: int

    def values(self) -> dict[str, float | None]:
        """Return the metrics by the name that gates use."""
        return {"ap": self.ap, "ap50": self.ap50, "f1": self.f1, "precision": self.precision, "recall": self.recall}


@dataclass(frozen=True)
class RegionMetrics:
    """The metrics of one control over `count` annotations of images.

    `map` and `map50` are means over the classes with true regions, None without any. `precision`, `recall` and `f1`
    are of all regions together. `support` and `predicted` are numbers of true and of predicted regions.
    """

    kind: ClassVar[str] = "regions"
    count: int
    map: float | None
    map50: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    threshold: float
    support: int
    predicted: int
    classes: tuple[RegionClassMetrics, ...]

    def values(self) -> dict[str, float | None]:
        """Return the headline metrics by the name that gates use."""
        return {
            "map": self.map,
            "map50": self.map50,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"classes": [asdict(metrics) for metrics in self.classes]}


class MatchResult(NamedTuple):
    """The errors on one image, at IoU 0.5 and at the threshold; `max_false_positive_score` is 0 without any."""

    false_negatives: int
    false_positives: int
    max_false_positive_score: float

    @property
    def errors(self) -> int:
        return self.false_negatives + self.false_positives


class ClassStatistics(NamedTuple):
    """AP of one class over all IoUs and at 0.5, and its counts at IoU 0.5 and at the threshold; shapes (resamples,)."""

    ap: FloatArray
    ap50: FloatArray
    correct: FloatArray
    predicted: FloatArray
    support: FloatArray


@dataclass
class _TruthColumns:
    """Task and class of each true region."""

    tasks: array[int] = field(default_factory=lambda: array("i"))
    classes: array[int] = field(default_factory=lambda: array("i"))


@dataclass
class _DetectionColumns:
    """Task, class, score and match of each detection; `matches` has a bit for each of `IOU_THRESHOLDS`."""

    tasks: array[int] = field(default_factory=lambda: array("i"))
    classes: array[int] = field(default_factory=lambda: array("i"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    matches: array[int] = field(default_factory=lambda: array("H"))


class RegionCounts:
    """Accumulates the regions of one control, image by image, in 18 bytes for each detection.

    Args:
        threshold: Detections with a lower score count for average precision only.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold
        self._classes: dict[str, int] = {}
        self._task_count = 0
        self._annotation_count = 0
        self._truths = _TruthColumns()
        self._detections = _DetectionColumns()

    def add(
        self,
        truths: Sequence[Sequence[ScoredRegion]],
        detections: Sequence[ScoredRegion],
        image_size: ImageSize | None = None,
    ) -> MatchResult:
        """Add an image, and return the errors against the annotation with the most errors.

        Args:
            truths: The true regions of each selected annotation; none if the image is not to count.
            detections: The predicted regions.
            image_size: Of the image, if known.
        """
        results = [self._match(regions, detections, image_size) for regions in truths]
        self._task_count += 1
        return max(results, key=lambda result: result.errors, default=MatchResult(0, 0, 0.0))

    @property
    def has_truth(self) -> bool:
        return bool(self._truths.tasks)

    @property
    def has_predictions(self) -> bool:
        return bool(self._detections.tasks)

    def metrics(self) -> RegionMetrics:
        import numpy as np

        ones = np.ones((1, self._task_count), np.int32)
        overall = {name: nan_to_none(values[0]) for name, values in self.weighted_values(ones).items()}
        classes = tuple(
            _build_class_metrics(name, self._class_statistics(self._classes[name], ones))
            for name in sorted(self._classes)
        )
        return RegionMetrics(
            self._annotation_count,
            **{name: overall[name] for name in METRIC_NAMES},
            threshold=self.threshold,
            support=sum(metrics.support for metrics in classes),
            predicted=sum(metrics.predicted for metrics in classes),
            classes=classes,
        )

    def calibration_data(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return scores, and whether they match at IoU 0.5, of all detections; shapes (n,) and (n,)."""
        import numpy as np

        matches = np.frombuffer(self._detections.matches, np.uint16)
        return np.frombuffer(self._detections.scores), (matches & 1).astype(bool)

    def task_groups(self) -> None:
        """Return None: every image contributes different numbers, see `bootstrap.WeightedCounts`."""
        return None

    def weighted_values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, FloatArray]:
        """Return the metrics of all images, weighted; those of a class as "ap:CLASS". See `WeightedCounts`."""
        import numpy as np

        by_class = {name: self._class_statistics(index, weights) for name, index in self._classes.items()}
        if not by_class:
            return dict.fromkeys(METRIC_NAMES, np.full(len(weights), np.nan))
        stacked = ClassStatistics(*(np.stack(column) for column in zip(*by_class.values(), strict=True)))
        correct, predicted, support = (
            column.sum(axis=0) for column in (stacked.correct, stacked.predicted, stacked.support)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {"map": _mean_over_classes(stacked.ap), "map50": _mean_over_classes(stacked.ap50)}
            values |= _precision_recall_f1(correct, predicted, support)
            for name, statistics in by_class.items():
                of_class = {"ap": statistics.ap, "ap50": statistics.ap50}
                of_class |= _precision_recall_f1(statistics.correct, statistics.predicted, statistics.support)
                values |= {f"{metric}:{name}": value for metric, value in of_class.items()}
            return values

    def _match(
        self, truths: Sequence[ScoredRegion], detections: Sequence[ScoredRegion], image_size: ImageSize | None
    ) -> MatchResult:
        """Match the detections with one annotation, and store the result."""
        task = self._task_count
        self._annotation_count += 1
        false_negatives = false_positives = 0
        max_false_positive_score = 0.0
        for match in match_by_label(truths, detections, image_size, IOU_THRESHOLDS, MAX_DETECTIONS):
            class_index = self._classes.setdefault(match.label, len(self._classes))
            self._truths.tasks.extend([task] * len(match.truths))
            self._truths.classes.extend([class_index] * len(match.truths))
            false_negatives += len(match.truths)
            for i, bits in zip(match.detections, match.bits, strict=True):
                score = detections[i].score
                self._detections.tasks.append(task)
                self._detections.classes.append(class_index)
                self._detections.scores.append(score)
                self._detections.matches.append(bits)
                if score < self.threshold:
                    continue
                if bits & 1:
                    false_negatives -= 1
                else:
                    false_positives += 1
                    max_false_positive_score = max(max_false_positive_score, score)
        return MatchResult(false_negatives, false_positives, max_false_positive_score)

    def _class_statistics(self, class_index: int, weights: npt.NDArray[np.int32]) -> ClassStatistics:
        """Compute the statistics of one class; `weights` has the shape (resamples, tasks)."""
        import numpy as np

        truth_tasks, truth_classes = (
            np.frombuffer(column, np.int32) for column in (self._truths.tasks, self._truths.classes)
        )
        truth_tasks = truth_tasks[truth_classes == class_index]
        detected = np.flatnonzero(np.frombuffer(self._detections.classes, np.int32) == class_index)
        scores = np.frombuffer(self._detections.scores)[detected]
        by_score = np.argsort(-scores, kind="mergesort")
        detected, is_counted = detected[by_score], scores[by_score] >= self.threshold
        tasks = np.frombuffer(self._detections.tasks, np.int32)[detected]
        bits = np.frombuffer(self._detections.matches, np.uint16)[detected]
        matched = (bits >> np.arange(len(IOU_THRESHOLDS), dtype=np.uint16)[:, None]) & 1  # (IoUs, detections)
        correct, predicted, support = _weighted_totals(
            weights, tasks[(matched[0] == 1) & is_counted], tasks[is_counted], truth_tasks
        )
        block = max(1, MAX_BLOCK_NUMBERS // max(1, matched.size))
        ap = np.concatenate(
            [
                average_precision(weights[i : i + block, tasks], matched, support[i : i + block])
                for i in range(0, len(weights), block)
            ]
        )
        return ClassStatistics(ap.mean(axis=1), ap[:, 0], correct, predicted, support)


def agreement(first: Sequence[ScoredRegion], second: Sequence[ScoredRegion], image_size: ImageSize | None) -> float:
    """Return how much two people agree: F1 at IoU 0.5 of regions with the same label, 1 if both have none."""
    labels = dict.fromkeys(region.label for region in (*first, *second))
    matched = sum(
        sum(match_detections(iou_matrix(_shapes(second, label), _shapes(first, label), image_size), (0.5,)))
        for label in labels
    )
    return 2 * matched / (len(first) + len(second)) if first or second else 1.0


def _shapes(regions: Sequence[ScoredRegion], label: str) -> list[Shape]:
    return [region.shape for region in regions if region.label == label]


def _build_class_metrics(name: str, statistics: ClassStatistics) -> RegionClassMetrics:
    """Build the metrics of a class from the statistics of a single, unweighted sample."""
    ap, ap50, correct, predicted, support = (column[0] for column in statistics)
    return RegionClassMetrics(
        name,
        nan_to_none(ap),
        nan_to_none(ap50),
        float(correct / predicted) if predicted else 0.0,
        float(correct / support) if support else None,
        float(2 * correct / (predicted + support)) if predicted + support else 0.0,
        int(support),
        int(predicted),
    )


def _weighted_totals(weights: npt.NDArray[np.int32], *task_columns: npt.NDArray[np.int32]) -> Iterator[FloatArray]:
    """Yield for each column the weighted number of its regions, shape (resamples,).

    Args:
        weights: Shape (resamples, tasks).
        task_columns: The task of each region.
    """
    import numpy as np

    for column in task_columns:
        tasks, counts = np.unique(column, return_counts=True)
        yield weights[:, tasks].astype(np.float64) @ counts


def _precision_recall_f1(correct: FloatArray, predicted: FloatArray, support: FloatArray) -> dict[str, FloatArray]:
    return {
        "precision": correct / predicted,
        "recall": correct / support,
        "f1": 2 * correct / (predicted + support),
    }


def _mean_over_classes(values: FloatArray) -> FloatArray:
    """Return the mean over the classes that have a value, shape (classes, n) -> (n,)."""
    import numpy as np

    is_known = np.isfinite(values)
    mean: FloatArray = np.where(is_known, values, 0).sum(axis=0) / is_known.sum(axis=0)
    return mean
