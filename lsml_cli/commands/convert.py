"""`lsml convert`: write annotations or predictions in another format, or tasks from a data set in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lsml_cli.commands import options
from lsml_cli.commands.media_options import MediaOptions
from lsml_cli.io.formats.registry import FORMATS, READABLE, WRITABLE

if TYPE_CHECKING:
    from lsml_cli.io.formats.convert import ConvertOptions, ConvertResult
    from lsml_cli.io.formats.dataset_writer import Side
    from lsml_cli.io.task_source import TaskSource
    from lsml_cli.media.fetcher import Media
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.schema.tasks import Task

DEFAULT_HOLDOUT = 0.2  # as in lsml fit


def _describe_variants() -> str:
    return "; ".join(f"of {name}: {', '.join(entry.variants)}" for name, entry in FORMATS.items() if entry.variants)


def convert(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="A file of tasks, - for stdin; or a data set.")],
    output_format: options.OutputFormat = None,
    input_format: options.InputFormat = None,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="DIR|FILE", help="With --to a folder that is made, else a file or -."),
    ] = "-",
    what: Annotated[
        Literal["annotations", "predictions"],
        typer.Option("--what", help="What is written; of a data set, what its labels become."),
    ] = "annotations",
    label_config: Annotated[
        Path | None,
        typer.Option("--label-config", "-c", metavar="FILE", help="Labelling XML: its controls and labels count."),
    ] = None,
    label_config_out: Annotated[
        Path | None,
        typer.Option(
            "--label-config-out", metavar="FILE", help="Write labelling XML that fits the data set; - is stdout."
        ),
    ] = None,
    annotation_policy: options.Annotation = "last",
    threshold: options.Threshold = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, metavar="N", help="Only the first N tasks.")] = None,
    data_key: Annotated[
        str | None,
        typer.Option("--data-key", metavar="NAME", help="Key of a task's data that has the image or text."),
    ] = None,
    label_column: options.LabelColumn = None,
    score_column: options.ScoreColumn = None,
    media_prefix: Annotated[
        str | None,
        typer.Option(
            "--media-prefix",
            metavar="TEXT",
            help="What tasks have before the path of a file: /data/local-files/?d=photos/.",
        ),
    ] = None,
    images: Annotated[
        Literal["none", "link", "copy"],
        typer.Option("--images", help="Files of images and sounds: leave, link, or copy them; both fetch remote ones."),
    ] = "none",
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant", metavar="NAME", help=f"{_describe_variants()}. Default: by label config, or content."
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            "--holdout",
            min=0.0,
            max=0.99,
            metavar="FRACTION",
            help="Share of the tasks to validate on, 0 for none: those that lsml fit holds out. Default: 0.2 if the "
            "format keeps them apart.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of the hold-out split: another one holds out other tasks.")
    ] = 0,
    format: Annotated[
        Literal["json", "jsonl"] | None,
        typer.Option("--format", help="Of tasks. Default: by the suffix of --output; stdout is jsonl."),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", metavar="FILE", help="Write a JSON line about each task that failed; - is stdout."),
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
    """Write the annotations or predictions of INPUT in another format, or make tasks of a data set in one.

    With --to, a folder is made, which appears when it is complete. Without, INPUT is a data set, and tasks are written
    that Label Studio imports, with a label config that fits (--label-config-out).
    Exit code 0: all converted; 3: finished, but tasks failed; 1: failed; 2: wrong usage.

    Examples:

        lsml convert export.json --to coco -o coco/

        lsml convert predictions.json --to coco -o results/
            --what predictions --threshold 0.5

        lsml convert export.json --to yolo -o yolo/ -c config.xml --images link

        lsml convert coco/annotations.json -o tasks.json
            --label-config-out config.xml
    """
    _convert(
        ConvertArguments(
            input=input,
            input_format=input_format,
            output_format=output_format,
            output=output,
            what=what,
            label_config=label_config,
            label_config_out=label_config_out,
            annotation_policy=annotation_policy,
            threshold=threshold,
            limit=limit,
            data_key=data_key,
            label_column=label_column,
            score_column=score_column,
            media_prefix=media_prefix,
            images=images,
            variant=variant,
            holdout=holdout,
            seed=seed,
            format=format,
            errors=errors,
            media=MediaOptions(
                document_root, upload_root, label_studio_url, tuple(maps or ()), media_cache, media_cache_size
            ),
            summary=summary,
            quiet=quiet,
        )
    )


@dataclass(frozen=True)
class ConvertArguments:
    """What `lsml convert` was called with; each field is the option of that name."""

    input: str
    input_format: str | None
    output_format: str | None
    output: str
    what: Literal["annotations", "predictions"]
    label_config: Path | None
    label_config_out: Path | None
    annotation_policy: Literal["first", "last", "all"]
    threshold: float | None
    limit: int | None
    data_key: str | None
    label_column: str | None
    score_column: str | None
    media_prefix: str | None
    images: Literal["none", "link", "copy"]
    variant: str | None
    holdout: float | None
    seed: int
    format: Literal["json", "jsonl"] | None
    errors: Path | None
    media: MediaOptions
    summary: Path | None
    quiet: bool


def _convert(arguments: ConvertArguments) -> None:
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console, is_on_terminal
    from lsml_cli.io.formats.convert import convert as convert_source
    from lsml_cli.io.formats.convert import require_convertible
    from lsml_cli.io.reserved_stdout import reserve_stdout

    _check_usage(arguments)
    config = _load_config(arguments)
    allows_bar = not is_on_terminal(arguments.output)
    with (
        reserve_stdout(),
        Console(arguments.quiet, allows_bar=allows_bar) as console,
        _open_source(arguments, config) as source,
    ):
        require_convertible(arguments.output_format, source)
        found_config = getattr(source, "label_config", config)
        for warning in found_config.warnings if found_config else ():
            console.note(warning)
        result = convert_source(source, _build_options(arguments, found_config, source), console)
        _write_label_config(arguments, found_config)
    summary_file.write_summary(arguments.summary, result.to_json())
    _report(arguments, result, console)


def _report(arguments: ConvertArguments, result: ConvertResult, console: Any) -> None:
    for line in result.summary_lines():
        console.note(line, important=result.failed > 0)
    entry = FORMATS.get(arguments.output_format or "")
    has_images = arguments.images != "none" or (entry is not None and entry.is_made_of_images)
    if entry is not None and entry.holds_images and not has_images and result.written:
        console.note("The images are not in the folder; --images copy or --images link puts them there.")
    if result.failed:
        raise typer.Exit(3)


def _check_usage(arguments: ConvertArguments) -> None:
    """Raise UsageError for options that do not go together, and for files that cannot be written."""
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.errors import UsageError, format_list
    from lsml_cli.io.output_paths import (
        is_stdout,
        require_different_files,
        require_one_stdout,
        resolve_output_path,
    )

    options.require_format("--from", arguments.input_format, READABLE)
    options.require_format("--to", arguments.output_format, WRITABLE)
    options.require_table(arguments.input_format, arguments.label_column, arguments.score_column)
    summary_file.require_writable(arguments.summary)
    require_one_stdout(
        {
            "--output": arguments.output if arguments.output_format is None else None,
            "--errors": arguments.errors,
            "--label-config-out": arguments.label_config_out,
            "--summary": arguments.summary,
        }
    )
    if arguments.label_config_out is not None and not is_stdout(arguments.label_config_out):
        resolve_output_path(str(arguments.label_config_out))
    if arguments.output_format is not None:
        if is_stdout(arguments.output):
            raise UsageError("A data set is a folder.", "Name the folder that is made: --output DIR")
        entry = FORMATS[arguments.output_format]
        if arguments.images != "none" and not (entry.holds_images or entry.holds_sounds):
            raise UsageError(f"--images says nothing: {entry.title} has no files of its own.", "Leave it out.")
        if arguments.holdout and not entry.has_split:
            names = format_list(name for name in WRITABLE if FORMATS[name].has_split)
            raise UsageError(
                f"{entry.title} has no place for a hold-out.", f"Leave --holdout out; formats that have one: {names}."
            )
    _check_variant(arguments)
    require_different_files(
        {
            "the input": arguments.input,
            "the label config": str(arguments.label_config) if arguments.label_config else None,
        },
        {
            "--output": arguments.output,
            "--errors": str(arguments.errors) if arguments.errors else None,
            "--summary": str(arguments.summary) if arguments.summary else None,
            "--label-config-out": str(arguments.label_config_out) if arguments.label_config_out else None,
        },
    )


def _check_variant(arguments: ConvertArguments) -> None:
    """Raise UsageError for a variant that neither the input nor the output has."""
    from lsml_cli.errors import UsageError, suggest_names

    names = [name for name in (arguments.output_format, arguments.input_format) if name is not None]
    known = [variant for name in names for variant in FORMATS[name].variants]
    if arguments.variant is not None and arguments.variant not in known:
        formats = " and ".join(FORMATS[name].title for name in names) or "A data set that is not named with --from"
        raise UsageError(
            f"{formats} has no variant {arguments.variant!r}.", suggest_names(arguments.variant, known, "Variants")
        )


def _load_config(arguments: ConvertArguments) -> LabelConfig | None:
    from lsml_cli.schema.label_config import LabelConfig

    return LabelConfig.load(arguments.label_config) if arguments.label_config else None


def _open_source(arguments: ConvertArguments, config: LabelConfig | None) -> TaskSource:
    from lsml_cli.io.formats.dataset_source import ReadOptions
    from lsml_cli.io.task_source import open_task_source

    read_options = ReadOptions(
        config,
        arguments.what,
        arguments.data_key,
        arguments.media_prefix,
        _output_folder(arguments),
        _variant_of(arguments, arguments.input_format),
        columns=options.collect_columns(arguments.label_column, arguments.score_column),
    )
    return open_task_source(arguments.input, dataset_format=arguments.input_format, read_options=read_options)


def _output_folder(arguments: ConvertArguments) -> Path | None:
    """Return the folder of the tasks that are written, which paths in them begin at; None for the working folder."""
    from lsml_cli.io.output_paths import is_stream

    is_file = arguments.output_format is None and not is_stream(arguments.output)
    return Path(arguments.output).parent if is_file else None


def _variant_of(arguments: ConvertArguments, name: str | None) -> str | None:
    """Return the variant that was named, if a format has it."""
    return arguments.variant if name is not None and arguments.variant in FORMATS[name].variants else None


def _build_options(arguments: ConvertArguments, config: LabelConfig | None, source: TaskSource) -> ConvertOptions:
    from lsml_cli.inference.plan import media_root
    from lsml_cli.io.formats.convert import ConvertOptions
    from lsml_cli.io.formats.dataset_source import DatasetSource

    root = Path() if isinstance(source, DatasetSource) else media_root(arguments.input)
    media = arguments.media.build(root)
    media = source.locate_media(media) if isinstance(source, DatasetSource) else media
    return ConvertOptions(
        output_format=arguments.output_format,
        output=arguments.output,
        format=arguments.format,
        config=config,
        content=arguments.what,
        threshold=arguments.threshold,
        annotation_policy=arguments.annotation_policy,
        limit=arguments.limit,
        data_key=arguments.data_key,
        images=arguments.images,
        errors=str(arguments.errors) if arguments.errors else None,
        media=media,
        variant=_variant_of(arguments, arguments.output_format),
        side=_choose_side(arguments, config, media),
    )


def _choose_side(
    arguments: ConvertArguments, config: LabelConfig | None, media: Media
) -> Callable[[Task], Side] | None:
    """Return the function that tells on which side of the split a task is, as `lsml fit` has it; None without one."""
    has_split = arguments.output_format is not None and FORMATS[arguments.output_format].has_split
    share = (DEFAULT_HOLDOUT if arguments.holdout is None else arguments.holdout) if has_split else 0.0
    if not share:
        return None
    from lsml_cli.io.formats.image_set import make_image_config
    from lsml_cli.training.splits import is_held_out

    def side(task: Task) -> Side:
        """Fall back on the image where no label config tells what tasks show."""
        shown = config or make_image_config(task, arguments.data_key)
        return "val" if is_held_out(task, shown, share, arguments.seed, media) else "train"

    return side


def _write_label_config(arguments: ConvertArguments, config: LabelConfig | None) -> None:
    from lsml_cli.errors import UsageError
    from lsml_cli.io.output import write_document

    if arguments.label_config_out is None:
        return
    if config is None:
        raise UsageError("There is no label config to write.", "Leave --label-config-out out: INPUT is no data set.")
    write_document(arguments.label_config_out, config.xml.encode(), "The label config")
