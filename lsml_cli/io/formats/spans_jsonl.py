"""Texts with spans as JSON Lines: {"text": "...", "spans": [{"start": 0, "end": 12, "label": "person"}]}.

Offsets count code points, as slices in Python do. Written: `spans.jsonl`, in which nothing is left out, spans that
overlap included. Read: also what doccano ("label": [[0, 12, "person"]]) and spaCy ("entities") call spans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, WriteOptions
from lsml_cli.io.formats.span_source import FoundText, SpanSource
from lsml_cli.io.formats.text_spans import LabelledText, TextSet, TextSpan
from lsml_cli.io.source import RecordSource
from lsml_cli.schema.json_codec import dumps, loads
from lsml_cli.schema.predictions import SCORE_DIGITS
from lsml_cli.schema.value_checks import is_integer, is_number

FILE = "spans.jsonl"

_TEXT_KEYS = ("text", "data", "content")
_SPAN_KEYS = ("spans", "entities", "label", "labels")
_START_KEYS, _END_KEYS = ("start", "start_offset"), ("end", "end_offset")
_META = "meta"  # the key of the task's other data


class SpansJsonlWriter(DatasetWriter):
    """Writes `spans.jsonl`, a line for each text."""

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._texts = TextSet(options)
        super().__init__(folder, options)
        self._file = self.folder.create(FILE)

    def write(self, example: Example) -> None:
        left_out: Counter[str] = Counter()
        for text in self._texts.read(example, left_out):
            self._file.write(dumps(_make_line(example, text)) + b"\n")
            self.written += len(text.spans)
        self.left_out += left_out

    def _close(self) -> None:
        self._file.close()


def _make_line(example: Example, text: LabelledText) -> dict[str, Any]:
    line: dict[str, Any] = {"text": text.text, "spans": [_make_span(span) for span in text.spans]}
    if example.task.id is not None:
        line["id"] = example.task.id
    if other := {key: value for key, value in example.task.data.items() if key != text.key}:
        line[_META] = other
    return line


def _make_span(span: TextSpan) -> dict[str, Any]:
    score = {} if span.score is None else {"score": round(span.score, SCORE_DIGITS)}
    return {"start": span.start, "end": span.end, "label": span.label, "control": span.control, **score}


class SpansJsonlSource(SpanSource):
    """Reads JSON Lines, or a JSON array, of texts with spans. Other fields become data of the task."""

    title = "JSON Lines with spans"

    def _iter_texts(self) -> Iterator[FoundText]:
        file = self.path
        if self.path.is_dir():
            file /= FILE
            if file.is_symlink():  # which may lead out of the folder
                raise UsageError(f"{file} is a link.", "Name the file itself.")
        with RecordSource(str(file)) as records:
            if records.format == "csv":
                raise InputError(f"{self.name} is no JSON.", 'Expected {"text": ..., "spans": [...]} on each line.')
            for record in records:
                share = records.share(record.end) or 0.0
                if record.problem:
                    yield FoundText(record.location, problem=record.problem, share=share)
                    continue
                try:
                    yield self._parse(record.location, loads(record.body), share)
                except ValueError as error:
                    yield FoundText(record.location, problem=str(error), share=share)

    def _parse(self, location: str, entry: Any, share: float) -> FoundText:
        if not isinstance(entry, Mapping):
            raise ValueError('it is no object such as {"text": ..., "spans": [...]}')
        text_keys = [key for key in (self.options.data_key, *_TEXT_KEYS) if isinstance(entry.get(key), str)]
        if not text_keys:
            raise ValueError('it has no "text"')
        text = entry[text_keys[0]]
        keys = [key for key in _SPAN_KEYS if isinstance(entry.get(key), list)]
        spans = None
        if keys:
            spans = [span for item in entry[keys[0]] for span in _parse_span(item, text)]
            spans.sort(key=lambda span: (span.start, span.end))
        data = {key: value for key, value in entry.items() if key not in (*keys, text_keys[0], _META)}
        meta = entry.get(_META)
        data |= meta if isinstance(meta, Mapping) else {} if meta is None else {_META: meta}
        return FoundText(location, text, spans, data, share=share)


def _parse_span(item: Any, text: str) -> Iterator[TextSpan]:
    """Yield the span of an item once for each of its labels."""
    if isinstance(item, Mapping):
        start, end = (_first(item, keys) for keys in (_START_KEYS, _END_KEYS))
        labels, score = _first(item, ("label", "labels")), item.get("score")
    elif isinstance(item, Sequence) and len(item) == 3 and not isinstance(item, str):
        (start, end, labels), score = item, None
    else:
        raise ValueError(f"a span is {_quote(item)}, and neither an object nor [start, end, label]")
    labels = [labels] if isinstance(labels, str) else labels
    if not (is_integer(start) and is_integer(end)):
        raise ValueError(f"a span has no start and end that are whole numbers: {_quote(item)}")
    if not (isinstance(labels, list) and labels and all(isinstance(label, str) and label for label in labels)):
        raise ValueError(f"a span has no label: {_quote(item)}")
    stated, control = (item.get("text"), item.get("control")) if isinstance(item, Mapping) else (None, None)
    control = control if isinstance(control, str) else ""
    if isinstance(stated, str) and stated != text[start:end] and 0 <= start < end:
        unit = " (offsets count code points, in which an emoji is one)" if not text.isascii() else ""
        raise ValueError(f"a span is {stated[:40]!r}, but start and end mark {text[start:end][:40]!r}{unit}")
    for label in labels:
        yield TextSpan(start, end, label, float(score) if is_number(score) else None, control)


def _first(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _quote(item: Any) -> str:
    text = dumps(item).decode()
    return text if len(text) <= 60 else text[:59] + "…"
