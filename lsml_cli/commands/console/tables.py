"""Print tables to standard output: drawn on a terminal, plain columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from lsml_cli.commands.console.stdout import emit, write_stdout
from lsml_cli.terminal import escape_controls


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right_aligned: Collection[int] = ()) -> None:
    """Print one row per line below the headings; no cell is truncated.

    Args:
        headings: Names of the columns.
        rows: Cells as text.
        right_aligned: Positions of the columns that hold numbers.
    """
    headings = [escape_controls(heading) for heading in headings]
    rows = [[escape_controls(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        write_stdout(_render_table(headings, rows, right_aligned))
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = []
    for row in (headings, *rows):
        cells = [
            cell.rjust(width) if i in right_aligned else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    emit(*lines)


def _render_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right_aligned: Collection[int]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        # Long remarks are folded; a name or a number in two lines would be another one.
        last = i == len(headings) - 1 and i not in right_aligned
        table.add_column(
            Text(heading), justify="right" if i in right_aligned else "left", no_wrap=not last, overflow="fold"
        )
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    console = Console(highlight=False)
    with console.capture() as drawn:
        console.print(table)
    return drawn.get().removesuffix("\n")
