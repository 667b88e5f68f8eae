"""Print tables to standard output: drawn to fit on a terminal, plain columns elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace

from lsml_cli.commands.console import table_layout
from lsml_cli.commands.console.stdout import emit, write_stdout
from lsml_cli.commands.console.table_layout import Column
from lsml_cli.terminal import escape_controls, shows_colours

__all__ = ["Column", "emit_folded", "print_table"]

_BOLD, _RESET = "\x1b[1m", "\x1b[0m"


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; no cell is truncated.

    On a terminal it is made to fit: texts are folded, and columns that find no room are left out and named below.
    Elsewhere each row is one line, however long, for `grep` and `less -S`.

    Args:
        columns: The columns, the one that names the row first.
        rows: Cells as text.
    """
    columns = [replace(column, heading=escape_controls(column.heading)) for column in columns]
    rows = [[escape_controls(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        write_stdout(*_plain_lines(columns, rows))
        return
    width = _terminal_width()
    table = table_layout.lay_out(columns, rows, width)
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    rule = ("─" if is_unicode else "-") * min(width, max(map(table_layout.display_width, table.heading), default=0))
    bold, reset = (_BOLD, _RESET) if shows_colours(sys.stdout) else ("", "")
    lines = [*(f"{bold}{line}{reset}" for line in table.heading), *([rule] if rule else []), *table.body]
    if table.dropped:
        note = f"Not shown, for want of room: {', '.join(table.dropped)}. All columns: pipe it into `less -S`."
        lines += ["", *table_layout.fold(note, width)]
    write_stdout("", *lines, "")


def emit_folded(line: str) -> None:
    """Print a line of names and numbers; on a terminal it is folded between words, so that none of them is cut."""
    if not sys.stdout.isatty():
        emit(line)
        return
    write_stdout(*table_layout.fold(escape_controls(line), _terminal_width(), indent=table_layout.INDENT))


def _terminal_width() -> int:
    return max(shutil.get_terminal_size().columns, table_layout.MIN_WIDTH)


def _plain_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    headings = [column.heading for column in columns]
    widths = [max(map(table_layout.display_width, cells)) for cells in zip(headings, *rows, strict=True)]
    return [
        table_layout.GAP.join(
            table_layout.pad(cell, width, right_aligned=column.kind == "number")
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in (headings, *rows)
    ]
