"""Text -> markup. Whatever comes from tasks, models or people goes through `escaped` on its way into the page."""

from __future__ import annotations

import re
from html import escape

_UNSEEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def escaped(text: object) -> str:
    """Text for the content or an attribute of an element; characters that HTML does not know are shown as such."""
    return escape(_UNSEEN.sub("\ufffd", str(text)), quote=True)


def name(text: object) -> str:
    """A name of somebody's, which may be written from right to left without turning what stands around it."""
    return f"<bdi>{escaped(text)}</bdi>"


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def number(value: float | None, digits: int = 3) -> str:
    """As markup: a dash stands for a number that is not there."""
    return "&ndash;" if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """As markup, with a minus that is as wide as the plus."""
    return f"{value:+.3f}".replace("-", "&minus;")


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """ "1 task", "2,000 tasks"."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
