"""`lsml models`: list the models that have a plain name, or the parameters of one model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lsml_cli.commands import completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lsml_cli.registry.catalog import ModelInfo


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            autocompletion=completion.complete_models,
            help="List the parameters of this model instead; any name that --model takes.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
) -> None:
    """List the models that come with lsml and those that installed packages bring.

    For each its name, what it fills, where it comes from, and what is missing to use it. With NAME: the parameters of
    that model, for --with. A package brings a model by an entry point of the group lsml.models.

    Examples:

        lsml models text-classifier

        lsml models --json | jq -r '.[].name'
    """
    from lsml_cli.commands.console.stdout import print_json
    from lsml_cli.registry.catalog import get_model, list_models

    entries = list(list_models()) if name is None else [get_model(name)]
    if as_json:
        print_json([asdict(entry) for entry in entries])
    elif name is None:
        print_models(entries)
    else:
        print_params(entries[0])


def print_models(entries: Sequence[ModelInfo]) -> None:
    """Print a line for each model."""
    from lsml_cli.commands.console.stdout import emit
    from lsml_cli.commands.console.tables import Column, print_table
    from lsml_cli.errors import format_list

    rows = [
        (entry.name, "; ".join(entry.fills) or "-", f"{entry.package} {entry.version}", format_remarks(entry))
        for entry in entries
    ]
    columns = (Column("model"), Column("fills", "text"), Column("from", "text"), Column("remarks", "text"))
    print_table(columns, rows)
    users: dict[str, list[str]] = {}
    for entry in entries:
        if needs_command(entry):
            users.setdefault(entry.install or "", []).append(entry.name)
    for command, names in users.items():
        emit("", f"To use {format_list(names)}, run:", f"  {command}")


def needs_command(entry: ModelInfo) -> bool:
    """Tell whether a command has to be run before the model can be used."""
    from lsml_cli.runtime import is_one_file

    return entry.problem is None and entry.install is not None and not is_one_file()


def format_remarks(entry: ModelInfo) -> str:
    """Summarize in a few words what else there is to know about a model; a command stands below the table."""
    if entry.problem is not None:
        return entry.problem
    if entry.install is not None:
        return "needs more, see below" if needs_command(entry) else entry.install
    return "lsml fit trains it" if entry.trainable else "-"


def print_params(entry: ModelInfo) -> None:
    """Print a line for each parameter of a model."""
    import orjson

    from lsml_cli.commands.console.stdout import emit
    from lsml_cli.commands.console.tables import Column, print_table

    if not entry.params:
        emit(f"{entry.name} takes any parameter." if entry.params is None else f"{entry.name} has no parameters.")
        return
    rows = [
        (
            parameter.name,
            orjson.dumps(parameter.default).decode(),
            f"{parameter.help} ({parameter.allowed})" if parameter.help else parameter.allowed,
        )
        for parameter in entry.params
    ]
    print_table((Column("parameter"), Column("default", "text"), Column("meaning", "text")), rows)
