"""What the page says about one control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.evaluation.evaluate import Difference, Judged
from lsml_cli.evaluation.gates import LESS_IS_BETTER
from lsml_cli.evaluation.metrics.agreement import Agreement
from lsml_cli.evaluation.report import charts
from lsml_cli.evaluation.report.gallery import Example, gallery
from lsml_cli.evaluation.report.markup import counted, escaped, name, number, signed

TITLES = {
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
TILES = {
    "choices": ("accuracy", "macro-f1", "micro-f1"),
    "regions": ("map", "map50", "precision", "recall", "f1"),
    "texts": ("cer", "wer", "hmean", "exact", "cer-found"),
}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "choices": {"f1": "F1", "precision": "precision", "recall": "recall"},
    "regions": {"ap": "AP", "ap50": "AP50", "precision": "precision", "recall": "recall", "f1": "F1"},
}
OPEN = 25  # classes that are shown without being asked for


def control_section(
    judged: Judged, differences: Mapping[str, Difference] | None, other: str, examples: Sequence[Example]
) -> str:
    """Everything about one control.

    differences  by metric, from what the evaluation is compared with, called `other`; None without a comparison
    """
    control = judged.control
    tag = f"c-{escaped(control.name)}"
    cards = "".join(_cards(judged))
    parts = [
        _tiles(judged),
        _differences(judged, differences, other) if differences else "",
        f'<div class="grid">{cards}</div>' if cards else "",
        gallery(judged, examples),
    ]
    return (
        f'<section class="control" id="{tag}" aria-labelledby="{tag}-h"><h2 id="{tag}-h">{name(control.name)} '
        f"<small>&lt;{escaped(control.tag)}&gt; on {counted(judged.metrics.count, 'annotation')}</small></h2>"
        f"{''.join(parts)}</section>"
    )


def _tiles(judged: Judged) -> str:
    values = judged.metrics.values()
    tiles = []
    for metric in _shown(judged):
        title, what = TITLES[metric]
        interval = judged.intervals.get(metric)
        spread = f"95 %: {number(interval.low)} to {number(interval.high)}" if interval else ""
        tiles.append(
            f'<div class="tile"><div class="title" title="{escaped(what)}">{title}</div>'
            f'<div class="value">{number(values[metric])}</div>{charts.scale(values[metric] or 0.0, interval)}'
            f'<div class="spread">{spread}</div><div class="what">{escaped(what)}</div></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _shown(judged: Judged) -> list[str]:
    """The headline numbers that there are. Micro F1 is the accuracy, where every task has one label."""
    single = judged.kind == "choices" and judged.control.single
    values = judged.metrics.values()
    wanted = (metric for metric in TILES[judged.kind] if not (single and metric == "micro-f1"))
    return [metric for metric in wanted if values[metric] is not None]


def _differences(judged: Judged, differences: Mapping[str, Difference], other: str) -> str:
    rows = []
    for metric in _shown(judged):
        if (each := differences.get(metric)) is None:
            continue
        change = each.mine - each.other
        good = (change < 0) if metric in LESS_IS_BETTER else (change > 0)
        clear = each.interval is not None and not each.interval.low <= 0 <= each.interval.high
        verdict = ("better" if good else "worse") if clear else "could be chance"
        kind = verdict if clear else "open"
        spread = f"{signed(each.interval.low)} to {signed(each.interval.high)}" if each.interval else "&ndash;"
        rows.append(
            f'<tr><th scope="row">{TITLES[metric][0]}</th><td class="n">{number(each.mine)}</td>'
            f'<td class="n">{number(each.other)}</td><td class="n">{signed(change)}</td><td class="n">{spread}</td>'
            f'<td><span class="verdict {kind}">{verdict}</span></td></tr>'
        )
    table = (
        '<table><thead><tr><th scope="col">metric</th><th scope="col" class="n">this</th><th scope="col" class="n">'
        'other</th><th scope="col" class="n">difference</th><th scope="col" class="n">95 %</th><th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return f'<div class="box"><h3>Compared with {name(other)}</h3>{charts.scrolled(table, "Comparison")}</div>'


def _cards(judged: Judged) -> list[str]:
    cards = []
    if judged.metrics.classes and judged.kind in COLUMNS:
        cards.append(_classes(judged))
    if judged.confusion is not None and len(judged.confusion.rows) > 1:
        cards.append(f'<div class="box"><h3>Confusion</h3>{charts.confusion_matrix(judged.confusion)}</div>')
    if judged.calibration is not None:
        found = judged.calibration
        if judged.kind == "choices":
            said = (
                f"On the dashed line a score is the probability of being right. Calibration error: {number(found.ece)}."
            )
            curve = charts.reliability_curve(found)
            cards.append(f'<div class="box"><h3>Reliability</h3>{curve}<p class="note">{said}</p></div>')
        what = "answers" if judged.kind == "choices" else "regions, right at IoU 0.5"
        legend = '<p class="note"><span class="key good">right</span> <span class="key bad">wrong</span> '
        cards.append(
            f'<div class="box"><h3>Scores</h3>{charts.score_histogram(found)}{legend}{found.count:,} {what}</p></div>'
        )
    if judged.agreement is not None:
        cards.append(_agreement(judged.agreement))
    return cards


def _classes(judged: Judged) -> str:
    rows = [(each.name, each.values(), each.support, each.predicted) for each in judged.metrics.classes]
    rows.sort(key=lambda row: (-row[2], row[0]))
    table = charts.class_table("Classes", COLUMNS[judged.kind], rows[:OPEN], judged.intervals)
    rest = ""
    if len(rows) > OPEN:
        more = charts.class_table("More classes", COLUMNS[judged.kind], rows[OPEN:], judged.intervals)
        rest = f"<details><summary>{len(rows) - OPEN:,} rarer classes</summary>{more}</details>"
    return f'<div class="box wide"><h3>Classes</h3>{table}{rest}</div>'


def _agreement(found: Agreement) -> str:
    alpha = f" Krippendorff's alpha is {number(found.alpha)}." if found.alpha is not None else ""
    return (
        f'<div class="box"><h3>People against people</h3><p class="big">{number(found.mean)}</p>'
        f"<p>Mean over the pairs of annotations of {counted(found.tasks, 'task')} that several people annotated "
        f"({escaped(found.measure)}).{alpha} A model that people disagree with less than with each other has "
        "nothing left to learn from them.</p></div>"
    )
