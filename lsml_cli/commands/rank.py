"""`lsml rank`: sort predictions so that the least confident come first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import options
from lsml_cli.errors import format_list

if TYPE_CHECKING:
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.evaluation.ranking import AcceptanceEstimate, RankingResult


def rank(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A file that lsml predict wrote, or - for standard input.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write; - is stdout. A file appears when it is complete."
        ),
    ] = "-",
    format: Annotated[
        Literal["json", "jsonl"] | None,
        typer.Option("--format", help="Default: by the suffix of --output; stdout is jsonl."),
    ] = None,
    by: Annotated[
        Literal["least-confident", "margin", "entropy", "score"],
        typer.Option(
            "--by",
            metavar="CRITERION",
            help="least-confident, margin or entropy, of a prediction's regions; or score, the prediction's own.",
        ),
    ] = "least-confident",
    limit: Annotated[int | None, typer.Option("--limit", min=0, metavar="N", help="Write only the first N.")] = None,
    accept_above: Annotated[
        float | None,
        typer.Option(
            "--accept-above",
            min=0.0,
            max=1.0,
            metavar="X",
            help="Count the predictions that could be accepted as they are: they have scores, all at least X.",
        ),
    ] = None,
    accepted_output: Annotated[
        Path | None,
        typer.Option(
            "--accepted",
            metavar="FILE",
            help="Write those to this file, .json or .jsonl, and not to --output; - is stdout.",
        ),
    ] = None,
    annotated: Annotated[
        Path | None,
        typer.Option(
            "--annotated",
            metavar="FILE",
            help="Annotated tasks, to estimate how often accepting is wrong; needs --label-config or --predicted-by.",
        ),
    ] = None,
    predicted_by: options.PredictedBy = None,
    include_trained: Annotated[
        bool,
        typer.Option("--include-trained", help="Estimate also on tasks that it was trained on; that is too good."),
    ] = False,
    label_config: options.LabelConfigFile = None,
    summary: options.SummaryFile = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Sort the predictions of FILE, the least confident first, so that people label what teaches the model most.

    Records are written unchanged. Those without a score come last, after them the tasks that failed.
    Exit code 0: fine; 3: done, but some records could not be read; 1: failed; 2: wrong usage.

    Examples:

        lsml rank predictions.json -o first.json --limit 500

        lsml rank predictions.json -o doubtful.json
            --accept-above 0.95 --accepted sure.json
    """
    _rank(
        RankArguments(
            file=file,
            output=output,
            format=format,
            by=by,
            limit=limit,
            accept_above=accept_above,
            accepted_output=accepted_output,
            annotated=annotated,
            predicted_by=predicted_by,
            include_trained=include_trained,
            label_config=label_config,
            summary=summary,
            quiet=quiet,
        )
    )


@dataclass(frozen=True)
class RankArguments:
    """What `lsml rank` was called with; each field is the option of that name."""

    file: str
    output: str
    format: Literal["json", "jsonl"] | None
    by: Literal["least-confident", "margin", "entropy", "score"]
    limit: int | None
    accept_above: float | None
    accepted_output: Path | None
    annotated: Path | None
    predicted_by: str | None
    include_trained: bool
    label_config: Path | None
    summary: Path | None
    quiet: bool


def _rank(arguments: RankArguments) -> None:
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console, is_on_terminal
    from lsml_cli.evaluation.ranking import rank_file
    from lsml_cli.io.output_target import output_format
    from lsml_cli.io.reserved_stdout import reserve_stdout

    _check_usage(arguments)
    allows_bar = not is_on_terminal(arguments.output)
    with reserve_stdout(), Console(arguments.quiet, allows_bar=allows_bar) as console:
        estimate = _estimate_acceptance(arguments, console)
        ranked = rank_file(
            arguments.file,
            arguments.output,
            output_format(arguments.output, arguments.format),
            by=arguments.by,
            limit=arguments.limit,
            accept_above=arguments.accept_above,
            accepted_output=str(arguments.accepted_output) if arguments.accepted_output else None,
            reporter=console,
        )
    estimate_json = {"trust": estimate.to_json()} if estimate else {}
    summary_file.write_summary(arguments.summary, ranked.to_json() | estimate_json)
    for line in _summary_lines(ranked, estimate, arguments.accept_above, arguments.output):
        console.note(line)
    for line in ranked.unreadable.lines(arguments.file, "record"):
        console.note(line, important=True)
    if ranked.unreadable.count:
        raise typer.Exit(3)


