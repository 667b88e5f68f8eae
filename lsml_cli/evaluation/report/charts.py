"""Bars, curves and matrices, as SVG and tables. Colours come from style.css, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.evaluation.metrics.bootstrap import Interval
from lsml_cli.evaluation.metrics.calibration import Calibration
from lsml_cli.evaluation.metrics.choices import Confusion
from lsml_cli.evaluation.report.markup import counted, escaped, name, number, shortened

MOST = 30  # classes of a confusion matrix that are shown
SIDE = 320  # units of a chart, of which an axis takes the margin
LEFT, BOTTOM, TOP, RIGHT = 58, 36, 10, 12


def scale(value: float, interval: Interval | None) -> str:
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


def bar(value: float | None, interval: Interval | None = None) -> str:
    """A number with its bar, for a cell of a table."""
    if value is None:
        return '<span class="none">&ndash;</span>'
    title = f"95 %: {interval.low:.3f} to {interval.high:.3f}" if interval else ""
    return f'<span class="bar" title="{title}">{scale(value, interval)}<span>{number(value)}</span></span>'


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
    head = "".join(f'<th scope="col" class="n">{escaped(each)}</th>' for each in list(columns.values())[1:])
    body = []
    for label, values, support, predicted in rows:
        cells = "".join(f'<td class="n">{number(values.get(metric))}</td>' for metric in others)
        drawn = bar(values.get(first), intervals.get(f"{first}:{label}"))
        body.append(
            f'<tr><th scope="row">{name(label)}</th><td>{drawn}</td>'
            f'{cells}<td class="n">{support:,}</td><td class="n">{predicted:,}</td></tr>'
        )
    return scrolled(
        f'<table class="classes"><thead><tr><th scope="col">class</th><th scope="col">{escaped(columns[first])}</th>'
        f'{head}<th scope="col" class="n">true</th><th scope="col" class="n">predicted</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
        caption,
    )


def scrolled(inner: str, label: str) -> str:
    """Something wide in a frame of its own, which arrow keys move."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(label)}">{inner}</div>'


def confusion_matrix(confusion: Confusion) -> str:
    """Rows are what people say, columns what was predicted. Of very many classes those that are confused most."""
    kept = _most_confused(confusion)
    columns = [i for i, column in enumerate(confusion.columns) if column == "" or column in kept]
    head = "".join(
        f'<th scope="col"><div><span title="{escaped(confusion.columns[i] or "nothing")}">'
        f"{_column(confusion.columns[i])}</span></div></th>"
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
                f'title="{escaped(title)}">{content}</td>'
            )
        body.append(
            f'<tr><th scope="row" title="{escaped(row)}">{name(shortened(row, 24))}</th>{"".join(cells)}'
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
    return scrolled(table, "Confusion matrix") + note


def _column(label: str) -> str:
    return name(shortened(label, 24)) if label else "<i>nothing</i>"


def _most_confused(confusion: Confusion) -> set[str]:
    if len(confusion.rows) <= MOST:
        return set(confusion.rows)
    wrong = dict.fromkeys(confusion.rows, 0)
    for row, counts in zip(confusion.rows, confusion.counts, strict=True):
        for column, count in zip(confusion.columns, counts, strict=True):
            if column != row:
                wrong[row] += count
                if column:
                    wrong[column] += count
    return set(sorted(wrong, key=lambda label: (-wrong[label], label))[:MOST])


def reliability_curve(found: Calibration) -> str:
    """For each bin of scores the share that is right; on the diagonal scores are probabilities."""
    points = [(_x(each.score), _y(each.right)) for each in found.bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    largest = max(each.count for each in found.bins)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 5 * (each.count / largest) ** 0.5:.1f}">'
        f"<title>{counted(each.count, 'score')}, mean {each.score:.3f}: {each.right:.1%} right</title></circle>"
        for (x, y), each in zip(points, found.bins, strict=True)
    )
    return _chart(
        f"Reliability curve, expected calibration error {found.ece:.3f}",
        f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
        f'<polyline class="curve" points="{line}"/><g class="dots">{dots}</g>',
        "score",
        "share that is right",
        [(each / 4, f"{each / 4:g}") for each in range(5)],
    )


def score_histogram(found: Calibration) -> str:
    """How many answers have which score, right ones below wrong ones."""
    totals = [right + wrong for right, wrong in zip(found.right, found.wrong, strict=True)]
    most = max(totals)
    width = (_x(1) - _x(0)) / len(totals)
    bars = []
    for i, (right, wrong) in enumerate(zip(found.right, found.wrong, strict=True)):
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


def _chart(title: str, inner: str, below: str, beside: str, ticks: Sequence[tuple[float, str]]) -> str:
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
        f'<svg class="chart" viewBox="0 0 {SIDE} {SIDE * 3 // 4}" role="img"><title>{escaped(title)}</title>'
        f"{up}{across}"
        f'<text class="axis" x="{(_x(0) + _x(1)) / 2}" y="{SIDE * 3 // 4 - 4}" text-anchor="middle">{below}</text>'
        f'<text class="axis" transform="translate(10 {(_y(0) + _y(1)) / 2}) rotate(-90)" text-anchor="middle">{beside}'
        f"</text>{inner}</svg>"
    )


def _x(share: float) -> float:
    return LEFT + share * (SIDE - LEFT - RIGHT)


def _y(share: float) -> float:
    height = SIDE * 3 // 4
    return height - BOTTOM - share * (height - BOTTOM - TOP)
