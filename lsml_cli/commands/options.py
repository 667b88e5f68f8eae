"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lsml_cli.commands import completion

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=completion.complete_models,
        help="text-classifier, models/news, models/news@VERSION, file.py:Class, package.mod:Class, CLASS@models/news.",
    ),
]
LabelConfigFile = Annotated[
    Path | None,
    typer.Option("--label-config", "-c", metavar="FILE", help="Labelling XML. A trained version remembers its own."),
]
ModelParams = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="KEY=VALUE", help="A parameter of the model; repeat for several."),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N, mps; several with commas.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, metavar="N", help="Tasks per forward; the model knows a good one.")
]
BatchSizeOrAuto = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        metavar="N|auto",
        help="Tasks per forward; the model knows a good one, auto finds the best for this device.",
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"] | None,
    typer.Option("--precision", help="Of models that have one; auto takes the quickest that gives the same answers."),
]
FetchConcurrency = Annotated[
    int,
    typer.Option("--fetch-concurrency", min=1, metavar="N", help="Media that are fetched at a time."),
]
Threshold = Annotated[
    float | None,
    typer.Option("--threshold", min=0.0, max=1.0, metavar="X", help="Leave out what the model is less sure of."),
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
Project = Annotated[int, typer.Option("--project", min=1, metavar="ID", help="The project in Label Studio, its id.")]
DocumentRoot = Annotated[
    Path | None,
    typer.Option(
        "--document-root", metavar="DIR", help="Where /data/local-files/?d=... lies here: Label Studio's document root."
    ),
]
UploadRoot = Annotated[
    Path | None,
    typer.Option(
        "--upload-root", metavar="DIR", help="Where /data/upload/... lies here: media/upload of Label Studio's data."
    ),
]
MediaMaps = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="PREFIX=DIR", help="Media whose value begins so lie in this folder; repeat."),
]
MediaCache = Annotated[
    Path | None,
    typer.Option("--media-cache", metavar="DIR", help="Keep remote media there, and do not fetch them again."),
]
MediaCacheSize = Annotated[
    str, typer.Option("--media-cache-size", metavar="SIZE", help="Most that is kept: 500M, 10G.")
]
SummaryFile = Annotated[
    Path | None, typer.Option("--summary", metavar="FILE", help="Write the summary as JSON as well.")
]
SettingsFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings; lsml.toml beside the data if not given. Flags win."),
]
ShowSettings = Annotated[
    bool, typer.Option("--show-settings", help="Print every setting and where it comes from, and do nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr; errors only.")]


def require_label_studio_url(url: str | None) -> str:
    """Raises UsageError where a command that talks to Label Studio was not told where that is."""
    from lsml_cli.errors import UsageError

    if not url:
        raise UsageError(
            "Which Label Studio?", "Give --label-studio-url https://label.example.com, or set LABEL_STUDIO_URL."
        )
    return url
