"""spaCy's DocBin: documents with entities and groups of spans in one compressed file, as `spacy train` reads them.

Written: a folder for each control, in it files of a thousand documents each, so that memory stays flat. All spans are
in the group "sc" of a document, which spaCy's span categorizer reads; its entities, which cannot overlap, are the
longest ones. Read: entities and spans of all groups.

DocBin is msgpack, without pickle; of what it may hold only words, spaces, entities and groups of spans are used.

Format: https://spacy.io/api/docbin
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spacy.attrs import ENT_IOB, ENT_TYPE, ORTH
from spacy.tokens import Doc, DocBin, SpanGroup
from spacy.vocab import Vocab
from srsly.msgpack import msgpack_decoders, msgpack_encoders

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.formats.output_folder import OutputFolder
from lsml_cli.io.formats.span_source import FoundText, SpanSource, list_files
from lsml_cli.io.formats.span_writer import ControlFile, SpanWriter
from lsml_cli.io.formats.text_spans import TextSpan, select_longest, trim_spans
from lsml_cli.io.formats.word_boundaries import find_tokens
from lsml_cli.runtime import error_reason
from lsml_cli.schema.value_checks import is_number

SUFFIX = ".spacy"
GROUP = "sc"  # the group that spaCy's span categorizer looks for
MAX_DOCUMENTS = 1000  # in a file
MAX_CHARACTERS = 4_000_000  # of their texts
MAX_UNPACKED_BYTES = 2 << 30  # of a file that is read

_ATTRS = (ORTH, ENT_IOB, ENT_TYPE)  # the rest, such as heads of a parse, is not looked at


# Each call would look for extensions of msgpack among all installed packages, which is two thirds of the time.
for _registry in (msgpack_decoders, msgpack_encoders):
    _registry.entry_points = False


class DocBinWriter(SpanWriter):
    """Writes DocBins, `CONTROL/0001.spacy` and so on for each control."""

    def _create(self, name: str) -> ControlFile:
        return _DocBinFiles(self.folder, name)


class _DocBinFiles(ControlFile):
    def __init__(self, folder: OutputFolder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._docs = DocBin(attrs=["ENT_IOB", "ENT_TYPE"])
        self._vocab = Vocab()  # it grows with the words of the documents
        self._characters = 0

    def write(self, text: str, spans: Sequence[TextSpan], left_out: Counter[str]) -> int:
        trimmed = trim_spans(text, spans, left_out)
        self._docs.add(make_doc(self._vocab, text, trimmed))
        self._characters += len(text)
        if len(self._docs) == MAX_DOCUMENTS or self._characters > MAX_CHARACTERS:
            self._flush()
        return len(trimmed)

    def finish(self) -> None:
        if len(self._docs) or not self._count:
            self._flush()

    def _flush(self) -> None:
        self._count += 1
        self._folder.write(f"{self._name}/{self._count:04}{SUFFIX}", self._docs.to_bytes())
        self._begin()


def make_doc(vocab: Vocab, text: str, spans: Sequence[TextSpan]) -> Doc:
    """Return a document with the text as it is, in which every span begins and ends with a token.

    Args:
        vocab: Gets the words.
        text: The text.
        spans: They begin and end with something visible.
    """
    words, spaces = _split(text, (position for span in spans for position in (span.start, span.end)))
    doc = Doc(vocab, words=words, spaces=spaces)
    doc.set_ents([doc.char_span(span.start, span.end, label=span.label) for span in select_longest(spans)])
    marked = [doc.char_span(span.start, span.end, label=span.label) for span in spans]
    scores = [span.score for span in spans]
    attrs = {"scores": scores} if scores and None not in scores else {}
    doc.spans[GROUP] = SpanGroup(doc, name=GROUP, spans=marked, attrs=attrs)
    return doc


def _split(text: str, cuts: Iterable[int]) -> tuple[list[str], list[bool]]:
    """Return the words of a text, and whether a space follows each; other white space becomes words, as in spaCy."""
    words: list[str] = []
    spaces: list[bool] = []
    end = 0
    for start, next_end in (*find_tokens(text, cuts), (len(text), len(text))):
        gap = text[end:start]
        if words and gap.startswith(" "):
            spaces[-1] = True
            gap = gap[1:]
        for word in (gap, text[start:next_end]):
            if word:
                words.append(word)
                spaces.append(False)
        end = next_end
    return words, spaces


class DocBinSource(SpanSource):
    """Reads a DocBin, or all of a folder: a task for each document."""

    title = "DocBin"

    def _iter_texts(self) -> Iterator[FoundText]:
        files = _find_files(self.path)
        for number, file in enumerate(files):
            docs = _load(file)
            name = f"{file.relative_to(self.path)}, " if self.path.is_dir() else ""
            for index in range(len(docs)):
                location = f"{name}document {index + 1}"
                share = (number + (index + 1) / len(docs)) / len(files)
                try:
                    yield _read_doc(docs, index, location, share)
                except Exception as error:  # of spaCy, for a file that is damaged
                    yield FoundText(location, problem=f"it cannot be read: {error_reason(error)}", share=share)


def _find_files(path: Path) -> list[Path]:
    """Return the files of a data set; those of one folder, since each control has its own."""
    if not path.is_dir():
        return [path]
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.is_symlink())]
    found = {folder: files for folder in folders if (files := list_files(folder, SUFFIX))}
    if len(found) == 1 or path in found:
        return next(iter(found.values()))
    names = ", ".join(folder.name for folder in list(found)[:5])
    raise UsageError(
        f"{path} has {f'several folders of DocBins: {names}' if found else f'no file with the suffix {SUFFIX}'}.",
        "Name one of them." if found else "Name another folder.",
    )


def _load(file: Path) -> DocBin:
    try:
        content = file.read_bytes()
        _require_size(content)
        docs = DocBin().from_bytes(content)
        columns = [docs.attrs.index(attr) for attr in _ATTRS if attr in docs.attrs]
        docs.attrs = [docs.attrs[column] for column in columns]
        docs.tokens = [np.ascontiguousarray(tokens[:, columns]) for tokens in docs.tokens]
        docs.user_data = []
        vocab = Vocab()
        for string in docs.strings:
            vocab.strings.add(string)
    except Exception as error:  # of msgpack, NumPy, spaCy
        raise InputError(f"{file} is no DocBin of spaCy: {error_reason(error)}.") from None
    docs.strings = set()
    docs.vocab = vocab
    return docs


def _require_size(content: bytes) -> None:
    """Raise ValueError for what is not compressed, or unpacks to more than this machine may hold."""
    decompressor = zlib.decompressobj()
    size = 0
    while content and not decompressor.eof:
        size += len(decompressor.decompress(content, 1 << 24))
        content = decompressor.unconsumed_tail
        if size > MAX_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")


def _read_doc(docs: Any, index: int, location: str, share: float) -> FoundText:
    """Return the document at an index, read on its own."""
    single = DocBin()
    single.attrs = docs.attrs
    for name in ("tokens", "spaces", "flags", "cats", "span_groups"):
        setattr(single, name, [getattr(docs, name)[index]])
    doc = next(single.get_docs(docs.vocab))
    spans = [TextSpan(span.start_char, span.end_char, span.label_) for span in doc.ents]
    for group in doc.spans.values():
        spans += _read_group(group)
    is_labelled = bool(spans) or len(doc.spans) > 0 or doc.has_annotation("ENT_IOB")
    return FoundText(location, doc.text, _drop_copies(spans) if is_labelled else None, share=share)


def _read_group(group: Any) -> Iterator[TextSpan]:
    scores = group.attrs.get("scores")
    scores = list(scores) if scores is not None and len(scores) == len(group) else [None] * len(group)
    for span, score in zip(group, scores, strict=True):
        value = score.item() if isinstance(score, np.generic) else score
        yield TextSpan(span.start_char, span.end_char, span.label_, value if is_number(value) else None)


def _drop_copies(spans: Iterable[TextSpan]) -> list[TextSpan]:
    """Return each span once; the score is that of a group, entities have none."""
    distinct: dict[tuple[int, int, str], TextSpan] = {}
    for span in spans:
        key = span.start, span.end, span.label
        if key not in distinct or distinct[key].score is None:
            distinct[key] = span
    return sorted(distinct.values(), key=lambda span: (span.start, span.end))
