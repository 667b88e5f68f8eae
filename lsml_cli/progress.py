"""How far a command is: the interface by which packages report it, and what follows for rate and remaining time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

RECENT_SECONDS = 30.0  # of the recent rate
MIN_SECONDS = 5.0  # of work before a remaining time is estimated
MIN_STEPS = 2  # steps that are done before a remaining time is estimated
WARM_UP_STEPS = 3  # with so many steps the first one no longer counts: it is slower than the others
STEP_SHARE = 0.05  # of the time so far: updates that come closer together are one step (several processes)
SAMPLE_SECONDS = 0.25  # between two samples of the recent rate
FIRST_SENTENCE_SECONDS, SENTENCE_SECONDS = 10.0, 60.0  # until the first and each further sentence about steps
FIRST_MARK_SECONDS = 20.0  # of work after which the first mark for the remaining time is set
MARK_GROWTH = 1.5  # from one mark to the next; what was done since the last but one tells the remaining time


class ProgressReporter(Protocol):
    """Receives what a command has to say while it runs."""

    def note(self, sentence: str, important: bool = False) -> None:
        """Show a sentence once; an important one also in quiet mode."""

    def warn(self, sentence: str, hint: str) -> None:
        """Show a sentence that nobody may miss, and what to do next."""

    def start_phase(self, name: str, unit: str = "tasks", done: int = 0) -> None:
        """Say what is done from now on; rate and remaining time are measured from here.

        Args:
            name: "loading model", "predicting".
            unit: What is counted, in the plural.
            done: How many were done before, by an earlier run.
        """

    def progress(self, done: int, failed: int = 0, share: float | None = None) -> None:
        """Show how far the phase is.

        Args:
            done: How many are finished, those before the phase included.
            failed: How many of them failed.
            share: Which part (0..1) of all the work that is; None if the total is not known.
        """


class SilentReporter:
    """A `ProgressReporter` that shows nothing."""

    def note(self, sentence: str, important: bool = False) -> None:
        pass

    def warn(self, sentence: str, hint: str) -> None:
        pass

    def start_phase(self, name: str, unit: str = "tasks", done: int = 0) -> None:
        pass

    def progress(self, done: int, failed: int = 0, share: float | None = None) -> None:
        pass


class ReportedTraining:
    """What a `Model.fit` gets as `progress`: a function that takes sentences, with a reporter behind it.

    Args:
        reporter: Shows the sentences, and what `Steps` say.
    """

    def __init__(self, reporter: ProgressReporter) -> None:
        self.reporter = reporter

    def __call__(self, sentence: str) -> None:
        self.reporter.note(sentence)


def start_phase(progress: Callable[[str], None], name: str) -> None:
    """Say what a training does from now on, if whatever takes its sentences has a reporter."""
    if isinstance(progress, ReportedTraining):
        progress.reporter.start_phase(name)


class Steps:
    """Report how far a loop of a training is.

    A reporter gets every update; whatever takes sentences alone, such as the job of a server, gets one now and then.

    Args:
        progress: What `Model.fit` got.
        phase: What the loop does: "extracting features".
        unit: What is counted, in the plural.
        total: How many there are.
    """

    def __init__(self, progress: Callable[[str], None], phase: str, unit: str, total: int) -> None:
        self._progress = progress
        self.phase = phase
        self._unit, self._total = unit, total
        self._tracker = ProgressTracker(time.monotonic())
        self._next_sentence_at = time.monotonic() + FIRST_SENTENCE_SECONDS
        if isinstance(progress, ReportedTraining):
            progress.reporter.start_phase(phase, unit)

    def update(self, done: int, failed: int = 0) -> None:
        """Report how many are finished, and how many of them failed."""
        share = done / max(1, self._total)
        if isinstance(self._progress, ReportedTraining):
            self._progress.reporter.progress(done, failed, share)
            return
        now = time.monotonic()
        self._tracker.update(now, done, failed, share)
        if now >= self._next_sentence_at:
            self._next_sentence_at = now + SENTENCE_SECONDS
            seconds = self._tracker.estimate(now).remaining_seconds
            left = f", about {format_duration(seconds)} left" if seconds else ""
            name = self.phase[:1].upper() + self.phase[1:]
            self._progress(f"{name}: {done:,} of {self._total:,} {self._unit} are done{left}.")


@dataclass(frozen=True)
class Estimate:
    """How far a phase is, and how fast.

    Attributes:
        done: How many are finished.
        failed: How many of them failed.
        share: Which part (0..1) of all the work that is; None if the total is not known.
        rate: Finished per second since the phase started; None before anything is.
        recent_rate: The same over the last `RECENT_SECONDS`; None if that says nothing.
        remaining_seconds: Until the phase is done; None while that cannot be told.
    """

    done: int
    failed: int = 0
    share: float | None = None
    rate: float | None = None
    recent_rate: float | None = None
    remaining_seconds: float | None = None


class _Sample(NamedTuple):
    time: float
    done: int
    share: float


class ProgressTracker:
    """Compute rates and the remaining time of a phase from what is finished.

    The remaining time follows from about the second half of the time so far, so that it adapts to work that becomes
    slower or faster.

    Args:
        now: When the phase starts, in seconds of some clock.
        done: How many were done before; they do not count for the rate.
    """

    def __init__(self, now: float, done: int = 0) -> None:
        self._failed = 0
        self._share: float | None = None
        self._start = self._last = _Sample(now, done, 0.0)
        self._recent = deque([self._start])
        self._longest_pause = 0.0  # between two updates
        self._steps = 0
        self._step_started_at = now
        self._first_step = self._start
        self._base = self._start  # the remaining time follows from what was done since then
        self._mark: _Sample | None = None  # the next base
        self._next_mark_seconds = FIRST_MARK_SECONDS

    @property
    def has_progress(self) -> bool:
        """Tell whether anything was reported."""
        return self._steps > 0

    def update(self, now: float, done: int, failed: int = 0, share: float | None = None) -> None:
        """Add what is finished at this time; see `ProgressReporter.progress`."""
        if not self._steps and share is not None and self._start.done:
            self._start = self._base = self._start._replace(share=share * self._start.done / max(done, 1))
        sample, previous = _Sample(now, done, share or 0.0), self._last
        self._longest_pause = max(self._longest_pause, now - self._last.time)
        self._last, self._failed, self._share = sample, failed, share
        self._add_recent(sample)
        elapsed = now - self._start.time
        if self._count_step(sample) and elapsed >= self._next_mark_seconds:
            self._base = self._mark or self._base
            # The end of a step, since what several processes finish together counts as a whole; not that of the start.
            self._mark = previous if previous is not self._start else sample
            self._next_mark_seconds = MARK_GROWTH * elapsed

    def estimate(self, now: float) -> Estimate:
        """Return how far the phase is at this time."""
        last = self._last
        if not self._steps:
            return Estimate(last.done)
        # Until the next update is overdue, what is done at the time of the last one tells the rate.
        is_overdue = now - last.time > 2 * self._longest_pause
        end = now if is_overdue else last.time
        seconds = end - self._start.time
        rate = (last.done - self._start.done) / seconds if seconds > 0 else None
        return Estimate(
            last.done, self._failed, self._share, rate, self._recent_rate(now, end), self._remaining_seconds(now, end)
        )

    def _add_recent(self, sample: _Sample) -> None:
        recent = self._recent
        if len(recent) > 1 and sample.time - recent[-2].time < SAMPLE_SECONDS:
            recent[-1] = sample
        else:
            recent.append(sample)
        self._drop_old(sample.time)

    def _drop_old(self, now: float) -> None:
        """Drop samples until the first one is the last from before the recent time."""
        while len(self._recent) > 1 and self._recent[1].time <= now - RECENT_SECONDS:
            self._recent.popleft()

    def _count_step(self, sample: _Sample) -> bool:
        """Count the step that a sample belongs to; return whether it is a new one."""
        elapsed = sample.time - self._start.time
        is_new = not self._steps or sample.time - self._step_started_at > STEP_SHARE * elapsed
        if is_new:
            self._steps += 1
            self._step_started_at = sample.time
        if self._steps == 1:
            self._first_step = sample
        elif self._steps == WARM_UP_STEPS and self._base is self._start:
            self._base = self._first_step
        return is_new

    def _recent_rate(self, now: float, end: float) -> float | None:
        if now - self._start.time < RECENT_SECONDS:
            return None
        self._drop_old(now)
        base = self._recent[0]
        is_frequent = self._longest_pause <= RECENT_SECONDS / 3
        if len(self._recent) <= 3 and not is_frequent:  # too few updates to tell a rate
            return None
        return (self._last.done - base.done) / (end - base.time) if end > base.time else 0.0

    def _remaining_seconds(self, now: float, end: float) -> float | None:
        gained = self._last.share - self._base.share
        is_early = self._steps < MIN_STEPS or now - self._start.time < MIN_SECONDS
        if self._share is None or is_early or gained <= 0:
            return None
        seconds = (1 - self._share) * (end - self._base.time) / gained
        return max(0.0, seconds - (now - end))


def format_duration(seconds: float) -> str:
    """Return an estimated time, no more exactly than it is known: "40 s", "12 min", "3 h 20 min", "30 h", "4 days"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 10 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes < 48 * 60:
        return f"{round(minutes / 60)} h"
    return f"{round(minutes / 60 / 24)} days"
