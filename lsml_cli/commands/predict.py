"""`lsml predict`: predict tasks in bulk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import completion, options
from lsml_cli.commands.media_options import MediaOptions
from lsml_cli.io.formats.registry import DATASETS

if TYPE_CHECKING:
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.inference.plan import PredictOptions, PredictPlan
    from lsml_cli.schema.label_config import LabelConfig


def predict(
    tasks: Annotated[
        str, typer.Argument(metavar="TASKS", help="A file of tasks, a folder of images, or - for standard input.")
    ],
    model: options.ModelName,
    label_config: options.LabelConfigFile = None,
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
    shape: Annotated[
        Literal["tasks", "predictions"],
        typer.Option(
            "--shape",
            help="tasks: whole tasks, ready to import; predictions: records for import/predictions of the project "
            "that has the tasks.",
        ),
    ] = "tasks",
    batch_size: options.BatchSizeOrAuto = None,
    workers: Annotated[
        int,
        typer.Option("--workers", "-w", min=1, metavar="N", help="Processes (text) or encoding threads (images)."),
    ] = 1,
    fetch_concurrency: options.FetchConcurrency = 16,
    device: options.Devices = "auto",
    precision: options.Precision = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, metavar="N", help="Only the first N tasks.")] = None,
    threshold: options.Threshold = None,
    label_map: options.LabelMap = None,
    model_version: Annotated[
        str | None,
        typer.Option(
            "--model-version",
            metavar="TEXT",
            help="model_version of the predictions; default: name and version of the model.",
        ),
    ] = None,
    model_params: options.ModelParams = None,
    input: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FORMAT",
            autocompletion=completion.complete_input_kinds,
            help="What TASKS holds: tasks; paths, one path or URL a line, or NUL-separated; lines, one text a line; "
            f"or a data set: {', '.join(DATASETS)}.",
        ),
    ] = "tasks",
    data_key: Annotated[
        str | None,
        typer.Option(
            "--data-key",
            metavar="NAME",
            help="Key of a task's data that gets the path or the line; default: by the label config.",
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id-column",
            metavar="NAME",
            help="Column (CSV) or key (bare items) with the task id; without it, id is data.",
        ),
    ] = None,
    keep_annotations: Annotated[
        bool, typer.Option("--keep-annotations", help="Also write annotations and drafts (for the same project only).")
    ] = False,
    skip_predicted: Annotated[
        bool, typer.Option("--skip-predicted", help="Skip tasks that already have a prediction of this version.")
    ] = False,
    on_error: Annotated[
        Literal["skip", "fail"], typer.Option("--on-error", help="After a task that fails: skip it, or fail the run.")
    ] = "skip",
    errors: Annotated[
        Path | None,
        typer.Option(
            "--errors",
            metavar="FILE",
            help="Write a JSON line about each task that failed: id, place, stage, reason; - is stdout.",
        ),
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option("--max-failures", min=0, metavar="N", help="Stop when more than N tasks failed.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run; the output is the same, byte by byte.")
    ] = False,
    check: Annotated[
        Literal["tasks", "media"] | None,
        typer.Option(
            "--check",
            metavar="[=media]",
            help="Predict nothing; report what would go wrong. --check=media also asks servers for the media.",
        ),
    ] = None,
    retry_failed: Annotated[
        Path | None,
        typer.Option(
            "--retry-failed", metavar="ERRORS", help="Redo the tasks of an error file, in the finished output."
        ),
    ] = None,
    document_root: options.DocumentRoot = None,
    upload_root: options.UploadRoot = None,
    label_studio_url: options.LabelStudioUrl = None,
    maps: options.MediaMaps = None,
    media_cache: options.MediaCache = None,
    media_cache_size: options.MediaCacheSize = "10G",
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", help="Also write a page to look at the predictions, as lsml show does."
        ),
    ] = None,
    summary: options.SummaryFile = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Predict every task of TASKS and write Label Studio predictions.

    TASKS is what Label Studio exports or imports: a JSON array, JSON Lines, JSON_MIN, CSV, TSV, each also gzipped.
    A folder means that each image below it is a task; --from paths reads a list of paths and URLs, --from lines texts.
    Exit code 0: all predicted; 3: finished, but tasks failed; 1: stopped; 2: wrong usage.

    Examples:

        lsml predict tasks.json --model models/news -o predictions.json

        cat tasks.jsonl | lsml predict - --model models/news | head -3

        lsml predict photos/ --model models/rooms -o predictions.json

        find photos -name '*.jpg' | lsml predict - --from paths --model models/rooms
    """
    _predict(
        PredictArguments(
            tasks=tasks,
            model=model,
            label_config=label_config,
            output=output,
            format=format,
            shape=shape,
            batch_size=batch_size,
            workers=workers,
            fetch_concurrency=fetch_concurrency,
            device=device,
            precision=precision,
            limit=limit,
            threshold=threshold,
            label_map=label_map,
            model_version=model_version,
            model_params=tuple(model_params or ()),
            input_kind=input,
            data_key=data_key,
            id_column=id_column,
            keep_annotations=keep_annotations,
            skip_predicted=skip_predicted,
            on_error=on_error,
            errors=errors,
            max_failures=max_failures,
            resume=resume,
            check=check,
            retry_failed=retry_failed,
            media=MediaOptions(
                document_root, upload_root, label_studio_url, tuple(maps or ()), media_cache, media_cache_size
            ),
            report=report,
            summary=summary,
            quiet=quiet,
        )
    )


