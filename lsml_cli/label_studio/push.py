"""`lsml push`: send predictions into a project, each exactly once, whatever fails in between.

A request to `import/predictions` makes Label Studio recount every task of the project, at about 1 ms each, so requests
are few and large. None is repeated because it seems to have failed: Label Studio finishes a request even if its sender
is gone. Instead the project is asked what has arrived, and only what is missing is sent.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

from lsml_cli.errors import Interrupted, LsmlError, UsageError, format_list, sort_by_similarity
from lsml_cli.io.json_records import MAX_OUTPUT_RECORD_BYTES
from lsml_cli.io.source import RecordSource
from lsml_cli.label_studio.client import LabelStudioClient
from lsml_cli.label_studio.create_tasks import TaskImport
from lsml_cli.label_studio.old_versions import delete_old_versions
from lsml_cli.label_studio.pending_import import PendingImport, PendingRequest, wait_until_settled
from lsml_cli.label_studio.project_predictions import ProjectPredictions
from lsml_cli.label_studio.push_context import PushContext, SettleTime, iter_batches, request_body
from lsml_cli.label_studio.push_options import PushOptions, PushResult
from lsml_cli.label_studio.push_spool import Rejections, Spool, SpoolItem, spool_records
from lsml_cli.label_studio.request_errors import OutcomeUnknown, RequestRejected
from lsml_cli.label_studio.task_pages import list_ids_in_range
from lsml_cli.progress import ProgressReporter
from lsml_cli.schema.label_config import LabelConfig

MIN_BATCH_PREDICTIONS = 10_000  # predictions of a request, if there are as many; more in projects with more tasks
MAX_REQUEST_BYTES = 64 << 20  # of a request; Label Studio accepts 250 MiB, but needs ten times the memory to parse
MIN_REQUEST_BYTES = 1 << 16  # bytes of a request, however little a proxy accepts
SETTLE_TIME = SettleTime(10.0, 0.006)  # a request is surely over after this; items: its predictions and all tasks
MAX_FAILED_REQUESTS = 3  # consecutive requests of which nothing arrived before the push is given up


def push(client: LabelStudioClient, options: PushOptions, reporter: ProgressReporter) -> PushResult:
    """Check everything, then send what is missing in the project.

    Raises:
        UsageError: The version to push is missing or ambiguous.
        LsmlError: A request failed; the hint says how to go on.
        Interrupted: The user pressed ctrl-C.
    """
    with RecordSource(options.file, max_record_bytes=MAX_OUTPUT_RECORD_BYTES) as source, Spool() as spool:
        rejections = Rejections(options.errors, source.name, reporter)
        with closing(rejections):
            project = client.get_project(options.project)
            config = LabelConfig.parse(client.extract_label_config(project))
            spool_records(source, config, spool, rejections, options.version, options.create_tasks, reporter)
            version = _resolve_version(spool, options)
            context = PushContext(client, options, project, version, spool, rejections, reporter)
            return TaskImport(context).run() if options.create_tasks else PredictionImport(context).run()


def delete_pushed_version(client: LabelStudioClient, project: int, version: str, dry_run: bool) -> int:
    """Delete a version from a project and return how many predictions it had; raise UsageError if it has none."""
    known = client.count_versions(project)
    if version not in known:
        existing = format_list(f"{name} ({known[name]:,})" for name in sort_by_similarity(version, known))
        raise UsageError(
            f"Project {project} has no predictions of {version!r}.", f"It has those of: {existing or 'no version'}."
        )
    return known[version] if dry_run else ProjectPredictions(client, project, version).delete_all(known[version])


def _resolve_version(spool: Spool, options: PushOptions) -> str | None:
    """Return the version of everything in the spool, None if it holds no prediction.

    Raises:
        UsageError: The file holds several versions, or none that was named.
    """
    if options.version is not None and spool.input_version_counts and options.version not in spool.input_version_counts:
        known = format_list(
            f"{version} ({spool.input_version_counts[version]:,})"
            for version in sort_by_similarity(options.version, spool.input_version_counts)
        )
        raise UsageError(f"{options.file} holds no prediction of {options.version!r}.", f"It holds those of: {known}.")
    if options.version is not None or len(spool.version_counts) <= 1:
        return options.version or next(iter(spool.version_counts), None)
    known = format_list(f"{version} ({count:,})" for version, count in spool.version_counts.most_common())
    raise UsageError(
        f"{options.file} holds predictions of {len(spool.version_counts)} versions: {known}.",
        f"Push one at a time: --version {spool.version_counts.most_common(1)[0][0]}",
    )


class PredictionImport:
    """One push of predictions to tasks that the project has."""

    def __init__(self, context: PushContext) -> None:
        self._context = context
        self._spool = context.spool
        self._reporter = context.reporter
        self._project = context.options.project
        self._version = context.version or ""
        self._predictions = ProjectPredictions(context.client, self._project, self._version)
        self._pending_import = PendingImport(context.client.url, self._project, self._version)
        self._pending = bytearray(b"\1" * len(self._spool))  # by position: still to be sent
        self._acknowledged = bytearray(len(self._spool))  # by position: in a request that was answered
        self._max_batch_predictions = max(MIN_BATCH_PREDICTIONS, context.task_count)
        self._max_request_bytes = MAX_REQUEST_BYTES
        self._counts: Counter[str] = Counter()
        self._sending_seconds = 0.0
        self._has_dropped = False  # whether the server created fewer predictions than a request held
        self._deleted_versions: dict[str, int] = {}
        self._notes: list[str] = []

    def run(self) -> PushResult:
        """Send what is missing, remove duplicates and activate the version, after other pushes of it on this machine.

        Raises:
            LsmlError: A request failed; the hint says how to go on.
            Interrupted: The user pressed ctrl-C.
        """
        if not self._spool:
            return self._result()
        with self._pending_import.exclusive(self._note_waiting):
            self._run()
            if (keep := self._context.options.keep_versions) is not None:
                self._deleted_versions, notes = delete_old_versions(self._context, keep)
                self._notes += notes
        return self._result()

    def _note_waiting(self) -> None:
        self._reporter.note(
            f"Another push of {self._version} into project {self._project} is running on this machine: waiting until it"
            " is done."
        )

    def _run(self) -> None:
        self._reporter.start_phase("listing the project's tasks")
        self._reject_unknown_tasks()
        self._await_pending_request()
        count_before = self._predictions.count()
        predicted_task_ids = self._predictions.task_ids() if count_before else array("q")
        had_duplicates = count_before > len(predicted_task_ids)
        self._apply_existing_policy(predicted_task_ids)
        if self._context.options.dry_run:
            self._counts["sent"] = sum(self._pending)
            return
        if self._context.options.existing == "replace" and predicted_task_ids:
            count_before -= self._delete_older(predicted_task_ids, count_before)
        try:
            self._send_all()
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted after {self._counts['created']:,} of {self._counts['sent']:,} predictions.",
                "Label Studio may still work on the last call. Run the same again: it waits, and sends the rest.",
            ) from None
        if self._has_dropped:
            self._reject_dropped()
        count_after = self._predictions.count()
        self._reporter.start_phase("looking at what has arrived")
        if had_duplicates or count_after > count_before + self._counts["created"]:
            self._remove_duplicates()
        if count_after:
            self._activate_version()

    def _result(self) -> PushResult:
        return self._context.build_result(
            "predictions",
            sending_seconds=self._sending_seconds,
            deleted_versions=self._deleted_versions,
            notes=self._notes,
            **self._counts,
        )

    # --- before anything is sent

    def _reject_unknown_tasks(self) -> None:
        """Reject predictions for tasks that the project does not have, and second ones for the same task."""
        known_ids = self._existing_task_ids()
        if not known_ids:
            self._notes.append(
                "None of these tasks is in the project. For a new one, --create-tasks imports whole tasks with their"
                " predictions, which is also the faster way."
            )
        input_ids = _sorted_unique(self._spool.task_ids)
        seen = bytearray(len(input_ids))
        for item in self._pending_items():
            task_id = self._spool.task_ids[item.position]
            index = bisect_left(input_ids, task_id)
            if not _contains_sorted(known_ids, task_id):
                self._reject(item, "task", f"project {self._project} has no task {task_id}")
            elif seen[index]:
                self._reject(item, "task", "this file has an earlier prediction for the same task")
            seen[index] = 1

    def _existing_task_ids(self) -> array[int]:
        task_ids = self._spool.task_ids
        return list_ids_in_range(self._context.client, self._project, min(task_ids), max(task_ids))

    def _await_pending_request(self) -> None:
        """Wait for the request of another push of this version, if there is one."""
        request = self._pending_import.load()
        if request is None:
            return
        self._reporter.note(
            f"Another push of {self._version} is under way or was interrupted: waiting until Label Studio is done"
            f" with what it was sent, {request.deadline - time.time():,.0f} s at most."
        )
        wait_until_settled(request, self._predictions.count)
        self._pending_import.clear()

    def _apply_existing_policy(self, predicted_task_ids: array[int]) -> None:
        for position, task_id in enumerate(self._spool.task_ids):
            if self._pending[position] and _contains_sorted(predicted_task_ids, task_id):
                if self._context.options.existing == "skip":
                    self._pending[position] = 0
                    self._counts["existing"] += 1
                else:
                    self._counts["replaced"] += 1

    def _delete_older(self, predicted_task_ids: array[int], prediction_count: int) -> int:
        """Delete the predictions of this version from the tasks that get a new one; return how many there were."""
        pending_task_ids = _sorted_unique(
            array("q", (task_id for position, task_id in enumerate(self._spool.task_ids) if self._pending[position]))
        )
        if all(_contains_sorted(pending_task_ids, task_id) for task_id in predicted_task_ids):
            return self._predictions.delete_all(prediction_count)  # ten times as fast as one by one
        older = (
            int(prediction["id"])
            for task_id, stored in self._predictions.iter_stored(pending_task_ids)
            if _contains_sorted(pending_task_ids, task_id)
            for prediction in stored
        )
        return self._delete(older, self._counts["replaced"])

    def _delete(self, prediction_ids: Iterable[int], expected: int) -> int:
        """Delete single predictions; return how many were still there.

        Args:
            prediction_ids: Their ids.
            expected: About how many there are.
        """
        deleted = 0
        self._reporter.start_phase("deleting", "predictions")
        for number, was_there in enumerate(self._predictions.delete(prediction_ids), 1):
            deleted += was_there
            self._reporter.progress(number, 0, min(1.0, number / max(1, expected)))
        return deleted

    # --- sending

    def _send_all(self) -> None:
        self._counts["sent"] = sum(self._pending)
        self._reporter.start_phase("sending", "predictions")
        failed_requests = 0
        while any(self._pending):
            for batch in iter_batches(self._pending_items(), self._max_batch_predictions, self._max_request_bytes):
                created_before = self._counts["created"]
                error = self._send(batch)
                has_progress = error is None or self._counts["created"] > created_before
                failed_requests = 0 if has_progress else failed_requests + 1
                if error is not None and failed_requests >= MAX_FAILED_REQUESTS:
                    raise LsmlError(error.message, self._resume_hint()) from error
                done = self._counts["sent"] - sum(self._pending)
                self._reporter.progress(done, self._context.rejections.count, done / max(1, self._counts["sent"]))
                if error is not None:
                    break  # the rest is split again, into smaller batches

    def _send(self, batch: Sequence[SpoolItem]) -> LsmlError | None:
        """Send one request and mark what has arrived.

        Returns:
            None if the request was answered, else what went wrong; the rest of the batch may be sent again.

        Raises:
            LsmlError: Sending the same again would fail again.
        """
        weight = len(batch) + self._context.task_count
        pending_request = self._pending_import.record(self._predictions.count(), SETTLE_TIME.seconds(weight))
        body = request_body(batch)
        started_at = time.monotonic()
        self._counts["calls"] += 1
        try:
            created = self._context.client.import_predictions(
                self._project, body, len(batch), timeout=600 + 0.05 * weight
            )
        except OutcomeUnknown as error:
            self._look_for_arrived(batch, len(body), pending_request, error)
            return error
        except RequestRejected as error:
            self._pending_import.clear()
            if self._can_retry_rejected(batch, len(body), error.status):
                return error
            raise LsmlError(error.message, f"{error.hint} {self._resume_hint()}") from error
        self._sending_seconds += time.monotonic() - started_at
        self._acknowledge(batch, created)
        self._pending_import.clear()
        return None

    def _look_for_arrived(
        self, batch: Sequence[SpoolItem], body_bytes: int, request: PendingRequest, error: OutcomeUnknown
    ) -> None:
        """Take what has arrived of a lost request off the list; if nothing has, send smaller requests from now on."""
        self._reporter.note(f"{error.message} Looking for what has arrived.", important=True)
        if not error.is_server_done:
            wait_until_settled(request, self._predictions.count)
        if not self._mark_arrived(batch):  # the request may have been too large for a proxy
            self._max_batch_predictions = max(1, len(batch) // 2)
            self._max_request_bytes = max(MIN_REQUEST_BYTES, body_bytes // 2)
        self._pending_import.clear()

    def _mark_arrived(self, batch: Sequence[SpoolItem]) -> int:
        """Take the predictions of a batch that the project has off the list; return how many."""
        predicted_task_ids = self._predictions.task_ids()
        arrived = [item for item in batch if _contains_sorted(predicted_task_ids, self._spool.task_ids[item.position])]
        for item in arrived:
            self._pending[item.position] = 0
        self._counts["created"] += len(arrived)
        return len(arrived)

    def _can_retry_rejected(self, batch: Sequence[SpoolItem], body_bytes: int, status: int) -> bool:
        """Change what is sent after a rejected request; return whether another try can succeed."""
        if status == 413 and self._max_request_bytes > MIN_REQUEST_BYTES:
            self._max_request_bytes = max(MIN_REQUEST_BYTES, body_bytes // 2)
            return True
        return status == 400 and self._reject_deleted_tasks(batch)

    def _reject_deleted_tasks(self, batch: Sequence[SpoolItem]) -> bool:
        """Reject predictions for tasks that were deleted meanwhile: one of them fails the whole request."""
        known_ids = self._existing_task_ids()
        deleted = [item for item in batch if not _contains_sorted(known_ids, self._spool.task_ids[item.position])]
        for item in deleted:
            self._reject(item, "task", f"project {self._project} has this task no longer")
            self._counts["sent"] -= 1
        return bool(deleted)

    def _acknowledge(self, batch: Sequence[SpoolItem], created: int | None) -> None:
        for item in batch:
            self._pending[item.position], self._acknowledged[item.position] = 0, 1
        self._counts["created"] += created or 0
        self._has_dropped = self._has_dropped or created != len(batch)

    def _pending_items(self) -> Iterator[SpoolItem]:
        return (item for item in self._spool if self._pending[item.position])

    def _reject(self, item: SpoolItem, stage: Literal["task", "send"], reason: str) -> None:
        self._pending[item.position] = 0
        task_id = self._spool.task_ids[item.position]
        self._context.rejections.add(stage, reason, task_id, item.index, item.location)

    def _resume_hint(self) -> str:
        done = f"{self._counts['created']:,} of {self._counts['sent']:,} predictions are there."
        return f"{done} Run the same again: it sends what is missing."

    # --- afterwards

    def _reject_dropped(self) -> None:
        """Reject what Label Studio silently left out because its own validation failed."""
        predicted_task_ids = self._predictions.task_ids()
        reason = (
            "Label Studio has left it out and does not say why; its log does ('Prediction validation failed'),"
            " if its label config was not changed meanwhile"
        )
        for item in self._spool:
            is_there = _contains_sorted(predicted_task_ids, self._spool.task_ids[item.position])
            if self._acknowledged[item.position] and not is_there:
                self._reject(item, "send", reason)

    def _remove_duplicates(self) -> None:
        """Keep only the first of equal predictions of this version, on the tasks of the spool.

        The first is the one with the smallest id, whoever looks. So two pushes that do this at the same time, on two
        machines, both delete the others, and neither deletes what the other one keeps.
        """
        task_ids = _sorted_unique(self._spool.task_ids)
        tasks_with_several = 0
        duplicate_ids: list[int] = []
        for task_id, stored in self._predictions.iter_stored(task_ids, only_multiple=True):
            if not _contains_sorted(task_ids, task_id):
                continue
            kept: list[Mapping[str, Any]] = []
            for prediction in sorted(stored, key=lambda prediction: int(prediction["id"])):
                if any(_is_same_prediction(prediction, other) for other in kept):
                    duplicate_ids.append(int(prediction["id"]))
                else:
                    kept.append(prediction)
            tasks_with_several += len(kept) > 1
        self._counts["duplicates"] = self._delete(duplicate_ids, len(duplicate_ids))
        if tasks_with_several:
            self._notes.append(
                f"{tasks_with_several:,} tasks have several predictions of {self._version} that differ; they were left"
                " alone."
            )

    def _activate_version(self) -> None:
        """Make the project show the version, or note why annotators do not see it."""
        project = self._context.client.get_project(self._project)  # again, because deleting a version unsets it
        shown = project.get("model_version") or ""
        was_shown = self._context.active_version == self._version
        if shown != self._version and (self._context.options.activate or was_shown):
            self._context.activate_version()
            if note := self._context.describe_activation(self._context.client.count_versions(self._project)):
                self._notes.append(note)
        elif shown != self._version:
            what = f"those of {shown}" if shown else "none"
            self._notes.append(
                f"Annotators do not get these predictions yet: the project shows {what} (Settings -> Annotation)."
            )
        if self._context.project.get("show_collab_predictions") is False:
            self._notes.append(
                "The project shows no predictions: see Settings -> Annotation -> Use predictions to prelabel tasks."
            )


def _contains_sorted(ascending: array[int], number: int) -> bool:
    index = bisect_left(ascending, number)
    return index < len(ascending) and ascending[index] == number


def _sorted_unique(numbers: array[int]) -> array[int]:
    return array("q", sorted(set(numbers)))


def _is_same_prediction(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return bool(left["result"] == right["result"] and left["score"] == right["score"])
