"""Describe a task and its prediction in one line of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lsml_cli.evaluation.report.examples import format_value
from lsml_cli.evaluation.report.formatting import pluralize, shorten
from lsml_cli.evaluation.survey import region_labels, region_text

MAX_LISTED = 6  # labels, spans or texts of one task
MAX_TEXT = 40  # characters of a span or a text
MAX_DATA = 80  # characters of a task's data


def describe_result(result: Sequence[Mapping[str, Any]]) -> str:
    """Describe what was found: labels with how often they occur, spans and texts with their words."""
    counts: Counter[str] = Counter()
    for region in result:
        labels, text = region_labels(region), region_text(region)
        quoted = f'"{shorten(" ".join(text.split()), MAX_TEXT)}"' if text else ""
        named = " ".join(filter(None, (", ".join(labels), quoted)))
        counts[named or str(region.get("type") or "region")] += 1
    parts = [name if count == 1 else f"{count:,} x {name}" for name, count in counts.most_common(MAX_LISTED)]
    more = len(counts) - len(parts)
    return "; ".join([*parts, *([pluralize(more, "other")] if more else [])]) or "nothing"


def describe_task(data: Mapping[str, Any] | None) -> str:
    """Describe what a task shows: the values of its data, shortened."""
    values = (format_value(value) for value in (data or {}).values() if isinstance(value, str | list))
    return shorten(" ".join(" · ".join(values).split()), MAX_DATA)
