"""`lsml models`: the models that can be called by a plain name."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lsml_cli.catalogue import Entry


def models(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
) -> None:
    """List the models that come with lsml and those that installed packages bring.

    For each its name, what it fills, where it comes from, and what is missing to use it. A package brings a model by
    an entry point of the group lsml.models.

    Example:

        lsml models --json | jq -r '.[].name'
    """
    from lsml_cli.catalogue import list_models

    found = list(list_models())
    if as_json:
        import orjson

        print(orjson.dumps([asdict(entry) for entry in found], option=orjson.OPT_INDENT_2).decode())
    else:
        report(found)


HEADINGS = ("model", "fills", "from", "remarks")


def report(entries: Sequence[Entry]) -> None:
    """Print a table on a terminal, elsewhere plain columns, of which nothing is cut off."""
    rows = [
        (entry.name, "; ".join(entry.fills) or "-", f"{entry.package} {entry.version}", remarks(entry))
        for entry in entries
    ]
    if sys.stdout.isatty():
        _print_table(rows)
        return
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    for row in (HEADINGS, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*HEADINGS, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def remarks(entry: Entry) -> str:
    """What else there is to know about a model, in a few words."""
    if entry.problem is not None:
        return entry.problem
    if entry.install is not None:
        return f"needs: {entry.install}"
    return "lsml fit trains it" if entry.trainable else "-"
