"""Where the records of a run go: a file that appears when it is complete, or a stream such as standard output.

While a run is under way, `out.json.part` holds exactly the bytes that the finished file begins with, the error file
likewise, and `out.json.part.journal` tells how far they agree with the input (see `resume`).
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from lsml_cli.errors import OutputClosed, OutputError, UsageError
from lsml_cli.io.journal import Journal, JournalEntry, JournalState
from lsml_cli.io.output_paths import (
    STDOUT,
    existing_file_identity,
    file_identity,
    is_stream,
    open_locked,
    resolve_output_path,
    sibling_path,
)

OutputFormat = Literal["json", "jsonl"]
FORMAT_BY_SUFFIX: dict[str, OutputFormat] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def output_format(output: str, requested: OutputFormat | None) -> OutputFormat:
    """The format that was asked for, else the one that the file's ending says; a stream is JSON Lines."""
    if requested is not None:
        return requested
    if is_stream(output):
        return "jsonl"
    ending = Path(output).suffix.lower()
    if ending not in FORMAT_BY_SUFFIX:
        endings = ", ".join(FORMAT_BY_SUFFIX)
        raise UsageError(f"{output!r} does not end in {endings}.", "Add --format json or --format jsonl.")
    return FORMAT_BY_SUFFIX[ending]


class Output(Protocol):
    """Takes records in order. `last` is the point up to which an earlier run got, its beginning for a new one."""

    last_entry: JournalEntry

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], entry: JournalEntry) -> None:
        """Write a batch. Empty records are left out; `reached` is the state after it, without the file offsets."""

    def finish(self) -> None: ...

    def close(self) -> None: ...


class _Framing:
    """What stands before, between and after the records."""

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


_saved_stdout: io.FileIO | None = None


@contextmanager
def reserve_stdout() -> Iterator[None]:
    """Keep standard output for records alone: whatever a model or a library prints goes to stderr meanwhile.

    Below Python too, and in the processes that are started meanwhile.
    """
    global _saved_stdout
    sys.stdout.flush()
    _saved_stdout = io.FileIO(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(_saved_stdout.fileno(), 1)
        _saved_stdout.close()
        _saved_stdout = None


class StreamOutput:
    """Standard output or another stream, one batch at a time; errors go to their file."""

    def __init__(self, output: str, record_format: OutputFormat, errors: str | None) -> None:
        self._name = "standard output" if output == STDOUT else output
        if output == STDOUT:
            self._stream = io.FileIO(os.dup(_saved_stdout.fileno() if _saved_stdout else 1), "w")
        else:
            self._stream = io.FileIO(output, "w")
        self._errors = io.FileIO(resolve_output_path(errors), "w") if errors else None
        self._is_json_lines = record_format == "jsonl"
        self._framing = _Framing(record_format, has_records=False)
        self.last_entry = JournalEntry()

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], entry: JournalEntry) -> None:
        _write_all(self._stream, self._frame(records), self._name)
        if self._errors:
            _write_all(self._errors, b"".join(errors), str(self._errors.name))
        self.last_entry = entry

    def _frame(self, records: Sequence[bytes]) -> bytes:
        if (
            self._is_json_lines
        ):  # each with its line end at once: whoever reads the pipe should not wait for the next batch
            return b"".join(record + b"\n" for record in records if record)
        return self._framing.frame(records)

    def finish(self) -> None:
        if not self._is_json_lines:
            _write_all(self._stream, self._framing.end(), self._name)

    def close(self) -> None:
        self._stream.close()
        if self._errors:
            self._errors.close()


