"""`lsml predict`: tasks in, predictions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lsml_cli.commands import options


def predict(
    tasks: Annotated[
        str, typer.Argument(metavar="TASKS", help="A file of tasks, a folder of pictures, or - for standard input.")
    ],
    model: options.ModelName,
    label_config: options.LabelConfigFile = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")] = "-",
    format: Annotated[
        Literal["json", "jsonl"] | None,
        typer.Option("--format", help="From the ending of --output by default; stdout is jsonl."),
    ] = None,
    shape: Annotated[
        Literal["tasks", "predictions"],
        typer.Option(
            "--shape",
            help="tasks: whole tasks that import as they are; predictions: what import/predictions takes.",
        ),
    ] = "tasks",
    batch_size: options.BatchSizeOrAuto = None,
    workers: Annotated[
        int,
        typer.Option("--workers", "-w", min=1, metavar="N", help="Processes (text) or encoding threads (pictures)."),
    ] = 1,
    fetch_concurrency: options.FetchConcurrency = 16,
    device: options.Device = "auto",
    precision: options.Precision = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, metavar="N", help="Only the first N tasks.")] = None,
    threshold: options.Threshold = None,
    label_map: options.LabelMap = None,
    model_version: Annotated[
        str | None, typer.Option("--model-version", metavar="TEXT", help="What predictions carry as model_version.")
    ] = None,
    model_params: options.ModelParams = None,
    input: Annotated[
        Literal["tasks", "paths"],
        typer.Option("--from", help="What TASKS holds; paths: a path or URL on each line (or NUL-separated)."),
    ] = "tasks",
    data_key: Annotated[
        str | None,
        typer.Option(
            "--data-key", metavar="NAME", help="Where paths go in a task's data; what the config shows if not given."
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option("--id-column", metavar="NAME", help="Column or key with the task id, for CSV and bare items."),
    ] = None,
    keep_annotations: Annotated[
        bool, typer.Option("--keep-annotations", help="Write annotations and drafts too (same project only).")
    ] = False,
    skip_predicted: Annotated[
        bool, typer.Option("--skip-predicted", help="Leave tasks alone that carry a prediction of this version.")
    ] = False,
    on_error: Annotated[
        Literal["skip", "fail"], typer.Option("--on-error", help="What one bad task does: skip it, or fail the run.")
    ] = "skip",
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="FILE", help="JSON Lines about each task that failed.")
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option("--max-failures", min=0, metavar="N", help="Give up when more than N tasks failed.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished run; the same bytes come out.")
    ] = False,
    check: Annotated[
        Literal["tasks", "media"] | None,
        typer.Option(
            "--check",
            metavar="[=media]",
            help="Run nothing; look for all that would go wrong. --check=media also asks servers for the media.",
        ),
    ] = None,
    retry_failed: Annotated[
        Path | None,
        typer.Option(
            "--retry-failed", metavar="ERRORS", help="Redo the tasks of an error file in the finished output."
        ),
    ] = None,
    document_root: options.DocumentRoot = None,
    upload_root: options.UploadRoot = None,
    label_studio_url: options.LabelStudioUrl = None,
    maps: options.MediaMaps = None,
    media_cache: options.MediaCache = None,
    media_cache_size: options.MediaCacheSize = "10G",
    summary: options.SummaryFile = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Predict every task of TASKS and write Label Studio predictions.

    TASKS is what Label Studio exports or imports: a JSON array, JSON Lines, JSON_MIN, CSV, TSV, each also gzipped.
    Or it is a folder, and each picture below it is a task; or, with --from paths, a list of paths and URLs.
    Exit code 0: all predicted; 3: finished, but tasks failed; 1: stopped; 2: wrong usage.

    Examples:

        lsml predict tasks.json --model models/news -o predictions.json

        cat tasks.jsonl | lsml predict - --model models/news | head -3

        lsml predict photos/ --model models/rooms -o predictions.json

        find photos -name '*.jpg' | lsml predict - --from paths --model models/rooms
    """
    from dataclasses import replace

    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console, emit
    from lsml_cli.commands.media_options import build_media
    from lsml_cli.errors import UsageError
    from lsml_cli.inference import plan, preflight, run
    from lsml_cli.inference import predict as bulk
    from lsml_cli.inference import retry_failed as retry
    from lsml_cli.io.output_paths import STDOUT, require_different_files
    from lsml_cli.io.stdout import reserve_stdout
    from lsml_cli.registry import resolve
    from lsml_cli.schema.label_config import LabelConfig

    summary_file.require_writable(summary)
    if output == STDOUT:  # which may have been led into the input: `>> tasks.jsonl` would never end
        require_different_files({"the input": tasks}, {"standard output": "/dev/fd/1"})
    with reserve_stdout(), Console(quiet) as console:
        given = resolve.parse_params(model_params or []) | ({"precision": precision} if precision else {})
        spec = resolve.find_model(model, given)
        if model_version is not None:
            spec = replace(spec, model_version_override=model_version)
        config = LabelConfig.load(label_config) if label_config else resolve.stored_label_config(spec)
        if config is None:
            raise UsageError(f"{model} needs a label config.", "Name the labelling XML with --label-config FILE.")
        for warning in config.warnings:
            console.note(warning)
        asked = plan.PredictPlan.from_options(
            spec,
            config,
            plan.PredictOptions(
                input_path=tasks,
                input_kind=input,
                data_key=data_key,
                output=output,
                format=format,
                output_shape=shape,
                batch_size=plan.parse_batch_size(batch_size) if batch_size is not None else None,
                fetch_threads=fetch_concurrency,
                workers=workers,
                device=device,
                limit=limit,
                threshold=threshold,
                label_map=plan.read_label_map(label_map) if label_map else {},
                id_column=id_column,
                keep_annotations=keep_annotations,
                skip_predicted=skip_predicted,
                on_error=on_error,
                errors=str(errors) if errors else None,
                max_failures=max_failures,
                resume=resume,
                summary=str(summary) if summary else None,
                media=build_media(
                    root=plan.media_root(tasks, input),
                    confined=not plan.is_path_input(tasks, input),
                    document_root=document_root,
                    upload_root=upload_root,
                    label_studio_url=label_studio_url,
                    maps=maps or [],
                    cache=media_cache,
                    cache_size=media_cache_size,
                ),
                protected_files={
                    "the label config": str(label_config) if label_config else None,
                    "the label map": str(label_map) if label_map else None,
                    "the model": model.rpartition(":")[0],
                },
            ),
        )
        done: run.PredictSummary | preflight.CheckResult
        if check is not None:
            done = preflight.check_file(asked, console, check_remote=check == "media")
        elif retry_failed is not None:
            done = retry.retry_failed(asked, retry_failed, console)
        else:
            done = bulk.predict_file(asked, console)
    summary_file.write_summary(summary, done.to_json())
    if isinstance(done, preflight.CheckResult):
        emit(*done.summary_lines())
    else:
        for sentence in done.summary_lines():
            console.note(sentence, important=done.failed > 0)
    if done.problem_count if isinstance(done, preflight.CheckResult) else done.failed:
        raise typer.Exit(3)
