"""Where the records of a run go: a file that appears when it is complete, or standard output.

While a run is under way, `out.json.part` holds exactly the bytes that the finished file begins with, the error file
likewise, and `out.json.part.journal` tells how far they agree with the input (see `resume`).
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from lsml_cli.errors import OutputClosed, OutputError, UsageError
from lsml_cli.resume import Entry, Journal, require_nothing_unfinished

STDOUT = "-"
Format = Literal["json", "jsonl"]
FORMATS: dict[str, Format] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def output_format(output: str, wanted: Format | None) -> Format:
    """The format that was asked for, else the one that the file's ending says; standard output is JSON Lines."""
    if wanted is not None:
        return wanted
    if output == STDOUT:
        return "jsonl"
    ending = Path(output).suffix.lower()
    if ending not in FORMATS:
        endings = ", ".join(FORMATS)
        raise UsageError(f"{output} does not end in {endings}.", "Add --format json or --format jsonl.")
    return FORMATS[ending]


class Output(Protocol):
    """Takes records in order. `last` is the point up to which an earlier run got, its beginning for a new one."""

    last: Entry

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], reached: Entry) -> None:
        """Write a batch. Empty records are left out; `reached` is the state after it, without the file offsets."""

    def finish(self) -> None: ...

    def close(self) -> None: ...


class _Framing:
    """What stands before, between and after the records."""

    def __init__(self, form: Format, started: bool) -> None:
        self.started = started
        self.before, self.between, self.after = (b"[\n", b",\n", b"\n]\n") if form == "json" else (b"", b"\n", b"\n")

    def frame(self, records: Sequence[bytes]) -> bytes:
        records = [record for record in records if record]
        if not records:
            return b""
        lead = self.between if self.started else self.before
        self.started = True
        return lead + self.between.join(records)

    def end(self) -> bytes:
        return self.after if self.started else self.before.strip() + self.after.lstrip()


class StreamOutput:
    """Standard output, one batch at a time; errors go to their file."""

    def __init__(self, form: Format, errors: str | None) -> None:
        sys.stdout.flush()
        # The data keeps the descriptor for itself; a print of a model's or a library's goes to stderr from now on.
        self._stdout = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._errors = _create(Path(errors)) if errors else None
        self._lines = form == "jsonl"
        self._framing = _Framing(form, started=False)
        self.last = Entry()

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], reached: Entry) -> None:
        _write_all(self._stdout, self._framed(records), "standard output")
        if self._errors:
            _write_all(self._errors, b"".join(errors), self._errors.name)
        self.last = reached

    def _framed(self, records: Sequence[bytes]) -> bytes:
        if self._lines:  # each with its line end at once: whoever reads the pipe should not wait for the next batch
            return b"".join(record + b"\n" for record in records if record)
        return self._framing.frame(records)

    def finish(self) -> None:
        if not self._lines:
            _write_all(self._stdout, self._framing.end(), "standard output")

    def close(self) -> None:
        os.dup2(self._stdout.fileno(), 1)
        self._stdout.close()
        if self._errors:
            self._errors.close()


class FileOutput:
    """A file, and an error file if asked for, which appear by rename when everything is in them.

    Raises UsageError when the folder does not exist or when an unfinished run would be overwritten.
    """

    def __init__(
        self, output: str, form: Format, errors: str | None, started_with: Mapping[str, Any], *, resume: bool
    ) -> None:
        self.path = _writable(output)
        self.errors_path = _writable(errors) if errors else None
        self.part = self.path.with_name(self.path.name + ".part")
        self.errors_part = self.errors_path and self.errors_path.with_name(self.errors_path.name + ".part")
        journal = self.part.with_name(self.part.name + ".journal")
        if resume and journal.exists():
            self._journal = Journal.reopen(journal, started_with)
        else:
            require_nothing_unfinished(self.part, Journal.peek(journal))
            self._journal = Journal.begin(journal, started_with)
        self.last = self._journal.last
        if self.last.finished:
            return
        self._file = _cut_back(self.part, self.last.output)
        self._errors = _cut_back(self.errors_part, self.last.errors) if self.errors_part else None
        self._framing = _Framing(form, started=self.last.output > 0)

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], reached: Entry) -> None:
        data = self._framing.frame(records)
        trouble = b"".join(errors)
        _write_all(self._file, data, str(self.part))
        if self._errors:
            _write_all(self._errors, trouble, str(self.errors_part))
        self._record(reached, len(data), len(trouble))

    def finish(self) -> None:
        """Complete the file and let it appear. Killed at any moment in here, a resumed run completes the rest."""
        if not self.last.finished:
            end = self._framing.end()
            _write_all(self._file, end, str(self.part))
            self._record(self.last, len(end), 0, finished=True)
        if self.errors_part and self.errors_path and self.errors_part.exists():
            self.errors_part.replace(self.errors_path)
        if self.part.exists():
            self.part.replace(self.path)
        self._journal.remove()

    def close(self) -> None:
        """Let go of the files. What is not finished stays, for --resume; nothing stays where nothing was done."""
        if not self.last.finished:
            self._file.close()
            if self._errors:
                self._errors.close()
            if not self.last.records:
                self.part.unlink(missing_ok=True)
                if self.errors_part:
                    self.errors_part.unlink(missing_ok=True)
                self._journal.remove()
        self._journal.close()

    def _record(self, reached: Entry, output: int, errors: int, finished: bool = False) -> None:
        entry = Entry(
            reached.records,
            reached.crc,
            self.last.output + output,
            self.last.errors + (errors if self._errors else 0),
            reached.counts,
            finished,
        )
        self._journal.append(entry, *(file for file in (self._file, self._errors) if file))
        self.last = entry


def room_note(output: str, size: int | None) -> str | None:
    """A sentence if the disk may be too small for the output of an input of `size` bytes."""
    if size is None or output == STDOUT:
        return None
    free = shutil.disk_usage(Path(output).resolve().parent).free
    if free > size * 1.2:
        return None
    return f"The input has {size / 1e6:,.0f} MB and only {free / 1e6:,.0f} MB are free where {output} goes."


def _writable(path: str) -> Path:
    target = Path(path)
    if target.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file in it.")
    if not target.parent.is_dir():
        raise UsageError(f"There is no folder {target.parent}.", f"Create it first: mkdir -p {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"The folder {target.parent} is not writable.")
    return target


def _create(path: Path) -> io.FileIO:
    return io.FileIO(_writable(str(path)), "w")


def _cut_back(path: Path, size: int) -> io.FileIO:
    """The file, open for writing behind its first `size` bytes."""
    file = io.FileIO(path, "r+" if path.exists() else "w+")
    if file.seek(0, os.SEEK_END) < size:
        file.close()
        raise OutputError(
            f"{path} is shorter than the run had written ({size:,} bytes).", "It was changed; delete it to start over."
        )
    file.truncate(size)
    file.seek(size)
    return file


def _write_all(file: BinaryIO | io.FileIO, data: bytes, name: str) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) or 0 :]
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"The disk is full: {name} cannot grow any more ({error.strerror}).",
                "Make room, then continue with --resume.",
            ) from None
        raise OutputError(f"{name} cannot be written: {error.strerror}.") from None
