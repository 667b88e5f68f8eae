"""Lay out a table for a terminal of some width: names and numbers stay whole, whatever its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

MIN_WIDTH = 10  # characters; nothing can be laid out for less
GAP = "  "  # between two columns
INDENT = "  "  # of what continues a row
MIN_TEXT_WIDTH = 20  # characters of a column of folded text; where it has less room, its cells go below their rows
MIN_KEY_WIDTH = 8
EMPTY_CELLS = ("", "-")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: What stands above it; on a narrow terminal it is folded between words.
        kind: "name" and "number" are never folded, numbers are aligned right; "text" is folded between words. A name in
            the first column that is too long gets a line of its own, a text with too long words lines below its row.
        drop: Columns that do not fit are left out, those of 2 first, then those of 3, …; 1 is for what another column
            tells as well, and goes even before a name gets a line of its own; 0: never. Texts and the first column
            need no such number, as there is always room for them.
    """

    heading: str
    kind: Literal["name", "number", "text"] = "name"
    drop: int = 0


class TableLines(NamedTuple):
    """A table that is laid out: `dropped` has the headings of the columns that did not fit."""

    heading: list[str]
    body: list[str]
    dropped: list[str]


@dataclass(frozen=True)
class _Layout:
    """Width of each column by its position; a text without a width is laid out below its row."""

    widths: dict[int, int]
    below: tuple[int, ...] = ()


def lay_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> TableLines:
    """Lay out a table so that no line is wider than `width`, without cutting anything.

    It tries, in this order: each cell in one line; folded headings and texts; texts below their rows; leaving out what
    another column tells as well; long names of the first column in lines of their own; fewer columns; a line for each
    cell.
    """
    width = max(width, MIN_WIDTH)
    natural = [max(map(display_width, cells)) for cells in zip((c.heading for c in columns), *rows, strict=True)]
    contents = [max(map(display_width, cells)) if rows else 0 for cells in _transpose(rows, len(columns))]
    droppable = sorted((i for i, column in enumerate(columns) if column.drop), key=lambda i: (columns[i].drop, -i))
    folded = [
        max(size, _longest_word(column.heading)) if column.kind != "text" else 0
        for size, column in zip(contents, columns, strict=True)
    ]
    least = sum(folded[1:])
    for dropped_count in range(len(droppable) + 1):
        if dropped_count:
            least -= folded[droppable[dropped_count - 1]]
        if least > width:
            continue  # a planted file may bring thousands of columns
        dropped = set(droppable[:dropped_count])
        shown = [i for i in range(len(columns)) if i not in dropped]
        can_spill = not any(columns[i].drop == 1 for i in shown)
        layout = _fit(columns, shown, rows, natural, folded, width, can_spill=can_spill)
        if layout is not None:
            heading = _render_row(columns, layout, [column.heading for column in columns], width, is_heading=True)
            body = [line for row in rows for line in _render_row(columns, layout, row, width)]
            return TableLines(heading, body, [columns[i].heading for i in sorted(dropped)])
    dropped_headings = [columns[i].heading for i in sorted(droppable)]
    shown = [i for i, column in enumerate(columns) if not column.drop]
    return TableLines([], [line for row in rows for line in _stack_row(columns, shown, row, width)], dropped_headings)


