"""The numbers of an evaluation on standard output, for every command that measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lsml_cli.commands.console.progress import emit
from lsml_cli.commands.console.tables import print_table

if TYPE_CHECKING:
    from lsml_cli.evaluation.evaluate import Compared, Judged

NAMES = {
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
HEADLINES = {
    "choices": ("accuracy", "macro-f1"),
    "regions": ("map", "map50", "precision", "recall"),
    "texts": ("cer", "wer", "hmean", "exact"),
}
OF_CLASS = {"choices": ("precision", "recall", "f1"), "regions": ("ap", "ap50", "precision", "recall", "f1")}


def headlines(judged: Judged) -> list[str]:
    """The few numbers that stand first; only where any number of labels may apply is micro F1 not the accuracy."""
    several = judged.kind == "choices" and not judged.control.single
    shown = [*HEADLINES[judged.kind], *(["micro-f1"] if several else [])]
    return [name for name in shown if judged.metrics.values()[name] is not None]


def print_metrics(controls: Mapping[str, Judged], tasks: str, *, intervals: bool = False) -> None:
    """The metrics of each control, and a table of its classes. `tasks` is what was measured on: "held-out tasks"."""
    for name, judged in controls.items():
        numbers = [_headline(judged, metric, intervals) for metric in headlines(judged)]
        emit(f"{name}: {', '.join(numbers)} on {judged.metrics.count:,} {tasks}")
        metrics = OF_CLASS.get(judged.kind, ())
        if not metrics:
            continue
        rows = [
            (
                each.name,
                *(_number(each.values()[metric]) for metric in metrics),
                f"{each.support:,}",
                f"{each.predicted:,}",
            )
            for each in judged.metrics.classes
        ]
        headings = ("class", *(NAMES[metric] for metric in metrics), "support", "predicted")
        print_table(headings, rows, right=range(1, len(headings)))


def print_comparison(compared: Compared, controls: Mapping[str, Judged]) -> None:
    """What the two have, and by how much they differ, for the headline numbers of each control."""
    rows = []
    for control, judged in controls.items():
        differences = compared.differences.get(control, {})
        for metric in headlines(judged):
            each = differences.get(metric)
            if each is None:
                continue
            interval = f"{each.interval.low:+.4f} to {each.interval.high:+.4f}" if each.interval else "-"
            numbers = (_number(each.mine), _number(each.other), f"{each.mine - each.other:+.4f}", interval)
            rows.append((f"{control} {NAMES[metric]}", *numbers))
    if rows:
        emit(f"Compared with {compared.name}:")
        print_table(("metric", "measured", "other", "difference", "95 %"), rows, right=range(1, 5))


def _headline(judged: Judged, metric: str, intervals: bool) -> str:
    text = f"{NAMES[metric]} {_number(judged.metrics.values()[metric])}"
    each = judged.intervals.get(metric) if intervals else None
    return f"{text} ({each.low:.4f} to {each.high:.4f})" if each else text


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


def print_agreement(controls: Mapping[str, Judged]) -> None:
    """People against people."""
    for name, judged in controls.items():
        found = judged.agreement
        if found is not None:
            alpha = f", Krippendorff's alpha {found.alpha:.4f}" if found.alpha is not None else ""
            emit(f"{name}: people agree ({found.measure}) {found.mean:.4f}{alpha} on {found.tasks:,} tasks")


def print_calibration(controls: Mapping[str, Judged]) -> None:
    rows: list[Sequence[str]] = []
    for name, judged in controls.items():
        if judged.calibration is not None and judged.kind == "choices":
            found = judged.calibration
            rows += [
                (
                    name,
                    f"{each.low:.1f} to {each.high:.1f}",
                    f"{each.count:,}",
                    _number(each.score),
                    _number(each.right),
                )
                for each in found.bins
            ]
            emit(f"{name}: expected calibration error {found.ece:.4f} over {found.count:,} scores")
    if rows:
        print_table(("control", "score", "answers", "mean score", "right"), rows, right=range(2, 5))
