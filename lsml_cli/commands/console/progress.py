"""Report progress and notes on standard error while a command runs."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lsml_cli.terminal import print_message

if TYPE_CHECKING:
    from tqdm import tqdm

PROGRESS_INTERVAL = 30.0  # seconds between two lines of progress where stderr is not a terminal


class Console:
    """Print notes and progress to stderr.

    Progress is a bar on a terminal and an occasional line elsewhere; with `quiet` it is not shown.
    """

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
        """Print a sentence; an `important` one is printed even if `quiet`."""
        if self.quiet and not important:
            return
        if self._bar is not None:
            self._bar.clear()
        print_message(message)

    def warn(self, message: str, hint: str) -> None:
        """Print a sentence that nobody may miss, also if `quiet`; on a terminal in red."""
        if self._bar is not None:
            self._bar.clear()
        print_message(message, hint, red=True)

    def progress(self, tasks: int, failed: int, fraction: float | None) -> None:
        """Show how far a run is.

        Args:
            tasks: Tasks that are done.
            failed: How many of them failed.
            fraction: How much of the input is read, 0..1; None if its size is unknown.
        """
        if self.quiet:
            return
        if self._first_count is None:  # tasks of a resumed run and the start of the model do not count for the rate
            self._first_count, self._started_at = tasks, time.monotonic()
        rate = (tasks - self._first_count) / max(time.monotonic() - self._started_at, 1e-6)
        text = f"{tasks:,} tasks" + (f", {rate:,.0f}/s" if rate else "") + (f", {failed:,} failed" if failed else "")
        if sys.stderr.isatty():
            self._draw_bar(text, fraction)
        elif time.monotonic() - self._last_line > PROGRESS_INTERVAL:
            self._last_line = time.monotonic()
            print_message(f"{text}{_format_remaining(self._started_at, fraction)}")

    def _draw_bar(self, text: str, fraction: float | None) -> None:
        if self._bar is None:
            from tqdm import tqdm

            columns, rows = shutil.get_terminal_size()  # tqdm draws nothing where a terminal has no size
            with_total = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            without_total = "{desc} {elapsed}"
            bar_format = without_total if fraction is None else with_total
            self._bar = tqdm(total=1.0, file=sys.stderr, bar_format=bar_format, leave=False, ncols=columns, nrows=rows)
        self._bar.set_description_str(text, refresh=False)
        self._bar.update((fraction or 0.0) - self._bar.n)
        self._bar.refresh()


def _format_remaining(started_at: float, fraction: float | None) -> str:
    if not fraction:
        return ""
    minutes = (time.monotonic() - started_at) * (1 / fraction - 1) / 60
    return f", {fraction:.0%}, about {minutes:,.0f} min left"
