"""Labelled regions of pictures, found against true ones, as COCO measures them.

Of each class the surest detection goes first, and takes the true region that it overlaps most and that nobody took, if
that is at least as much as the threshold asks for. Average precision (AP) is the mean over 101 recalls of the best
precision that is still had there; mAP is the mean over IoU 0.50, 0.55, ..., 0.95 and over the classes. What is computed
here is what `pycocotools.cocoeval.COCOeval` computes, but for weighted pictures.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lsml_cli.evaluation.metrics.geometry import iou_matrix
from lsml_cli.schema.shapes import Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

# Those of pycocotools, np.linspace(0.5, 0.95, 10), to the last bit: boxes of whole pixels overlap by exactly 0.6.
IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.8999999999999999, 0.95)
MAX_BLOCK_NUMBERS = 2_000_000  # numbers in memory at a time
MAX_DETECTIONS = 100  # detections of a class in a picture that count, the surest ones
_EPSILON = 2.220446049250313e-16  # np.spacing(1): nothing found of nothing is no division by zero


class ScoredRegion(NamedTuple):
    """A region with its label; the score of a true one means nothing."""

    label: str
    shape: Shape
    score: float = 1.0


@dataclass(frozen=True)
class RegionClassMetrics:
    """How well the regions of one class were found; precision, recall and F1 at IoU 0.5 and at the threshold.

    ap    mean over IoU 0.50 to 0.95; None, like ap50 and recall, where no region of the class is true
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
        return {"ap": self.ap, "ap50": self.ap50, "f1": self.f1, "precision": self.precision, "recall": self.recall}