class FileOutput:
    """A file, and an error file if asked for, which appear by rename when everything is in them."""

    def __init__(
        self,
        output: str,
        errors: str | None,
        run_fingerprint: Mapping[str, Any],
        *,
        resume: bool,
        with_journal: bool = True,
    ) -> None:
        """started_with  what a resumed run is compared with; `--format` in it is the format
        resume        continue an unfinished run if there is one
        journal       whether this run can be resumed; if not, it leaves nothing when it is not finished

        Raises UsageError when the folder does not exist or when an unfinished run would be overwritten, OutputError
        when another run is writing the same file.
        """
        self.path = resolve_output_path(output)
        self.errors_path = resolve_output_path(errors) if errors else None
        ending = ".part" if with_journal else ".new"
        self.part_path = sibling_path(self.path, ending)
        self.errors_part_path = self.errors_path and sibling_path(self.errors_path, ending)
        self._journal: Journal | None = None
        self._errors: io.FileIO | None = None
        self._is_renamed = False
        self.last_entry = JournalEntry()
        self._file = open_locked(self.part_path)
        try:
            if with_journal:
                sizes = _file_size(self.part_path), _file_size(self.errors_part_path) if self.errors_part_path else 0
                self._journal = _open_finished_journal(self.path, run_fingerprint) if resume and not sizes[0] else None
                self._is_renamed = self._journal is not None
                self._journal = self._journal or _open_journal(self.path, run_fingerprint, *sizes, resume=resume)
                self.last_entry = self._journal.last_entry
            if not self.last_entry.finished:
                _truncate_to(self._file, self.last_entry.output)
                if self.errors_part_path:
                    self._errors = open_locked(self.errors_part_path)
                    _truncate_to(self._errors, self.last_entry.errors)
        except BaseException:
            self._close_files()
            raise
        self._framing = _Framing(run_fingerprint["--format"], has_records=self.last_entry.output > 0)

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], entry: JournalEntry) -> None:
        data = self._framing.frame(records)
        trouble = b"".join(errors)
        _write_all(self._file, data, str(self.part_path))
        if self._errors:
            _write_all(self._errors, trouble, str(self.errors_part_path))
        self._append_entry(entry, len(data), len(trouble))

    def finish(self) -> None:
        """Complete the file and let it appear. Killed at any moment in here, a resumed run completes the rest."""
        if not self.last_entry.finished:
            end = self._framing.end()
            _write_all(self._file, end, str(self.part_path))
            self._append_entry(self.last_entry, len(end), 0, finished=True)
            if file_identity(str(self.part_path)) != existing_file_identity(self._file.fileno()):
                raise OutputError(f"{self.part_path} was removed while it was written, and its content with it.")
        if self.errors_part_path and self.errors_path and self.errors_part_path.exists():
            self.errors_part_path.replace(self.errors_path)
        if self._is_renamed:  # an earlier run was killed after the renaming; the part is only this one's lock
            self.part_path.unlink()
        else:
            self.part_path.replace(self.path)
        if self._journal:
            self._journal.remove()

    def close(self) -> None:
        """Let go of the files. What is not finished stays, for --resume; nothing stays where nothing was done."""
        if not self.last_entry.finished and (not self.last_entry.records or not self._journal):
            self.part_path.unlink(missing_ok=True)
            if self.errors_part_path:
                self.errors_part_path.unlink(missing_ok=True)
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
        entry = JournalEntry(
            reached_entry.records,
            reached_entry.crc,
            self.last_entry.output + output_bytes,
            self.last_entry.errors + (error_bytes if self._errors else 0),
            reached_entry.counts,
            finished,
        )
        if self._journal:
            self._journal.append(entry, *(file for file in (self._file, self._errors) if file))
        self.last_entry = entry


def _open_journal(
    path: Path, run_fingerprint: Mapping[str, Any], output_bytes: int, error_bytes: int, *, resume: bool
) -> Journal:
    """The journal of the run to continue, or of a new one where there is nothing to continue."""
    place = sibling_path(path, ".part.journal")
    _require_resumable(path, run_fingerprint, output_bytes, error_bytes, resume=resume)
    if resume and output_bytes:
        return Journal.reopen(place, run_fingerprint, output_bytes, error_bytes)
    return Journal.create(place, run_fingerprint)


def _open_finished_journal(path: Path, run_fingerprint: Mapping[str, Any]) -> Journal | None:
    """The journal of a run that was killed when nothing was left to do but to remove it."""
    place, size = sibling_path(path, ".part.journal"), _file_size(path)
    found = JournalState.read(place, size, sys.maxsize)
    if not found.last_entry.finished or found.last_entry.output != size:
        return None
    return Journal.reopen(place, run_fingerprint, size, sys.maxsize)


def _require_resumable(
    path: Path, run_fingerprint: Mapping[str, Any], output_bytes: int, error_bytes: int, *, resume: bool
) -> None:
    """Refuse to throw unfinished work away without being told to, or to continue what is not this run's."""
    part, place = sibling_path(path, ".part"), sibling_path(path, ".part.journal")
    if not output_bytes:  # whatever the journal says: nothing is left of the run
        return
    if not place.exists():
        raise UsageError(f"{part} is there, but no journal that tells how far it got.", f"Delete {part} to start over.")
    found = JournalState.read(place, output_bytes, error_bytes)
    if resume:
        found.require_same_run(place, run_fingerprint)
    elif found.last_entry.records or found.header is None:
        raise UsageError(
            f"{part} holds {found.last_entry.records:,} tasks of an unfinished run.",
            "Continue it with --resume, or delete that file to start over.",
        )


def require_writable_output(
    output: str, errors: str | None, run_fingerprint: Mapping[str, Any], *, resume: bool
) -> None:
    """Raises what `FileOutput` would raise, and touches nothing."""
    path = resolve_output_path(output)
    errors_path = resolve_output_path(errors) if errors else None
    sizes = [_file_size(sibling_path(each, ".part")) if each else 0 for each in (path, errors_path)]
    _require_resumable(path, run_fingerprint, *sizes, resume=resume)


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _truncate_to(file: io.FileIO, size: int) -> None:
    """Continue behind the first `size` bytes."""
    if file.seek(0, os.SEEK_END) < size:
        raise OutputError(
            f"The unfinished output has less than the {size:,} bytes that the run wrote: it was changed or removed.",
            "Delete the .part and .part.journal files beside the output to start over.",
        )
    file.truncate(size)
    file.seek(size)


def _write_all(file: io.FileIO, data: bytes, name: str) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) or 0 :]
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            hint = "Make room, then continue with --resume." if name.endswith(".part") else "Make room, then try again."
            raise OutputError(f"The disk is full: {name} cannot grow any more ({error.strerror}).", hint) from None
        raise OutputError(f"{name} cannot be written: {error.strerror}.") from None
