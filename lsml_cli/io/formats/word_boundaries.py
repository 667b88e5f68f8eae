"""Tokens of a text in any script, by Unicode's word boundaries (https://unicode.org/reports/tr29/).

A Chinese character is a token, so is an emoji of several code points, and a letter keeps its combining marks. Nothing
is lost: what is in no token is white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import regex

_BOUNDARY = regex.compile(r"(?w)\b")
# Flags are pairs of these. Time to find them grows with the square of their number, unless they are counted off.
_FLAGS = regex.compile(r"(?:[\U0001F1E6-\U0001F1FF][\p{M}\p{Cf}]*+){100}")
_VISIBLE = re.compile(r"\S+")  # a combining mark after a space stays with it; the space belongs to no token


def find_tokens(text: str, cuts: Iterable[int] = ()) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the tokens of a text, in code points.

    Args:
        text: The text.
        cuts: Positions where a token ends in any case.
    """
    boundaries = {*_find_boundaries(text), *cuts}
    for start, end in pairwise(sorted(boundaries)):
        for match in _VISIBLE.finditer(text, start, end):
            yield match.span()


def _find_boundaries(text: str) -> Iterator[int]:
    parts = (0, *(match.end() for match in _FLAGS.finditer(text)), len(text))
    for begin, end in pairwise(parts):
        yield begin
        for match in _BOUNDARY.finditer(text[begin:end]):
            yield begin + match.start()
    yield len(text)
