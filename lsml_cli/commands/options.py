"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsml_cli.commands import completion

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=completion.models,
        help="text-classifier, models/news, models/news@VERSION, file.py:Class, package.mod:Class, CLASS@models/news.",
    ),
]
LabelConfigFile = Annotated[
    Path | None,
    typer.Option("--label-config", "-c", metavar="FILE", help="Labelling XML. A trained version remembers its own."),
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="KEY=VALUE", help="A parameter of the model; repeat for several."),
]
SummaryFile = Annotated[
    Path | None, typer.Option("--summary", metavar="FILE", help="Write the summary as JSON as well.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings; lsml.toml beside the data if not given. Flags win."),
]
ShowSettings = Annotated[
    bool, typer.Option("--show-settings", help="Print every setting and where it comes from, and do nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr; errors only.")]
