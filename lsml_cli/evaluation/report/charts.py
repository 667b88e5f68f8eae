"""Bars, curves and matrices, as SVG and tables. Colours come from style.css, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.evaluation.metrics.bootstrap import Interval
from lsml_cli.evaluation.metrics.calibration import Calibration
from lsml_cli.evaluation.metrics.choices import ConfusionMatrix
from lsml_cli.evaluation.report.markup import escape_text, format_name, format_number, pluralize, shorten

MAX_CLASSES = 30  # classes of a confusion matrix that are shown
CHART_WIDTH = 320  # units of a chart, of which an axis takes the margin
LEFT, BOTTOM, TOP, RIGHT = 58, 36, 10, 12


def value_bar(value: float, interval: Interval | None) -> str:
    """A bar from 0 to 1 with the interval on it, for a headline number."""
    end = min(max(value, 0.0), 1.0) * 100
    spread = ""
    if interval is not None:
        low, high = (min(max(each, 0.0), 1.0) * 100 for each in (interval.low, interval.high))
        spread = f'<rect class="spread" x="{low:.2f}" y="2" width="{max(high - low, 0.6):.2f}" height="4"/>'
    return (
        '<svg class="scale" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/><rect class="fill" width="{end:.2f}" height="8"/>{spread}</svg>'
    )


def table_bar(value: float | None, interval: Interval | None = None) -> str:
    """A number with its bar, for a cell of a table."""
    if value is None:
        return '<span class="none">&ndash;</span>'
    title = f"95 %: {interval.low:.3f} to {interval.high:.3f}" if interval else ""
    return f'<span class="bar" title="{title}">{value_bar(value, interval)}<span>{format_number(value)}</span></span>'


def class_table(
    caption: str,
    columns: Mapping[str, str],
    rows: Sequence[tuple[str, Mapping[str, float | None], int, int]],
    intervals: Mapping[str, Interval],
) -> str:
    """Every class with its numbers.

    columns  metric -> heading; the first one is drawn as a bar
    rows     (class, numbers, how often it is true, how often it was predicted)
    """
    first, *others = columns
    head = "".join(f'<th scope="col" class="n">{escape_text(each)}</th>' for each in list(columns.values())[1:])
    body = []
    for label, values, support, predicted in rows:
        cells = "".join(f'<td class="n">{format_number(values.get(metric))}</td>' for metric in others)
        drawn = table_bar(values.get(first), intervals.get(f"{first}:{label}"))
        body.append(
            f'<tr><th scope="row">{format_name(label)}</th><td>{drawn}</td>'
            f'{cells}<td class="n">{support:,}</td><td class="n">{predicted:,}</td></tr>'
        )
    return scrollable(
        f'<table class="classes"><thead><tr><th scope="col">class</th><th scope="col">{escape_text(columns[first])}</th>'
        f'{head}<th scope="col" class="n">true</th><th scope="col" class="n">predicted</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
        caption,
    )


def scrollable(content: str, label: str) -> str:
    """Something wide in a frame of its own, which arrow keys move."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape_text(label)}">{content}</div>'


def confusion_matrix(confusion: ConfusionMatrix) -> str:
    """Rows are what people say, columns what was predicted. Of very many classes those that are confused most."""
    kept = _most_confused(confusion)
    columns = [i for i, column in enumerate(confusion.columns) if column == "" or column in kept]
    head = "".join(
        f'<th scope="col"><div><span title="{escape_text(confusion.columns[i] or "nothing")}">'
        f"{_column_heading(confusion.columns[i])}</span></div></th>"
        for i in columns
    )
    body = []
    for row, counts in zip(confusion.rows, confusion.counts, strict=True):
        total = sum(counts)
        if row not in kept or not total:
            continue
        cells = []
        for i in columns:
            share = counts[i] / total
            right = confusion.columns[i] == row
            title = f"{row} → {confusion.columns[i] or 'nothing'}: {counts[i]:,} of {total:,} ({share:.0%})"
            content = f"{counts[i]:,}" if counts[i] else ""
            dark = " strong" if share > 0.55 else ""
            cells.append(
                f'<td class="{"right" if right else "wrong"}{dark}" style="--share:{share:.3f}" '
                f'title="{escape_text(title)}">{content}</td>'
            )
        body.append(
            f'<tr><th scope="row" title="{escape_text(row)}">{format_name(shorten(row, 24))}</th>{"".join(cells)}'
            f'<td class="total">{total:,}</td></tr>'
        )
    left = len(confusion.rows) - len(kept)
    note = (
        f'<p class="note">The {len(kept)} classes that are confused most; {left:,} more are not shown.</p>'
        if left
        else ""
    )
    table = (
        f'<table class="matrix"><thead><tr><th class="corner">people ↓ &nbsp; model →</th>{head}'
        f'<th scope="col" class="total">all</th></tr></thead><tbody>{"".join(body)}</tbody></table>'
    )
    return scrollable(table, "Confusion matrix") + note


