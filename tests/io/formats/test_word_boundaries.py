"""Tokens of texts in many scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsml_cli.io.formats.word_boundaries import find_tokens


def tokens(text: str, *cuts: int) -> list[str]:
    return [text[start:end] for start, end in find_tokens(text, cuts)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Barack can't pay $3.50.", ["Barack", "can't", "pay", "$", "3.50", "."]),
        ("naïve café", ["naïve", "café"]),
        ("cafe\u0301 e\u0308", ["cafe\u0301", "e\u0308"]),
        ("北京 大学", ["北", "京", "大", "学"]),
        ("東京タワーへ", ["東", "京", "タワー", "へ"]),
        ("한국어는 좋아요", ["한국어는", "좋아요"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ok 👨\u200d👩\u200d👧👍🏽🇩🇪🇫🇷!", ["ok", "👨\u200d👩\u200d👧", "👍🏽", "🇩🇪", "🇫🇷", "!"]),
        ("a\r\n\r\nb\u3000c\u00a0d\u2028e", ["a", "b", "c", "d", "e"]),
        ("  \n", []),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected


def test_cut_ends_a_token():
    assert tokens("pre-owned Volkswagenwerk", 14, 20) == ["pre", "-", "owned", "Volk", "swagen", "werk"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["🇩", "🇩\ufe0f", "\u0301", "👩\u200d", "\r\n", "a'", "1,", "\u200b"])
def test_time_grows_with_the_text(unit):
    """Not with its square: a text of 200,000 flags would take minutes."""
    text = "a" + 200_000 * unit
    found = list(find_tokens(text))
    assert found[-1][1] == len(text.rstrip())
    if unit == "🇩":
        assert len(found) == 100_001


@given(st.text(), st.lists(st.integers(0, 20)))
def test_nothing_but_white_space_is_lost(text, cuts):
    cuts = [cut for cut in cuts if cut <= len(text)]
    found = list(find_tokens(text, cuts))
    assert "".join(text[start:end] for start, end in found) == "".join(text.split())
    assert not any(start < cut < end for start, end in found for cut in cuts)
    assert not any(character.isspace() for start, end in found for character in text[start:end])
