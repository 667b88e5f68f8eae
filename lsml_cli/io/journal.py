"""The journal of a run: how far tasks, output and errors agree on disk.

Beside the unfinished `out.json.part` lies `out.json.part.journal`: one line of JSON that says what the run was
started with, then one line after each batch. A half-written last line is not trusted. Everything that lies behind
the last whole entry is cut off before the run goes on, so that the bytes are those of an uninterrupted run.
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

from lsml_cli.errors import InputError, OutputError, ResumeRefused

SYNC_INTERVAL = 5.0  # seconds between two fsyncs: what a power cut may cost; a killed process costs one batch


@dataclass(frozen=True)
class JournalEntry:
    """A point at which everything agrees.

    records  records of the input that are done
    crc      CRC-32 of their bytes
    output   bytes of the output, errors: bytes of the error file
    counts   the run's counters so far
    finished the output is complete; only the renaming may be missing
    """

    records: int = 0
    crc: int = 0
    output: int = 0
    errors: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    finished: bool = False


class Journal:
    """An open journal."""

    def __init__(self, path: Path, file: io.FileIO, last_entry: JournalEntry) -> None:
        self.path = path
        self.last_entry = last_entry
        self._file = file
        self._synced_at = time.monotonic()

    @classmethod
    def create(cls, path: Path, run_fingerprint: Mapping[str, Any]) -> Self:
        """A new journal, in the place of any older one."""
        journal = cls(path, _open_journal_file(path), JournalEntry())
        journal._file.truncate(0)
        journal._write({"started_with": dict(run_fingerprint)})
        return journal

    @classmethod
    def reopen(cls, path: Path, run_fingerprint: Mapping[str, Any], output_bytes: int, error_bytes: int) -> Self:
        """The journal of an unfinished run of which `output` and `errors` bytes are there.

        Raises ResumeRefused, naming each difference, if it was started with something else.
        """
        found = JournalState.read(path, output_bytes, error_bytes)
        found.require_same_run(path, run_fingerprint)
        file = _open_journal_file(path)
        file.truncate(found.valid_bytes)
        file.seek(0, os.SEEK_END)
        return cls(path, file, found.last_entry)

    def append(self, entry: JournalEntry, *files: io.FileIO) -> None:
        """Record that `entry` holds. `files` have been flushed; every few seconds they are synced to disk first."""
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
    """What a journal on disk says, as far as it can be trusted.

    header  what the run was started with; None where even that line is not whole
    last    the last entry that is whole and whose files are there: after a power cut a journal may know of bytes that
            never reached the disk
    size    bytes of the journal up to there
    """

    header: Mapping[str, Any] | None
    last_entry: JournalEntry
    valid_bytes: int

    @classmethod
    def read(cls, path: Path, output_bytes: int, error_bytes: int) -> Self:
        """Read a journal a line at a time; `output` and `errors` are the bytes that are there of these files."""
        header: Any = None
        last, size, position = JournalEntry(), 0, 0
        try:
            with path.open("rb") as file:
                for line in file:
                    position += len(line)
                    content = _parse_line(line)
                    if content is None:
                        break
                    if header is None:
                        header, size = content.get("started_with"), position
                    elif content["output"] <= output_bytes and content["errors"] <= error_bytes:
                        last, size = JournalEntry(**content), position
        except FileNotFoundError:
            pass
        except (KeyError, TypeError, AttributeError):  # JSON, but not ours
            pass
        return cls(header if isinstance(header, dict) else None, last, size)

    def require_same_run(self, path: Path, run_fingerprint: Mapping[str, Any]) -> None:
        """Refuse to go on with a run that was started with something else, naming each difference."""
        journal = path.name
        part = journal.removesuffix(".journal")
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


def _parse_line(line: bytes) -> Any:
    """The content of a line of a journal, None where it is torn."""
    try:
        return orjson.loads(line) if line.endswith(b"\n") else None
    except orjson.JSONDecodeError:
        return None


def _open_journal_file(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path, "a+")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None


def _shorten(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def require_same_input(name: str, crc: int, last_entry: JournalEntry) -> None:
    """Refuse to go on when the records that were done already are not the ones at the start of the input."""
    if crc != last_entry.crc:
        raise ResumeRefused(
            f"The first {last_entry.records:,} records of {name} are not the ones that the unfinished run has done.",
            "Resume with the input that it was started with.",
        )


def require_enough_input(name: str, records: int, last_entry: JournalEntry) -> None:
    if records < last_entry.records:
        raise InputError(
            f"{name} has only {records:,} records, but {last_entry.records:,} of them were done before.",
            "Resume with the input that the run was started with.",
        )