def _column_heading(label: str) -> str:
    return format_name(shorten(label, 24)) if label else "<i>nothing</i>"


def _most_confused(confusion: ConfusionMatrix) -> set[str]:
    if len(confusion.rows) <= MAX_CLASSES:
        return set(confusion.rows)
    wrong = dict.fromkeys(confusion.rows, 0)
    for row, counts in zip(confusion.rows, confusion.counts, strict=True):
        for column, count in zip(confusion.columns, counts, strict=True):
            if column != row:
                wrong[row] += count
                if column:
                    wrong[column] += count
    return set(sorted(wrong, key=lambda label: (-wrong[label], label))[:MAX_CLASSES])


def reliability_curve(calibration: Calibration) -> str:
    """For each bin of scores the share that is right; on the diagonal scores are probabilities."""
    points = [(_x(each.score), _y(each.right)) for each in calibration.bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    largest = max(each.count for each in calibration.bins)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 5 * (each.count / largest) ** 0.5:.1f}">'
        f"<title>{pluralize(each.count, 'score')}, mean {each.score:.3f}: {each.right:.1%} right</title></circle>"
        for (x, y), each in zip(points, calibration.bins, strict=True)
    )
    return _chart(
        f"Reliability curve, expected calibration error {calibration.ece:.3f}",
        f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
        f'<polyline class="curve" points="{line}"/><g class="dots">{dots}</g>',
        "score",
        "share that is right",
        [(each / 4, f"{each / 4:g}") for each in range(5)],
    )


def score_histogram(calibration: Calibration) -> str:
    """How many answers have which score, right ones below wrong ones."""
    totals = [right + wrong for right, wrong in zip(calibration.right, calibration.wrong, strict=True)]
    most = max(totals)
    width = (_x(1) - _x(0)) / len(totals)
    bars = []
    for i, (right, wrong) in enumerate(zip(calibration.right, calibration.wrong, strict=True)):
        if not right + wrong:
            continue
        low, high = i / len(totals), (i + 1) / len(totals)
        x = _x(0) + i * width + 0.75
        middle, top = _y(right / most), _y((right + wrong) / most)
        bars.append(
            f"<g><title>{low:.2f} to {high:.2f}: {right:,} right, {wrong:,} wrong</title>"
            f'<rect class="good" x="{x:.1f}" y="{middle:.1f}" width="{width - 1.5:.1f}" height="{_y(0) - middle:.1f}"/>'
            f'<rect class="bad" x="{x:.1f}" y="{top:.1f}" width="{width - 1.5:.1f}" height="{middle - top:.1f}"/></g>'
        )
    ticks = [(each / most, f"{each:,}") for each in dict.fromkeys((0, round(most / 2), most))]
    return _chart("Histogram of scores", "".join(bars), "score", "answers", ticks)


def _chart(title: str, content: str, x_label: str, y_label: str, ticks: Sequence[tuple[float, str]]) -> str:
    across = "".join(
        f'<text class="tick" x="{_x(each / 4):.1f}" y="{_y(0) + 14:.1f}" text-anchor="middle">{each / 4:g}</text>'
        for each in range(5)
    )
    up = "".join(
        f'<line class="grid" x1="{_x(0)}" x2="{_x(1)}" y1="{_y(at):.1f}" y2="{_y(at):.1f}"/>'
        f'<text class="tick" x="{_x(0) - 5}" y="{_y(at) + 3.5:.1f}" text-anchor="end">{label}</text>'
        for at, label in ticks
    )
    return (
        f'<svg class="chart" viewBox="0 0 {CHART_WIDTH} {CHART_WIDTH * 3 // 4}" role="img"><title>{escape_text(title)}</title>'
        f"{up}{across}"
        f'<text class="axis" x="{(_x(0) + _x(1)) / 2}" y="{CHART_WIDTH * 3 // 4 - 4}" text-anchor="middle">{x_label}</text>'
        f'<text class="axis" transform="translate(10 {(_y(0) + _y(1)) / 2}) rotate(-90)" text-anchor="middle">{y_label}'
        f"</text>{content}</svg>"
    )


def _x(share: float) -> float:
    return LEFT + share * (CHART_WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    height = CHART_WIDTH * 3 // 4
    return height - BOTTOM - share * (height - BOTTOM - TOP)
