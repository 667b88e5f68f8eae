"""Compute what the charts of the report show: bars, class tables, confusion matrices and curves.

Nothing here is markup; `templates/charts.html.j2` draws it. Coordinates are in units of the SVG's view box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lsml_cli.evaluation.metrics.calibration import Calibration
from lsml_cli.evaluation.metrics.choices import ConfusionMatrix
from lsml_cli.evaluation.metrics.intervals import Interval
from lsml_cli.evaluation.report.formatting import pluralize

MAX_CLASSES = 30  # classes shown in a confusion matrix
MIN_SPREAD_WIDTH = 0.6  # so that a narrow interval stays visible; in percent of a bar
DARK_SHARE = 0.55  # cells above this share of their row have a background too dark for dark text

CHART_WIDTH = 320  # units, margins included
CHART_HEIGHT = CHART_WIDTH * 3 // 4
LEFT, BOTTOM, TOP, RIGHT = 58, 36, 10, 12  # margins, in units
BAR_GAP = 1.5  # units between two bars of a histogram
MAX_TICKS = 6  # on the axis of a histogram


@dataclass(frozen=True)
class Spread:
    """An interval drawn on a bar, in percent of its length."""

    start: float
    width: float


@dataclass(frozen=True)
class ValueBar:
    """A value in 0..1 drawn as a bar, in percent of its length."""

    end: float
    spread: Spread | None


@dataclass(frozen=True)
class BarCell:
    """A table cell with a value, its bar and its interval."""

    value: float
    interval: Interval | None
    bar: ValueBar


@dataclass(frozen=True)
class ClassValues:
    """The metrics of one class: `values` by metric name, and how often the class is true and predicted."""

    label: str
    values: Mapping[str, float | None]
    support: int
    predicted: int


@dataclass(frozen=True)
class ClassRow:
    """One row of a class table."""

    label: str
    bar: BarCell | None
    numbers: Sequence[float | None]
    support: int
    predicted: int


@dataclass(frozen=True)
class ClassTable:
    """A table of classes; `bar_heading` is that of the metric drawn as a bar, `headings` those of the others."""

    caption: str
    bar_heading: str
    headings: Sequence[str]
    rows: Sequence[ClassRow]


@dataclass(frozen=True)
class MatrixCell:
    """How often one class was predicted for another; `share` is in 0..1 of the row."""

    count: int
    share: float
    title: str
    is_correct: bool

    @property
    def is_dark(self) -> bool:
        return self.share > DARK_SHARE


@dataclass(frozen=True)
class MatrixRow:
    """What was predicted for one true class."""

    label: str
    cells: Sequence[MatrixCell]
    total: int


@dataclass(frozen=True)
class MatrixView:
    """The part of a confusion matrix that is shown. The column "" counts tasks without a predicted class."""

    columns: Sequence[str]
    rows: Sequence[MatrixRow]
    class_count: int
    hidden_count: int


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Axes:
    """The frame of a chart: its title, axis labels and ticks, and the edges of the plotted area."""

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    left: float
    right: float
    top: float
    bottom: float
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT


@dataclass(frozen=True)
class CurveDot:
    """One bin of scores on a reliability curve; larger bins have a larger radius."""

    x: float
    y: float
    radius: float
    title: str


@dataclass(frozen=True)
class ReliabilityCurve:
    """For each bin of scores the share that is correct; on the diagonal scores are probabilities."""

    axes: Axes
    dots: Sequence[CurveDot]


@dataclass(frozen=True)
class HistogramBar:
    """The answers with scores of one bin: correct ones from the axis to `middle`, wrong ones from there to `top`."""

    x: float
    width: float
    top: float
    middle: float
    right_height: float
    wrong_height: float
    title: str


@dataclass(frozen=True)
class ScoreHistogram:
    """How many answers have which score. Empty bins have no bar."""

    axes: Axes
    bars: Sequence[HistogramBar]


@dataclass(frozen=True)
class CountBar:
    """One bin of a histogram."""

    x: float
    width: float
    top: float
    height: float
    title: str


@dataclass(frozen=True)
class CountHistogram:
    """How many things are in each bin. Empty bins have no bar."""

    axes: Axes
    bars: Sequence[CountBar]


def build_value_bar(value: float, interval: Interval | None) -> ValueBar:
    """Draw a value as a bar from 0 to 1, with its interval on it."""
    end = _clip(value) * 100
    if interval is None:
        return ValueBar(end, None)
    low, high = _clip(interval.low) * 100, _clip(interval.high) * 100
    return ValueBar(end, Spread(low, max(high - low, MIN_SPREAD_WIDTH)))


def build_class_table(
    caption: str, columns: Mapping[str, str], classes: Sequence[ClassValues], intervals: Mapping[str, Interval]
) -> ClassTable:
    """Build a table of classes.

    Args:
        caption: What the table shows, for screen readers.
        columns: Metric -> heading; the first metric is drawn as a bar.
        classes: The rows, in order.
        intervals: By "METRIC:CLASS".
    """
    bar_metric, *metrics = columns
    rows = [
        ClassRow(
            label=entry.label,
            bar=_build_bar_cell(entry.values.get(bar_metric), intervals.get(f"{bar_metric}:{entry.label}")),
            numbers=[entry.values.get(metric) for metric in metrics],
            support=entry.support,
            predicted=entry.predicted,
        )
        for entry in classes
    ]
    return ClassTable(caption, columns[bar_metric], [columns[metric] for metric in metrics], rows)


def build_matrix(confusion: ConfusionMatrix) -> MatrixView:
    """Choose what is shown of a confusion matrix: all of it, or the `MAX_CLASSES` classes confused most."""
    labels = _most_confused(confusion)
    columns = [i for i, column in enumerate(confusion.columns) if column == "" or column in labels]
    rows = []
    for label, counts in zip(confusion.rows, confusion.counts, strict=True):
        total = sum(counts)
        if label in labels and total:
            cells = [_build_matrix_cell(label, confusion.columns[i], counts[i], total) for i in columns]
            rows.append(MatrixRow(label, cells, total))
    return MatrixView([confusion.columns[i] for i in columns], rows, len(labels), len(confusion.rows) - len(labels))


def build_reliability_curve(calibration: Calibration) -> ReliabilityCurve:
    """Plot the share of correct answers over their scores. The calibration must have at least one bin."""
    largest = max(score_bin.count for score_bin in calibration.bins)
    dots = [
        CurveDot(
            x=_x(score_bin.score),
            y=_y(score_bin.right),
            radius=3 + 5 * (score_bin.count / largest) ** 0.5,
            title=f"{pluralize(score_bin.count, 'score')}, mean {score_bin.score:.3f}: {score_bin.right:.1%} right",
        )
        for score_bin in calibration.bins
    ]
    title = f"Reliability curve, expected calibration error {calibration.ece:.3f}"
    ticks = [Tick(_y(quarter / 4), f"{quarter / 4:g}") for quarter in range(5)]
    return ReliabilityCurve(_build_axes(title, "share that is right", ticks), dots)


def build_score_histogram(calibration: Calibration) -> ScoreHistogram:
    """Stack the counts of wrong answers on those of correct ones, by score."""
    totals = [right + wrong for right, wrong in zip(calibration.right, calibration.wrong, strict=True)]
    largest = max(totals)
    step = (_x(1) - _x(0)) / len(totals)
    bars = []
    for i, (right, wrong) in enumerate(zip(calibration.right, calibration.wrong, strict=True)):
        if not right + wrong:
            continue
        low, high = i / len(totals), (i + 1) / len(totals)
        middle, top = _y(right / largest), _y((right + wrong) / largest)
        bars.append(
            HistogramBar(
                x=_x(0) + i * step + BAR_GAP / 2,
                width=step - BAR_GAP,
                top=top,
                middle=middle,
                right_height=_y(0) - middle,
                wrong_height=middle - top,
                title=f"{low:.2f} to {high:.2f}: {right:,} right, {wrong:,} wrong",
            )
        )
    ticks = [Tick(_y(count / largest), f"{count:,}") for count in dict.fromkeys((0, round(largest / 2), largest))]
    return ScoreHistogram(_build_axes("Histogram of scores", "answers", ticks), bars)


def build_count_histogram(
    counts: Sequence[int],
    edges: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
    *,
    names_bins: bool = False,
) -> CountHistogram:
    """Draw the counts of bins of equal width.

    Args:
        counts: Of the bins, at least one of them above 0.
        edges: Labels of the edges between bins, one more than `counts`; or with `names_bins` of the bins themselves.
        title: Of the chart.
        x_label: What is counted in bins.
        y_label: What the counts are of.
        names_bins: Whether `edges` are names of the bins.
    """
    largest = max(counts)
    step = (_x(1) - _x(0)) / len(counts)
    bars = [
        CountBar(
            x=_x(0) + i * step + BAR_GAP / 2,
            width=max(step - BAR_GAP, 1.0),
            top=_y(count / largest),
            height=_y(0) - _y(count / largest),
            title=f"{edges[i]}{'' if names_bins else f' to {edges[i + 1]}'}: {count:,}",
        )
        for i, count in enumerate(counts)
        if count
    ]
    stride = -(-len(edges) // MAX_TICKS)
    offset = step / 2 if names_bins else 0.0
    x_ticks = [Tick(_x(0) + i * step + offset, edges[i]) for i in range(0, len(edges), stride)]
    y_ticks = [Tick(_y(count / largest), f"{count:,}") for count in dict.fromkeys((0, round(largest / 2), largest))]
    return CountHistogram(_build_axes(title, y_label, y_ticks, x_label, x_ticks), bars)


def build_sparkline(counts: Sequence[int]) -> list[tuple[float, float]]:
    """Return (x, height) of the bars of a small histogram, in percent of its width and height; none if all are 0."""
    largest = max(counts)
    step = 100 / len(counts)
    return [(i * step, max(100 * count / largest, 6.0)) for i, count in enumerate(counts) if count]


def _build_bar_cell(value: float | None, interval: Interval | None) -> BarCell | None:
    return None if value is None else BarCell(value, interval, build_value_bar(value, interval))


def _build_matrix_cell(truth: str, predicted: str, count: int, total: int) -> MatrixCell:
    share = count / total
    title = f"{truth} → {predicted or 'nothing'}: {count:,} of {total:,} ({share:.0%})"
    return MatrixCell(count, share, title, is_correct=predicted == truth)


def _most_confused(confusion: ConfusionMatrix) -> set[str]:
    if len(confusion.rows) <= MAX_CLASSES:
        return set(confusion.rows)
    errors = dict.fromkeys(confusion.rows, 0)
    for row, counts in zip(confusion.rows, confusion.counts, strict=True):
        for column, count in zip(confusion.columns, counts, strict=True):
            if column != row:
                errors[row] += count
                if column:
                    errors[column] += count
    return set(sorted(errors, key=lambda label: (-errors[label], label))[:MAX_CLASSES])


def _build_axes(
    title: str, y_label: str, y_ticks: Sequence[Tick], x_label: str = "score", x_ticks: Sequence[Tick] | None = None
) -> Axes:
    if x_ticks is None:
        x_ticks = [Tick(_x(quarter / 4), f"{quarter / 4:g}") for quarter in range(5)]
    return Axes(title, x_label, y_label, x_ticks, y_ticks, left=_x(0), right=_x(1), top=_y(1), bottom=_y(0))


def _clip(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _x(share: float) -> float:
    """The x coordinate of a value in 0..1."""
    return LEFT + share * (CHART_WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    """The y coordinate of a value in 0..1."""
    return CHART_HEIGHT - BOTTOM - share * (CHART_HEIGHT - BOTTOM - TOP)
