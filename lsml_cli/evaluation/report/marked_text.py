"""Cut a text into segments at the spans that are marked in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MAX_SPANS = 300  # of one text; further ones are not marked


@dataclass(frozen=True)
class TextSegment:
    """A part of a text; without `labels` it is not marked.

    Attributes:
        text: The part.
        labels: Of the spans that it is in.
        colour: Number of the colour in style.css of the first of them.
        title: Appears when it is pointed at.
        is_last: Whether a span ends here, so that its labels are written.
    """

    text: str
    labels: Sequence[str] = ()
    colour: int = 0
    title: str = ""
    is_last: bool = False


@dataclass(frozen=True)
class MarkedSpan:
    """A span to mark: offsets in code points, its label with its score, and its colour."""

    start: int
    end: int
    label: str
    title: str
    colour: int


def mark_spans(text: str, spans: Sequence[MarkedSpan]) -> list[TextSegment]:
    """Cut a text so that each segment is in the same spans from its start to its end; spans may overlap.

    Spans outside of the text, or empty ones, are not marked.
    """
    valid = [span for span in spans if 0 <= span.start < span.end <= len(text)][:MAX_SPANS]
    edges = sorted({0, len(text), *(edge for span in valid for edge in (span.start, span.end))})
    segments = []
    for start, end in pairwise(edges):
        covering = [span for span in valid if span.start <= start and end <= span.end]
        ending = [span.label for span in covering if span.end == end]
        segments.append(
            TextSegment(
                text[start:end],
                ending or [span.label for span in covering],
                covering[-1].colour if covering else 0,
                "; ".join(span.title for span in covering),
                is_last=bool(ending),
            )
        )
    return segments
