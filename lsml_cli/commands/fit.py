"""`lsml fit`: annotated tasks in, a new version of a model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import completion, options

if TYPE_CHECKING:
    from lsml_cli.models.spec import ModelSpec


def fit(
    export: Annotated[str, typer.Argument(metavar="EXPORT", help="A file of annotated tasks, or - for stdin.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="What to train: text-classifier, image-classifier, object-detector, ocr; file.py:Class, "
            "package.module:Class; a version: afresh, like it.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the versions of this model live.")
    ] = None,
    label_config: options.LabelConfigFile = None,
    holdout: Annotated[
        str,
        typer.Option(
            "--holdout",
            metavar="FRACTION|FILE",
            help="Share of the tasks to measure with, 0 for none; or a file of annotated tasks never trained on.",
        ),
    ] = "0.2",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Changes which tasks are held out.")] = 0,
    annotation_policy: Annotated[
        Literal["first", "last", "all"],
        typer.Option("--annotation", help="Which counts of several; a ground truth goes first, a skipped one never."),
    ] = "last",
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=VALUE",
            help="Exit 4 and do not promote when below: accuracy=0.98, f1:spam=0.9, category.macro-f1=0.8; repeat.",
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Once measured and past the gates, train again on everything.")
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="Continue from the weights of this version, where the model can.",
        ),
    ] = None,
    no_promote: Annotated[
        bool, typer.Option("--no-promote", help="Keep the version, and leave the one that is in use as it is.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained on, and do nothing else.")
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
        typer.Option("--report", metavar="FILE", help="Write what the hold-out says as one HTML page to look at."),
    ] = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Train a model on the annotations of EXPORT, measure it on a hold-out, and write a new version.

    The version is promoted: DIR means it from now on wherever a model is named, and DIR@VERSION an older one.
    Accuracy, macro F1 and a table of the classes go to stdout, everything else to stderr.
    Exit code 0: promoted; 3: done, but some tasks could not be read (promoted, unless EXPORT ends too early);
    4: kept, but not promoted, because it missed a gate; 1: failed; 2: wrong usage.

    Examples:

        lsml fit export.json --model text-classifier --label-config config.xml --output models/news

        lsml fit export.json --model models/news --output models/news --fail-under macro-f1=0.9
    """
    from lsml_cli.commands.console import fit_report, metrics_tables
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.commands.media_options import build_media
    from lsml_cli.errors import Interrupted, OutputClosed, OutputError, UsageError
    from lsml_cli.evaluation.report import page
    from lsml_cli.inference import plan
    from lsml_cli.inference.placement import find_devices
    from lsml_cli.io import task_reader
    from lsml_cli.io.output_paths import require_different_files
    from lsml_cli.registry import resolve
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.training import fit as training
    from lsml_cli.training.splits import split_tasks

    spec = _resolve_spec(model, init_from, model_params or [])
    config = LabelConfig.load(label_config) if label_config else resolve.stored_label_config(spec)
    if config is None:
        raise UsageError(f"{spec.name} needs a label config.", "Name the labelling XML with --label-config FILE.")
    if output is None and not dry_run:
        raise UsageError("The new version needs a place.", "Name a folder for the model's versions: --output DIR")
    held_out = _parse_holdout(holdout)
    summary_file.require_writable(summary)
    page.require_writable(report)
    if report is not None and held_out == 0:
        raise UsageError("--report has nothing to show: with --holdout 0 nothing is measured.")
    require_different_files(
        {
            "the export": export,
            "the hold-out": str(held_out) if isinstance(held_out, Path) else None,
            "the label config": str(label_config) if label_config else None,
        },
        {"--summary": str(summary) if summary else None, "--report": str(report) if report else None},
    )
    media = build_media(
        root=plan.media_root(export),
        document_root=document_root,
        upload_root=upload_root,
        label_studio_url=label_studio_url,
        maps=maps or [],
        cache=media_cache,
        cache_size=media_cache_size,
    )
    devices = find_devices(device, spec.model_class())
    if len(devices) > 1:
        raise UsageError("A model is trained on one device.", f"Name one: --device {devices[0]}")
    export_tasks = task_reader.read_tasks(export, controls=frozenset(config.controls))
    with Console(quiet) as console:
        for warning in config.warnings:
            console.note(warning)
        if dry_run or output is None:
            start = training.build_training_spec(spec, init_from is not None)
            start.build().bind(config, {}, None)
            training.validate_options(config, held_out, fail_under or [], refit)
            asked = split_tasks(
                export_tasks, config, holdout=held_out, seed=seed, annotation_policy=annotation_policy, media=media
            )
            training.resolve_gates(config, asked, fail_under or [])
            for sentence in fit_report.unreadable_lines(asked, export):
                console.note(sentence, important=True)
            summary_file.write_summary(summary, asked.to_json())
            fit_report.print_plan(asked)
            raise typer.Exit(3 if asked.unreadable_count else 0)
        try:
            found = training.fit_version(
                spec,
                export_tasks,
                config,
                output,
                holdout=held_out,
                seed=seed,
                annotation_policy=annotation_policy,
                fail_under=fail_under or [],
                refit=refit,
                warm_start=init_from is not None,
                promote=not no_promote,
                media=media,
                device=devices[0],
                progress=console.note,
            )
        except KeyboardInterrupt:
            there = f"To see what is there: lsml versions {output}" if output.is_dir() else None
            raise Interrupted("Interrupted; nothing is half-written.", there) from None
        summary_file.write_summary(summary, found.to_json())
        if report is not None:
            measured_on = held_out.name if isinstance(held_out, Path) else "held-out tasks"
            facts = page.ReportInfo(measured_on, label_studio_url)
            page.write(report, found.evaluation, found.gate_results, config, media, facts)
        unsaid = None
        try:
            metrics_tables.print_metrics(found.evaluation.controls, "held-out tasks")
        except OutputClosed:
            pass  # whoever reads the numbers may have enough; the version is there all the same
        except OutputError as error:
            unsaid = error
        for sentence in fit_report.summary_lines(found, resolve.model_argument(spec, output)):
            console.note(sentence)
        for sentence in (*fit_report.unreadable_lines(found.split, export), *fit_report.truncation_lines(found)):
            console.note(sentence, important=True)
    found.require_gates_passed()
    if unsaid is not None:
        raise unsaid
    if found.split.unreadable_count:
        raise typer.Exit(3)


def _resolve_spec(model: str | None, init_from: str | None, params: list[str]) -> ModelSpec:
    """What to train; with `--init-from` the version to continue, which `--model` may only confirm."""
    from lsml_cli.errors import UsageError
    from lsml_cli.registry import resolve

    given = resolve.parse_params(params)
    if init_from is None:
        if model is None:
            listed = ", ".join(resolve.BUILT_IN)
            raise UsageError("What should be trained?", f"Name a model with --model: {listed}, or file.py:Class.")
        return resolve.find_model(model, given)
    spec = resolve.find_model(init_from, given)
    if model is not None and resolve.find_model(model).model_class() is not spec.model_class():
        raise UsageError(
            f"--init-from {init_from} is a {spec.model_class().__name__}, and --model {model} is not.",
            "Leave out --model: the version knows what it is.",
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
