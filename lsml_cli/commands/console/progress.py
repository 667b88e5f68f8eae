"""What people read while a command runs. All of it goes to stderr: stdout is data."""

from __future__ import annotations

import os
import shutil
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lsml_cli.errors import OutputClosed, OutputError

if TYPE_CHECKING:
    from tqdm import tqdm

PROGRESS_INTERVAL = 30.0  # seconds between two lines of progress where there is no terminal


def emit(*lines: str) -> None:
    """Print lines of data to stdout: the only way there for a report.

    Raises OutputClosed when nobody reads them any more, OutputError when there is no room for them.
    """
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except OSError as error:
        # What is left in Python's buffer has to go somewhere, or Python complains once more when it exits.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        raise OutputError(f"Standard output cannot be written: {error.strerror}.") from None


class Console:
    """Notes and progress: a bar on a terminal, a plain line every now and then elsewhere, nothing if `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: tqdm[None] | None = None
        self._started_at = self._last_line = time.monotonic()
        self._first_count: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def note(self, message: str, important: bool = False) -> None:
        """Show a sentence; one that is `important` also when everything else is quiet."""
        if self.quiet and not important:
            return
        if self._bar is not None:
            self._bar.clear()
        print(f"lsml: {message}", file=sys.stderr, flush=True)

    def progress(self, tasks: int, failed: int, fraction: float | None) -> None:
        if self.quiet:
            return
        if (
            self._first_count is None
        ):  # the tasks of an earlier run, and the first batch with the model's start, set the scale
            self._first_count, self._started_at = tasks, time.monotonic()
        rate = (tasks - self._first_count) / max(time.monotonic() - self._started_at, 1e-6)
        text = f"{tasks:,} tasks" + (f", {rate:,.0f}/s" if rate else "") + (f", {failed:,} failed" if failed else "")
        if sys.stderr.isatty():
            self._draw_bar(text, fraction)
        elif time.monotonic() - self._last_line > PROGRESS_INTERVAL:
            self._last_line = time.monotonic()
            print(f"lsml: {text}{_format_remaining(self._started_at, fraction)}", file=sys.stderr, flush=True)

    def _draw_bar(self, text: str, fraction: float | None) -> None:
        if self._bar is None:
            from tqdm import tqdm

            columns, rows = shutil.get_terminal_size()  # tqdm draws nothing where a terminal has no size
            known = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            unknown = "{desc} {elapsed}"
            form = unknown if fraction is None else known
            self._bar = tqdm(total=1.0, file=sys.stderr, bar_format=form, leave=False, ncols=columns, nrows=rows)
        self._bar.set_description_str(text, refresh=False)
        self._bar.update((fraction or 0.0) - self._bar.n)
        self._bar.refresh()


def _format_remaining(started_at: float, fraction: float | None) -> str:
    if not fraction:
        return ""
    minutes = (time.monotonic() - started_at) * (1 / fraction - 1) / 60
    return f", {fraction:.0%}, about {minutes:,.0f} min left"
