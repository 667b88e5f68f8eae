"""`lsml show`: look at predictions or annotations on a page, or in a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import options
from lsml_cli.commands.media_options import MediaOptions

if TYPE_CHECKING:
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.evaluation.survey import Survey
    from lsml_cli.schema.label_config import LabelConfig

DEFAULT_ROWS = 20  # tasks in a table
DATA_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".gz"})


def show(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A file that lsml predict wrote, an export with annotations, or - for standard input."
        ),
    ],
    label_config: Annotated[
        Path | None,
        typer.Option(
            "--label-config",
            "-c",
            metavar="FILE",
            help="Labelling XML of the project; without it, cards show all texts of a task and its first image.",
        ),
    ] = None,
    what: Annotated[
        Literal["predictions", "annotations"] | None,
        typer.Option("--what", help="What to look at; default: predictions, if the first tasks have some."),
    ] = None,
    model_version: Annotated[
        str | None,
        typer.Option(
            "--model-version", metavar="TEXT", help="Which predictions of FILE; default: the last of each task."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Only the first N tasks; with --text 20, if not given."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page; - is stdout. Default: FILE's name with .html, here."
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    text: Annotated[
        bool, typer.Option("--text", help="Print a table of the first tasks instead of writing a page.")
    ] = False,
    examples: Annotated[
        int,
        typer.Option(
            "--examples",
            min=1,
            metavar="N",
            help="Most tasks on the page; of more, the least certain, the most certain and a random sample.",
        ),
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the random sample.")] = 0,
    document_root: options.DocumentRoot = None,
    upload_root: options.UploadRoot = None,
    label_studio_url: options.LabelStudioUrl = None,
    maps: options.MediaMaps = None,
    media_cache: options.MediaCache = None,
    media_cache_size: options.MediaCacheSize = "10G",
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Look at the predictions of FILE, or at its annotations, before anything is imported.

    Writes one HTML page that needs no network: labels, scores, lengths and areas over all tasks, and cards of tasks
    with their texts, spans, images and regions, to filter by label and certainty.
    Exit code 0: fine; 3: done, but some records could not be read; 1: failed; 2: wrong usage.

    Examples:

        lsml show predictions.json --open

        lsml show export.json --what annotations -o annotations.html

        lsml predict tasks.json --model models/news | lsml show - --text
    """
    _show(
        ShowArguments(
            file=file,
            label_config=label_config,
            what=what,
            model_version=model_version,
            limit=limit,
            output=output,
            opens_page=open_page,
            is_text=text,
            max_shown=examples,
            seed=seed,
            media=MediaOptions(
                document_root, upload_root, label_studio_url, tuple(maps or ()), media_cache, media_cache_size
            ),
            quiet=quiet,
        )
    )


@dataclass(frozen=True)
class ShowArguments:
    """What `lsml show` was called with; each field is the option of that name."""

    file: str
    label_config: Path | None
    what: Literal["predictions", "annotations"] | None
    model_version: str | None
    limit: int | None
    output: Path | None
    opens_page: bool
    is_text: bool
    max_shown: int
    seed: int
    media: MediaOptions
    quiet: bool

    @property
    def page(self) -> Path:
        """The file of the page: the one that was named, or in the working folder the name of FILE with .html."""
        if self.output is not None:
            return self.output
        name = Path("predictions.json" if self.file == "-" else self.file)
        while name.suffix.lower() in DATA_SUFFIXES:
            name = name.with_suffix("")
        return Path(f"{name.name}.html")