def _check_usage(arguments: RankArguments) -> None:
    """Raise UsageError for options that do not go together, and for files that cannot be written."""
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.errors import UsageError
    from lsml_cli.io.output_paths import require_different_files, require_one_stdout
    from lsml_cli.io.source import STDIN

    if arguments.accept_above is None and (arguments.accepted_output or arguments.annotated):
        raise UsageError("Which predictions could be accepted?", "Name the lowest score: --accept-above 0.95")
    if arguments.annotated is None and (arguments.predicted_by is not None or arguments.include_trained):
        raise UsageError(
            "--predicted-by and --include-trained are about the tasks of --annotated.", "Name them: --annotated FILE"
        )
    if arguments.annotated is not None and arguments.label_config is None and arguments.predicted_by is None:
        raise UsageError("--annotated needs a label config.", "Name the labelling XML with --label-config FILE.")
    if arguments.annotated is not None and arguments.file == STDIN:
        raise UsageError(
            "--annotated reads the predictions twice, which standard input does not allow.", "Name a file."
        )
    summary_file.require_writable(arguments.summary)
    require_one_stdout(
        {"--output": arguments.output, "--accepted": arguments.accepted_output, "--summary": arguments.summary}
    )
    require_different_files(
        {
            "the predictions": arguments.file,
            "the annotated tasks": str(arguments.annotated) if arguments.annotated else None,
        },
        {
            "--output": arguments.output,
            "--accepted": str(arguments.accepted_output) if arguments.accepted_output else None,
            "--summary": str(arguments.summary) if arguments.summary else None,
        },
    )


def _estimate_acceptance(arguments: RankArguments, console: Console) -> AcceptanceEstimate | None:
    """Compare the predictions with annotated tasks, if there are any; None if not."""
    if arguments.annotated is None:
        return None
    from lsml_cli.evaluation.prediction_file import PredictionFile
    from lsml_cli.evaluation.ranking import estimate_acceptance
    from lsml_cli.evaluation.training_data import build_filter
    from lsml_cli.io.task_reader import read_tasks
    from lsml_cli.registry import resolve
    from lsml_cli.schema.label_config import LabelConfig

    specs = []
    if arguments.predicted_by is not None:
        specs = [resolve.find_model(arguments.predicted_by)]
        config = options.load_label_config(arguments.label_config, specs[0], arguments.predicted_by)
    elif arguments.label_config is not None:
        config = LabelConfig.load(arguments.label_config)
    training_data = build_filter(specs, "include" if arguments.include_trained else "leave out")
    with PredictionFile(arguments.file, config) as predictions:
        tasks = read_tasks(str(arguments.annotated), controls=frozenset(config.controls))
        estimate = estimate_acceptance(
            tasks.report(console, "comparing with annotations"),
            config,
            predictions.lookup,
            arguments.accept_above or 0.0,
            training_data=training_data,
        )
        given = [spec.model_version for spec in specs]
        use = estimate.training_data.add_unnamed(predictions.trained_versions(), given)
        return replace(estimate, training_data=use)


def _summary_lines(
    ranked: RankingResult, estimate: AcceptanceEstimate | None, accept_above: float | None, output: str
) -> Iterator[str]:
    target = f" -> {output}" if output != "-" else ""
    yield f"{ranked.records:,} records, {ranked.written:,} written{target}"
    if ranked.without_score:
        yield f"{ranked.without_score:,} have no score, and come last."
    if ranked.failed:
        tasks = "1 task has" if ranked.failed == 1 else f"{ranked.failed:,} tasks have"
        yield f"{tasks} no prediction, and come after the others."
    if accept_above is not None:
        yield f"{ranked.accepted:,} of {ranked.records:,} could be accepted: every score is at least {accept_above:g}."
    if estimate is not None:
        yield from _estimate_lines(estimate)


def _estimate_lines(estimate: AcceptanceEstimate) -> Iterator[str]:
    """Say how often accepting would be wrong, and what that is based on."""
    from lsml_cli.evaluation.metrics.intervals import FEW_TASKS

    for reason, count in estimate.left_out.items():
        yield f"{count:,} annotated {'task was' if count == 1 else 'tasks were'} left out: {reason}."
    yield from estimate.training_data.warning_lines(estimate.compared)
    if estimate.unmeasurable_controls:
        yield f"Cannot be measured yet: {format_list(estimate.unmeasurable_controls)}."
    if estimate.interval is None or estimate.error_rate is None:
        reason = "none of them has an answer that can be measured" if estimate.is_annotated else "none is annotated"
        reason = f"{reason}, except for tasks that were left out" if estimate.left_out else reason
        yield f"How often that would be wrong is not known: {reason}."
        return
    low, high = estimate.interval.low, estimate.interval.high
    yield (
        f"Of {estimate.compared:,} of them that people have annotated, {estimate.wrong:,} would be wrong: "
        f"{estimate.error_rate:.1%} (95 %: {low:.1%} to {high:.1%})."
    )
    if estimate.compared < FEW_TASKS:
        yield f"{estimate.compared:,} tasks are few; with {FEW_TASKS} or more the estimate is worth more."
