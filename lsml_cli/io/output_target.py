"""The files of one output: the final file, and beside it those of the unfinished run.

out.json               appears by rename when it is complete
out.json.part          what is written so far: the first bytes of the final file; locked by the run that writes it
out.json.part.journal  how far input, output and errors agree, see `journal`
errors.jsonl.part      the error file, likewise

A name that ends in .gz is compressed. What already has one of the names of an unfinished run is opened only if it is a
regular file of this user: a folder of data may bring links.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lsml_cli.errors import OutputError, UsageError
from lsml_cli.io.journal import Journal, JournalState
from lsml_cli.io.output_paths import (
    STDOUT,
    existing_file_identity,
    file_identity,
    is_stdout,
    is_stream,
    resolve_output_path,
    sibling_path,
)
from lsml_cli.io.reserved_stdout import open_stdout
from lsml_cli.runtime import open_own_file, require_own_file

OutputFormat = Literal["json", "jsonl"]
FORMAT_BY_SUFFIX: dict[str, OutputFormat] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
GZIP_SUFFIX = ".gz"

PART_SUFFIX = ".part"  # of the unfinished file of a run that can be resumed
NEW_SUFFIX = ".new"  # of the unfinished file of a run that cannot
JOURNAL_SUFFIX = ".part.journal"

_FIRST_BYTES = (b"", b"[", b"{", b"\x1f")  # of unfinished files: nothing, JSON, gzip

DISK_RESERVE = 1.2  # free space that a run should find, as a multiple of the size of its input


def output_format(output: str, requested: OutputFormat | None) -> OutputFormat:
    """Return the requested format, else the one of the file's suffix, before a `.gz`; a stream is JSON Lines.

    Raises:
        UsageError: The suffix tells nothing.
    """
    if requested is not None:
        return requested
    if is_stream(output):
        return "jsonl"
    suffix = Path(output.lower().removesuffix(GZIP_SUFFIX)).suffix
    if suffix not in FORMAT_BY_SUFFIX:
        known = ", ".join(FORMAT_BY_SUFFIX)
        raise UsageError(
            f"{output!r} does not end in {known} (or one of these and {GZIP_SUFFIX}).",
            "Add --format json or --format jsonl.",
        )
    return FORMAT_BY_SUFFIX[suffix]


def part_files(outputs: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the files of an unfinished run that stand beside `outputs`, by names for messages."""
    parts: dict[str, str | None] = {}
    for name, path in outputs.items():
        if path and not is_stream(path):
            parts |= {f"{name} in progress": f"{path}{PART_SUFFIX}", f"{name}'s journal": f"{path}{JOURNAL_SUFFIX}"}
    return parts