def _show(arguments: ShowArguments) -> None:
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.evaluation.survey import survey_file
    from lsml_cli.schema.label_config import LabelConfig

    _check_usage(arguments)
    config = LabelConfig.load(arguments.label_config) if arguments.label_config is not None else None
    limit = arguments.limit
    if arguments.is_text:
        limit = limit or DEFAULT_ROWS
    with Console(arguments.quiet) as console:
        survey = survey_file(
            arguments.file,
            config=config,
            contents=arguments.what,
            model_version=arguments.model_version,
            limit=limit,
            max_shown=limit if arguments.is_text and limit else arguments.max_shown,
            seed=arguments.seed,
            reporter=console,
        )
        console.end_progress()
        if arguments.is_text:
            _print_table(survey)
        else:
            _write_page(arguments, survey, config, console)
        for line in survey.unreadable.lines(arguments.file, "record"):
            console.note(line, important=True)
        for line in summary_lines(survey):
            console.note(line)
    if survey.unreadable.count:
        raise typer.Exit(3)


def _check_usage(arguments: ShowArguments) -> None:
    """Raise UsageError for options that do not go together, and for a page that cannot be written."""
    from lsml_cli.errors import UsageError
    from lsml_cli.evaluation.report.page import require_writable
    from lsml_cli.io.output_paths import is_stdout, require_different_files

    if arguments.is_text and (arguments.output is not None or arguments.opens_page):
        raise UsageError("--text prints a table, and writes no page.", "Leave out --text, or --output and --open.")
    if arguments.opens_page and is_stdout(arguments.output):
        raise UsageError("--open needs the page in a file.", "Name it: --output page.html")
    if arguments.what == "annotations" and arguments.model_version is not None:
        raise UsageError("--model-version chooses among predictions.", "Leave it out, or --what annotations.")
    if arguments.is_text:
        return
    require_writable(arguments.page, "--output")
    require_different_files(
        {
            "the predictions": arguments.file,
            "the label config": str(arguments.label_config) if arguments.label_config else None,
        },
        {"--output": str(arguments.page)},
    )


def _write_page(arguments: ShowArguments, survey: Survey, config: LabelConfig | None, console: Console) -> None:
    from lsml_cli.evaluation.report import survey_page
    from lsml_cli.inference.plan import media_root
    from lsml_cli.io.output_paths import is_stdout

    media = arguments.media.build(media_root(arguments.file))
    cards = survey_page.write(arguments.page, survey, config, media, arguments.media.label_studio_url)
    if cards.missing_images:
        images = "1 image is" if cards.missing_images == 1 else f"{cards.missing_images:,} images are"
        console.note(f"{images} not shown: {cards.first_missing}")
    if is_stdout(arguments.page):
        return
    console.note(f"Wrote {arguments.page}.")
    if arguments.opens_page:
        _open_in_browser(arguments.page, console)


def _open_in_browser(page: Path, console: Console) -> None:
    import webbrowser

    address = page.resolve().as_uri()
    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        console.warn("There is no browser here to open the page.", f"Open it yourself: {address}")


def _print_table(survey: Survey) -> None:
    from lsml_cli.commands.console.tables import Column, print_table
    from lsml_cli.evaluation.report.task_text import describe_result, describe_task

    columns = [Column("task"), Column("score", "number"), Column(survey.contents, "text"), Column("data", "text")]
    tasks = sorted((shown.task for shown in survey.shown), key=lambda task: task.index)
    rows = [
        [
            str(task.id) if task.id is not None else f"#{task.index}",
            "-" if task.certainty is None else f"{task.certainty:.2f}",
            describe_result(task.result),
            describe_task(task.data),
        ]
        for task in tasks
    ]
    if rows:
        print_table(columns, rows)


def summary_lines(survey: Survey) -> list[str]:
    """Return what there is to say about a survey, besides the page."""
    noun = "a prediction" if survey.contents == "predictions" else "an annotation"
    tasks = "1 task" if survey.tasks == 1 else f"{survey.tasks:,} tasks"
    lines = [f"{tasks} with {noun}, {survey.empty:,} of them empty."]
    if survey.failed.total:
        lines += survey.failed.lines(f"without {noun}")
    if survey.is_sampled:
        lines.append(f"The page shows {len(survey.shown):,} of them, and its statistics are about all.")
    return lines
