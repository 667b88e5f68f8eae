"""Count the records of a file that cannot be read as tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lsml_cli.schema.failure_causes import FailureCauses
from lsml_cli.schema.tasks import Task, UnreadableRecord


@dataclass
class UnreadableLog:
    """The unreadable records of one file.

    Attributes:
        causes: Why they cannot be read, each with the location of the first one.
        is_truncated: Whether the file ends in the middle of a task.
    """

    causes: FailureCauses = field(default_factory=FailureCauses)
    is_truncated: bool = False

    @property
    def count(self) -> int:
        return self.causes.total

    def add(self, location: str, reason: str, *, truncated: bool = False) -> None:
        """Count a record."""
        self.causes.add("", reason, location)
        self.is_truncated = self.is_truncated or truncated

    def filter_readable(self, tasks: Iterable[Task | UnreadableRecord]) -> Iterator[Task]:
        """Yield the tasks; unreadable records are counted."""
        for task in tasks:
            if isinstance(task, Task):
                yield task
            else:
                self.add(task.location, task.reason, truncated=task.truncated)

    def lines(self, file: str, noun: str = "task") -> Iterator[str]:
        """Say how many records could not be read and why, each with the place of the first one; "-" is stdin."""
        yield from self.causes.lines("could not be read", noun=noun, source="standard input" if file == "-" else file)
