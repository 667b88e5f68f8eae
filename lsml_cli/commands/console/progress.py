"""Report progress and notes on standard error while a command runs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from lsml_cli.io.output_paths import STDOUT
from lsml_cli.progress import Estimate, ProgressTracker, format_duration
from lsml_cli.terminal import print_message

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines of progress where stderr is not a terminal
PHASE_LINE_SECONDS = 10.0  # after which a phase that cannot say how far it is gets a line
REDRAW_SECONDS = 0.1  # between two drawings of the bar
TICK_SECONDS = 0.5  # between two looks at the clock while nothing is reported
DEFAULT_COLUMNS = 80
MIN_BAR_COLUMNS = 7  # a shorter bar is left out


class Console:
    """Print notes and progress to stderr (a `ProgressReporter`).

    Progress is a bar on a terminal and an occasional line elsewhere; with `quiet` it is not shown. The time that is
    shown counts from here on.

    Args:
        quiet: Show errors only.
        allows_bar: Whether a terminal gets a bar; not if records go to that terminal.
        clock: Returns seconds.
    """

    def __init__(
        self, quiet: bool = False, *, allows_bar: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.quiet = quiet
        self._allows_bar = allows_bar
        self._clock = clock
        self._started_at = self._last_line = clock()
        self._phase: _Phase | None = None
        self._bar: tqdm[None] | None = None
        self._drawn_at = 0.0
        self._lock = threading.RLock()
        self._ticker: threading.Thread | None = None
        self._is_closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_closed.set()
        self.end_progress()

    def note(self, message: str, important: bool = False) -> None:
        """Print a sentence; an `important` one is printed even if `quiet`."""
        if self.quiet and not important:
            return
        with self._lock:
            if self._bar is not None:
                self._bar.clear()
            print_message(message)
            if self._bar is not None:
                self._bar.refresh()

    def warn(self, message: str, hint: str) -> None:
        """Print a sentence that nobody may miss, also if `quiet`; on a terminal in red."""
        with self._lock:
            if self._bar is not None:
                self._bar.clear()
            print_message(message, hint, red=True)
            if self._bar is not None:
                self._bar.refresh()

    def start_phase(self, name: str, unit: str = "tasks", done: int = 0) -> None:
        """Say what is done from now on, see `ProgressReporter`."""
        if self.quiet:
            return
        with self._lock:
            self._phase = _Phase(name, unit, self._clock(), done)
            if self._has_bar():
                self._draw_bar(self._phase)
            if self._ticker is None:
                self._ticker = threading.Thread(target=self._tick_until_closed, name="progress", daemon=True)
                self._ticker.start()

    def progress(self, done: int, failed: int = 0, share: float | None = None) -> None:
        """Show how far the phase is, see `ProgressReporter`."""
        if self.quiet or self._phase is None:
            return
        with self._lock:
            self._phase.tracker.update(self._clock(), done, failed, share)
            self.refresh()

    def end_progress(self) -> None:
        """Remove the bar, because the work is done and results are printed."""
        with self._lock:
            if self._bar is not None:
                if self._phase is not None:
                    self._draw_bar(self._phase)
                self._bar.close()
            self._bar = self._phase = None

    def refresh(self) -> None:
        """Show the progress again, if that is due."""
        with self._lock:
            phase, now = self._phase, self._clock()
            if phase is None:
                return
            if self._has_bar():
                if now - self._drawn_at >= REDRAW_SECONDS:
                    self._draw_bar(phase)
            elif now - self._last_line >= LINE_SECONDS or phase.is_line_due(now):
                self._last_line = now
                phase.has_line = True
                columns = (_terminal_columns() or DEFAULT_COLUMNS) - len("lsml: ")
                text, _ = format_progress(phase.name, phase.unit, now - self._started_at, phase.estimate(now), columns)
                print_message(text)

    def _has_bar(self) -> bool:
        return self._allows_bar and sys.stderr.isatty()

    def _tick_until_closed(self) -> None:
        while not self._is_closed.wait(TICK_SECONDS):
            self.refresh()

    def _draw_bar(self, phase: _Phase) -> None:
        now = self._drawn_at = self._clock()
        estimate = phase.estimate(now)
        columns = (_terminal_columns() or DEFAULT_COLUMNS) - 1  # some terminals begin a new line after the last one
        left, right = format_progress(phase.name, phase.unit, now - self._started_at, estimate, columns, with_bar=True)
        left, right = left.replace("{", "{{").replace("}", "}}"), right.replace("{", "{{").replace("}", "}}")
        layout = f"{left}|{{bar}}|{right}" if right else left
        share = (estimate.share if estimate else None) or 0.0
        if self._bar is None:
            from tqdm import tqdm

            # Without its own numbers of rows and columns tqdm draws nothing where a terminal has no size.
            self._bar = tqdm(
                total=1.0, initial=share, file=sys.stderr, bar_format=layout, leave=False, ncols=columns, nrows=24
            )
            return
        self._bar.bar_format, self._bar.ncols, self._bar.n = layout, columns, share
        self._bar.refresh()


def is_on_terminal(output: str) -> bool:
    """Return whether the records of a command go to a terminal, where a bar would stand among them."""
    return output == STDOUT and sys.stdout.isatty()


class _Phase:
    """What a command does at the moment.

    Attributes:
        has_line: Whether a line about it was printed.
    """

    def __init__(self, name: str, unit: str, now: float, done: int) -> None:
        self.name = name
        self.unit = unit
        self.tracker = ProgressTracker(now, done)
        self.has_line = False
        self._started_at = now

    def is_line_due(self, now: float) -> bool:
        """Tell whether the phase takes so long without any progress that it gets a line of its own."""
        waits = not (self.has_line or self.tracker.has_progress)
        return waits and now - self._started_at >= PHASE_LINE_SECONDS

    def estimate(self, now: float) -> Estimate | None:
        return self.tracker.estimate(now) if self.tracker.has_progress else None


class _Parts(NamedTuple):
    """Which parts of the progress are shown; what says least is left out first where a line is too short."""

    clock: bool = True
    bar: bool = True
    name: bool = True
    recent_rate: bool = True
    rate: bool = True
    failed: bool = True
    remaining: bool = True


def format_progress(
    name: str, unit: str, elapsed: float, estimate: Estimate | None, columns: int, with_bar: bool = False
) -> tuple[str, str]:
    """Return what is shown left and right of the bar; without a bar, all of it is on the left.

    Parts are left out until the rest fits; no number is ever cut.

    Args:
        name: The phase.
        unit: What is counted, in the plural.
        elapsed: Seconds since the command started.
        estimate: How far the phase is, None if it cannot tell.
        columns: The most that left, bar and right may have together.
        with_bar: Leave room for a bar between two `|`, if there is enough and the total is known.

    Example:
        >>> format_progress("predicting", "tasks", 30, Estimate(1234, share=0.5, rate=80.0, remaining_seconds=16), 80)
        ('[0:30] predicting 50%, 1,234 tasks, 80/s, 16 s left', '')
    """
    has_bar = with_bar and estimate is not None and estimate.share is not None
    parts = _Parts(bar=has_bar)
    left = right = ""
    for field in (None, *_Parts._fields):
        parts = parts._replace(**{field: False}) if field else parts
        left, right = _compose(name, unit, elapsed, estimate, parts)
        if len(left) + len(right) + (MIN_BAR_COLUMNS + 2 if parts.bar else 0) <= columns:
            return left, right
    return (left, right) if len(left) <= columns else ("", "")


def _compose(name: str, unit: str, elapsed: float, estimate: Estimate | None, parts: _Parts) -> tuple[str, str]:
    head = [f"[{format_clock(elapsed)}]"] if parts.clock else []
    head += [name] if parts.name or estimate is None else []
    if estimate is None:
        return " ".join(head), ""
    if estimate.share is not None:
        head.append(f"{int(estimate.share * 100):{3 if parts.bar else 0}}%")
    numbers = ", ".join(_iter_numbers(unit, estimate, parts))
    if parts.bar:
        return " ".join(head), f" {numbers}"
    if not parts.name:
        return ", ".join([" ".join(head), numbers] if head else [numbers]), ""
    return f"{' '.join(head)}{':' if estimate.share is None else ','} {numbers}", ""


def _iter_numbers(unit: str, estimate: Estimate, parts: _Parts) -> Iterator[str]:
    yield f"{estimate.done:,} {unit.removesuffix('s') if estimate.done == 1 else unit}"
    if estimate.rate and parts.rate:
        rate, recent_rate = format_rate(estimate.rate), estimate.recent_rate
        if recent_rate is not None and parts.recent_rate:
            yield f"{rate} (now {format_rate(recent_rate).removesuffix(rate[rate.index('/') :])})"
        else:
            yield rate
    if estimate.failed and parts.failed:
        yield f"{estimate.failed:,} failed"
    if estimate.remaining_seconds is not None and (estimate.share or 0.0) < 1 and parts.remaining:
        yield f"{format_duration(estimate.remaining_seconds)} left"


def format_clock(seconds: float) -> str:
    """Return elapsed time: "0:42", "1:05:00"."""
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours}:{minutes:02}:{int(seconds) % 60:02}" if hours else f"{minutes}:{int(seconds) % 60:02}"


def format_rate(rate: float) -> str:
    """Return a rate per second, or per minute or hour where that says more: "410/s", "2.5/s", "12/min"."""
    value, unit = rate, "s"
    if 0 < rate < 1:
        value, unit = (rate * 60, "min") if rate * 60 >= 1 else (rate * 3600, "h")
    return f"{value:,.0f}/{unit}" if value >= 10 or not value else f"{value:.2g}/{unit}"


def _terminal_columns() -> int | None:
    """Return the width of the terminal that stderr is, or what COLUMNS says; None where there is neither."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except (OSError, ValueError):  # no terminal, or no file at all
        return None
