"""`lsml push --create-tasks`: whole tasks with their predictions, made anew in a project.

Nothing about a task tells whether it was imported before, so no call is ever sent twice: one whose answer was lost is
looked for in the project's number of tasks, and where that leaves a doubt the push ends and says how far it came.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lsml_cli.errors import Interrupted, LsmlError
from lsml_cli.label_studio.client import Studio, Unclear
from lsml_cli.label_studio.pending_import import Call, wait_for
from lsml_cli.label_studio.push_options import Pushed, PushOptions
from lsml_cli.label_studio.push_spool import Item, Rejections, Report, Spool

MOST = 5_000  # tasks of a call: 10 s of work, the same for each however large the project is
LARGEST = 64 << 20  # bytes of a call
SECONDS_EACH = (30.0, 0.02)  # a call is over after these, and these for each of its tasks


class Creation:
    """One import of tasks."""

    def __init__(
        self,
        studio: Studio,
        asked: PushOptions,
        project: Mapping[str, Any],
        version: str | None,
        spool: Spool,
        rejections: Rejections,
        report: Report,
    ) -> None:
        self.studio = studio
        self.asked = asked
        self.before = int(project.get("task_number") or 0)
        self.shown = project.get("model_version") or ""
        self.version = version
        self.spool = spool
        self.rejections = rejections
        self.report = report
        self.begun = time.monotonic()
        self.created = self.calls = 0
        self.sending = 0.0

    def run(self) -> Pushed:
        if self.asked.dry_run or not self.spool:
            return self.summary()
        try:
            for call in _calls(self.spool):
                self._send(call)
                self.report.progress(self.created, self.rejections.count, self.created / len(self.spool))
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted when {self.created:,} of {len(self.spool):,} tasks were there.", self._how_to_go_on()
            ) from None
        if self.asked.activate and self.version and self.shown != self.version and self.spool.versions:
            path = f"/api/projects/{self.asked.project}/"
            what = f"the version that project {self.asked.project} shows"
            self.studio.settle("PATCH", path, what, {"model_version": self.version}, within=300)
        return self.summary()

    def summary(self) -> Pushed:
        counts = self.spool.counts
        notes = [f"The project had {self.before:,} tasks before."] if self.before and not self.asked.dry_run else []
        return Pushed(
            project=self.asked.project,
            version=self.version,
            records=counts["records"],
            sent=len(self.spool),
            created=self.created,
            empty=counts["empty"],
            other=counts["other"],
            rejected=self.rejections.count,
            calls=self.calls,
            sending_seconds=round(self.sending, 3),
            seconds=round(time.monotonic() - self.begun, 3),
            dry_run=self.asked.dry_run,
            what="tasks",
            errors=str(self.asked.errors) if self.asked.errors else None,
            notes=tuple(notes),
        )

    def _send(self, call: Sequence[Item]) -> None:
        body = b"[" + b",".join(item.body for item in call) + b"]"
        what = f"the import of {len(call):,} tasks"
        path = f"/api/projects/{self.asked.project}/import"
        begun = time.monotonic()
        self.calls += 1
        try:
            answer = self.studio.change("POST", path, what, body, within=600 + 0.2 * len(call))
        except Unclear as error:
            self._look_for(call, error)
        except LsmlError as error:
            raise type(error)(error.message, self._how_to_go_on()) from error
        else:
            if not isinstance(answer, dict) or answer.get("task_count") != len(call):
                self._look_for(call, None)  # some servers import in the background, and say so at once
        self.sending += time.monotonic() - begun
        self.created += len(call)

    def _look_for(self, call: Sequence[Item], error: Unclear | None) -> None:
        """Wait until all of the call's tasks are there. Raises LsmlError where they do not come."""
        wanted = self.before + self.created + len(call)
        if error is not None:
            self.report.note(f"{error.message} Looking for what has arrived.", important=True)
        patience = 0 if error is not None and error.over else SECONDS_EACH[0] + SECONDS_EACH[1] * len(call)
        now = time.time()
        wait_for(Call(now, now + patience, self.before + self.created), self._tasks)
        there = self._tasks()
        if there != wanted:
            arrived = max(0, there - self.before - self.created)
            message = error.message if error else f"Label Studio did not take all of {len(call):,} tasks."
            raise LsmlError(f"{message} Of that call {arrived:,} tasks are there.", self._how_to_go_on()) from error
        if error is not None and error.over:  # tasks without their predictions look just the same from here
            raise LsmlError(
                f"{error.message} Its {len(call):,} tasks are there all the same, perhaps without their predictions.",
                f"{self._how_to_go_on()} Push the predictions to the tasks that have none.",
            ) from error

    def _tasks(self) -> int:
        return int(self.studio.project(self.asked.project).get("task_number") or 0)

    def _how_to_go_on(self) -> str:
        return (
            f"{self.created:,} of {len(self.spool):,} tasks are there for certain; what is sent again is there twice,"
            " so begin behind these, or with a new project."
        )


def _calls(spool: Spool) -> Iterator[list[Item]]:
    call: list[Item] = []
    size = 0
    for item in spool:
        if call and (len(call) >= MOST or size + len(item.body) > LARGEST):
            yield call
            call, size = [], 0
        call.append(item)
        size += len(item.body) + 1
    if call:
        yield call
