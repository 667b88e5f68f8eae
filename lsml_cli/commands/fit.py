"""`lsml fit`: train a model from annotated tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import completion, options
from lsml_cli.commands.media_options import MediaOptions
from lsml_cli.io.formats.registry import READABLE

if TYPE_CHECKING:
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import OutputError
    from lsml_cli.media.fetcher import Media
    from lsml_cli.models.spec import ModelSpec
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.schema.tasks import Task, UnreadableRecord
    from lsml_cli.training.fit import FitResult


def fit(
    export: Annotated[
        str, typer.Argument(metavar="EXPORT", help="A file of annotated tasks, - for stdin; or a data set.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="What to train: text-classifier, image-classifier, object-detector, ocr; file.py:Class, "
            "package.module:Class; or a version, which is trained again from scratch.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for the versions of this model.")
    ] = None,
    label_config: options.LabelConfigFile = None,
    input_format: options.InputFormat = None,
    label_column: options.LabelColumn = None,
    holdout: Annotated[
        str,
        typer.Option(
            "--holdout",
            metavar="FRACTION|FILE",
            help="Fraction of the tasks to measure on and never train on, 0 for none; or a file of such tasks.",
        ),
    ] = "0.2",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of the hold-out split: another one holds out other tasks.")
    ] = 0,
    annotation_policy: Annotated[
        Literal["first", "last", "all"],
        typer.Option(
            "--annotation",
            help="Which annotation of a task counts: ground truths first, skipped ones never; all learns from each.",
        ),
    ] = "last",
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=VALUE",
            help="Exit 4 and do not promote below this: accuracy=0.98, f1:spam=0.9, category.macro-f1=0.8; repeat.",
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="After the measurement and the gates, train again on all tasks.")
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="Start from the weights of this version, if the model supports that.",
        ),
    ] = None,
    no_promote: Annotated[
        bool, typer.Option("--no-promote", help="Keep the new version, but do not put it into use: compare it first.")
    ] = False,
    skip_unchanged: Annotated[
        bool,
        typer.Option(
            "--skip-unchanged",
            help="Train nothing if the version in use was trained on the same annotations, with the same code, "
            "parameters, label config and split.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be trained on, by side and class, then exit.")
    ] = False,
    model_params: options.ModelParams = None,
    device: options.Device = "auto",
    document_root: options.DocumentRoot = None,
    upload_root: options.UploadRoot = None,
    label_studio_url: options.LabelStudioUrl = None,
    maps: options.MediaMaps = None,
    media_cache: options.MediaCache = None,
    media_cache_size: options.MediaCacheSize = "10G",
    summary: options.SummaryFile = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", help="Write the evaluation on the hold-out as one HTML page; - is stdout."
        ),
    ] = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Train a model on the annotations of EXPORT, measure it on a hold-out, and write a new version.

    The version is promoted: DIR means it from now on wherever a model is named, and DIR@VERSION an older one.
    Accuracy, macro F1 and a table of the classes go to stdout, everything else to stderr.
    Exit code 0: promoted, or nothing to train (--skip-unchanged); 3: done, but some tasks could not be read (promoted,
    unless EXPORT ends too early); 4: kept, but not promoted, because it missed a gate; 1: failed; 2: wrong usage.

    Examples:

        lsml fit export.json --model text-classifier
            --label-config config.xml --output models/news

        lsml fit export.json --model models/news --output models/news
            --fail-under macro-f1=0.9
    """
    _fit(
        FitArguments(
            export=export,
            model=model,
            output=output,
            label_config=label_config,
            input_format=input_format,
            label_column=label_column,
            holdout=_parse_holdout(holdout),
            seed=seed,
            annotation_policy=annotation_policy,
            fail_under=tuple(fail_under or ()),
            refit=refit,
            init_from=init_from,
            promote=not no_promote,
            skip_unchanged=skip_unchanged,
            dry_run=dry_run,
            model_params=tuple(model_params or ()),
            device=device,
            media=MediaOptions(
                document_root, upload_root, label_studio_url, tuple(maps or ()), media_cache, media_cache_size
            ),
            summary=summary,
            report=report,
            quiet=quiet,
        )
    )


@dataclass(frozen=True)
class FitArguments:
    """What `lsml fit` was called with; each field is the option of that name."""

    export: str
    model: str | None
    output: Path | None
    label_config: Path | None
    input_format: str | None
    label_column: str | None
    holdout: float | Path
    seed: int
    annotation_policy: Literal["first", "last", "all"]
    fail_under: tuple[str, ...]
    refit: bool
    init_from: str | None
    promote: bool
    skip_unchanged: bool
    dry_run: bool
    model_params: tuple[str, ...]
    device: str
    media: MediaOptions
    summary: Path | None
    report: Path | None
    quiet: bool


