"""`lsml push --create-tasks`: import whole tasks with their predictions into a project.

Nothing about a task tells whether it was imported before, so no request is ever sent twice. If the answer of one is
lost, the project's number of tasks shows whether they arrived; where that leaves a doubt, the push ends and says how
far it came.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from lsml_cli.errors import Interrupted, LsmlError
from lsml_cli.label_studio.pending_import import PendingRequest, wait_until_settled
from lsml_cli.label_studio.push_context import PushContext, SettleTime, iter_batches, request_body
from lsml_cli.label_studio.push_options import PushResult
from lsml_cli.label_studio.push_spool import SpoolItem
from lsml_cli.label_studio.request_errors import OutcomeUnknown

MAX_BATCH_TASKS = 5_000  # tasks of a request: 10 s of work, however large the project is
MAX_REQUEST_BYTES = 64 << 20  # bytes of a request
SETTLE_TIME = SettleTime(30.0, 0.02)  # a request is surely over after this


class TaskImport:
    """One import of tasks."""

    def __init__(self, context: PushContext) -> None:
        self._context = context
        self._created = self._requests = 0
        self._notes: list[str] = []
        self._sending_seconds = 0.0

    def run(self) -> PushResult:
        """Send every task of the spool and activate the version.

        Raises:
            LsmlError: A request failed; the hint says how many tasks are there.
            Interrupted: The user pressed ctrl-C.
        """
        context = self._context
        if context.options.dry_run or not context.spool:
            return self._result()
        try:
            context.reporter.start_phase("creating tasks")
            for batch in iter_batches(context.spool, MAX_BATCH_TASKS, MAX_REQUEST_BYTES):
                self._send(batch)
                context.reporter.progress(self._created, context.rejections.count, self._created / len(context.spool))
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted when {self._created:,} of {len(context.spool):,} tasks were there.", self._resume_hint()
            ) from None
        is_new_version = context.version and context.version != context.active_version
        if context.options.activate and is_new_version and context.spool.version_counts:
            context.activate_version()
            if note := context.describe_activation(context.client.count_versions(context.options.project)):
                self._notes.append(note)
        return self._result()

    def _result(self) -> PushResult:
        context = self._context
        notes = list(self._notes)
        if context.task_count and not context.options.dry_run:
            notes.append(f"The project had {context.task_count:,} tasks before.")
        return context.build_result(
            "tasks",
            sent=len(context.spool),
            created=self._created,
            calls=self._requests,
            sending_seconds=self._sending_seconds,
            notes=notes,
        )

    def _send(self, batch: Sequence[SpoolItem]) -> None:
        started_at = time.monotonic()
        self._requests += 1
        try:
            created = self._context.client.import_tasks(
                self._context.options.project, request_body(batch), len(batch), timeout=600 + 0.2 * len(batch)
            )
        except OutcomeUnknown as error:
            self._await_arrival(batch, error)
        except LsmlError as error:
            raise type(error)(error.message, self._resume_hint()) from error
        else:
            if created != len(batch):
                self._await_arrival(batch, None)  # some servers import in the background and answer at once
        self._sending_seconds += time.monotonic() - started_at
        self._created += len(batch)

    def _await_arrival(self, batch: Sequence[SpoolItem], error: OutcomeUnknown | None) -> None:
        """Wait until all tasks of a batch are there; raise LsmlError if they do not come."""
        before = self._context.task_count + self._created
        if error is not None:
            self._context.reporter.note(f"{error.message} Looking for what has arrived.", important=True)
        is_server_done = error is not None and error.is_server_done
        now = time.time()
        max_wait = 0 if is_server_done else SETTLE_TIME.seconds(len(batch))
        wait_until_settled(PendingRequest(now, now + max_wait, before), self._count_tasks)
        count = self._count_tasks()
        if count != before + len(batch):
            message = error.message if error else f"Label Studio did not take all of {len(batch):,} tasks."
            arrived = max(0, count - before)
            raise LsmlError(f"{message} Of that call {arrived:,} tasks are there.", self._resume_hint()) from error
        if error is not None and is_server_done:  # tasks without their predictions cannot be told apart by the count
            raise LsmlError(
                f"{error.message} Its {len(batch):,} tasks are there all the same, perhaps without their predictions.",
                f"{self._resume_hint()} Push the predictions to the tasks that have none.",
            ) from error

    def _count_tasks(self) -> int:
        return int(self._context.client.get_project(self._context.options.project).get("task_number") or 0)

    def _resume_hint(self) -> str:
        return (
            f"{self._created:,} of {len(self._context.spool):,} tasks are there for certain; what is sent again is"
            " there twice, so begin behind these, or with a new project."
        )
