"""A `ProgressReporter` that keeps what it is told."""

from __future__ import annotations

from typing import NamedTuple


class Update(NamedTuple):
    """One call of `progress`, and the phase in which it came."""

    phase: str
    done: int
    failed: int
    share: float | None


class RecordingReporter:
    """Collects notes, phases and updates.

    Attributes:
        notes: Sentences, those of warnings included.
        phases: Names in order, each with its unit and with what was done before: ("predicting", "tasks", 0).
        updates: What `progress` was called with.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[tuple[str, str, int]] = []
        self.updates: list[Update] = []

    def note(self, sentence: str, important: bool = False) -> None:
        self.notes.append(sentence)

    def warn(self, sentence: str, hint: str) -> None:
        self.notes.append(sentence)

    def start_phase(self, name: str, unit: str = "tasks", done: int = 0) -> None:
        self.phases.append((name, unit, done))

    def progress(self, done: int, failed: int = 0, share: float | None = None) -> None:
        self.updates.append(Update(self.phases[-1][0], done, failed, share))

    @property
    def phase_names(self) -> list[str]:
        return [name for name, _, _ in self.phases]
