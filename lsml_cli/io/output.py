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
from lsml_cli.io.journal import Entry, Found, Journal
from lsml_cli.io.output_paths import STDOUT, beside, identity, identity_of, is_stream, locked, writable

Format = Literal["json", "jsonl"]
FORMATS: dict[str, Format] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def output_format(output: str, wanted: Format | None) -> Format:
    """The format that was asked for, else the one that the file's ending says; a stream is JSON Lines."""
    if wanted is not None:
        return wanted
    if is_stream(output):
        return "jsonl"
    ending = Path(output).suffix.lower()
    if ending not in FORMATS:
        endings = ", ".join(FORMATS)
        raise UsageError(f"{output!r} does not end in {endings}.", "Add --format json or --format jsonl.")
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


_claimed: io.FileIO | None = None


@contextmanager
def stdout_for_data() -> Iterator[None]:
    """Keep standard output for records alone: whatever a model or a library prints goes to stderr meanwhile.

    Below Python too, and in the processes that are started meanwhile.
    """
    global _claimed
    sys.stdout.flush()
    _claimed = io.FileIO(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(_claimed.fileno(), 1)
        _claimed.close()
        _claimed = None


class StreamOutput:
    """Standard output or another stream, one batch at a time; errors go to their file."""

    def __init__(self, output: str, form: Format, errors: str | None) -> None:
        self._name = "standard output" if output == STDOUT else output
        if output == STDOUT:
            self._stream = io.FileIO(os.dup(_claimed.fileno() if _claimed else 1), "w")
        else:
            self._stream = io.FileIO(output, "w")
        self._errors = io.FileIO(writable(errors), "w") if errors else None
        self._lines = form == "jsonl"
        self._framing = _Framing(form, started=False)
        self.last = Entry()

    def write(self, records: Sequence[bytes], errors: Sequence[bytes], reached: Entry) -> None:
        _write_all(self._stream, self._framed(records), self._name)
        if self._errors:
            _write_all(self._errors, b"".join(errors), str(self._errors.name))
        self.last = reached

    def _framed(self, records: Sequence[bytes]) -> bytes:
        if self._lines:  # each with its line end at once: whoever reads the pipe should not wait for the next batch
            return b"".join(record + b"\n" for record in records if record)
        return self._framing.frame(records)

    def finish(self) -> None:
        if not self._lines:
            _write_all(self._stream, self._framing.end(), self._name)

    def close(self) -> None:
        self._stream.close()
        if self._errors:
            self._errors.close()


class FileOutput:
    """A file, and an error file if asked for, which appear by rename when everything is in them."""

    def __init__(
        self, output: str, errors: str | None, started_with: Mapping[str, Any], *, resume: bool, journal: bool = True
    ) -> None:
        """started_with  what a resumed run is compared with; `--format` in it is the format
        resume        continue an unfinished run if there is one
        journal       whether this run can be resumed; if not, it leaves nothing when it is not finished

        Raises UsageError when the folder does not exist or when an unfinished run would be overwritten, OutputError
        when another run is writing the same file.
        """
        self.path = writable(output)
        self.errors_path = writable(errors) if errors else None
        ending = ".part" if journal else ".new"
        self.part = beside(self.path, ending)
        self.errors_part = self.errors_path and beside(self.errors_path, ending)
        self._journal: Journal | None = None
        self._errors: io.FileIO | None = None
        self._in_place = False
        self.last = Entry()
        self._file = locked(self.part)
        try:
            if journal:
                sizes = _size(self.part), _size(self.errors_part) if self.errors_part else 0
                self._journal = _finished_journal(self.path, started_with) if resume and not sizes[0] else None
                self._in_place = self._journal is not None
                self._journal = self._journal or _journal(self.path, started_with, *sizes, resume=resume)
                self.last = self._journal.last
            if not self.last.finished:
                _cut_back(self._file, self.last.output)
                if self.errors_part:
                    self._errors = locked(self.errors_part)
                    _cut_back(self._errors, self.last.errors)
        except BaseException:
            self._let_go()
            raise
        self._framing = _Framing(started_with["--format"], started=self.last.output > 0)

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
            if identity(str(self.part)) != identity_of(self._file.fileno()):
                raise OutputError(f"{self.part} was removed while it was written, and its content with it.")
        if self.errors_part and self.errors_path and self.errors_part.exists():
            self.errors_part.replace(self.errors_path)
        if self._in_place:  # an earlier run was killed after the renaming; the part is only this one's lock
            self.part.unlink()
        else:
            self.part.replace(self.path)
        if self._journal:
            self._journal.remove()

    def close(self) -> None:
        """Let go of the files. What is not finished stays, for --resume; nothing stays where nothing was done."""
        if not self.last.finished and (not self.last.records or not self._journal):
            self.part.unlink(missing_ok=True)
            if self.errors_part:
                self.errors_part.unlink(missing_ok=True)
            if self._journal:
                self._journal.remove()
        self._let_go()

    def _let_go(self) -> None:
        for file in (self._file, self._errors, self._journal):
            if file:
                file.close()

    def _record(self, reached: Entry, output: int, errors: int, finished: bool = False) -> None:
        entry = Entry(
            reached.records,
            reached.crc,
            self.last.output + output,
            self.last.errors + (errors if self._errors else 0),
            reached.counts,
            finished,
        )
        if self._journal:
            self._journal.append(entry, *(file for file in (self._file, self._errors) if file))
        self.last = entry


def _journal(path: Path, started_with: Mapping[str, Any], output: int, errors: int, *, resume: bool) -> Journal:
    """The journal of the run to continue, or of a new one where there is nothing to continue."""
    place = beside(path, ".part.journal")
    _require_journal(path, started_with, output, errors, resume=resume)
    if resume and output:
        return Journal.reopen(place, started_with, output, errors)
    return Journal.begin(place, started_with)


def _finished_journal(path: Path, started_with: Mapping[str, Any]) -> Journal | None:
    """The journal of a run that was killed when nothing was left to do but to remove it."""
    place, size = beside(path, ".part.journal"), _size(path)
    found = Found.read(place, size, sys.maxsize)
    if not found.last.finished or found.last.output != size:
        return None
    return Journal.reopen(place, started_with, size, sys.maxsize)


def _require_journal(path: Path, started_with: Mapping[str, Any], output: int, errors: int, *, resume: bool) -> None:
    """Refuse to throw unfinished work away without being told to, or to continue what is not this run's."""
    part, place = beside(path, ".part"), beside(path, ".part.journal")
    if not output:  # whatever the journal says: nothing is left of the run
        return
    if not place.exists():
        raise UsageError(f"{part} is there, but no journal that tells how far it got.", f"Delete {part} to start over.")
    found = Found.read(place, output, errors)
    if resume:
        found.require(place, started_with)
    elif found.last.records or found.header is None:
        raise UsageError(
            f"{part} holds {found.last.records:,} tasks of an unfinished run.",
            "Continue it with --resume, or delete that file to start over.",
        )


def require_output(output: str, errors: str | None, started_with: Mapping[str, Any], *, resume: bool) -> None:
    """Raises what `FileOutput` would raise, and touches nothing."""
    path = writable(output)
    errors_path = writable(errors) if errors else None
    sizes = [_size(beside(each, ".part")) if each else 0 for each in (path, errors_path)]
    _require_journal(path, started_with, *sizes, resume=resume)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _cut_back(file: io.FileIO, size: int) -> None:
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
        if error.errno in FULL:
            hint = "Make room, then continue with --resume." if name.endswith(".part") else "Make room, then try again."
            raise OutputError(f"The disk is full: {name} cannot grow any more ({error.strerror}).", hint) from None
        raise OutputError(f"{name} cannot be written: {error.strerror}.") from None
