"""The numbers of an evaluation on standard output, for every command that measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lsml_cli.commands.console.progress import emit
from lsml_cli.commands.console.tables import print_table

if TYPE_CHECKING:
    from lsml_cli.evaluation.evaluate import BaselineComparison, ControlEvaluation

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


def headline_metrics(judged: ControlEvaluation) -> list[str]:
    """The few numbers that stand first; only where any number of labels may apply is micro F1 not the accuracy."""
    several = judged.kind == "choices" and not judged.control.is_single_choice
    shown = [*HEADLINE_METRICS[judged.kind], *(["micro-f1"] if several else [])]
    return [name for name in shown if judged.metrics.values()[name] is not None]


def print_metrics(controls: Mapping[str, ControlEvaluation], task_label: str, *, intervals: bool = False) -> None:
    """The metrics of each control, and a table of its classes. `tasks` is what was measured on: "held-out tasks"."""
    for name, judged in controls.items():
        numbers = [_format_metric(judged, metric, intervals) for metric in headline_metrics(judged)]
        emit(f"{name}: {', '.join(numbers)} on {judged.metrics.count:,} {task_label}")
        metrics = CLASS_METRICS.get(judged.kind, ())
        if not metrics:
            continue
        rows = [
            (
                each.name,
                *(_format_number(each.values()[metric]) for metric in metrics),
                f"{each.support:,}",
                f"{each.predicted:,}",
            )
            for each in judged.metrics.classes
        ]
        headings = ("class", *(METRIC_LABELS[metric] for metric in metrics), "support", "predicted")
        print_table(headings, rows, right_aligned=range(1, len(headings)))


def print_comparison(comparison: BaselineComparison, controls: Mapping[str, ControlEvaluation]) -> None:
    """What the two have, and by how much they differ, for the headline numbers of each control."""
    rows = []
    for control, judged in controls.items():
        differences = comparison.differences.get(control, {})
        for metric in headline_metrics(judged):
            each = differences.get(metric)
            if each is None:
                continue
            interval = f"{each.interval.low:+.4f} to {each.interval.high:+.4f}" if each.interval else "-"
            numbers = (
                _format_number(each.candidate),
                _format_number(each.baseline),
                f"{each.candidate - each.baseline:+.4f}",
                interval,
            )
            rows.append((f"{control} {METRIC_LABELS[metric]}", *numbers))
    if rows:
        emit(f"Compared with {comparison.name}:")
        print_table(("metric", "measured", "other", "difference", "95 %"), rows, right_aligned=range(1, 5))


def _format_metric(judged: ControlEvaluation, metric: str, intervals: bool) -> str:
    text = f"{METRIC_LABELS[metric]} {_format_number(judged.metrics.values()[metric])}"
    each = judged.intervals.get(metric) if intervals else None
    return f"{text} ({each.low:.4f} to {each.high:.4f})" if each else text


def _format_number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


def print_agreement(controls: Mapping[str, ControlEvaluation]) -> None:
    """People against people."""
    for name, judged in controls.items():
        found = judged.agreement
        if found is not None:
            alpha = f", Krippendorff's alpha {found.alpha:.4f}" if found.alpha is not None else ""
            emit(f"{name}: people agree ({found.measure}) {found.mean:.4f}{alpha} on {found.tasks:,} tasks")


def print_calibration(controls: Mapping[str, ControlEvaluation]) -> None:
    rows: list[Sequence[str]] = []
    for name, judged in controls.items():
        if judged.calibration is not None and judged.kind == "choices":
            found = judged.calibration
            rows += [
                (
                    name,
                    f"{each.low:.1f} to {each.high:.1f}",
                    f"{each.count:,}",
                    _format_number(each.score),
                    _format_number(each.right),
                )
                for each in found.bins
            ]
            emit(f"{name}: expected calibration error {found.ece:.4f} over {found.count:,} scores")
    if rows:
        print_table(("control", "score", "answers", "mean score", "right"), rows, right_aligned=range(2, 5))
