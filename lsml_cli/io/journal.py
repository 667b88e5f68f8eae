"""The journal of a run: how far tasks, output and errors agree on disk.

Beside the unfinished `out.json.part` lies `out.json.part.journal`: one line of JSON with the fingerprint of the run,
then one line after each batch. A half-written last line is ignored. A resumed run cuts off everything behind the last
whole entry, so that its bytes are those of an uninterrupted run.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from lsml_cli.errors import InputError, OutputError, ResumeRefused, UsageError
from lsml_cli.runtime import open_own_file
from lsml_cli.schema.value_checks import is_integer

_HEADER_START = b'{"started_with":'
MAX_LINE_BYTES = 64 << 20  # of a line; the first holds the fingerprint of the run
SYNC_INTERVAL = 5.0  # seconds between two fsyncs: what a power cut may cost; a killed process costs one batch


@dataclass(frozen=True)
class JournalEntry:
    """A point at which input, output and errors agree.

    Attributes:
        records: Records of the input that are done.
        crc: CRC-32 of their bytes.
        output: Bytes of the output.
        errors: Bytes of the error file.
        counts: The run's counters so far.
        finished: The output is complete; only the rename may be missing.
    """

    records: int = 0
    crc: int = 0
    output: int = 0
    errors: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    finished: bool = False


class Journal:
    """An open journal, to which a run appends an entry after each batch."""

    def __init__(self, path: Path, file: io.FileIO, last_entry: JournalEntry) -> None:
        self.path = path
        self.last_entry = last_entry
        self._file = file
        self._synced_at = time.monotonic()

    @classmethod
    def create(cls, path: Path, run_fingerprint: Mapping[str, Any]) -> Self:
        """Create a journal; an older one of that name is overwritten.

        Raises:
            UsageError: Something else than a journal has that name.
        """
        journal = cls(path, _open_journal_file(path), JournalEntry())
        if not _begins_like_journal(journal._file):
            journal.close()
            raise UsageError(
                f"{path} is no journal of lsml, which needs that name.", "Remove it, or choose another --output."
            )
        journal._file.truncate(0)
        journal._write({"started_with": dict(run_fingerprint)})
        return journal

    @classmethod
    def reopen(cls, path: Path, run_fingerprint: Mapping[str, Any], output_bytes: int, error_bytes: int) -> Self:
        """Open the journal of an unfinished run, behind its last entry that can be trusted.

        Args:
            path: The journal.
            run_fingerprint: The fingerprint of the run that continues.
            output_bytes: Size of the unfinished output.
            error_bytes: Size of the unfinished error file.

        Raises:
            ResumeRefused: The run was started with something else; each difference is named.
        """
        state = JournalState.read(path, output_bytes, error_bytes)
        state.require_same_run(path, run_fingerprint)
        file = _open_journal_file(path)
        file.truncate(state.valid_bytes)
        file.seek(0, os.SEEK_END)
        return cls(path, file, state.last_entry)

    def append(self, entry: JournalEntry, *files: io.FileIO) -> None:
        """Record that `entry` holds.

        Args:
            entry: What the run has reached.
            files: What it has written, already flushed; every `SYNC_INTERVAL` they are synced to disk first.
        """
        if entry.finished or time.monotonic() - self._synced_at > SYNC_INTERVAL:
            for file in files:
                os.fsync(file.fileno())
            self._write(asdict(entry))
            os.fsync(self._file.fileno())
            self._synced_at = time.monotonic()
        else:
            self._write(asdict(entry))
        self.last_entry = entry

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(orjson.dumps(line) + b"\n")
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror}.", "Make room, then continue with --resume."
            ) from None


@dataclass(frozen=True)
class JournalState:
    """The content of a journal on disk, as far as it can be trusted.

    Attributes:
        header: The fingerprint of the run; None where even that line is not whole.
        last_entry: The last whole entry whose bytes are in the files: after a power cut a journal may know of bytes
            that never reached the disk.
        valid_bytes: Size of the journal up to the end of that entry.
    """

    header: Mapping[str, Any] | None
    last_entry: JournalEntry
    valid_bytes: int

    @classmethod
    def read(cls, path: Path, output_bytes: int, error_bytes: int) -> Self:
        """Read a journal a line at a time; a missing one is empty.

        Args:
            path: The journal.
            output_bytes: Size of the unfinished output.
            error_bytes: Size of the unfinished error file.
        """
        header: Any = None
        last_entry, valid_bytes, position = JournalEntry(), 0, 0
        try:
            with os.fdopen(open_own_file(path, os.O_RDONLY), "rb") as file:
                for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                    position += len(line)
                    content = _parse_line(line)
                    if content is None:
                        break
                    if header is None:
                        header, valid_bytes = content.get("started_with"), position
                        continue
                    entry = _entry_from_json(content)
                    if entry.output <= output_bytes and entry.errors <= error_bytes:
                        last_entry, valid_bytes = entry, position
        except FileNotFoundError:
            pass
        except (KeyError, TypeError, AttributeError):  # JSON, but not ours
            pass
        return cls(header if isinstance(header, dict) else None, last_entry, valid_bytes)

    def require_same_run(self, path: Path, run_fingerprint: Mapping[str, Any]) -> None:
        """Raise ResumeRefused if the run was started with something else, naming each difference."""
        part = path.name.removesuffix(".journal")
        if self.header is None:
            raise ResumeRefused(f"{path} is damaged, so the run cannot be resumed.", f"Delete it and {part}.")
        differences = [
            f"{name} was {_shorten(self.header.get(name))}, now it is {_shorten(value)}"
            for name, value in run_fingerprint.items()
            if self.header.get(name) != orjson.loads(orjson.dumps(value))
        ]
        if differences:
            raise ResumeRefused(
                f"The unfinished run was started differently: {'; '.join(differences)}.",
                f"Use the same again, or delete {part} to start over.",
            )


def _entry_from_json(content: Any) -> JournalEntry:
    """Return the entry that a line holds.

    Raises:
        TypeError: It holds something else.
    """
    entry = JournalEntry(**content)
    numbers = [entry.records, entry.crc, entry.output, entry.errors, *entry.counts.values()]
    if not all(is_integer(number) and number >= 0 for number in numbers) or not isinstance(entry.finished, bool):
        raise TypeError("no entry of a journal")
    return entry


def _parse_line(line: bytes) -> Any:
    """Return the content of a line of a journal, None where the line is truncated."""
    try:
        return orjson.loads(line) if line.endswith(b"\n") else None
    except orjson.JSONDecodeError:
        return None


def _open_journal_file(path: Path) -> io.FileIO:
    try:
        return io.FileIO(open_own_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None


def _begins_like_journal(file: io.FileIO) -> bool:
    """Return whether a file is empty or begins with the header of a journal, of which a power cut may leave a part."""
    file.seek(0)
    head = file.read(len(_HEADER_START)) or b""
    return _HEADER_START.startswith(head)


def _shorten(value: Any) -> str:
    try:
        text = "not set" if value is None else str(value)
    except RecursionError:  # what a journal holds may be nested more deeply than Python can show
        text = "damaged"
    return text if len(text) <= 80 else text[:77] + "..."


def require_same_input(name: str, crc: int, last_entry: JournalEntry) -> None:
    """Raise ResumeRefused if the input does not begin with the records that are done.

    Args:
        name: The input, for the message.
        crc: CRC-32 of its first `last_entry.records` records.
        last_entry: What the unfinished run has reached.
    """
    if crc != last_entry.crc:
        raise ResumeRefused(
            f"The first {last_entry.records:,} records of {name} are not the ones that the unfinished run has done.",
            "Resume with the input that it was started with.",
        )


def require_enough_input(name: str, records: int, last_entry: JournalEntry) -> None:
    """Raise InputError if the input has fewer records than were done before."""
    if records < last_entry.records:
        raise InputError(
            f"{name} has only {records:,} records, but {last_entry.records:,} of them were done before.",
            "Resume with the input that the run was started with.",
        )