def _fit(arguments: FitArguments) -> None:
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.inference.plan import media_root
    from lsml_cli.io import task_reader
    from lsml_cli.io.output_paths import is_stdout
    from lsml_cli.io.task_source import open_annotated_dataset

    spec = _resolve_spec(arguments)
    spec.require_confirmed()
    options.require_format("--from", arguments.input_format, READABLE)
    options.require_table(arguments.input_format, arguments.label_column)
    config = options.find_label_config(arguments.label_config, spec, arguments.model or spec.name)
    columns = options.collect_columns(arguments.label_column)
    dataset = open_annotated_dataset(arguments.export, arguments.input_format, config, columns)
    config = dataset.label_config if dataset else options.require_label_config(config, arguments.model or spec.name)
    if arguments.output is None and not arguments.dry_run:
        raise UsageError("The new version needs a folder.", "Name a folder for the model's versions: --output DIR")
    _check_files(arguments)
    media = arguments.media.build(media_root(arguments.export))
    media = dataset.locate_media(media) if dataset else media
    device = _find_device(arguments.device, spec)
    stream = task_reader.read_tasks(dataset or arguments.export, controls=frozenset(config.controls))
    with Console(arguments.quiet) as console:
        tasks = stream.report(console, "reading annotations")
        for warning in (*config.warnings, *(dataset.notes if dataset else ())):
            console.note(warning)
        if arguments.dry_run or arguments.output is None:
            unreadable_count = _report_plan(arguments, spec, config, tasks, media, console)
            raise typer.Exit(3 if unreadable_count else 0)
        result = _train(arguments, arguments.output, spec, config, tasks, media, device, console)
        console.end_progress()
        if not is_stdout(arguments.summary):
            summary_file.write_summary(arguments.summary, result.to_json())
        output_error = _report_result(arguments, arguments.output, spec, config, media, result, console)
    result.require_gates_passed()
    if output_error is not None:
        raise output_error
    if result.split.unreadable_count:
        raise typer.Exit(3)


def _check_files(arguments: FitArguments) -> None:
    """Raise UsageError for a report or summary that cannot be written, or that would overwrite an input."""
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.errors import UsageError
    from lsml_cli.evaluation.report import page
    from lsml_cli.io.output_paths import require_different_files, require_one_stdout

    require_one_stdout({"--summary": arguments.summary, "--report": arguments.report})
    summary_file.require_writable(arguments.summary)
    page.require_writable(arguments.report)
    if arguments.report is not None and arguments.holdout == 0:
        raise UsageError("--report has nothing to show: with --holdout 0 nothing is measured.")
    require_different_files(
        {
            "the export": arguments.export,
            "the hold-out": str(arguments.holdout) if isinstance(arguments.holdout, Path) else None,
            "the label config": str(arguments.label_config) if arguments.label_config else None,
        },
        {
            "--summary": str(arguments.summary) if arguments.summary else None,
            "--report": str(arguments.report) if arguments.report else None,
        },
    )


def _find_device(name: str, spec: ModelSpec) -> str:
    """Return the one device to train on; raise UsageError if several are named."""
    from lsml_cli.errors import UsageError
    from lsml_cli.inference.placement import find_devices

    devices = find_devices(name, spec.model_class())
    if len(devices) > 1:
        raise UsageError("A model is trained on one device.", f"Name one: --device {devices[0]}")
    return devices[0]


def _report_plan(
    arguments: FitArguments,
    spec: ModelSpec,
    config: LabelConfig,
    tasks: Iterable[Task | UnreadableRecord],
    media: Media,
    console: Console,
) -> int:
    """Print what a training would learn from and be measured on; return how many tasks could not be read."""
    from lsml_cli.commands.console import fit_report
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.io.output_paths import is_stdout
    from lsml_cli.training.preparation import (
        build_training_spec,
        find_split_history,
        find_unchanged_version,
        resolve_gates,
        validate_options,
    )
    from lsml_cli.training.splits import split_tasks

    training_spec = build_training_spec(spec, arguments.init_from is not None)
    training_spec.build().bind(config, {}, None)
    fail_under = list(arguments.fail_under)
    validate_options(config, arguments.holdout, fail_under, arguments.refit)
    split = split_tasks(
        tasks,
        config,
        holdout=arguments.holdout,
        seed=arguments.seed,
        annotation_policy=arguments.annotation_policy,
        media=media,
        history=find_split_history(training_spec, arguments.output, arguments.holdout, arguments.seed),
    )
    console.end_progress()
    resolve_gates(config, split, fail_under)
    for line in split.unreadable_lines(arguments.export):
        console.note(line, important=True)
    if arguments.skip_unchanged and arguments.output is not None:
        version = find_unchanged_version(training_spec, config, split, arguments.output, arguments.refit)
        if version is not None:
            console.note(fit_report.unchanged_line(version))
    summary_file.write_summary(arguments.summary, split.to_json())
    if not is_stdout(arguments.summary):
        fit_report.print_plan(split)
    return split.unreadable_count


