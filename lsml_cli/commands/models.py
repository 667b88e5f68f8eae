"""`lsml models`: the models that can be called by a plain name."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lsml_cli.registry.catalog import ModelInfo


def models(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
) -> None:
    """List the models that come with lsml and those that installed packages bring.

    For each its name, what it fills, where it comes from, and what is missing to use it. A package brings a model by
    an entry point of the group lsml.models.

    Example:

        lsml models --json | jq -r '.[].name'
    """
    from lsml_cli.commands.console.progress import emit
    from lsml_cli.registry.catalog import list_models

    found = list(list_models())
    if as_json:
        import orjson

        emit(orjson.dumps([asdict(entry) for entry in found], option=orjson.OPT_INDENT_2).decode())
    else:
        print_models(found)


def print_models(entries: Sequence[ModelInfo]) -> None:
    """Print a line for each model."""
    from lsml_cli.commands.console.tables import print_table

    rows = [
        (entry.name, "; ".join(entry.fills) or "-", f"{entry.package} {entry.version}", format_remarks(entry))
        for entry in entries
    ]
    print_table(("model", "fills", "from", "remarks"), rows)


def format_remarks(entry: ModelInfo) -> str:
    """What else there is to know about a model, in a few words."""
    if entry.problem is not None:
        return entry.problem
    if entry.install is not None:
        return f"needs: {entry.install}"
    return "lsml fit trains it" if entry.trainable else "-"
