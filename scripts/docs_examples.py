"""Show the examples of docstrings as code on the page of the Python API."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:\n((?:(?: {4}.*)?\n?)*)", re.MULTILINE)


class FencedExamples(griffe.Extension):
    """Turn the section "Example" of every docstring into a block of Python."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fence, obj.docstring.value)


def _fence(match: re.Match[str]) -> str:
    return f"**Example**\n\n```python\n{textwrap.dedent(match[1]).strip()}\n```\n"
