"""Build what the report says about one control. `templates/control.html.j2` renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lsml_cli.evaluation.metrics.agreement import Agreement
from lsml_cli.evaluation.metrics.calibration import Calibration
from lsml_cli.evaluation.metrics.intervals import Interval
from lsml_cli.evaluation.report import charts
from lsml_cli.evaluation.report.examples import Example
from lsml_cli.evaluation.report.gallery import Gallery, build_gallery
from lsml_cli.evaluation.results import ControlEvaluation, MetricDifference, Verdict

METRIC_TITLES = {
    "accuracy": ("Accuracy", "share of tasks that are exactly right"),
    "macro-f1": ("Macro F1", "mean over the classes, rare ones count as much as common ones"),
    "micro-f1": ("Micro F1", "of all labels together"),
    "map": ("mAP", "mean over the classes and IoU 0.50 to 0.95, as COCO"),
    "map50": ("mAP50", "mean over the classes at IoU 0.50"),
    "precision": ("Precision", "share of what was found that is there"),
    "recall": ("Recall", "share of what is there that was found"),
    "f1": ("F1", "of precision and recall"),
    "cer": ("CER", "wrong characters of those there are; less is better"),
    "wer": ("WER", "wrong words of those there are; less is better"),
    "cer-found": ("CER, found", "of the regions that were found only; less is better"),
    "wer-found": ("WER, found", "of the regions that were found only; less is better"),
    "hmean": ("Detection", "hmean of precision and recall of regions at IoU 0.5, as ICDAR"),
    "exact": ("Exact", "share of texts that are right to the last character"),
}
TILE_METRICS = {
    "choices": ("accuracy", "macro-f1", "micro-f1"),
    "regions": ("map", "map50", "precision", "recall", "f1"),
    "texts": ("cer", "wer", "hmean", "exact", "cer-found"),
}
CLASS_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "choices": {"f1": "F1", "precision": "precision", "recall": "recall"},
    "regions": {"ap": "AP", "ap50": "AP50", "precision": "precision", "recall": "recall", "f1": "F1"},
}
MAX_OPEN_CLASSES = 25  # classes in the open table; rarer ones are folded away


@dataclass(frozen=True)
class Tile:
    """A headline metric with its bar and interval."""

    title: str
    description: str
    value: float
    bar: charts.ValueBar
    interval: Interval | None


@dataclass(frozen=True)
class DifferenceRow:
    """A metric of the candidate beside that of the baseline, and whether the difference is significant."""

    title: str
    candidate: float
    baseline: float
    difference: float
    interval: Interval | None
    verdict: Verdict

    @property
    def css_class(self) -> str:
        return self.verdict if self.verdict in ("better", "worse") else "open"


@dataclass(frozen=True)
class Comparison:
    """The headline metrics beside those of a baseline."""

    baseline_name: str
    rows: Sequence[DifferenceRow]


@dataclass(frozen=True)
class ControlSection:
    """What the page says about one control. Whatever is None is not shown.

    Attributes:
        name: The control's name.
        tag: Its tag in the label config.
        kind: "choices", "regions" or "texts".
        count: Annotations that it was evaluated on.
        tiles: The headline metrics.
        comparison: With a baseline.
        classes: The most frequent classes.
        rare_classes: The others.
        matrix: The confusion matrix, of single choices.
        curve: The reliability curve, of choices.
        histogram: Of the scores.
        calibration: What curve and histogram are drawn from.
        agreement: Of people with each other.
        gallery: The tasks on which model and people disagree most.
    """

    name: str
    tag: str
    kind: str
    count: int
    tiles: Sequence[Tile]
    comparison: Comparison | None
    classes: charts.ClassTable | None
    rare_classes: charts.ClassTable | None
    matrix: charts.MatrixView | None
    curve: charts.ReliabilityCurve | None
    histogram: charts.ScoreHistogram | None
    calibration: Calibration | None
    agreement: Agreement | None
    gallery: Gallery

    @property
    def has_cards(self) -> bool:
        return any((self.classes, self.matrix, self.calibration, self.agreement))


def build_section(
    evaluation: ControlEvaluation,
    differences: Mapping[str, MetricDifference] | None,
    baseline_name: str,
    examples: Sequence[Example],
) -> ControlSection:
    """Build the section of one control.

    Args:
        evaluation: The metrics of the control.
        differences: From the baseline, by metric; None without a comparison.
        baseline_name: What the baseline is called.
        examples: The tasks to show.
    """
    classes, rare_classes = _build_class_tables(evaluation)
    confusion, calibration = evaluation.confusion, evaluation.calibration
    return ControlSection(
        name=evaluation.control.name,
        tag=evaluation.control.tag,
        kind=evaluation.kind,
        count=evaluation.metrics.count,
        tiles=_build_tiles(evaluation),
        comparison=_build_comparison(evaluation, differences, baseline_name) if differences else None,
        classes=classes,
        rare_classes=rare_classes,
        matrix=charts.build_matrix(confusion) if confusion is not None and len(confusion.rows) > 1 else None,
        curve=charts.build_reliability_curve(calibration) if calibration and evaluation.kind == "choices" else None,
        histogram=charts.build_score_histogram(calibration) if calibration else None,
        calibration=calibration,
        agreement=evaluation.agreement,
        gallery=build_gallery(evaluation, examples),
    )


def _build_tiles(evaluation: ControlEvaluation) -> list[Tile]:
    tiles = []
    for metric, value in _available_metrics(evaluation).items():
        title, description = METRIC_TITLES[metric]
        interval = evaluation.intervals.get(metric)
        tiles.append(Tile(title, description, value, charts.build_value_bar(value, interval), interval))
    return tiles


def _available_metrics(evaluation: ControlEvaluation) -> dict[str, float]:
    """Return the headline metrics that have a value. Of single choices micro F1 is left out: it equals the accuracy."""
    is_single = evaluation.kind == "choices" and evaluation.control.is_single_choice
    values = evaluation.metrics.values()
    names = (metric for metric in TILE_METRICS[evaluation.kind] if not (is_single and metric == "micro-f1"))
    return {metric: value for metric in names if (value := values[metric]) is not None}


def _build_comparison(
    evaluation: ControlEvaluation, differences: Mapping[str, MetricDifference], baseline_name: str
) -> Comparison:
    rows = [
        _build_difference_row(metric, difference)
        for metric in _available_metrics(evaluation)
        if (difference := differences.get(metric)) is not None
    ]
    return Comparison(baseline_name, rows)


def _build_difference_row(metric: str, difference: MetricDifference) -> DifferenceRow:
    return DifferenceRow(
        METRIC_TITLES[metric][0],
        difference.candidate,
        difference.baseline,
        difference.candidate - difference.baseline,
        difference.interval,
        difference.verdict,
    )


def _build_class_tables(evaluation: ControlEvaluation) -> tuple[charts.ClassTable | None, charts.ClassTable | None]:
    """Build the tables of the most frequent classes and of the others."""
    if not evaluation.metrics.classes or evaluation.kind not in CLASS_COLUMNS:
        return None, None
    columns, intervals = CLASS_COLUMNS[evaluation.kind], evaluation.intervals
    classes = [
        charts.ClassValues(entry.name, entry.values(), entry.support, entry.predicted)
        for entry in evaluation.metrics.classes
    ]
    classes.sort(key=lambda entry: (-entry.support, entry.label))
    rare = classes[MAX_OPEN_CLASSES:]
    return (
        charts.build_class_table("Classes", columns, classes[:MAX_OPEN_CLASSES], intervals),
        charts.build_class_table("More classes", columns, rare, intervals) if rare else None,
    )
