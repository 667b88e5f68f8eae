"""Write the records of a run: to a file that appears when it is complete, or to a stream such as standard output."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lsml_cli.errors import OutputClosed, OutputError, UsageError
from lsml_cli.io.journal import Journal, JournalEntry
from lsml_cli.io.output_paths import STDOUT, existing_file_identity, file_identity, is_stdout
from lsml_cli.io.output_target import GZIP_SUFFIX, PART_SUFFIX, OutputFormat, OutputTarget
from lsml_cli.io.reserved_stdout import open_stdout
from lsml_cli.runtime import DISK_FULL_ERRNOS, write_whole


class Output(Protocol):
    """Takes records in order.

    Attributes:
        last_entry: How far the output is; at first, how far an earlier run that is continued had got.
    """

    last_entry: JournalEntry

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], entry: JournalEntry) -> None:
        """Write a batch.

        Args:
            records: Records of the output; empty ones are left out.
            errors: Lines for the error file.
            entry: The state of the run after this batch; its file offsets are filled in here.
        """

    def finish(self) -> None:
        """Complete the output; a file appears under its final name."""

    def close(self) -> None:
        """Close the files, finished or not."""


def open_output(
    target: OutputTarget, run_fingerprint: Mapping[str, Any] | None = None, *, resume: bool = False
) -> Output:
    """Open an output for writing.

    Args:
        target: Where to write.
        run_fingerprint: What decides about the bytes of the output; a resumed run must have the same.
        resume: Continue an unfinished run if there is one.

    Raises:
        UsageError: The output cannot be created or resumed, or an unfinished run would be overwritten.
        ResumeRefused: The unfinished run was started with something else.
        OutputError: Another run is writing the same file.
    """
    if not target.is_stream:
        return FileOutput(target, run_fingerprint or {}, resume=resume)
    if resume:
        raise UsageError("What went into a stream cannot be resumed.", "Write to a file with --output.")
    return StreamOutput(target)


def write_document(path: Path, content: bytes, description: str) -> None:
    """Write a whole document: to a file, which appears when it is complete, or to standard output for "-".

    Args:
        path: Where to write.
        content: The document.
        description: What it is, for messages: "The report".

    Raises:
        OutputClosed: The reader of standard output has closed it.
        OutputError: It cannot be written.
    """
    if is_stdout(path):
        with open_stdout() as stdout:
            write_all(stdout, content, "standard output")
        return
    try:
        write_whole(path, content)
    except OSError as error:
        raise OutputError(f"{description} {path} cannot be written: {error.strerror}.") from None


class _Framing:
    """The bytes before, between and after the records of a format."""

    def __init__(self, record_format: OutputFormat, has_records: bool) -> None:
        self.has_records = has_records
        self.opening, self.separator, self.closing = (
            (b"[\n", b",\n", b"\n]\n") if record_format == "json" else (b"", b"\n", b"\n")
        )

    def frame(self, records: Sequence[bytes]) -> bytes:
        records = [record for record in records if record]
        if not records:
            return b""
        lead = self.separator if self.has_records else self.opening
        self.has_records = True
        return lead + self.separator.join(records)

    def end(self) -> bytes:
        return self.closing if self.has_records else self.opening.strip() + self.closing.lstrip()


class StreamOutput:
    """Standard output or another stream, one batch at a time; errors go to their file."""

    def __init__(self, target: OutputTarget) -> None:
        self._target = target
        self._name = "standard output" if target.output == STDOUT else target.output
        self._stream = open_stdout() if target.output == STDOUT else io.FileIO(target.output, "w")
        self._errors = target.open_errors_stream() if target.errors_path else None
        self._is_json_lines = target.format == "jsonl"
        self._framing = _Framing(target.format, has_records=False)
        self.last_entry = JournalEntry()

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], entry: JournalEntry) -> None:
        write_all(self._stream, self._frame(records), self._name)
        if self._errors:
            write_all(self._errors, _compress(b"".join(errors), self._target.errors), str(self._errors.name))
        self.last_entry = entry

    def _frame(self, records: Sequence[bytes]) -> bytes:
        if self._is_json_lines:  # each line with its end at once: a reader of the pipe need not wait for the next batch
            return b"".join(record + b"\n" for record in records if record)
        return self._framing.frame(records)

    def finish(self) -> None:
        if not self._is_json_lines:
            write_all(self._stream, self._framing.end(), self._name)

    def close(self) -> None:
        self._stream.close()
        if self._errors:
            self._errors.close()


class FileOutput:
    """A file, and an error file if there is one, that appear by rename when everything is in them.

    Compressed, each batch is a gzip member of its own: the journal knows where to continue, and a
    continued run gives the bytes of an uninterrupted one.
    """

    def __init__(self, target: OutputTarget, run_fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        self._target = target
        record_format = target.format
        self._part_name = str(target.part_path)
        self._errors_name = str(target.errors_part_path or target.errors_path)
        self._journal: Journal | None = None
        self._errors: io.FileIO | None = None
        self._is_renamed = False  # by an earlier run, which was killed then
        self.last_entry = JournalEntry()
        self._file = target.lock()
        try:
            if target.is_resumable:
                self._journal, self._is_renamed = target.open_journal(run_fingerprint, resume=resume)
                self.last_entry = self._journal.last_entry
            if not self.last_entry.finished:
                _truncate_to(self._file, self.last_entry.output)
                self._errors = target.open_errors()
                if self._errors and target.errors_part_path:
                    _truncate_to(self._errors, self.last_entry.errors)
        except BaseException:
            self._close_files()
            raise
        self._framing = _Framing(record_format, has_records=self.last_entry.output > 0)

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], entry: JournalEntry) -> None:
        record_bytes = _compress(self._framing.frame(records), self._target.output)
        error_bytes = _compress(b"".join(errors), self._target.errors)
        write_all(self._file, record_bytes, self._part_name)
        if self._errors:
            write_all(self._errors, error_bytes, self._errors_name)
        self._append_entry(entry, len(record_bytes), len(error_bytes))

    def finish(self) -> None:
        """Complete the file and let it appear. Killed at any moment in here, a resumed run completes the rest."""
        if not self.last_entry.finished:
            end = _compress(self._framing.end(), self._target.output)
            write_all(self._file, end, self._part_name)
            self._append_entry(self.last_entry, len(end), 0, finished=True)
            if file_identity(self._part_name) != existing_file_identity(self._file.fileno()):
                raise OutputError(f"{self._part_name} was removed while it was written, and its content with it.")
        self._target.publish(is_renamed=self._is_renamed)
        if self._journal:
            self._journal.remove()

    def close(self) -> None:
        """Close the files. An unfinished run stays for --resume, unless nothing was written yet."""
        if not self.last_entry.finished and (not self.last_entry.records or not self._journal):
            self._target.remove_parts()
            if self._journal:
                self._journal.remove()
        self._close_files()

    def _close_files(self) -> None:
        for file in (self._file, self._errors, self._journal):
            if file:
                file.close()

    def _append_entry(
        self, reached_entry: JournalEntry, output_bytes: int, error_bytes: int, finished: bool = False
    ) -> None:
        """Record that the run has reached `reached_entry` with so many more bytes in its files."""
        entry = JournalEntry(
            reached_entry.records,
            reached_entry.crc,
            self.last_entry.output + output_bytes,
            self.last_entry.errors + (error_bytes if self._target.errors_part_path else 0),
            reached_entry.counts,
            finished,
        )
        if self._journal:
            files = (self._file, self._errors if self._target.errors_part_path else None)
            self._journal.append(entry, *(file for file in files if file))
        self.last_entry = entry


def _compress(data: bytes, path: str | None) -> bytes:
    """Return `data` as a gzip member if `path` ends in .gz, unchanged otherwise."""
    if not data or path is None or not path.lower().endswith(GZIP_SUFFIX):
        return data
    return gzip.compress(data, mtime=0)


def _truncate_to(file: io.FileIO, size: int) -> None:
    """Cut an unfinished file to `size` bytes and continue there; raise OutputError if it is shorter than that."""
    if file.seek(0, os.SEEK_END) < size:
        raise OutputError(
            f"The unfinished output has less than the {size:,} bytes that the run wrote: it was changed or removed.",
            "Delete the .part and .part.journal files beside the output to start over.",
        )
    file.truncate(size)
    file.seek(size)


def write_all(file: io.FileIO, data: bytes, name: str) -> None:
    """Write every byte; raise OutputClosed when the reader of a pipe has gone, OutputError when it cannot be done."""
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) or 0 :]
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            is_resumable = name.endswith(PART_SUFFIX)
            hint = "Make room, then continue with --resume." if is_resumable else "Make room, then try again."
            raise OutputError(f"The disk is full: {name} cannot grow any more ({error.strerror}).", hint) from None
        raise OutputError(f"{name} cannot be written: {error.strerror}.") from None
