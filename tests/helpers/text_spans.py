"""Stored tasks with spans in a text, as Label Studio exports them; strategies of hypothesis for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

LABELS = ("PER", "ORG", "creative work")
SPANS_CONFIG = """<View><Text name="text" value="$text"/>
  <Labels name="ner" toName="text"><Label value="PER"/><Label value="ORG"/><Label value="creative work"/></Labels>
  <Choices name="mood" toName="text"><Choice value="Good"/></Choices></View>"""


def make_span(text: str, start: int, end: int, *labels: str, **fields: Any) -> dict[str, Any]:
    """Return a region of the <Labels> named "ner"."""
    value = {"start": start, "end": end, "text": text[start:end], "labels": list(labels or ["PER"])}
    region = {"id": f"r{start}-{end}", "from_name": "ner", "to_name": "text", "type": "labels", "value": value}
    return {**region, **fields}


def make_text_task(text: str, *spans: tuple[Any, ...], id: int = 1) -> dict[str, Any]:
    """Return an annotated task; a span is (start, end, *labels)."""
    result = [make_span(text, *span) for span in spans]
    return {"id": id, "data": {"text": text}, "annotations": [{"id": 10 * id, "result": result}]}


def mark(text: str, *marked: str) -> dict[str, Any]:
    """Return an annotated task in which some parts of the text, which occur once, are a PER."""
    spans = []
    for part in marked:
        assert text.count(part) == 1
        spans.append((text.index(part), text.index(part) + len(part), "PER"))
    return make_text_task(text, *spans)


def spans_of(task: dict[str, Any], content: str = "annotations") -> list[tuple[int, int, str]]:
    """Return (start, end, label) of the spans of a task, sorted."""
    values = [region["value"] for region in task[content][0]["result"]]
    return sorted((value["start"], value["end"], label) for value in values for label in value["labels"])


def write_tasks(path: Path, tasks: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(tasks))
    return path


# ---- hypothesis

# Letters, marks that combine, emoji of several code points, scripts without spaces, line breaks of all kinds.
_PIECES = (
    *("a", "Zoë", "e\u0301", "\u0308", "नमस्ते", "北京", "タワー", "สวัสดี", "한국", "שלום"),
    *("3.14", "can't", "-", "#", "_", ".", "O", "-DOCSTART-", '"', "\\"),
    *("😀", "👨\u200d👩\u200d👧", "👍🏽", "🇩🇪", "\U00020000", "\u200b", "\u200d", "\ufe0f"),
    *(" ", "  ", "\n", "\r\n", "\r", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\x0b"),
)
_texts = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=12).map("".join)


@st.composite
def text_tasks(draw: st.DrawFn) -> dict[str, Any]:
    """A task with a text that is not blank, and up to 5 spans anywhere, overlapping ones included."""
    text = draw(_texts.filter(str.strip))
    positions = st.integers(0, len(text))
    spans = draw(st.lists(st.tuples(positions, positions).filter(lambda pair: pair[0] < pair[1]), max_size=5))
    return make_text_task(text, *((*pair, draw(st.sampled_from(LABELS))) for pair in spans))
