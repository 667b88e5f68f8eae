"""What the page says about one control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.evaluation.evaluate import ControlEvaluation, MetricDifference
from lsml_cli.evaluation.gates import LOWER_IS_BETTER
from lsml_cli.evaluation.metrics.agreement import Agreement
from lsml_cli.evaluation.report import charts
from lsml_cli.evaluation.report.gallery import Example, render_gallery
from lsml_cli.evaluation.report.markup import escape_text, format_name, format_number, format_signed, pluralize

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
MAX_OPEN_CLASSES = 25  # classes that are shown without being asked for


def render_control(
    evaluation: ControlEvaluation,
    differences: Mapping[str, MetricDifference] | None,
    baseline_name: str,
    examples: Sequence[Example],
) -> str:
    """Everything about one control.

    differences  by metric, from what the evaluation is compared with, called `other`; None without a comparison
    """
    control = evaluation.control
    tag = f"c-{escape_text(control.name)}"
    cards = "".join(_render_cards(evaluation))
    parts = [
        _render_tiles(evaluation),
        _render_differences(evaluation, differences, baseline_name) if differences else "",
        f'<div class="grid">{cards}</div>' if cards else "",
        render_gallery(evaluation, examples),
    ]
    return (
        f'<section class="control" id="{tag}" aria-labelledby="{tag}-h"><h2 id="{tag}-h">{format_name(control.name)} '
        f"<small>&lt;{escape_text(control.tag)}&gt; on {pluralize(evaluation.metrics.count, 'annotation')}</small></h2>"
        f"{''.join(parts)}</section>"
    )


def _render_tiles(evaluation: ControlEvaluation) -> str:
    values = evaluation.metrics.values()
    tiles = []
    for metric in _available_metrics(evaluation):
        title, what = METRIC_TITLES[metric]
        interval = evaluation.intervals.get(metric)
        spread = f"95 %: {format_number(interval.low)} to {format_number(interval.high)}" if interval else ""
        tiles.append(
            f'<div class="tile"><div class="title" title="{escape_text(what)}">{title}</div>'
            f'<div class="value">{format_number(values[metric])}</div>{charts.value_bar(values[metric] or 0.0, interval)}'
            f'<div class="spread">{spread}</div><div class="what">{escape_text(what)}</div></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _available_metrics(evaluation: ControlEvaluation) -> list[str]:
    """The headline numbers that there are. Micro F1 is the accuracy, where every task has one label."""
    single = evaluation.kind == "choices" and evaluation.control.is_single_choice
    values = evaluation.metrics.values()
    wanted = (metric for metric in TILE_METRICS[evaluation.kind] if not (single and metric == "micro-f1"))
    return [metric for metric in wanted if values[metric] is not None]


def _render_differences(
    evaluation: ControlEvaluation, differences: Mapping[str, MetricDifference], baseline_name: str
) -> str:
    rows = []
    for metric in _available_metrics(evaluation):
        if (each := differences.get(metric)) is None:
            continue
        change = each.candidate - each.baseline
        good = (change < 0) if metric in LOWER_IS_BETTER else (change > 0)
        clear = each.interval is not None and not each.interval.low <= 0 <= each.interval.high
        verdict = ("better" if good else "worse") if clear else "could be chance"
        kind = verdict if clear else "open"
        spread = (
            f"{format_signed(each.interval.low)} to {format_signed(each.interval.high)}" if each.interval else "&ndash;"
        )
        rows.append(
            f'<tr><th scope="row">{METRIC_TITLES[metric][0]}</th><td class="n">{format_number(each.candidate)}</td>'
            f'<td class="n">{format_number(each.baseline)}</td><td class="n">{format_signed(change)}</td><td class="n">{spread}</td>'
            f'<td><span class="verdict {kind}">{verdict}</span></td></tr>'
        )
    table = (
        '<table><thead><tr><th scope="col">metric</th><th scope="col" class="n">this</th><th scope="col" class="n">'
        'other</th><th scope="col" class="n">difference</th><th scope="col" class="n">95 %</th><th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return f'<div class="box"><h3>Compared with {format_name(baseline_name)}</h3>{charts.scrollable(table, "Comparison")}</div>'


def _render_cards(evaluation: ControlEvaluation) -> list[str]:
    cards = []
    if evaluation.metrics.classes and evaluation.kind in CLASS_COLUMNS:
        cards.append(_render_classes(evaluation))
    if evaluation.confusion is not None and len(evaluation.confusion.rows) > 1:
        cards.append(f'<div class="box"><h3>Confusion</h3>{charts.confusion_matrix(evaluation.confusion)}</div>')
    if evaluation.calibration is not None:
        found = evaluation.calibration
        if evaluation.kind == "choices":
            said = f"On the dashed line a score is the probability of being right. Calibration error: {format_number(found.ece)}."
            curve = charts.reliability_curve(found)
            cards.append(f'<div class="box"><h3>Reliability</h3>{curve}<p class="note">{said}</p></div>')
        what = "answers" if evaluation.kind == "choices" else "regions, right at IoU 0.5"
        legend = '<p class="note"><span class="key good">right</span> <span class="key bad">wrong</span> '
        cards.append(
            f'<div class="box"><h3>Scores</h3>{charts.score_histogram(found)}{legend}{found.count:,} {what}</p></div>'
        )
    if evaluation.agreement is not None:
        cards.append(_render_agreement(evaluation.agreement))
    return cards


def _render_classes(evaluation: ControlEvaluation) -> str:
    rows = [(each.name, each.values(), each.support, each.predicted) for each in evaluation.metrics.classes]
    rows.sort(key=lambda row: (-row[2], row[0]))
    table = charts.class_table("Classes", CLASS_COLUMNS[evaluation.kind], rows[:MAX_OPEN_CLASSES], evaluation.intervals)
    rest = ""
    if len(rows) > MAX_OPEN_CLASSES:
        more = charts.class_table(
            "More classes", CLASS_COLUMNS[evaluation.kind], rows[MAX_OPEN_CLASSES:], evaluation.intervals
        )
        rest = f"<details><summary>{len(rows) - MAX_OPEN_CLASSES:,} rarer classes</summary>{more}</details>"
    return f'<div class="box wide"><h3>Classes</h3>{table}{rest}</div>'


def _render_agreement(agreement: Agreement) -> str:
    alpha = f" Krippendorff's alpha is {format_number(agreement.alpha)}." if agreement.alpha is not None else ""
    return (
        f'<div class="box"><h3>People against people</h3><p class="big">{format_number(agreement.mean)}</p>'
        f"<p>Mean over the pairs of annotations of {pluralize(agreement.tasks, 'task')} that several people annotated "
        f"({escape_text(agreement.measure)}).{alpha} A model that people disagree with less than with each other has "
        "nothing left to learn from them.</p></div>"
    )
