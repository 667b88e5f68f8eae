"""Format texts and numbers of the report as plain text."""

from __future__ import annotations


def shorten(text: str, max_length: int) -> str:
    """Cut `text` to `max_length` characters; an ellipsis replaces what is cut off."""
    return text if len(text) <= max_length else f"{text[: max_length - 1].rstrip()}…"


def format_fixed(value: float, digits: int) -> str:
    """Format a number, such as a coordinate, with a fixed number of decimals."""
    return f"{value:.{digits}f}"


def format_grouped(count: int) -> str:
    """Format a count with thousands separators: "2,000"."""
    return f"{count:,}"


def pluralize(count: int, noun: str, plural: str | None = None) -> str:
    """Format a count with its noun: "1 task", "2,000 tasks"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
