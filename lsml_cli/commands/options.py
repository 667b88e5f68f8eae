"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="text-classifier, models/news, models/news@VERSION, file.py:Class or package.module:Class.",
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr; errors only.")]
