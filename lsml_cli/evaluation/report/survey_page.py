"""Render a survey of predictions or annotations as a page, and write it to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lsml_cli.evaluation.report import charts
from lsml_cli.evaluation.report.formatting import pluralize
from lsml_cli.evaluation.report.task_cards import CardSet, LabelKey, assign_colours, build_cards, describe_shown
from lsml_cli.evaluation.survey import (
    MAX_REGIONS,
    SCORE_BINS,
    ControlStatistics,
    Measure,
    SizeStatistics,
    Survey,
)
from lsml_cli.io.output import write_document
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.label_config_parser import TAGS

MAX_OPEN_LABELS = 25  # labels in the open table; rarer ones are folded away
MAX_LISTED_LABELS = 500  # of one control
MAX_LISTED_VERSIONS = 5

SIZE_TITLES: dict[Measure, tuple[str, str]] = {
    "characters": ("Lengths", "characters"),
    "area": ("Areas", "percent of the image"),
    "length": ("Lengths", "from start to end"),
}


@dataclass(frozen=True)
class Fact:
    """A number of the survey with what it means."""

    title: str
    value: str
    description: str


@dataclass(frozen=True)
class LabelRow:
    """A label in the table of a control; `share` is in 0..1 of the regions."""

    label: str
    colour: int
    regions: int
    tasks: int
    share: float
    bar: charts.ValueBar
    mean_score: float | None
    sparkline: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class SizeView:
    """The sizes of regions: a histogram, and a sentence."""

    title: str
    histogram: charts.CountHistogram
    note: str


@dataclass(frozen=True)
class ControlView:
    """What the page says about one control. Whatever is None or empty is not shown."""

    name: str
    tag: str
    statistics: ControlStatistics
    labels: Sequence[LabelRow]
    rare_labels: Sequence[LabelRow]
    unlisted_labels: int
    scores: charts.CountHistogram | None
    sizes: Sequence[SizeView]


def write(
    path: Path, survey: Survey, config: LabelConfig | None, media: Media, label_studio_url: str | None = None
) -> CardSet:
    """Fetch the images to show, and write the page; `path` may be "-" for standard output.

    A file is replaced only when the page is complete.

    Returns:
        The cards of the page.

    Raises:
        OutputClosed: The reader of standard output has closed it.
        OutputError: The page cannot be written.
    """
    colours = assign_colours(survey)
    cards = build_cards(survey, colours, config, media, label_studio_url)
    media.close()
    write_document(path, render(survey, cards, colours).encode("utf-8", "replace"), "The page")
    return cards


def render(survey: Survey, cards: CardSet, colours: dict[LabelKey, int]) -> str:
    """Render the page as HTML. The same survey gives the same page."""
    from lsml_cli.evaluation.report.templating import create_environment

    template = create_environment().get_template("survey.html.j2")
    html = template.render(
        survey=survey,
        name=Path(survey.name).name,
        versions=_describe_versions(survey),
        shown=describe_shown(survey),
        facts=_build_facts(survey),
        certainty=_build_score_histogram(survey.certainty.bins, "tasks") if survey.certainty.count else None,
        regions_per_task=_build_region_histogram(survey),
        controls=[_build_control(control, colours) for control in survey.controls.values()],
        cards=cards,
    )
    return html.lstrip()  # blank lines between macros


def _describe_versions(survey: Survey) -> str:
    versions = survey.model_versions
    named = [
        name if len(versions) == 1 else f"{name} ({count:,})"
        for name, count in versions.most_common(MAX_LISTED_VERSIONS)
    ]
    more = len(versions) - len(named)
    return ", ".join([*named, *([f"{more} more"] if more else [])])


def _build_facts(survey: Survey) -> list[Fact]:
    noun = "prediction" if survey.contents == "predictions" else "annotation"
    facts = [Fact("Tasks", f"{survey.tasks:,}", f"with {'a' if noun == 'prediction' else 'an'} {noun}")]
    if survey.tasks:
        mean = survey.regions / survey.tasks
        facts.append(Fact("Regions", f"{survey.regions:,}", f"choices, spans, boxes: {mean:.1f} per task"))
        facts.append(Fact("Nothing found", f"{survey.empty:,}", f"{survey.empty / survey.tasks:.1%} of the tasks"))
    if survey.certainty.mean is not None:
        facts.append(Fact("Certainty", f"{survey.certainty.mean:.3f}", "mean of the lowest score of each task"))
    return facts


def _build_control(control: ControlStatistics, colours: dict[LabelKey, int]) -> ControlView:
    by_count = sorted(control.labels.items(), key=lambda entry: (-entry[1].regions, entry[0]))
    total = max(sum(label.regions for label in control.labels.values()) + control.other_labels, 1)
    rows = [
        LabelRow(
            label=name,
            colour=colours.get((control.name, name), 0),
            regions=label.regions,
            tasks=label.tasks,
            share=label.regions / total,
            bar=charts.build_value_bar(label.regions / by_count[0][1].regions, None),
            mean_score=label.scores.mean,
            sparkline=charts.build_sparkline(label.scores.bins) if label.scores.count else [],
        )
        for name, label in by_count[:MAX_LISTED_LABELS]
    ]
    return ControlView(
        control.name,
        TAGS.get(control.type, control.type),
        control,
        rows[:MAX_OPEN_LABELS],
        rows[MAX_OPEN_LABELS:],
        len(by_count) - len(rows),
        _build_score_histogram(control.scores.bins, "regions") if control.scores.count else None,
        [_build_size_view(measure, sizes) for measure, sizes in control.sizes.items()],
    )


def _build_score_histogram(bins: Sequence[int], noun: str) -> charts.CountHistogram:
    edges = [f"{i / SCORE_BINS:g}" for i in range(SCORE_BINS + 1)]
    return charts.build_count_histogram(bins, edges, "Histogram of scores", "score", noun)


def _build_region_histogram(survey: Survey) -> charts.CountHistogram | None:
    counts = survey.regions_per_task
    last = max((i for i, count in enumerate(counts) if count), default=0)
    if not survey.tasks or last < 2:  # as many as controls, which tells nothing
        return None
    names = [f"{i}+" if i == MAX_REGIONS else str(i) for i in range(last + 1)]
    return charts.build_count_histogram(
        counts[: last + 1], names, "Regions per task", "regions", "tasks", names_bins=True
    )


def _build_size_view(measure: Measure, sizes: SizeStatistics) -> SizeView:
    title, unit = SIZE_TITLES[measure]
    first, last = min(sizes.bins), max(sizes.bins)
    counts = [sizes.bins[k] for k in range(first, last + 1)]
    edges = [f"{2**k:,}" if k >= 0 else f"{2.0**k:.1g}" for k in range(first, last + 2)]
    histogram = charts.build_count_histogram(counts, edges, f"{title}, {unit}", unit, "regions")
    note = (
        f"{pluralize(sizes.count, 'region')}: {sizes.low:,.4g} to {sizes.high:,.4g}, {sizes.mean:,.4g} on average. "
        f"Each bar is twice as wide as the one before."
    )
    return SizeView(title, histogram, note)
