"""CoNLL-2003: a token and its BIO tag on each line, a blank line after each sentence.

Written: a file for each control, in it a sentence for each text, with the four columns of CoNLL-2003. Read: a task for
each sentence, its tokens joined by spaces; two columns or more, the token in the first and the tag in the last, in the
schemes IOB, BIO (IOB2), IOBES and BILOU.

Format: https://www.clips.uantwerpen.be/conll2003/ner/
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, count
from pathlib import Path

from lsml_cli.errors import UsageError
from lsml_cli.io.format_detection import BOM
from lsml_cli.io.formats.dataset_source import ReadOptions
from lsml_cli.io.formats.output_folder import OutputFolder
from lsml_cli.io.formats.span_source import FoundText, SpanSource, list_files
from lsml_cli.io.formats.span_writer import ControlFile, SpanWriter
from lsml_cli.io.formats.text_spans import OVERLAP, TextSpan, select_longest, trim_spans
from lsml_cli.io.formats.word_boundaries import find_tokens
from lsml_cli.io.json_records import MAX_TASK_BYTES, too_large_message
from lsml_cli.io.text_lines import split_entries
from lsml_cli.runtime import error_reason

SUFFIX = ".conll"
DOCUMENT_START = "-DOCSTART-"
OUTSIDE = "O"

_HEADER = f"{DOCUMENT_START} -X- {OUTSIDE} {OUTSIDE}\n\n".encode()
_BLANK = re.compile(r"\s+")
_COLUMNS = re.compile(" +")  # any other white space may be part of a token
_TAG = re.compile(r"([BIESLUMW])-(.+)")
_STARTING = frozenset("BSUW")  # S, U and W: a span of one token
_ENDING = frozenset("ESLUW")


class ConllWriter(SpanWriter):
    """Writes CoNLL-2003, `CONTROL.conll` for each control."""

    def _create(self, name: str) -> ControlFile:
        return _ConllFile(self.folder, f"{name}{SUFFIX}")

    def _check_text(self, text: str) -> None:
        if not text.strip():
            raise ValueError("the text holds no token, and CoNLL has no empty sentences")


class _ConllFile(ControlFile):
    def __init__(self, folder: OutputFolder, name: str) -> None:
        self._file = folder.create(name)
        self._file.write(_HEADER)
        self._tag_labels: dict[str, str] = {}

    def write(self, text: str, spans: Sequence[TextSpan], left_out: Counter[str]) -> int:
        trimmed = trim_spans(text, spans, left_out)
        selected = select_longest(trimmed)
        left_out[OVERLAP] += len(trimmed) - len(selected)
        cuts = (position for span in selected for position in (span.start, span.end))
        tokens = list(find_tokens(text, cuts))
        tags = self._tag(tokens, selected)
        lines = [f"{text[start:end]} -X- _ {tag}\n" for (start, end), tag in zip(tokens, tags, strict=True)]
        self._file.write("".join([*lines, "\n"]).encode())
        return len(selected)

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def _tag(self, tokens: Iterable[tuple[int, int]], spans: Iterable[TextSpan]) -> Iterator[str]:
        """Yield the tag of each token. Both are sorted, and no token reaches beyond an end of a span."""
        remaining = iter(spans)
        span = next(remaining, None)
        for start, _ in tokens:
            while span is not None and span.end <= start:
                span = next(remaining, None)
            if span is None or start < span.start:
                yield OUTSIDE
            else:
                yield f"{'B' if start == span.start else 'I'}-{self._tag_label(span.label)}"

    def _tag_label(self, label: str) -> str:
        """Return a label without white space, which would begin another column; unequal ones stay unequal."""
        if label not in self._tag_labels:
            taken = set(self._tag_labels.values())
            name = base = escape_label(label)
            for number in count(2):
                if name not in taken:
                    break
                name = f"{base}_{number}"
            self._tag_labels[label] = name
        return self._tag_labels[label]


def escape_label(label: str) -> str:
    """Return a label as a tag can hold it: white space becomes underscores."""
    return _BLANK.sub("_", label)


class ConllSource(SpanSource):
    """Reads CoNLL: a task for each sentence."""

    title = "CoNLL"

    def __init__(self, path: str, options: ReadOptions) -> None:
        config = options.config
        labels = [label for control in config.controls.values() for label in control.labels] if config else []
        self._label_names = {escape_label(label.name): label.name for label in labels}
        super().__init__(path, options)

    def _iter_texts(self) -> Iterator[FoundText]:
        file = _find_file(self.path)
        size = max(file.stat().st_size, 1)
        end = 0
        sentence = _Sentence("line 1")
        with file.open("rb") as stream:
            for number, (line, line_size, is_complete) in enumerate(split_entries(stream, b"\n", MAX_TASK_BYTES), 1):
                end += line_size + is_complete
                line = line.removeprefix(BOM) if number == 1 else line
                is_end = not line.strip() and line_size <= MAX_TASK_BYTES
                if is_end or line.startswith(DOCUMENT_START.encode()):
                    if sentence.size:
                        yield self._make_text(sentence, end / size)
                    sentence = _Sentence(f"line {number + 1}")
                else:
                    sentence.add(line, line_size, f"line {number}")
        if sentence.size:
            yield self._make_text(sentence, 1.0)

    def _make_text(self, sentence: _Sentence, share: float) -> FoundText:
        if sentence.problem:
            return FoundText(sentence.location, problem=sentence.problem, share=share)
        starts = [0, *accumulate(len(token) + 1 for token in sentence.tokens)]
        spans = [
            TextSpan(starts[first], starts[last] - 1, self._label_names.get(label, label))
            for first, last, label in decode_tags(sentence.tags)
        ]
        return FoundText(sentence.location, " ".join(sentence.tokens), spans, share=share)


class _Sentence:
    """The tokens and tags of a sentence, or what is wrong with it."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.tokens: list[str] = []
        self.tags: list[str] = []
        self.problem = ""
        self.size = 0

    def add(self, line: bytes, size: int, location: str) -> None:
        """Add a line; of a sentence that has a problem already, nothing is kept."""
        if not self.problem and self.size + size > MAX_TASK_BYTES:
            self.problem = too_large_message(self.size + size, MAX_TASK_BYTES)
        if not self.problem:
            try:
                self._parse(line)
            except ValueError as error:
                self.location, self.problem = location, error_reason(error)
        self.size += size

    def _parse(self, line: bytes) -> None:
        try:
            text = line.decode().rstrip(" \t\r")
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8: convert the file first, for example with iconv") from None
        columns = text.split("\t") if "\t" in text else _COLUMNS.split(text.strip(" "))
        token, tag = columns[0].strip(" "), columns[-1].strip(" ")
        is_tag = tag == OUTSIDE or _TAG.fullmatch(tag) is not None
        if not self.tokens and token.startswith("#") and not is_tag:  # a comment, as CoNLL-U has them
            return
        if len(columns) == 1:
            raise ValueError(f"{text[:40]!r} has no tag")
        if not token:
            raise ValueError("a tag has no token")
        if not is_tag:
            raise ValueError(f"the tag is {tag[:40]!r}, and neither O nor a label after B-, I-, E-, S-, L- or U-")
        self.tokens.append(token)
        self.tags.append(tag)


def decode_tags(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, label) of the spans that tags mark, as the script conlleval of CoNLL-2000 does.

    It accepts all schemes: a span ends where the next begins (B, S, U), after its end (E, L), and where the label
    changes.
    """
    begun: tuple[int, str] | None = None
    previous = ""
    for index, tag in enumerate([*tags, OUTSIDE]):
        match = _TAG.fullmatch(tag)
        prefix, label = match.groups() if match else ("", "")
        if begun is not None and (prefix in _STARTING or previous in _ENDING or label != begun[1]):
            yield begun[0], index, begun[1]
            begun = None
        if prefix and begun is None:
            begun = index, label
        previous = prefix


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = list_files(path, SUFFIX)
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.name for file in files[:5])
    raise UsageError(
        f"{path} has {f'several files: {names}' if files else f'no file with the suffix {SUFFIX}'}.",
        "Name the file instead of the folder.",
    )