@dataclass(frozen=True)
class PredictArguments:
    """What `lsml predict` was called with; each field is the option of that name."""

    tasks: str
    model: str
    label_config: Path | None
    output: str
    format: Literal["json", "jsonl"] | None
    shape: Literal["tasks", "predictions"]
    batch_size: str | None
    workers: int
    fetch_concurrency: int
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    limit: int | None
    threshold: float | None
    label_map: Path | None
    model_version: str | None
    model_params: tuple[str, ...]
    input_kind: str
    data_key: str | None
    id_column: str | None
    keep_annotations: bool
    skip_predicted: bool
    on_error: Literal["skip", "fail"]
    errors: Path | None
    max_failures: int | None
    resume: bool
    check: Literal["tasks", "media"] | None
    retry_failed: Path | None
    media: MediaOptions
    report: Path | None
    summary: Path | None
    quiet: bool


def _predict(arguments: PredictArguments) -> None:
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console, is_on_terminal
    from lsml_cli.commands.console.stdout import emit
    from lsml_cli.inference import preflight
    from lsml_cli.inference.predict import predict_file
    from lsml_cli.inference.predict_summary import PredictSummary
    from lsml_cli.inference.retry_failed import retry_failed
    from lsml_cli.io.output_paths import is_stdout, require_different_files, require_one_stdout
    from lsml_cli.io.reserved_stdout import reserve_stdout

    options.require_format("--from", arguments.input_kind, ("tasks", "paths", "lines", *DATASETS))
    summary_file.require_writable(arguments.summary)
    _check_report(arguments)
    records = arguments.output if arguments.check is None else None
    require_one_stdout(
        {
            "--output": records,
            "--errors": arguments.errors,
            "--report": arguments.report,
            "--summary": arguments.summary,
        }
    )
    if is_stdout(arguments.output):  # stdout may be redirected into the input: `>> tasks.jsonl` would never end
        require_different_files({"the input": arguments.tasks}, {"standard output": "/dev/fd/1"})
    result: PredictSummary | preflight.CheckResult
    allows_bar = not is_on_terminal(arguments.output)
    with reserve_stdout(), Console(arguments.quiet, allows_bar=allows_bar) as console:
        plan = _make_plan(arguments, console)
        if arguments.check is not None:
            result = preflight.check_file(plan, console, check_remote=arguments.check == "media")
        elif arguments.retry_failed is not None:
            result = retry_failed(plan, arguments.retry_failed, console)
        else:
            result = predict_file(plan, console)
        if arguments.report is not None:
            _write_report(arguments, plan.binding.config, console)
    summary_file.write_summary(arguments.summary, result.to_json())
    if isinstance(result, preflight.CheckResult):
        if not is_stdout(arguments.summary):
            emit(*result.summary_lines())
        has_problems = bool(result.problem_count)
    else:
        for line in result.summary_lines():
            console.note(line, important=result.failed > 0)
        has_problems = bool(result.failed)
    if has_problems:
        raise typer.Exit(3)


