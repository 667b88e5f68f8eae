"""The base class of what writes the spans of each control into files of its own."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, WriteOptions
from lsml_cli.io.formats.image_set import confine_name
from lsml_cli.io.formats.text_spans import TextSet, TextSpan
from lsml_cli.schema.json_codec import dumps, loads

MAX_CONTROLS = 100  # whose names come from regions, so that hostile tasks make no million files
UNKNOWN_CONTROL = "label"  # where no region says what the control is called


class ControlFile(ABC):
    """What becomes of the texts and spans of one control."""

    @abstractmethod
    def write(self, text: str, spans: Sequence[TextSpan], left_out: Counter[str]) -> int:
        """Write a text with its spans, and return the number of spans that were written; count the others."""

    @abstractmethod
    def finish(self) -> None:
        """Write what comes last."""

    def close(self) -> None:  # noqa: B027 - where no file is open
        """Close open files; may be called twice."""


class SpanWriter(DatasetWriter):
    """Writes every text once for each control that is about it.

    Without a label config, a control is known from its first span on; texts before that are written when it shows up.
    They wait in a temporary file.
    """

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._texts = TextSet(options)
        super().__init__(folder, options)
        self._files: dict[str, ControlFile] = {}
        self._earlier_texts: BinaryIO | None = None
        if options.config is None:
            self._earlier_texts = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _close
        for control in self._texts.controls:
            self._open(control)

    @abstractmethod
    def _create(self, name: str) -> ControlFile:
        """Create the files of a control, whose name fits into a path."""

    def _check_text(self, text: str) -> None:
        """Raise ValueError for a text that the format cannot hold."""

    def write(self, example: Example) -> None:
        left_out: Counter[str] = Counter()
        texts = self._texts.read(example, left_out)
        for entry in texts:
            self._check_text(entry.text)
        for entry in texts:
            for control in entry.controls:
                self._open(control)
            for control in self._files if self.options.config is None else entry.controls:
                spans = [span for span in entry.spans if span.control == control]
                self.written += self._files[control].write(entry.text, spans, left_out)
            if self._earlier_texts is not None:
                self._earlier_texts.write(dumps(entry.text) + b"\n")
        self.left_out += left_out

    def _open(self, control: str) -> None:
        if control in self._files:
            return
        if self._earlier_texts is not None and len(self._files) == MAX_CONTROLS:
            raise ValueError(f"regions name more than {MAX_CONTROLS} controls: is --label-config missing?")
        file = self._create(confine_name(control).replace("/", "%2F"))
        self._files[control] = file
        for text in self._read_earlier_texts():
            file.write(text, (), Counter())

    def _read_earlier_texts(self) -> Iterator[str]:
        if self._earlier_texts is not None:
            self._earlier_texts.seek(0)
            yield from map(loads, self._earlier_texts)

    def _finish(self) -> None:
        if not self._files:
            self._open(UNKNOWN_CONTROL)
        for file in self._files.values():
            file.finish()

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._earlier_texts is not None:
            self._earlier_texts.close()
