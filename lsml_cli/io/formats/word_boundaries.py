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
_VISIBLE = re.compile(r"\S+")  # a combining mark after a space stays with it; the space belongs to no token


def find_tokens(text: str, cuts: Iterable[int] = ()) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the tokens of a text, in code points.

    Args:
        text: The text.
        cuts: Positions where a token ends in any case.
    """
    boundaries = {match.start() for match in _BOUNDARY.finditer(text)}
    for start, end in pairwise(sorted(boundaries.union(cuts, (0, len(text))))):
        for match in _VISIBLE.finditer(text, start, end):
            yield match.span()
