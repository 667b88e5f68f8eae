"""`lsml push --create-tasks`: whole tasks with their predictions, made anew in a project.

Nothing about a task tells whether it was imported before, so no call is ever sent twice: one whose answer was lost is
looked for in the project's number of tasks, and where that leaves a doubt the push ends and says how far it came.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lsml_cli.errors import Interrupted, LsmlError
from lsml_cli.label_studio.client import LabelStudioClient, OutcomeUnknown
from lsml_cli.label_studio.pending_import import PendingRequest, wait_until_settled
from lsml_cli.label_studio.push_options import PushOptions, PushResult
from lsml_cli.label_studio.push_spool import ProgressReporter, Rejections, Spool, SpoolItem

MAX_BATCH_TASKS = 5_000  # tasks of a call: 10 s of work, the same for each however large the project is
MAX_REQUEST_BYTES = 64 << 20  # bytes of a call
SETTLE_SECONDS = (30.0, 0.02)  # a call is over after these, and these for each of its tasks


class TaskImport:
    """One import of tasks."""

    def __init__(
        self,
        client: LabelStudioClient,
        options: PushOptions,
        project: Mapping[str, Any],
        version: str | None,
        spool: Spool,
        rejections: Rejections,
        reporter: ProgressReporter,
    ) -> None:
        self.client = client
        self.options = options
        self.initial_task_count = int(project.get("task_number") or 0)
        self.active_version = project.get("model_version") or ""
        self.version = version
        self.spool = spool
        self.rejections = rejections
        self.reporter = reporter
        self.started_at = time.monotonic()
        self.created = self.request_count = 0
        self.sending_seconds = 0.0

    def run(self) -> PushResult:
        if self.options.dry_run or not self.spool:
            return self.summary()
        try:
            for call in _iter_batches(self.spool):
                self._send(call)
                self.reporter.progress(self.created, self.rejections.count, self.created / len(self.spool))
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted when {self.created:,} of {len(self.spool):,} tasks were there.", self._resume_hint()
            ) from None
        if self.options.activate and self.version and self.active_version != self.version and self.spool.version_counts:
            path = f"/api/projects/{self.options.project}/"
            what = f"the version that project {self.options.project} shows"
            self.client.mutate_idempotent("PATCH", path, what, {"model_version": self.version}, timeout=300)
        return self.summary()

    def summary(self) -> PushResult:
        counts = self.spool.counts
        notes = (
            [f"The project had {self.initial_task_count:,} tasks before."]
            if self.initial_task_count and not self.options.dry_run
            else []
        )
        return PushResult(
            project=self.options.project,
            version=self.version,
            records=counts["records"],
            sent=len(self.spool),
            created=self.created,
            empty=counts["empty"],
            other=counts["other"],
            rejected=self.rejections.count,
            calls=self.request_count,
            sending_seconds=round(self.sending_seconds, 3),
            seconds=round(time.monotonic() - self.started_at, 3),
            dry_run=self.options.dry_run,
            item_type="tasks",
            errors=str(self.options.errors) if self.options.errors else None,
            notes=tuple(notes),
        )

    def _send(self, batch: Sequence[SpoolItem]) -> None:
        body = b"[" + b",".join(item.body for item in batch) + b"]"
        what = f"the import of {len(batch):,} tasks"
        path = f"/api/projects/{self.options.project}/import"
        begun = time.monotonic()
        self.request_count += 1
        try:
            answer = self.client.mutate("POST", path, what, body, timeout=600 + 0.2 * len(batch))
        except OutcomeUnknown as error:
            self._await_arrival(batch, error)
        except LsmlError as error:
            raise type(error)(error.message, self._resume_hint()) from error
        else:
            if not isinstance(answer, dict) or answer.get("task_count") != len(batch):
                self._await_arrival(batch, None)  # some servers import in the background, and say so at once
        self.sending_seconds += time.monotonic() - begun
        self.created += len(batch)

    def _await_arrival(self, batch: Sequence[SpoolItem], error: OutcomeUnknown | None) -> None:
        """Wait until all of the call's tasks are there. Raises LsmlError where they do not come."""
        wanted = self.initial_task_count + self.created + len(batch)
        if error is not None:
            self.reporter.note(f"{error.message} Looking for what has arrived.", important=True)
        patience = (
            0 if error is not None and error.is_server_done else SETTLE_SECONDS[0] + SETTLE_SECONDS[1] * len(batch)
        )
        now = time.time()
        wait_until_settled(
            PendingRequest(now, now + patience, self.initial_task_count + self.created), self._count_tasks
        )
        there = self._count_tasks()
        if there != wanted:
            arrived = max(0, there - self.initial_task_count - self.created)
            message = error.message if error else f"Label Studio did not take all of {len(batch):,} tasks."
            raise LsmlError(f"{message} Of that call {arrived:,} tasks are there.", self._resume_hint()) from error
        if error is not None and error.is_server_done:  # tasks without their predictions look just the same from here
            raise LsmlError(
                f"{error.message} Its {len(batch):,} tasks are there all the same, perhaps without their predictions.",
                f"{self._resume_hint()} Push the predictions to the tasks that have none.",
            ) from error

    def _count_tasks(self) -> int:
        return int(self.client.get_project(self.options.project).get("task_number") or 0)

    def _resume_hint(self) -> str:
        return (
            f"{self.created:,} of {len(self.spool):,} tasks are there for certain; what is sent again is there twice,"
            " so begin behind these, or with a new project."
        )


def _iter_batches(spool: Spool) -> Iterator[list[SpoolItem]]:
    call: list[SpoolItem] = []
    size = 0
    for item in spool:
        if call and (len(call) >= MAX_BATCH_TASKS or size + len(item.body) > MAX_REQUEST_BYTES):
            yield call
            call, size = [], 0
        call.append(item)
        size += len(item.body) + 1
    if call:
        yield call