def _check_report(arguments: PredictArguments) -> None:
    """Raise UsageError if --report is impossible: it is made from the finished output."""
    from lsml_cli.errors import UsageError
    from lsml_cli.evaluation.report.page import require_writable
    from lsml_cli.io.output_paths import require_different_files
    from lsml_cli.io.output_target import OutputTarget

    if arguments.report is None:
        return
    if arguments.check is not None:
        raise UsageError("--check predicts nothing, so there is nothing to look at.", "Leave out --report.")
    if OutputTarget(arguments.output).is_stream:
        raise UsageError("--report is made from the file of predictions.", "Name it: --output predictions.json")
    require_writable(arguments.report)
    require_different_files(
        {
            "the input": arguments.tasks,
            "--output": arguments.output,
            "--errors": str(arguments.errors) if arguments.errors else None,
            "--summary": str(arguments.summary) if arguments.summary else None,
            "the label config": str(arguments.label_config) if arguments.label_config else None,
        },
        {"--report": str(arguments.report)},
    )


def _write_report(arguments: PredictArguments, config: LabelConfig, console: Console) -> None:
    """Survey the predictions that were written, and write the page."""
    from lsml_cli.evaluation.report import survey_page
    from lsml_cli.evaluation.survey import survey_file
    from lsml_cli.inference import plan
    from lsml_cli.io.output_paths import is_stdout

    if arguments.report is None:
        return
    survey = survey_file(
        arguments.output,
        config=config,
        contents="predictions",
        model_version=arguments.model_version,
        reporter=console,
    )
    console.end_progress()
    is_path_input = plan.is_path_input(arguments.tasks, arguments.input_kind)
    root = plan.media_root(arguments.tasks, arguments.input_kind)
    media = arguments.media.build(root, confined=not is_path_input)
    survey_page.write(arguments.report, survey, config, media, arguments.media.label_studio_url)
    if not is_stdout(arguments.report):
        console.note(f"Wrote {arguments.report}.")


def _make_plan(arguments: PredictArguments, console: Console) -> PredictPlan:
    """Resolve the model and the label config, and check that everything fits together."""
    from lsml_cli.inference import plan
    from lsml_cli.registry import resolve

    params = resolve.parse_params(list(arguments.model_params))
    if arguments.precision:
        params = params | {"precision": arguments.precision}
    spec = resolve.find_model(arguments.model, params)
    if arguments.model_version is not None:
        spec = replace(spec, model_version_override=arguments.model_version)
    config = options.load_label_config(arguments.label_config, spec, arguments.model)
    for warning in config.warnings:
        console.note(warning)
    return plan.PredictPlan.from_options(spec, config, _plan_options(arguments))


def _plan_options(arguments: PredictArguments) -> PredictOptions:
    from lsml_cli.inference import plan

    is_path_input = plan.is_path_input(arguments.tasks, arguments.input_kind)
    return plan.PredictOptions(
        input_path=arguments.tasks,
        input_kind=arguments.input_kind,
        data_key=arguments.data_key,
        output=arguments.output,
        format=arguments.format,
        output_shape=arguments.shape,
        batch_size=plan.parse_batch_size(arguments.batch_size) if arguments.batch_size is not None else None,
        fetch_threads=arguments.fetch_concurrency,
        workers=arguments.workers,
        device=arguments.device,
        limit=arguments.limit,
        threshold=arguments.threshold,
        label_map=plan.read_label_map(arguments.label_map) if arguments.label_map else {},
        id_column=arguments.id_column,
        keep_annotations=arguments.keep_annotations,
        skip_predicted=arguments.skip_predicted,
        on_error=arguments.on_error,
        errors=str(arguments.errors) if arguments.errors else None,
        max_failures=arguments.max_failures,
        resume=arguments.resume,
        summary=str(arguments.summary) if arguments.summary else None,
        media=arguments.media.build(plan.media_root(arguments.tasks, arguments.input_kind), confined=not is_path_input),
        protected_files={
            "the label config": str(arguments.label_config) if arguments.label_config else None,
            "the label map": str(arguments.label_map) if arguments.label_map else None,
            "the model": arguments.model.rpartition(":")[0],
        },
    )