def _train(
    arguments: FitArguments,
    output: Path,
    spec: ModelSpec,
    config: LabelConfig,
    tasks: Iterable[Task | UnreadableRecord],
    media: Media,
    device: str,
    console: Console,
) -> FitResult:
    from lsml_cli.errors import Interrupted
    from lsml_cli.progress import ReportedTraining
    from lsml_cli.training.fit import fit_version

    try:
        return fit_version(
            spec,
            tasks,
            config,
            output,
            holdout=arguments.holdout,
            seed=arguments.seed,
            annotation_policy=arguments.annotation_policy,
            fail_under=list(arguments.fail_under),
            refit=arguments.refit,
            warm_start=arguments.init_from is not None,
            promote=arguments.promote,
            skip_unchanged=arguments.skip_unchanged,
            media=media,
            device=device,
            progress=ReportedTraining(console),
        )
    except KeyboardInterrupt:
        hint = f"To list its versions: lsml versions {output}" if output.is_dir() else None
        raise Interrupted("Interrupted; no version was left half-written.", hint) from None


def _report_result(
    arguments: FitArguments,
    output: Path,
    spec: ModelSpec,
    config: LabelConfig,
    media: Media,
    result: FitResult,
    console: Console,
) -> OutputError | None:
    """Write the report and print the result; return the error if stdout could not be written.

    A summary or report that goes to stdout takes the place of the metrics. The error is returned, not raised: the
    version exists, and the notes about it come first.
    """
    from lsml_cli.commands.console import fit_report, metrics_tables
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.errors import OutputClosed, OutputError
    from lsml_cli.evaluation.report import page
    from lsml_cli.io.output_paths import is_stdout
    from lsml_cli.registry.resolve import model_argument

    def write_report(path: Path) -> None:
        measured_on = arguments.holdout.name if isinstance(arguments.holdout, Path) else "held-out tasks"
        info = page.ReportInfo(measured_on, arguments.media.label_studio_url)
        page.write(path, result.evaluation, result.gate_results, config, media, info)

    if arguments.report is not None and not is_stdout(arguments.report) and not result.unchanged:
        write_report(arguments.report)
    output_error = None
    try:
        if is_stdout(arguments.summary):
            summary_file.write_summary(arguments.summary, result.to_json())
        elif result.unchanged:
            pass
        elif arguments.report is not None and is_stdout(arguments.report):
            write_report(arguments.report)
        else:
            metrics_tables.print_metrics(result.evaluation.controls, "held-out tasks")
    except OutputClosed:
        pass  # the reader of the numbers has seen enough; the version exists all the same
    except OutputError as error:
        output_error = error
    if result.unchanged:
        console.note(fit_report.unchanged_line(result.version))
        for line in result.split.unreadable_lines(arguments.export):
            console.note(line, important=True)
        return output_error
    for line in fit_report.summary_lines(result, model_argument(spec, output)):
        console.note(line)
    for line in (
        *result.split.unreadable_lines(arguments.export),
        *fit_report.truncation_lines(result),
    ):
        console.note(line, important=True)
    return output_error


def _resolve_spec(arguments: FitArguments) -> ModelSpec:
    """Return what to train: the version of --init-from, which --model may only confirm, else --model."""
    from lsml_cli.errors import UsageError
    from lsml_cli.registry import resolve

    model, init_from = arguments.model, arguments.init_from
    params = resolve.parse_params(list(arguments.model_params))
    if init_from is None:
        if model is None:
            from lsml_cli.registry.model_location import BUILT_IN

            names = ", ".join(BUILT_IN)
            raise UsageError("What should be trained?", f"Name a model with --model: {names}, or file.py:Class.")
        return resolve.find_model(model, params)
    spec = resolve.find_model(init_from, params)
    if model is not None and resolve.find_model(model).model_class() is not spec.model_class():
        raise UsageError(
            f"--init-from {init_from} is a {spec.model_class().__name__}, and --model {model} is not.",
            "Leave out --model: the version stores what it is.",
        )
    return spec


def _parse_holdout(text: str) -> float | Path:
    from lsml_cli.errors import UsageError

    try:
        return float(text)
    except ValueError:
        path = Path(text)
    if not path.exists():
        raise UsageError(
            f"--holdout {text!r} is neither a number nor a file.",
            "Give the share of tasks to hold out, 0.2, or a file of annotated tasks.",
        )
    return path
