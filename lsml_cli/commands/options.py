"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import completion
from lsml_cli.io.formats.registry import FORMATS, READABLE, WRITABLE

if TYPE_CHECKING:
    from lsml_cli.models.spec import ModelSpec
    from lsml_cli.schema.label_config import LabelConfig

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=completion.complete_models,
        help="What predicts: text-classifier, image-classifier, object-detector, ocr; models/news, "
        "models/news@VERSION; file.py:Class, package.module:Class, CLASS@models/news.",
    ),
]
PredictedBy = Annotated[
    str | None,
    typer.Option(
        "--predicted-by",
        metavar="MODEL",
        autocompletion=completion.complete_models,
        help="The version that made the predictions of FILE; tasks that it was trained on are left out.",
    ),
]
LabelConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--label-config",
        "-c",
        metavar="FILE",
        help="Labelling XML of the project. A trained version has its own, and so has a project of lsml init.",
    ),
]
ModelParams = Annotated[
    list[str] | None,
    typer.Option(
        "--with", metavar="KEY=VALUE", help="A parameter of the model; lsml models NAME lists them. Repeat for several."
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps; auto takes the best one.")
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:N or mps, several with commas; auto takes the best one, cuda all GPUs.",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, metavar="N", help="Tasks per batch; each model has a default.")
]
BatchSizeOrAuto = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        metavar="N|auto",
        help="Tasks per batch; each model has a default, auto finds the fastest on this device.",
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"] | None,
    typer.Option("--precision", help="Number format; auto takes the fastest that gives the same predictions."),
]
FetchConcurrency = Annotated[
    int,
    typer.Option("--fetch-concurrency", min=1, metavar="N", help="How many media files are fetched at once."),
]
InputFormat = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="FORMAT",
        autocompletion=completion.complete_readable_formats,
        help=f"Format of a data set: {', '.join(READABLE)}. Default: by content.",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column",
        metavar="NAME",
        help="Of a table (--from csv, tsv, parquet): the column of the labels, several with ;.",
    ),
]
ScoreColumn = Annotated[
    str | None,
    typer.Option("--score-column", metavar="NAME", help="The column of the scores, with --what predictions."),
]
OutputFormat = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        autocompletion=completion.complete_writable_formats,
        help=f"Format to write: {', '.join(WRITABLE)}. Default: tasks of Label Studio.",
    ),
]
Annotation = Annotated[
    Literal["first", "last", "all"],
    typer.Option("--annotation", help="Which annotation of a task counts: ground truths first, skipped ones never."),
]
Threshold = Annotated[
    float | None,
    typer.Option("--threshold", min=0.0, max=1.0, metavar="X", help="Drop regions that score below X."),
]
LabelMap = Annotated[
    Path | None,
    typer.Option("--label-map", metavar="FILE", help='JSON: {"class of the model": "label of the config"}.'),
]
LabelStudioUrl = Annotated[
    str | None,
    typer.Option(
        "--label-studio-url",
        metavar="URL",
        envvar="LABEL_STUDIO_URL",
        show_envvar=False,
        help="The Label Studio that the tasks belong to; its key comes from LABEL_STUDIO_API_KEY.",
    ),
]
Project = Annotated[
    int, typer.Option("--project", min=1, metavar="ID", help="Id of the project: the number in its address.")
]
DocumentRoot = Annotated[
    Path | None,
    typer.Option(
        "--document-root",
        metavar="DIR",
        help="Label Studio's document root here: /data/local-files/?d=... lies below it.",
    ),
]
UploadRoot = Annotated[
    Path | None,
    typer.Option(
        "--upload-root", metavar="DIR", help="Label Studio's media/upload here: /data/upload/... lies below it."
    ),
]
MediaMaps = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="PREFIX=DIR", help="Addresses that begin with PREFIX are files below DIR. Repeat for several."
    ),
]
MediaCache = Annotated[
    Path | None,
    typer.Option("--media-cache", metavar="DIR", help="Keep remote media in this folder and do not fetch them again."),
]
MediaCacheSize = Annotated[
    str, typer.Option("--media-cache-size", metavar="SIZE", help="Largest size of the media cache: 500M, 10G.")
]
SummaryFile = Annotated[
    Path | None,
    typer.Option("--summary", metavar="FILE", help="Also write the summary as JSON; - is stdout."),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file of settings; default: lsml.toml beside the data.",
    ),
]
ShowSettings = Annotated[
    bool, typer.Option("--show-settings", help="Print every setting and where it comes from, then exit.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only: no progress, no summary.")]


def require_label_studio_url(url: str | None) -> str:
    """Return `url`; raise UsageError if neither --label-studio-url nor LABEL_STUDIO_URL gave one."""
    from lsml_cli.errors import UsageError

    if not url:
        raise UsageError(
            "Which Label Studio?", "Give --label-studio-url https://label.example.com, or set LABEL_STUDIO_URL."
        )
    return url


def require_format(option: str, name: str | None, known: Sequence[str]) -> None:
    """Raise UsageError for a format that an option does not take."""
    from lsml_cli.errors import UsageError, suggest_names

    if name is not None and name not in known:
        raise UsageError(f"{option} {name!r} is no format that lsml knows.", suggest_names(name, known, "It has"))


def require_table(input_format: str | None, label_column: str | None, score_column: str | None = None) -> None:
    """Raise UsageError where columns are named and the input is no table."""
    from lsml_cli.errors import UsageError

    entry = FORMATS.get(input_format or "")
    for name in collect_columns(label_column, score_column):
        if entry is None or not entry.is_table:
            tables = ", ".join(known for known in READABLE if FORMATS[known].is_table)
            raise UsageError(f"--{name} is about tables.", f"Name the format of the input with --from: {tables}.")


def collect_columns(label_column: str | None, score_column: str | None = None) -> dict[str, str]:
    """Return the options about columns of a table that were given, by their names."""
    columns = {"label-column": label_column, "score-column": score_column}
    return {name: column for name, column in columns.items() if column is not None}


def load_label_config(path: Path | None, spec: ModelSpec, model_name: str) -> LabelConfig:
    """Load the labelling XML at `path`, the one that a trained version stores, or that of a project of `lsml init`.

    Args:
        path: The value of --label-config.
        spec: The model.
        model_name: The value of --model, which may be the folder of a project.

    Raises:
        UsageError: No file was named, and the model has no label config.
    """
    return require_label_config(find_label_config(path, spec, model_name), model_name)


def require_label_config(config: LabelConfig | None, model_name: str) -> LabelConfig:
    """Return a label config; raise UsageError if there is none."""
    from lsml_cli.errors import UsageError

    if config is None:
        raise UsageError(f"{model_name} needs a label config.", "Name the labelling XML with --label-config FILE.")
    return config


def find_label_config(path: Path | None, spec: ModelSpec, model_name: str) -> LabelConfig | None:
    """Load the label config like `load_label_config`; return None if there is none."""
    from lsml_cli.registry import resolve
    from lsml_cli.schema.label_config import LabelConfig

    return LabelConfig.load(path) if path else resolve.find_label_config(spec, model_name)