@dataclass(frozen=True)
class OutputTarget:
    """An output, its error file, and the files of the run that writes them.

    Paths are looked at when they are first used; that raises UsageError where no file can be created.

    Args:
        output: A path, or "-" for standard output.
        errors: The path of the error file, None for none. A pipe or a device is written directly.
        requested_format: The format, None to go by the suffix.
        is_resumable: Whether an unfinished run leaves its part and a journal; otherwise it leaves nothing.
    """

    output: str
    errors: str | None = None
    requested_format: OutputFormat | None = None
    is_resumable: bool = True

    @property
    def is_stream(self) -> bool:
        return is_stream(self.output)

    @property
    def format(self) -> OutputFormat:
        return output_format(self.output, self.requested_format)

    @cached_property
    def path(self) -> Path:
        return resolve_output_path(self.output)

    @cached_property
    def errors_path(self) -> Path | None:
        if is_stdout(self.errors):
            return Path(STDOUT)
        return resolve_output_path(self.errors) if self.errors else None

    @property
    def part_path(self) -> Path:
        return sibling_path(self.path, PART_SUFFIX if self.is_resumable else NEW_SUFFIX)

    @property
    def errors_part_path(self) -> Path | None:
        """The unfinished error file; None without an error file, and where that is a pipe or a device."""
        if self.errors_path is None or is_stream(str(self.errors_path)):
            return None
        return sibling_path(self.errors_path, PART_SUFFIX if self.is_resumable else NEW_SUFFIX)

    @property
    def journal_path(self) -> Path:
        return sibling_path(self.path, JOURNAL_SUFFIX)

    def disk_space_note(self, input_bytes: int | None) -> str | None:
        """Return a sentence if the disk may be too small for the output of an input of `input_bytes`."""
        if input_bytes is None or self.is_stream:
            return None
        free = shutil.disk_usage(self.path.parent).free
        if free > input_bytes * DISK_RESERVE:
            return None
        return (
            f"The input has {input_bytes / 1e6:,.0f} MB and only {free / 1e6:,.0f} MB are free "
            f"where {self.output} goes."
        )

    def lock(self) -> io.FileIO:
        """Open the part and lock it, so that two runs cannot write the same output."""
        return open_locked(self.part_path)

    def open_errors(self) -> io.FileIO | None:
        """Open the part of the error file and lock it, or open the pipe or device; None without an error file."""
        if self.errors_part_path:
            return open_locked(self.errors_part_path)
        return self.open_errors_stream() if self.errors_path else None

    def open_errors_stream(self) -> io.FileIO:
        """Open the error file in place, or standard output."""
        return open_stdout() if is_stdout(self.errors_path) else io.FileIO(str(self.errors_path), "w")

    def require_writable(self, run_fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        """Raise what opening the output would raise, without touching a file."""
        for path in (self.part_path, self.journal_path, self.errors_part_path):
            if path is not None:
                require_own_file(path)
        part_bytes, error_bytes = self._part_sizes()
        if resume and part_bytes:
            self._read_journal(part_bytes, error_bytes).require_same_run(self.journal_path, run_fingerprint)
        else:
            self._require_nothing_unfinished(part_bytes, error_bytes)

    def open_journal(self, run_fingerprint: Mapping[str, Any], *, resume: bool) -> tuple[Journal, bool]:
        """Open the journal of the run to continue, or create one where there is nothing to continue.

        Args:
            run_fingerprint: What decides about the bytes of the output; a resumed run must have the same.
            resume: Continue an unfinished run if there is one.

        Returns:
            The journal, and whether the final file is in place already: an earlier run was killed after the rename.

        Raises:
            UsageError: An unfinished run would be overwritten, or it has no journal.
            ResumeRefused: The unfinished run was started with something else.
        """
        part_bytes, error_bytes = self._part_sizes()
        if resume and not part_bytes and (journal := self._open_finished_journal(run_fingerprint)):
            return journal, True
        if resume and part_bytes:
            self._require_journal()
            return Journal.reopen(self.journal_path, run_fingerprint, part_bytes, error_bytes), False
        self._require_nothing_unfinished(part_bytes, error_bytes)
        return Journal.create(self.journal_path, run_fingerprint), False

    def read_unfinished_fingerprint(self) -> Mapping[str, Any] | None:
        """Return the fingerprint of the unfinished run, None where there is no run or no readable journal."""
        if self.is_stream:
            return None
        return JournalState.read(self.journal_path, sys.maxsize, sys.maxsize).header

    def publish(self, *, is_renamed: bool) -> None:
        """Let the complete files appear under their final names.

        Killed at any moment in here, a resumed run completes the rest: so errors come first, the output second.

        Args:
            is_renamed: The output is in place already; its part is only the lock of this run.
        """
        if self.errors_part_path and self.errors_path and self.errors_part_path.exists():
            self.errors_part_path.replace(self.errors_path)
        if is_renamed:
            self.part_path.unlink()
        else:
            self.part_path.replace(self.path)

    def remove_parts(self) -> None:
        """Remove the unfinished files, for a run that has nothing worth continuing."""
        self.part_path.unlink(missing_ok=True)
        if self.errors_part_path:
            self.errors_part_path.unlink(missing_ok=True)

    def _part_sizes(self) -> tuple[int, int]:
        """Return the bytes of the unfinished output and of its error file, 0 for a file that is missing."""
        errors_part_path = self.errors_part_path
        return _file_size(self.part_path), _file_size(errors_part_path) if errors_part_path else 0

    def _open_finished_journal(self, run_fingerprint: Mapping[str, Any]) -> Journal | None:
        """Reopen the journal of a run that was killed when only the journal was left to remove."""
        size = _file_size(self.path)
        last_entry = JournalState.read(self.journal_path, size, sys.maxsize).last_entry
        if not last_entry.finished or last_entry.output != size:
            return None
        return Journal.reopen(self.journal_path, run_fingerprint, size, sys.maxsize)

    def _require_nothing_unfinished(self, part_bytes: int, error_bytes: int) -> None:
        if not part_bytes:  # whatever the journal says: nothing is left of the run
            return
        state = self._read_journal(part_bytes, error_bytes)
        if state.last_entry.records or state.header is None:
            raise UsageError(
                f"{self.part_path} holds {state.last_entry.records:,} tasks of an unfinished run.",
                "Continue it with --resume, or delete that file to start over.",
            )

    def _read_journal(self, part_bytes: int, error_bytes: int) -> JournalState:
        self._require_journal()
        return JournalState.read(self.journal_path, part_bytes, error_bytes)

    def _require_journal(self) -> None:
        if not self.journal_path.exists():
            raise UsageError(
                f"{self.part_path} is there, but no journal that tells how far it got.",
                f"Delete {self.part_path} to start over.",
            )


def open_locked(path: Path) -> io.FileIO:
    """Open an unfinished file for writing, creating it if needed, and lock it.

    Raises:
        UsageError: Something that is not an unfinished file of lsml has that name.
        OutputError: It cannot be opened, or another process has it locked.
    """
    while True:
        try:
            file = io.FileIO(open_own_file(path, os.O_RDWR | os.O_CREAT), "r+")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            output = path.with_suffix("")
            raise OutputError(f"Another lsml is writing {output} right now.", "Choose another --output.") from None
        if file_identity(str(path)) == existing_file_identity(file.fileno()):
            break
        file.close()  # the run that had it finished in this very moment, and renamed it
    if file.read(1) not in _FIRST_BYTES:
        file.close()
        raise UsageError(
            f"{path} is there and was not written by lsml, which needs that name.", "Remove it, or write elsewhere."
        )
    return file


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
