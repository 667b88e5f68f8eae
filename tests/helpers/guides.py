"""Read the examples of the documentation."""

from __future__ import annotations

import re

from tests.helpers.cli import ROOT


def read_examples(page: str, heading: str) -> dict[str, str]:
    """Return the code blocks below a heading of a page of docs/ by their language; each has one."""
    text = (ROOT / "docs" / page).read_text("utf-8").split(f"\n{heading}\n")[1]
    section = re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
