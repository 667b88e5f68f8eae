"""Text -> markup. Whatever comes from tasks, models or people goes through `escaped` on its way into the page."""

from __future__ import annotations

import re
from html import escape

_INVALID_CHARACTERS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def escape_text(text: object) -> str:
    """Text for the content or an attribute of an element; characters that HTML does not know are shown as such."""
    return escape(_INVALID_CHARACTERS.sub("\ufffd", str(text)), quote=True)


def format_name(text: object) -> str:
    """A name of somebody's, which may be written from right to left without turning what stands around it."""
    return f"<bdi>{escape_text(text)}</bdi>"


def shorten(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1].rstrip()}…"


def format_number(value: float | None, digits: int = 3) -> str:
    """As markup: a dash stands for a number that is not there."""
    return "&ndash;" if value is None else f"{value:.{digits}f}"


def format_signed(value: float) -> str:
    """As markup, with a minus that is as wide as the plus."""
    return f"{value:+.3f}".replace("-", "&minus;")


def pluralize(count: int, noun: str, plural: str | None = None) -> str:
    """ "1 task", "2,000 tasks"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
