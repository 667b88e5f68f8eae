"""The interface by which pull and push report to the user."""

from __future__ import annotations

from typing import Protocol


class ProgressReporter(Protocol):
    """Shows messages and progress."""

    def note(self, sentence: str, important: bool = False) -> None:
        """Show a message; an important one also in quiet mode."""
        ...

    def progress(self, tasks: int, failed: int, fraction: float | None) -> None:
        """Show how many tasks are done and failed, and which fraction of all that is, None if unknown."""
        ...