@dataclass(frozen=True)
class RegionMetrics:
    """How well the regions of one control were found, over `count` pictures.

    map, map50         mean over the classes that are true; None where nothing is
    precision, recall  of all regions together, at IoU 0.5, of those with at least the score `threshold`
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
        return {
            "map": self.map,
            "map50": self.map50,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"classes": [asdict(each) for each in self.classes]}


class MatchResult(NamedTuple):
    """What became of the regions of one picture, at IoU 0.5 and at the threshold."""

    false_negatives: int
    false_positives: int
    max_false_positive_score: float  # score of the surest invented one, 0 without any

    @property
    def errors(self) -> int:
        return self.false_negatives + self.false_positives


class RegionCounts:
    """The regions of one control, picture by picture: what matched, in 18 bytes for each detection."""

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold
        self._classes: dict[str, int] = {}
        self._tasks = 0
        self._annotation_tasks = array("i")  # the task of each annotation that counts
        self._truths = (array("i"), array("i"))  # task, class of each true region
        self._detections = (array("i"), array("i"), array("d"), array("H"))  # task, class, score, a bit for each IoU

    def add(
        self,
        truths: Sequence[Sequence[ScoredRegion]],
        detections: Sequence[ScoredRegion],
        image_size: tuple[int, int] | None = None,
    ) -> MatchResult:
        """The next picture: true regions by annotation that counts (none where it does not count here), found ones.

        size  (width, height) in pixels, if known
        """
        matchings = [self._match(regions, detections, image_size) for regions in truths]
        self._tasks += 1
        return max(matchings, key=lambda each: each.errors, default=MatchResult(0, 0, 0.0))

    @property
    def has_truth(self) -> bool:
        return bool(self._truths[0])

    @property
    def has_predictions(self) -> bool:
        return bool(self._detections[0])

    def metrics(self) -> RegionMetrics:
        import numpy as np

        ones = np.ones((1, self._tasks), np.int32)
        overall = {name: _nan_to_none(values[0]) for name, values in self.weighted_values(ones).items()}
        classes = []
        for name in sorted(self._classes):
            ap, ap50, right, predicted, support = (
                each[0] for each in self._class_statistics(self._classes[name], ones)
            )
            classes.append(
                RegionClassMetrics(
                    name,
                    _nan_to_none(ap),
                    _nan_to_none(ap50),
                    float(right / predicted) if predicted else 0.0,
                    float(right / support) if support else None,
                    float(2 * right / (predicted + support)) if predicted + support else 0.0,
                    int(support),
                    int(predicted),
                )
            )
        return RegionMetrics(
            len(self._annotation_tasks),
            overall["map"],
            overall["map50"],
            overall["precision"],
            overall["recall"],
            overall["f1"],
            self.threshold,
            sum(each.support for each in classes),
            sum(each.predicted for each in classes),
            tuple(classes),
        )

    def calibration_data(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """(scores, whether it matches at IoU 0.5) of all detections; shapes (n,) and (n,)."""
        import numpy as np

        return np.frombuffer(self._detections[2]), (np.frombuffer(self._detections[3], np.uint16) & 1).astype(bool)

    def task_groups(self) -> None:
        return None

    def weighted_values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, FloatArray]:
        """The headline numbers and those of the classes ("ap:CLASS") when every picture counts as often as it says.

        See `ChoiceCounts.values`.
        """
        import numpy as np

        by_class = {name: self._class_statistics(each, weights) for name, each in self._classes.items()}
        counts = list(by_class.values())
        if not counts:
            nothing = np.full(len(weights), np.nan)
            return dict.fromkeys(("map", "map50", "precision", "recall", "f1"), nothing)
        ap, ap50, right, predicted, support = (np.stack(each) for each in zip(*counts, strict=True))
        right, predicted, support = right.sum(axis=0), predicted.sum(axis=0), support.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {"map": _mean_over_classes(ap), "map50": _mean_over_classes(ap50)} | _precision_recall_f1(
                right, predicted, support
            )
            for name, (ap, ap50, *numbers) in by_class.items():
                of_class = {"ap": ap, "ap50": ap50} | _precision_recall_f1(*numbers)
                values |= {f"{metric}:{name}": value for metric, value in of_class.items()}
            return values

    def _match(
        self, truths: Sequence[ScoredRegion], detections: Sequence[ScoredRegion], image_size: tuple[int, int] | None
    ) -> MatchResult:
        task = self._tasks
        self._annotation_tasks.append(task)
        missed = invented = 0
        surest = 0.0
        for label in dict.fromkeys(each.label for each in (*truths, *detections)):
            number = self._classes.setdefault(label, len(self._classes))
            true = [each.shape for each in truths if each.label == label]
            # sorted() is stable, as is the mergesort of pycocotools
            guesses = sorted((each for each in detections if each.label == label), key=lambda each: -each.score)[
                :MAX_DETECTIONS
            ]
            bits = match_detections(iou_matrix([each.shape for each in guesses], true, image_size), IOU_THRESHOLDS)
            self._truths[0].extend([task] * len(true))
            self._truths[1].extend([number] * len(true))
            missed += len(true)
            for guess, matched in zip(guesses, bits, strict=True):
                self._detections[0].append(task)
                self._detections[1].append(number)
                self._detections[2].append(guess.score)
                self._detections[3].append(matched)
                if guess.score >= self.threshold:
                    missed -= matched & 1
                    invented += 1 - (matched & 1)
                    surest = surest if matched & 1 else max(surest, guess.score)
        return MatchResult(missed, invented, surest)

    def _class_statistics(self, class_index: int, weights: npt.NDArray[np.int32]) -> tuple[FloatArray, ...]:
        """AP, AP at IoU 0.5, and at the threshold: right, predicted, true ones. Each of the shape (resamples,)."""
        import numpy as np

        true, classes = (np.frombuffer(each, np.int32) for each in self._truths)
        true = true[classes == class_index]
        tasks, classes = (np.frombuffer(each, np.int32) for each in self._detections[:2])
        mine = np.flatnonzero(classes == class_index)
        scores = np.frombuffer(self._detections[2])[mine]
        surest_first = np.argsort(-scores, kind="mergesort")
        mine, sure = mine[surest_first], scores[surest_first] >= self.threshold
        tasks = tasks[mine]
        bits = np.frombuffer(self._detections[3], np.uint16)[mine]
        matched = (bits >> np.arange(len(IOU_THRESHOLDS), dtype=np.uint16)[:, None]) & 1  # (IoUs, detections)
        right, predicted, support = _weighted_totals(weights, tasks[(matched[0] == 1) & sure], tasks[sure], true)
        at_a_time = max(1, MAX_BLOCK_NUMBERS // max(1, matched.size))
        ap = np.concatenate(
            [
                average_precision(weights[i : i + at_a_time, tasks], matched, support[i : i + at_a_time])
                for i in range(0, len(weights), at_a_time)
            ]
        )
        return ap.mean(axis=1), ap[:, 0], right, predicted, support


def match_detections(overlap: FloatArray, iou_thresholds: Sequence[float]) -> list[int]:
    """Which detection found something: for each a number with bit i set if it does at `ious[i]`.

    overlap  shape (detections, true regions), the surest detection first
    """
    found = [0] * len(overlap)
    if not overlap.size:
        return found
    rows = overlap.tolist()
    for bit, least in enumerate(iou_thresholds):
        taken: set[int] = set()
        for i, row in enumerate(rows):
            best, where = min(least, 1 - 1e-10), -1
            for j, value in enumerate(row):
                if value >= best and j not in taken:
                    best, where = value, j
            if where >= 0:
                taken.add(where)
                found[i] |= 1 << bit
    return found


def average_precision(weights: npt.NDArray[Any], matched: npt.NDArray[Any], support: FloatArray) -> FloatArray:
    """AP of one class, shape (resamples, IoUs); NaN where nothing is true.

    weight   how often each detection's picture counts, the surest detection first; shape (resamples, detections)
    matched  whether it found something, 0 or 1; shape (IoUs, detections)
    support  number of true regions, shape (resamples,)
    """
    import numpy as np

    every = np.cumsum(weights, axis=1, dtype=np.int64)
    hits = matched.any(axis=0)  # precision falls at all others
    every, weights, matched = every[:, hits], weights[:, hits], matched[:, hits]
    if not matched.size:
        found = np.zeros((len(weights), len(matched)))
    else:
        right = np.cumsum(weights[:, None, :] * matched, axis=2, dtype=np.int64)
        precision = right / (every[:, None, :] + _EPSILON)
        # The best precision at this recall or a higher one.
        precision = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
        reached = _first_index_reaching(right, _required_matches(support))
        last = matched.shape[1] - 1
        there = np.take_along_axis(precision, np.minimum(reached, last), axis=2)
        found = np.where(reached <= last, there, 0.0).mean(axis=2)
    found[support == 0] = np.nan
    return found


def _required_matches(support: FloatArray) -> npt.NDArray[np.int64]:
    """How many regions have to be found for each of 101 recalls, shape (resamples, 101)."""
    import numpy as np

    recalls = np.linspace(0.0, 1.0, 101)
    every = np.maximum(support, 1)[:, None]
    count = np.ceil(recalls * every)
    # A recall is a quotient, whose last bit decides: pycocotools compares it, and not the product.
    count -= (count - 1) / every >= recalls
    count += count / every < recalls
    whole: npt.NDArray[np.int64] = count.astype(np.int64)
    return whole


def _first_index_reaching(counts: npt.NDArray[np.int64], required: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The position of the first count that is as large as needed, the length of a row where none is.

    counts  never fall along a row; shape (resamples, IoUs, detections)
    needed  shape (resamples, 101); the result is (resamples, IoUs, 101)
    """
    import numpy as np

    resamples, ious, length = counts.shape
    rows = np.arange(resamples * ious).reshape(resamples, ious, 1)
    behind = max(int(counts.max()), int(required.max())) + 1  # so that one search finds the places in all rows
    places = np.searchsorted((counts + rows * behind).ravel(), (required[:, None, :] + rows * behind).ravel())
    found: npt.NDArray[np.int64] = places.reshape(resamples, ious, -1).astype(np.int64) - rows * length
    return found