def display_width(text: str) -> int:
    """Return how many columns of a terminal text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def pad(text: str, width: int, *, right_aligned: bool = False) -> str:
    """Fill text up with spaces to `width` columns of a terminal."""
    spaces = " " * (width - display_width(text))
    return spaces + text if right_aligned else text + spaces


def fold(text: str, width: int, *, first: str = "", indent: str = "") -> list[str]:
    """Break text between words, and words that are longer than a line; `first` and `indent` go before its lines."""
    if display_width(first + text) <= width:
        return [first + text]
    from rich.cells import chop_cells

    lines: list[str] = []
    start = line = first
    for word in text.split():
        joined = f"{line} {word}" if line != start else line + word
        if display_width(joined) > width and line != start:
            lines.append(line)
            start, joined = indent, indent + word
        while display_width(joined) > width:
            piece = chop_cells(joined, width)[0]
            lines.append(piece)
            start, joined = indent, indent + joined[len(piece) :]
        line = joined
    return [*lines, line]


def _transpose(rows: Sequence[Sequence[str]], count: int) -> list[Sequence[str]]:
    return list(zip(*rows, strict=True)) if rows else [()] * count


def _fit(
    columns: Sequence[Column],
    shown: Sequence[int],
    rows: Sequence[Sequence[str]],
    natural: Sequence[int],
    folded: Sequence[int],
    width: int,
    *,
    can_spill: bool,
) -> _Layout | None:
    """Return the widths of the columns `shown`, or None if they do not fit side by side."""
    if _total(natural[i] for i in shown) <= width:
        return _Layout({i: natural[i] for i in shown})
    texts = [i for i in shown if columns[i].kind == "text"]
    for count in range(len(texts), -1, -1):  # the last ones go below first
        beside, below = texts[:count], tuple(texts[count:])
        fixed = {i: folded[i] for i in shown if i not in texts}
        room = width - _total([*fixed.values(), *(0 for _ in beside)])
        shares = _share({i: natural[i] for i in beside}, room)
        if room >= 0 and all(shares[i] >= min(natural[i], MIN_TEXT_WIDTH) for i in beside):
            return _Layout({i: fixed.get(i, shares.get(i, 0)) for i in shown if i not in below}, below)
    key, others = shown[0], [i for i in shown[1:] if i not in texts]
    room = width - _total([0, *(folded[i] for i in others)])
    if not can_spill or room < min(natural[key], MIN_KEY_WIDTH):
        return None
    fitting = [size for size in map(display_width, (columns[key].heading, *(row[key] for row in rows))) if size <= room]
    return _Layout({key: max(fitting, default=0), **{i: folded[i] for i in others}}, tuple(texts))


def _total(widths: Iterator[int] | Sequence[int]) -> int:
    sizes = list(widths)
    return sum(sizes) + len(GAP) * (len(sizes) - 1)


def _longest_word(text: str) -> int:
    return max(map(display_width, text.split()), default=0)


def _share(wanted: dict[int, int], room: int) -> dict[int, int]:
    """Give each as much as it wants, if that is less than an even share; the rest evenly to the others."""
    shares: dict[int, int] = {}
    for i in sorted(wanted, key=lambda i: wanted[i]):
        shares[i] = min(wanted[i], room // (len(wanted) - len(shares)))
        room -= shares[i]
    return shares


def _render_row(
    columns: Sequence[Column], layout: _Layout, row: Sequence[str], width: int, *, is_heading: bool = False
) -> list[str]:
    """Return the lines of one row: a too long name, the cells side by side, and texts that go below."""
    above: list[str] = []
    below: list[str] = []
    cells: dict[int, list[str]] = {}
    key = next(iter(layout.widths))
    for i, size in layout.widths.items():
        can_fold = is_heading or columns[i].kind == "text"
        if display_width(row[i]) <= size or (can_fold and _longest_word(row[i]) <= size):
            cells[i] = fold(row[i], size) if can_fold else [row[i]]
        elif i == key:
            cells[i] = []
            above = fold(row[i], width, indent=INDENT)
        else:
            cells[i] = []
            below += _labelled(columns[i], row[i], width)
    if not is_heading:
        for i in layout.below:
            below += _labelled(columns[i], row[i], width)
    height = max(map(len, cells.values()))
    lines = []
    for at in range(height):
        parts = []
        for i, size in layout.widths.items():
            first = height - len(cells[i]) if is_heading else 0  # headings stand on their line, cells hang from theirs
            text = cells[i][at - first] if 0 <= at - first < len(cells[i]) else ""
            parts.append(pad(text, size, right_aligned=columns[i].kind == "number"))
        lines.append(GAP.join(parts).rstrip())
    return [*above, *(line for line in lines if line), *below]


def _labelled(column: Column, cell: str, width: int) -> list[str]:
    return [] if cell in EMPTY_CELLS else fold(f"{column.heading}: {cell}", width, first=INDENT, indent=INDENT * 2)


def _stack_row(columns: Sequence[Column], shown: Sequence[int], row: Sequence[str], width: int) -> Iterator[str]:
    yield from fold(row[shown[0]], width, indent=INDENT)
    for i in shown[1:]:
        yield from _labelled(columns[i], row[i], width)
