"""`lsml rank`: the predictions that people should look at first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import options

if TYPE_CHECKING:
    from lsml_cli.evaluation.ranking import AcceptanceEstimate, RankingResult


def rank(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file that predict wrote, or - for standard input.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")] = "-",
    format: Annotated[
        Literal["json", "jsonl"] | None,
        typer.Option("--format", help="From the ending of --output by default; stdout is jsonl."),
    ] = None,
    by: Annotated[
        Literal["least-confident", "margin", "entropy", "score"],
        typer.Option(
            "--by", help="What makes a prediction doubtful; the least sure region, or the prediction's score."
        ),
    ] = "least-confident",
    limit: Annotated[int | None, typer.Option("--limit", min=0, metavar="N", help="Only the first N.")] = None,
    accept_above: Annotated[
        float | None,
        typer.Option(
            "--accept-above",
            min=0.0,
            max=1.0,
            metavar="X",
            help="Count the predictions that could be accepted as they are: every score is at least X.",
        ),
    ] = None,
    accepted_output: Annotated[
        Path | None,
        typer.Option("--accepted", metavar="FILE", help="Write these there instead, as they are; .json or .jsonl."),
    ] = None,
    annotated: Annotated[
        Path | None,
        typer.Option(
            "--annotated", metavar="FILE", help="Annotated tasks that tell how often accepting would be wrong."
        ),
    ] = None,
    label_config: options.LabelConfigFile = None,
    summary: options.SummaryFile = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Sort the predictions of FILE, the least sure first, so that people label what teaches most.

    Records are written as they are. What no score tells anything about comes last, and tasks that failed after that.
    Exit code 0: fine; 3: done, but some records could not be read; 1: failed; 2: wrong usage.

    Examples:

        lsml rank predictions.json -o first.json --limit 500

        lsml rank predictions.json -o doubtful.json --accept-above 0.95 --accepted sure.json
    """
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.evaluation import ranking
    from lsml_cli.io.output_paths import require_different_files
    from lsml_cli.io.output_target import output_format
    from lsml_cli.io.source import STDIN
    from lsml_cli.io.stdout import reserve_stdout

    if accept_above is None and (accepted_output or annotated):
        raise UsageError("Which predictions could be accepted?", "Say how sure they have to be: --accept-above 0.95")
    if annotated is not None and label_config is None:
        raise UsageError("--annotated needs a label config.", "Name the labelling XML with --label-config FILE.")
    if annotated is not None and file == STDIN:
        raise UsageError("--annotated reads the predictions twice, and standard input is there once.", "Name a file.")
    summary_file.require_writable(summary)
    require_different_files(
        {"the predictions": file, "the annotated tasks": str(annotated) if annotated else None},
        {
            "--output": output,
            "--accepted": str(accepted_output) if accepted_output else None,
            "--summary": str(summary) if summary else None,
        },
    )
    with reserve_stdout(), Console(quiet) as console:
        trust = (
            _estimate_acceptance(file, annotated, label_config, accept_above) if annotated and label_config else None
        )
        form = output_format(output, format)
        found = ranking.rank_file(
            file,
            output,
            form,
            by=by,
            limit=limit,
            accept_above=accept_above,
            accepted_output=str(accepted_output) if accepted_output else None,
        )
    summary_file.write_summary(summary, found.to_json() | ({"trust": trust.to_json()} if trust else {}))
    for sentence in _summary_lines(found, trust, accept_above, output):
        console.note(sentence)
    for place in found.unreadable[:3]:
        console.note(f"{file}, {place}.", important=True)
    if found.unreadable:
        raise typer.Exit(3)


def _estimate_acceptance(
    file: str, annotated: Path, label_config: Path, accept_above: float | None
) -> AcceptanceEstimate:
    from lsml_cli.evaluation.prediction_file import PredictionFile
    from lsml_cli.evaluation.ranking import estimate_acceptance
    from lsml_cli.io.task_reader import read_tasks
    from lsml_cli.schema.label_config import LabelConfig

    config = LabelConfig.load(label_config)
    with PredictionFile(file, config) as predictions:
        tasks = read_tasks(str(annotated), controls=frozenset(config.controls))
        return estimate_acceptance(tasks, config, predictions.lookup, accept_above or 0.0)


def _summary_lines(
    ranked: RankingResult, estimate: AcceptanceEstimate | None, accept_above: float | None, output: str
) -> Iterator[str]:
    where = f" -> {output}" if output != "-" else ""
    yield f"{ranked.records:,} records, {ranked.written:,} written{where}"
    if ranked.without_score:
        yield f"{ranked.without_score:,} have no score, and come last."
    if ranked.failed:
        tasks = "1 task has" if ranked.failed == 1 else f"{ranked.failed:,} tasks have"
        yield f"{tasks} no prediction; such come after the others."
    if accept_above is not None:
        yield f"{ranked.accepted:,} of {ranked.records:,} could be accepted: every score is at least {accept_above:g}."
    if estimate is None:
        return
    if estimate.interval is None or estimate.error_rate is None:
        yield "Nobody knows how often that would be wrong: none of them is annotated."
        return
    low, high = estimate.interval
    yield (
        f"Of {estimate.compared:,} of them that people have annotated, {estimate.wrong:,} would be wrong: {estimate.error_rate:.1%} "
        f"(95 %: {low:.1%} to {high:.1%})."
    )