def _weighted_totals(weights: npt.NDArray[np.int32], *several: npt.NDArray[np.int32]) -> Iterator[FloatArray]:
    """How many there are of each kind of region, whose tasks are given, when each task counts as often as it says."""
    import numpy as np

    for tasks in several:
        there, counts = np.unique(tasks, return_counts=True)
        yield weights[:, there].astype(np.float64) @ counts


def agreement(
    first: Sequence[ScoredRegion], second: Sequence[ScoredRegion], image_size: tuple[int, int] | None
) -> float:
    """How much two people agree: F1 at IoU 0.5, of the regions of the same class. 1 where both see nothing."""
    pick: Callable[[Sequence[ScoredRegion], str], list[Shape]] = lambda regions, label: [  # noqa: E731
        each.shape for each in regions if each.label == label
    ]
    labels = dict.fromkeys(each.label for each in (*first, *second))
    matched = sum(
        sum(match_detections(iou_matrix(pick(second, name), pick(first, name), image_size), (0.5,))) for name in labels
    )
    return 2 * matched / (len(first) + len(second)) if first or second else 1.0


def _precision_recall_f1(right: FloatArray, predicted: FloatArray, support: FloatArray) -> dict[str, FloatArray]:
    return {
        "precision": right / predicted,
        "recall": right / support,
        "f1": 2 * right / (predicted + support),
    }


def _mean_over_classes(values: FloatArray) -> FloatArray:
    """Over the classes that are there, shape (classes, n) -> (n,)."""
    import numpy as np

    known = np.isfinite(values)
    found: FloatArray = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
    return found


def _nan_to_none(value: Any) -> float | None:
    return float(value) if value == value else None
