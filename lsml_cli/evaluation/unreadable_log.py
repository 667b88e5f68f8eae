"""Count and list the records of a file that cannot be read as tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lsml_cli.schema.annotations import MAX_LISTED_UNREADABLE
from lsml_cli.schema.tasks import Task, UnreadableRecord


@dataclass
class UnreadableLog:
    """The unreadable records of one file.

    Attributes:
        count: How many there are.
        listed: The first of them, and the one where the file is truncated.
    """

    count: int = 0
    listed: list[UnreadableRecord] = field(default_factory=list)

    def filter_readable(self, tasks: Iterable[Task | UnreadableRecord]) -> Iterator[Task]:
        """Yield the tasks; unreadable records are noted down."""
        for task in tasks:
            if isinstance(task, Task):
                yield task
                continue
            self.count += 1
            if len(self.listed) < MAX_LISTED_UNREADABLE or task.truncated:
                self.listed.append(task)
