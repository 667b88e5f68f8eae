"""Print the metrics of an evaluation, for every command that measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lsml_cli.commands.console.tables import Column, emit_folded, print_table

if TYPE_CHECKING:
    from lsml_cli.evaluation.results import BaselineComparison, ControlEvaluation

METRIC_LABELS = {
    "accuracy": "accuracy",
    "macro-f1": "macro F1",
    "micro-f1": "micro F1",
    "map": "mAP",
    "map50": "mAP50",
    "ap": "AP",
    "ap50": "AP50",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "cer": "CER",
    "wer": "WER",
    "cer-found": "CER of what was found",
    "wer-found": "WER of what was found",
    "hmean": "detection hmean",
    "exact": "exact",
}
HEADLINE_METRICS = {
    "choices": ("accuracy", "macro-f1"),
    "regions": ("map", "map50", "precision", "recall"),
    "texts": ("cer", "wer", "hmean", "exact"),
}
CLASS_METRICS = {"choices": ("precision", "recall", "f1"), "regions": ("ap", "ap50", "precision", "recall", "f1")}
# Which column is left out first on a narrow terminal, and so on; what says how good a class is stays longest.
CLASS_METRICS_DROP = {"ap50": 3, "precision": 5, "recall": 6, "f1": 7, "ap": 8}
COMPARISON_COLUMNS = (
    Column("metric"),
    Column("measured", "number", drop=3),
    Column("other", "number", drop=2),
    Column("difference", "number", drop=5),
    Column("95 %", "number", drop=4),
)
CALIBRATION_COLUMNS = (
    Column("control"),
    Column("score"),
    Column("answers", "number", drop=2),
    Column("mean score", "number", drop=3),
    Column("right", "number", drop=4),
)


def headline_metrics(evaluation: ControlEvaluation) -> list[str]:
    """Return the names of the headline metrics that have a value.

    Micro F1 is one of them only where several labels may apply; elsewhere it equals the accuracy.
    """
    is_multi_label = evaluation.kind == "choices" and not evaluation.control.is_single_choice
    names = [*HEADLINE_METRICS[evaluation.kind], *(["micro-f1"] if is_multi_label else [])]
    return [name for name in names if evaluation.metrics.values()[name] is not None]


def print_metrics(controls: Mapping[str, ControlEvaluation], task_label: str, *, intervals: bool = False) -> None:
    """Print the headline metrics of each control and a table of its classes.

    Args:
        controls: The evaluation of each control, by its name.
        task_label: What was measured on: "held-out tasks".
        intervals: Whether to add 95 % intervals.
    """
    for name, evaluation in controls.items():
        numbers = [_format_metric(evaluation, metric, intervals) for metric in headline_metrics(evaluation)]
        emit_folded(f"{name}: {', '.join(numbers)} on {evaluation.metrics.count:,} {task_label}")
        metrics = CLASS_METRICS.get(evaluation.kind, ())
        if not metrics:
            continue
        rows = [
            (
                class_metrics.name,
                *(_format_number(class_metrics.values()[metric]) for metric in metrics),
                f"{class_metrics.support:,}",
                f"{class_metrics.predicted:,}",
            )
            for class_metrics in evaluation.metrics.classes
        ]
        columns = (
            Column("class"),
            *(Column(METRIC_LABELS[metric], "number", drop=CLASS_METRICS_DROP[metric]) for metric in metrics),
            Column("support", "number", drop=4),
            Column("predicted", "number", drop=2),
        )
        print_table(columns, rows)


def print_comparison(comparison: BaselineComparison, controls: Mapping[str, ControlEvaluation]) -> None:
    """Print the headline metrics of both sides and their difference, for each control."""
    rows = []
    for control, evaluation in controls.items():
        differences = comparison.differences.get(control, {})
        for metric in headline_metrics(evaluation):
            difference = differences.get(metric)
            if difference is None:
                continue
            bounds = difference.interval
            interval = f"{bounds.low:+.4f} to {bounds.high:+.4f}" if bounds else "-"
            interval = "equal" if difference.verdict == "equal" else interval
            numbers = (
                _format_number(difference.candidate),
                _format_number(difference.baseline),
                f"{difference.candidate - difference.baseline:+.4f}",
                interval,
            )
            rows.append((f"{control} {METRIC_LABELS[metric]}", *numbers))
    if rows:
        emit_folded(f"Compared with {comparison.name}:")
        print_table(COMPARISON_COLUMNS, rows)


def _format_metric(evaluation: ControlEvaluation, metric: str, intervals: bool) -> str:
    text = f"{METRIC_LABELS[metric]} {_format_number(evaluation.metrics.values()[metric])}"
    interval = evaluation.intervals.get(metric) if intervals else None
    return f"{text} ({interval.low:.4f} to {interval.high:.4f})" if interval else text


def _format_number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


def print_agreement(controls: Mapping[str, ControlEvaluation]) -> None:
    """Print how far annotators agree with each other, for each control."""
    for name, evaluation in controls.items():
        agreement = evaluation.agreement
        if agreement is not None:
            alpha = f", Krippendorff's alpha {agreement.alpha:.4f}" if agreement.alpha is not None else ""
            emit_folded(
                f"{name}: people agree ({agreement.measure}) {agreement.mean:.4f}{alpha} on {agreement.tasks:,} tasks"
            )


def print_calibration(controls: Mapping[str, ControlEvaluation]) -> None:
    """Print the expected calibration error of each classifier, and its bins."""
    rows: list[Sequence[str]] = []
    for name, evaluation in controls.items():
        if evaluation.calibration is not None and evaluation.kind == "choices":
            calibration = evaluation.calibration
            rows += [
                (
                    name,
                    f"{bin.low:.1f} to {bin.high:.1f}",
                    f"{bin.count:,}",
                    _format_number(bin.score),
                    _format_number(bin.right),
                )
                for bin in calibration.bins
            ]
            emit_folded(f"{name}: expected calibration error {calibration.ece:.4f} over {calibration.count:,} scores")
    if rows:
        print_table(CALIBRATION_COLUMNS, rows)
