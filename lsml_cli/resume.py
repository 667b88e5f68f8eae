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

from lsml_cli.errors import InputError, OutputError, ResumeRefused, UsageError

SYNC_EVERY = 5.0  # seconds between two fsyncs: what a power cut may cost; a killed process costs one batch


@dataclass(frozen=True)
class Entry:
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

    def __init__(self, path: Path, file: io.FileIO, last: Entry) -> None:
        self.path = path
        self.last = last
        self._file = file
        self._synced = time.monotonic()

    @classmethod
    def begin(cls, path: Path, started_with: Mapping[str, Any]) -> Self:
        """A new journal."""
        journal = cls(path, _opened(path), Entry())
        journal._file.truncate(0)
        journal._write({"started_with": dict(started_with)})
        return journal

    @classmethod
    def reopen(cls, path: Path, started_with: Mapping[str, Any]) -> Self:
        """The journal of an unfinished run. Raises ResumeRefused, naming each difference, if it is another run."""
        file = _opened(path)
        lines = _whole_lines(file)
        try:
            require_same_start(path, lines, started_with)
        except ResumeRefused:
            file.close()
            raise
        last = Entry(**lines[-1]) if len(lines) > 1 else Entry()
        return cls(path, file, last)

    @classmethod
    def would_reopen(cls, path: Path, started_with: Mapping[str, Any]) -> None:
        """Raises ResumeRefused if `reopen` would; touches nothing."""
        require_same_start(path, _parse_lines(path.read_bytes()), started_with)

    @classmethod
    def peek(cls, path: Path) -> Entry | None:
        """The last entry of a journal that may or may not be there."""
        try:
            with path.open("rb") as file:
                lines = _parse_lines(file.read())
        except FileNotFoundError:
            return None
        return Entry(**lines[-1]) if len(lines) > 1 else Entry()

    def append(self, entry: Entry, *files: io.FileIO) -> None:
        """Record that `entry` holds. `files` have been flushed; every few seconds they are synced to disk first."""
        if entry.finished or time.monotonic() - self._synced > SYNC_EVERY:
            for file in files:
                os.fsync(file.fileno())
            self._write(asdict(entry))
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        else:
            self._write(asdict(entry))
        self.last = entry

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(orjson.dumps(line) + b"\n")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}.", "Make room first.") from None


def _opened(path: Path) -> io.FileIO:
    try:
        return io.FileIO(path, "a+")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None


def _whole_lines(file: io.FileIO) -> list[dict[str, Any]]:
    """The lines up to the first that is not whole; the rest is cut off."""
    file.seek(0)
    content = file.read()
    lines = _parse_lines(content)
    file.truncate(sum(len(line) + 1 for line in content.split(b"\n")[: len(lines)]))
    file.seek(0, os.SEEK_END)
    return lines


def _parse_lines(content: bytes) -> list[dict[str, Any]]:
    lines = []
    for line in content.split(b"\n")[:-1]:
        try:
            lines.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            break
    return lines


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def require_same_start(path: Path, lines: list[dict[str, Any]], started_with: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was started with something else, naming each difference."""
    before = lines[0].get("started_with") if lines else None
    if not isinstance(before, dict):
        raise ResumeRefused(
            f"{path} is damaged, so the run cannot be resumed.",
            f"Delete it and {path.name.removesuffix('.journal')} to start over.",
        )
    differences = [
        f"{name} was {_shown(before.get(name))}, now it is {_shown(value)}"
        for name, value in started_with.items()
        if before.get(name) != orjson.loads(orjson.dumps(value))
    ]
    if differences:
        raise ResumeRefused(
            f"The unfinished run was started differently: {'; '.join(differences)}.",
            f"Use the same again, or delete {path.name.removesuffix('.journal')} to start over.",
        )


def require_nothing_unfinished(part: Path, last: Entry | None) -> None:
    """Refuse to throw away an unfinished run's work without being told to."""
    if last is not None and last.records and part.exists():
        raise UsageError(
            f"{part} holds {last.records:,} tasks of an unfinished run.",
            "Continue it with --resume, or delete that file to start over.",
        )


def require_same_input(name: str, crc: int, last: Entry) -> None:
    """Refuse to go on when the records that were done already are not the ones at the start of the input."""
    if crc != last.crc:
        raise ResumeRefused(
            f"The first {last.records:,} records of {name} are not the ones that the unfinished run has done.",
            "Resume with the input that it was started with.",
        )


def require_enough_input(name: str, records: int, last: Entry) -> None:
    if records < last.records:
        raise InputError(
            f"{name} has only {records:,} records, but {last.records:,} of them were done before.",
            "Resume with the input that the run was started with.",
        )
