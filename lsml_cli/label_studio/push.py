"""`lsml push` without the command line: predictions into a project, each once, whatever breaks in between.

A call of `import/predictions` recounts every task of the project, at about 1 ms each, so there are few of them, and
large. None is repeated because it seems to have failed: Label Studio finishes what it was sent, also for somebody who
is gone. What a call has done is looked up instead, and then only what is missing is sent.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

from lsml_cli.errors import Interrupted, LsmlError, UsageError, format_list, sort_by_similarity
from lsml_cli.io.source import RecordSource
from lsml_cli.label_studio.client import LabelStudioClient, OutcomeUnknown, RequestRejected
from lsml_cli.label_studio.create_tasks import TaskImport
from lsml_cli.label_studio.pending_import import PendingImport, wait_until_settled
from lsml_cli.label_studio.push_options import PushOptions, PushResult
from lsml_cli.label_studio.push_spool import ProgressReporter, Rejections, Spool, SpoolItem, spool_records
from lsml_cli.label_studio.task_pages import condition, list_ids_in_range, list_tasks
from lsml_cli.schema.label_config import LabelConfig

MIN_BATCH_PREDICTIONS = 10_000  # predictions of a call, if there are as many; more where the project has more tasks
MAX_REQUEST_BYTES = (
    64 << 20
)  # bytes of a call; Label Studio takes 250 MiB, and needs ten times as much memory to parse them
MIN_REQUEST_BYTES = 1 << 16  # bytes of a call, however little a proxy lets through
SETTLE_SECONDS = (10.0, 0.006)  # a call is over after these, and these for each of its predictions and of all tasks
MAX_FAILED_REQUESTS = 3  # calls that broke off without anything arriving before it is given up


def push(client: LabelStudioClient, options: PushOptions, reporter: ProgressReporter) -> PushResult:
    """Send what is missing. Raises UsageError, LsmlError, Interrupted. Nothing is sent before all is checked."""
    with RecordSource(options.file) as source, Spool() as spool:
        rejections = Rejections(options.errors, source.name, reporter)
        with closing(rejections):
            project = client.get_project(options.project)
            config = LabelConfig.parse(client.extract_label_config(project))
            spool_records(source, config, spool, rejections, options.version, options.create_tasks)
            version = _resolve_version(spool, options)
            way = TaskImport if options.create_tasks else PredictionImport
            return way(client, options, project, version, spool, rejections, reporter).run()


def _resolve_version(spool: Spool, options: PushOptions) -> str | None:
    """The version of everything that may be sent, None where there is nothing.

    Raises UsageError where there are several, or none that was asked for.
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
    """One push: what is sent still, and what is known to be there."""

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
        self.project = project
        self.version = version or ""
        self.spool = spool
        self.rejections = rejections
        self.reporter = reporter
        self.started_at = time.monotonic()
        self.pending = bytearray(b"\1" * len(spool))  # by number: still to be sent
        self.acknowledged = bytearray(len(spool))  # in a call that was answered
        self.project_task_count = int(project.get("task_number") or 0)
        self.max_batch_predictions, self.max_request_bytes = (
            max(MIN_BATCH_PREDICTIONS, self.project_task_count),
            MAX_REQUEST_BYTES,
        )
        self.counts: Counter[str] = Counter()
        self.sending_seconds = 0.0
        self.has_dropped = False  # whether a call has taken less than it was sent
        self.notes: list[str] = []
        self.pending_import = PendingImport(client.url, options.project, self.version)

    def run(self) -> PushResult:
        if not self.spool:
            return self.summary()
        self._reject_unknown_tasks()
        if (call := self.pending_import.load()) is not None:
            self.reporter.note(
                f"Another push of {self.version} is under way or was interrupted: waiting until Label Studio is done"
                f" with what it was sent, {call.deadline - time.time():,.0f} s at most."
            )
            wait_until_settled(call, self._count_predictions)
            self.pending_import.clear()
        there = self._count_predictions()
        holders = self._predicted_task_ids() if there else array("q")
        twice = there > len(holders)
        self._apply_existing_policy(holders)
        if self.options.dry_run:
            self.counts["sent"] = sum(self.pending)
            return self.summary()
        if self.options.existing == "replace" and holders:
            there -= self._delete_older(holders, there)
        try:
            self._send_all()
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted after {self.counts['created']:,} of {self.counts['sent']:,} predictions.",
                "Label Studio may still work on the last call. Run the same again: it waits, and sends the rest.",
            ) from None
        if self.has_dropped:
            self._reject_dropped()
        now = self._count_predictions()
        if twice or now > there + self.counts["created"]:
            self._remove_duplicates()
        if now:
            self._activate_version()
        return self.summary()

    def summary(self) -> PushResult:
        counts = self.spool.counts
        return PushResult(
            project=self.options.project,
            version=self.version or None,
            records=counts["records"],
            sent=self.counts["sent"],
            created=self.counts["created"],
            existing=self.counts["existing"],
            replaced=self.counts["replaced"],
            failed=counts["failed"],
            empty=counts["empty"],
            other=counts["other"],
            rejected=self.rejections.count,
            duplicates=self.counts["doubles"],
            calls=self.counts["calls"],
            sending_seconds=round(self.sending_seconds, 3),
            seconds=round(time.monotonic() - self.started_at, 3),
            dry_run=self.options.dry_run,
            errors=str(self.options.errors) if self.options.errors else None,
            notes=tuple(self.notes),
        )

    # --- before anything is sent

    def _reject_unknown_tasks(self) -> None:
        """Reject what names a task that the project does not have, or one that was named before."""
        known = self._existing_task_ids()
        if not known:
            self.notes.append(
                "None of these tasks is in the project. For a new one, --create-tasks imports whole tasks with their"
                " predictions, which is also the faster way."
            )
        seen = _sorted_unique(self.spool.task_ids)
        first = bytearray(len(seen))
        for item in self._pending_items():
            task = self.spool.task_ids[item.position]
            place = bisect_left(seen, task)
            if not _contains_sorted(known, task):
                self._reject(item, "task", f"project {self.options.project} has no task {task}")
            elif first[place]:
                self._reject(item, "task", "this file has an earlier prediction for the same task")
            first[place] = 1

    def _existing_task_ids(self) -> array[int]:
        return list_ids_in_range(self.client, self.options.project, min(self.spool.task_ids), max(self.spool.task_ids))

    def _apply_existing_policy(self, predicted_task_ids: array[int]) -> None:
        for number, task in enumerate(self.spool.task_ids):
            if self.pending[number] and _contains_sorted(predicted_task_ids, task):
                if self.options.existing == "skip":
                    self.pending[number] = 0
                    self.counts["existing"] += 1
                else:
                    self.counts["replaced"] += 1

    def _delete_older(self, predicted_task_ids: array[int], prediction_count: int) -> int:
        """Delete the predictions of this version from the tasks that get a new one. How many there were."""
        what = f"the predictions of {self.version}"
        mine = _sorted_unique(
            array("q", (task for number, task in enumerate(self.spool.task_ids) if self.pending[number]))
        )
        if all(
            _contains_sorted(mine, task) for task in predicted_task_ids
        ):  # all there are: at once, which is ten times as quick
            return delete_version(self.client, self.options.project, self.version, prediction_count)
        gone = 0
        for task, older in self._stored_predictions(mine):
            if _contains_sorted(mine, task):
                for prediction in older:
                    self._delete_prediction(prediction["id"], what)
                    gone += 1
                    self.reporter.progress(gone, self.rejections.count, None)
        return gone

    # --- sending

    def _send_all(self) -> None:
        self.counts["sent"] = sum(self.pending)
        fruitless = 0
        while any(self.pending):
            for call in self._iter_batches():
                before = self.counts["created"]
                trouble = self._send(call)
                fruitless = 0 if trouble is None or self.counts["created"] > before else fruitless + 1
                if trouble is not None and fruitless >= MAX_FAILED_REQUESTS:
                    raise LsmlError(trouble.message, self._resume_hint()) from trouble
                done = self.counts["sent"] - sum(self.pending)
                self.reporter.progress(done, self.rejections.count, done / max(1, self.counts["sent"]))
                if trouble is not None:
                    break  # the rest is divided anew

    def _send(self, batch: Sequence[SpoolItem]) -> LsmlError | None:
        """One call. None when it was answered, else what went wrong, with what arrived taken off the list."""
        weight = len(batch) + self.project_task_count
        note = self.pending_import.record(self._count_predictions(), SETTLE_SECONDS[0] + SETTLE_SECONDS[1] * weight)
        body = b"[" + b",".join(item.body for item in batch) + b"]"
        begun = time.monotonic()
        self.counts["calls"] += 1
        try:
            answer = self.client.mutate(
                "POST",
                f"/api/projects/{self.options.project}/import/predictions",
                f"the import of {len(batch):,} predictions",
                body,
                timeout=600 + 0.05 * weight,
            )
        except OutcomeUnknown as error:
            self.reporter.note(f"{error.message} Looking for what has arrived.", important=True)
            if not error.is_server_done:
                wait_until_settled(note, self._count_predictions)
            if not self._mark_arrived(batch):  # perhaps it was too much for somebody on the way
                self.max_batch_predictions, self.max_request_bytes = (
                    max(1, len(batch) // 2),
                    max(MIN_REQUEST_BYTES, len(body) // 2),
                )
            self.pending_import.clear()
            return error
        except RequestRejected as error:
            self.pending_import.clear()
            if error.status == 413 and self.max_request_bytes > MIN_REQUEST_BYTES:
                self.max_request_bytes = max(MIN_REQUEST_BYTES, len(body) // 2)
                return error
            if error.status == 400 and self._reject_deleted_tasks(batch):
                return error
            raise LsmlError(error.message, f"{error.hint} {self._resume_hint()}") from error
        self.sending_seconds += time.monotonic() - begun
        created = answer.get("created") if isinstance(answer, dict) else None
        for item in batch:
            self.pending[item.position], self.acknowledged[item.position] = 0, 1
        self.counts["created"] += created if isinstance(created, int) else 0
        self.has_dropped = self.has_dropped or created != len(batch)
        self.pending_import.clear()
        return None

    def _iter_batches(self) -> Iterator[list[SpoolItem]]:
        call: list[SpoolItem] = []
        size = 0
        for item in self._pending_items():
            if call and (len(call) >= self.max_batch_predictions or size + len(item.body) > self.max_request_bytes):
                yield call
                call, size = [], 0
            call.append(item)
            size += len(item.body) + 1
        if call:
            yield call

    def _pending_items(self) -> Iterator[SpoolItem]:
        return (item for item in self.spool if self.pending[item.position])

    def _mark_arrived(self, batch: Sequence[SpoolItem]) -> int:
        """Look up which of these have arrived; how many."""
        holders = self._predicted_task_ids()
        before = self.counts["created"]
        for item in batch:
            if _contains_sorted(holders, self.spool.task_ids[item.position]):
                self.pending[item.position] = 0
                self.counts["created"] += 1
        return self.counts["created"] - before

    def _reject_deleted_tasks(self, batch: Sequence[SpoolItem]) -> bool:
        """Whether tasks have been deleted since they were looked for: one of them costs the whole call."""
        known = self._existing_task_ids()
        gone = [item for item in batch if not _contains_sorted(known, self.spool.task_ids[item.position])]
        for item in gone:
            self._reject(item, "task", f"project {self.options.project} has this task no longer")
            self.counts["sent"] -= 1
        return bool(gone)

    def _reject(self, item: SpoolItem, stage: Literal["task", "send"], reason: str) -> None:
        self.pending[item.position] = 0
        self.rejections.add(stage, reason, self.spool.task_ids[item.position], item.index, item.location)

    def _resume_hint(self) -> str:
        there = f"{self.counts['created']:,} of {self.counts['sent']:,} predictions are there."
        return f"{there} Run the same again: it sends what is missing."

    # --- afterwards

    def _reject_dropped(self) -> None:
        """Label Studio leaves out in silence what its own check does not like."""
        holders = self._predicted_task_ids()
        reason = (
            "Label Studio has left it out and does not say why; its log does ('Prediction validation failed'),"
            " if its label config was not changed meanwhile"
        )
        for item in self.spool:
            if self.acknowledged[item.position] and not _contains_sorted(holders, self.spool.task_ids[item.position]):
                self._reject(item, "send", reason)

    def _remove_duplicates(self) -> None:
        """Of equal predictions of this version that a task of ours has, keep the first."""
        mine = _sorted_unique(self.spool.task_ids)
        different = 0
        for task, stored in self._stored_predictions(mine, only_multiple=True):
            if not _contains_sorted(mine, task):
                continue
            kept: list[Mapping[str, Any]] = []
            for prediction in sorted(stored, key=lambda each: int(each["id"])):
                if any(_is_same_prediction(prediction, other) for other in kept):
                    self._delete_prediction(prediction["id"], "a prediction that is there twice")
                    self.counts["doubles"] += 1
                    self.reporter.progress(self.counts["doubles"], self.rejections.count, None)
                else:
                    kept.append(prediction)
            different += len(kept) > 1
        if different:
            self.notes.append(
                f"{different:,} tasks have several predictions of {self.version} that differ; they were left alone."
            )

    def _activate_version(self) -> None:
        """Make the version the one that the project shows, and say what else may hide it."""
        before = self.project.get("model_version") or ""
        shown = self.client.get_project(self.options.project).get("model_version") or ""  # deleting a version unsets it
        if shown != self.version and self.options.activate:
            self.client.mutate_idempotent(
                "PATCH",
                f"/api/projects/{self.options.project}/",
                f"the version that project {self.options.project} shows",
                {"model_version": self.version},
                timeout=300,
            )
            if before not in ("", self.version):
                backend = "" if before in self._count_versions() else ", a connected ML backend"
                self.notes.append(f"The project shows predictions of {self.version} now; before: {before}{backend}.")
        elif shown != self.version:
            what = f"those of {shown}" if shown else "none"
            self.notes.append(
                f"Annotators do not get these predictions yet: the project shows {what} (Settings -> Annotation)."
            )
        if self.project.get("show_collab_predictions") is False:
            self.notes.append(
                "The project shows no predictions: see Settings -> Annotation -> Use predictions to prelabel tasks."
            )

    # --- what is there

    def _count_versions(self) -> dict[str, int]:
        return count_versions(self.client, self.options.project)

    def _count_predictions(self) -> int:
        return self._count_versions().get(self.version, 0)

    def _predicted_task_ids(self) -> array[int]:
        """The ids of the tasks that have a prediction of this version, ascending."""
        found = array("q")
        # The list finds versions by a part of their names, in any case.
        alike = [
            each for each in self._count_versions() if self.version.lower() in each.lower() and each != self.version
        ]
        if alike:
            found.extend(task for task, _ in self._stored_predictions(None))
            return found
        for page in list_tasks(self.client, self.options.project, [self._version_condition]):
            found.extend(task["id"] for task in page.tasks)
        return found

    def _stored_predictions(
        self, task_ids: array[int] | None, only_multiple: bool = False
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The tasks with predictions of this version, and these in full.

        tasks    only from the first of these to the last; several: only those with more than one prediction
        """
        conditions = [self._version_condition]
        if only_multiple:
            conditions.append(condition("total_predictions", "greater", "Number", 1))
        if task_ids:
            conditions.append(condition("id", "in", "Number", {"min": task_ids[0], "max": task_ids[-1]}))
        for page in list_tasks(self.client, self.options.project, conditions, include=None):
            for task in page.tasks:
                stored = [each for each in task["predictions"] if each.get("model_version") == self.version]
                if stored:
                    yield task["id"], stored

    @property
    def _version_condition(self) -> Mapping[str, Any]:
        return condition("predictions_model_versions", "contains", "List", [self.version])

    def _delete_prediction(self, prediction_id: int, description: str) -> None:
        try:
            self.client.mutate_idempotent("DELETE", f"/api/predictions/{prediction_id}/", description)
        except RequestRejected as error:
            if error.status != 404:  # gone already
                raise


def count_versions(client: LabelStudioClient, project: int) -> dict[str, int]:
    """How many predictions of each version a project has."""
    path = f"/api/projects/{project}/model-versions/"
    found = client.get(path, f"the versions in project {project}", {"extended": "true"})
    return {str(each["model_version"]): int(each["count"]) for each in found.get("static") or ()}


def delete_version(client: LabelStudioClient, project: int, version: str, count: int) -> int:
    """Delete every prediction of a version, of which there are `count`. How many went. It may be sent again at will."""
    path = f"/api/projects/{project}/model-versions/"
    what = f"the predictions of {version}"
    for _ in range(MAX_FAILED_REQUESTS):
        try:
            answer = client.mutate("DELETE", path, what, {"model_version": version}, timeout=600 + 0.1 * count)
            return int(answer["deleted_predictions"]) if isinstance(answer, dict) else count
        except OutcomeUnknown as error:
            problem = error
            if not count_versions(client, project).get(version):
                return count
    raise LsmlError(problem.message, "Run the same again: it deletes what is left.") from problem


def delete_pushed_version(client: LabelStudioClient, project: int, version: str, dry_run: bool) -> int:
    """Delete a version from a project; how many predictions it had. Raises UsageError where there is none."""
    known = count_versions(client, project)
    if version not in known:
        there = format_list(f"{each} ({known[each]:,})" for each in sort_by_similarity(version, known))
        raise UsageError(
            f"Project {project} has no predictions of {version!r}.", f"It has those of: {there or 'no version'}."
        )
    return known[version] if dry_run else delete_version(client, project, version, known[version])


def _contains_sorted(ascending: array[int], number: int) -> bool:
    place = bisect_left(ascending, number)
    return place < len(ascending) and ascending[place] == number


def _sorted_unique(numbers: array[int]) -> array[int]:
    return array("q", sorted(set(numbers)))


def _is_same_prediction(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return bool(left["result"] == right["result"] and left["score"] == right["score"])
