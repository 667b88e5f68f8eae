"""Schedule training jobs in the background, and follow them to their end. Runs in the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lsml_cli.errors import InputError, LsmlError, TransientError
from lsml_cli.server.job_record import Job, TrainingJobConfig, new_job, utc_now
from lsml_cli.server.job_runners.base import JobStatus, Runner
from lsml_cli.server.job_store import LAST_HEARTBEAT, JobStore, StaleAttempt

POLL_INTERVAL = 1.0  # seconds between two checks of the jobs
HEARTBEAT_TIMEOUT = 15.0  # seconds without a heartbeat after which a job counts as dead
MAX_UNFINISHED_JOBS = 100  # jobs that may wait or run; requests of more projects are refused
MAX_ATTEMPTS = 2  # a job whose process dies twice would probably die again

_WAITING_FIELDS = {"state": "waiting", "started": None, "progress": None}

log = logging.getLogger("lsml.serve")


@dataclass
class _HeartbeatState:
    """The last heartbeat of an attempt, and the seconds since then on this server's own clock."""

    last_heartbeat: str | None
    silent_seconds: float = 0.0


class TrainScheduler:
    """Run at most one job per project at a time, with at most one more waiting.

    Questions are answered from memory. The files of `store` are authoritative about what has become of a job; those of
    unfinished jobs are read every `poll_interval` seconds. What a job trains, and how, is `job_config`, also for a job
    of an earlier server: a file in that folder may be from anybody. Everything but the constructor must be called in
    the event loop.

    Args:
        train_every: Number of new annotations after which a project is trained, None for never.
        on_job_changed: Called with each new job, and with each job that has changed its state or attempt.
        poll_interval: Seconds between two checks of the jobs.
        heartbeat_timeout: Seconds without a heartbeat after which a job counts as dead.
    """

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        job_config: TrainingJobConfig,
        *,
        train_every: int | None = None,
        on_job_changed: Callable[[Job], None] = lambda job: None,
        poll_interval: float = POLL_INTERVAL,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    ) -> None:
        self.store = store
        self.runner = runner
        self.job_config = job_config
        self.train_every = train_every
        self._on_job_changed = on_job_changed
        self._poll_interval = poll_interval
        self._heartbeat_timeout = heartbeat_timeout
        self._jobs = {job.id: job for job in reversed(store.list_jobs(_log_warning))}  # oldest first
        self._annotation_counts = store.read_annotation_counts()
        self._has_unsaved_counts = False  # whether the counts have changed since they were stored
        self._unsaved_jobs: list[Job] = []
        self._submitted_job_ids: set[str] = set()  # jobs whose present attempt the runner was told to start
        # Requests, by project, that came while it was unknown whether the submitted job was running already.
        self._repeated_requests: dict[int, str] = {}
        self._heartbeats: dict[str, _HeartbeatState] = {}
        self._wake = asyncio.Event()
        self._last_polled_at = time.monotonic()
        self._needs_pruning = False  # whether another job has finished since the last pruning
        self._logged_errors: set[str] = set()  # errors of the last round, which are in the log
        self._is_shutting_down = False

    def request_training(self, project: int, why: str) -> Job:
        """Request training without blocking, and return the job: a new one, or the one that is waiting already.

        Args:
            why: What requested it, for `Job.why`.
        """
        self._annotation_counts.pop(project, None)
        self._has_unsaved_counts = True
        if (waiting := self._find_waiting_job(project)) is not None:
            if waiting.id in self._submitted_job_ids:
                self._repeated_requests[project] = why
            return waiting
        job = new_job(project, why, self.job_config)
        self._unsaved_jobs.append(job)
        self._jobs[job.id] = job
        self._on_job_changed(job)
        self._wake.set()
        return job

    def has_room(self, project: int) -> bool:
        """Tell whether training of a project may be requested: its job waits already, or few other jobs do."""
        return len(self._unfinished_jobs()) < MAX_UNFINISHED_JOBS or self._find_waiting_job(project) is not None

    def count_annotations(self, project: int, count: int = 1) -> Job | None:
        """Count new, changed or deleted annotations.

        Returns:
            The requested job if the project has reached `train_every`, otherwise None.
        """
        if self.train_every is None or count <= 0:
            return None
        self._annotation_counts[project] = self._annotation_counts.get(project, 0) + count
        self._has_unsaved_counts = True
        if self._annotation_counts[project] < self.train_every or not self.has_room(project):
            return None
        return self.request_training(project, f"{self._annotation_counts[project]:,} new annotations")

    def is_training(self, project: int) -> bool:
        """Tell whether a job of the project is running."""
        return any(job.project == project and self._is_running(job) for job in self._jobs.values())

    def last_failure(self, project: int) -> Job | None:
        """Return the project's newest job if it has failed or missed a gate, otherwise None."""
        newest = next((job for job in self.jobs() if job.project == project), None)
        return newest if newest is not None and newest.state in ("failed", "missed") else None

    def jobs(self) -> list[Job]:
        """Return every job, newest first."""
        return list(reversed(self._jobs.values()))

    async def run(self) -> None:
        """Start jobs and follow them until cancelled."""
        while True:
            self._wake.clear()
            errors = set()
            for step in (self._save_pending, self._poll_all, self._start_all):
                try:
                    await step()
                except LsmlError as error:
                    errors.add(str(error))
                except Exception as error:
                    errors.add(f"This is a bug in lsml: {type(error).__name__}: {error}")
                    log.debug("Traceback of the bug:", exc_info=True)
            for message in errors - self._logged_errors:  # an error that persists is logged once
                log.warning("%s", message)
            self._logged_errors = errors
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._poll_interval)

    def begin_shutdown(self) -> None:
        """Start no more jobs: the server stops after its running requests.

        From now on a job whose process ends by SIGTERM does not fail. It was stopped like the server, as a service
        manager signals all processes of a service at once.
        """
        self._is_shutting_down = True

    async def close(self) -> None:
        """Terminate the jobs that run as this server's processes; they start again with the server."""
        self._is_shutting_down = True
        try:
            for job_id in await asyncio.to_thread(self.runner.stop):
                if job_id not in self._jobs or self._jobs[job_id].is_finished:  # it ended before
                    continue
                job = await asyncio.to_thread(self.store.read, job_id)
                if job.state == "running":
                    await self._update_job(job, reason="The server was stopped.", **_WAITING_FIELDS)
                else:  # it ended by itself in the meantime
                    self._set_job(job)
            await self._save_pending()
        except LsmlError as error:
            log.warning("%s", error)

    async def _poll_all(self) -> None:
        now = time.monotonic()
        # Limited, because a suspended server has read no heartbeats, which says nothing about the jobs.
        elapsed, self._last_polled_at = min(now - self._last_polled_at, 2 * self._poll_interval), now
        for job in self._unfinished_jobs():
            if job.state == "running" or job.id in self._submitted_job_ids:
                await self._poll_job(job, elapsed)
        if self._needs_pruning:
            self._needs_pruning = False
            for job_id in await asyncio.to_thread(self.store.prune):
                self._jobs.pop(job_id, None)

    async def _start_all(self) -> None:
        for job in self._unfinished_jobs():
            if self._can_start(job):
                await self._start_job(job)

    async def _save_pending(self) -> None:
        while self._unsaved_jobs:
            job = self._unsaved_jobs.pop(0)
            try:
                await asyncio.to_thread(self.store.create, job)
            except BaseException:  # also when cancelled: then `close` stores it
                self._unsaved_jobs.insert(0, job)
                raise
        if self._has_unsaved_counts:
            self._has_unsaved_counts = False
            try:
                await asyncio.to_thread(self.store.write_annotation_counts, dict(self._annotation_counts))
            except BaseException:
                self._has_unsaved_counts = True
                raise

    async def _poll_job(self, job: Job, elapsed: float) -> None:
        """Take over what has happened to a submitted or running job.

        Args:
            elapsed: Seconds since the last check.
        """
        repeated_request = self._repeated_requests.pop(job.project, None)
        status, record, heartbeat = await asyncio.to_thread(self._observe, job)
        if isinstance(record, LsmlError):
            self._set_job(replace(job, state="failed", ended=utc_now(), reason=str(record)))
            return
        self._set_job(record)
        if repeated_request is not None and record.state != "waiting":
            # The job may have downloaded its tasks before that request.
            self.request_training(record.project, repeated_request)
        if record.is_finished or record.attempt != job.attempt or self._is_shutting_down:
            return
        status = self._apply_heartbeat_timeout(record, status, heartbeat, elapsed)
        if status.state == "failed":
            await self._update_job(record, state="failed", ended=utc_now(), reason=status.reason)
        elif status.state == "died" and record.attempt >= MAX_ATTEMPTS:
            reason = f"{status.reason} That was attempt {record.attempt}, and the last one."
            await self._update_job(record, state="failed", ended=utc_now(), reason=reason)
        elif status.state == "died":
            await self._update_job(record, attempt=record.attempt + 1, reason=status.reason, **_WAITING_FIELDS)
        elif status.state == "missing" and record.state == "waiting":
            self._submitted_job_ids.discard(job.id)

    def _observe(self, job: Job) -> tuple[JobStatus, Job | LsmlError, str | None]:
        """Return the runner's status, the job's record or why it cannot be read, and its last heartbeat.

        The runner is asked first: the record is then the newer information, and overrides the status.
        """
        status = self.runner.get_status(job)
        try:
            record: Job | LsmlError = self.store.read(job.id)
        except InputError as error:
            record = error
        return status, record, self.store.read_heartbeat(job)

    def _apply_heartbeat_timeout(self, job: Job, status: JobStatus, heartbeat: str | None, elapsed: float) -> JobStatus:
        """Return the runner's status, or "died" if it can observe nothing and heartbeats have stopped."""
        if heartbeat == LAST_HEARTBEAT and status.state not in ("failed", "died"):
            return JobStatus("died", "Its worker has died.")
        last = self._heartbeats.setdefault(job.id, _HeartbeatState(heartbeat))
        is_alive = last.last_heartbeat != heartbeat or status.state in ("active", "failed", "died")
        last.last_heartbeat, last.silent_seconds = heartbeat, 0.0 if is_alive else last.silent_seconds + elapsed
        has_not_begun = status.state == "missing" and job.state == "waiting"
        if last.silent_seconds > self._heartbeat_timeout and not has_not_begun:
            return JobStatus(
                "died", f"It sent no heartbeat for {self._heartbeat_timeout:.0f} seconds and counts as dead."
            )
        return status

    async def _update_job(self, job: Job, **changes: Any) -> None:
        with suppress(StaleAttempt):  # it has just ended; the next check reads the result
            self._set_job(await asyncio.to_thread(self.store.update, job, **changes))

    def _can_start(self, job: Job) -> bool:
        if (
            self._is_shutting_down
            or job.state != "waiting"
            or job.id in self._submitted_job_ids
            or job in self._unsaved_jobs
        ):
            return False
        busy_projects = [
            unfinished.project
            for unfinished in self._unfinished_jobs()
            if unfinished.state == "running" or unfinished.id in self._submitted_job_ids
        ]
        if self.runner.max_running_jobs is not None and len(busy_projects) >= self.runner.max_running_jobs:
            return False
        return job.project not in busy_projects

    async def _start_job(self, job: Job) -> None:
        self._submitted_job_ids.add(job.id)
        self._heartbeats.pop(job.id, None)
        try:
            warning = await asyncio.to_thread(self.runner.start, replace(job, config=self.job_config))
        except TransientError:
            self._submitted_job_ids.discard(job.id)
            raise  # `run` logs it and tries again
        except LsmlError as error:
            await self._update_job(job, state="failed", ended=utc_now(), reason=str(error))
            return
        if warning:
            log.warning("%s", warning)

    def _set_job(self, job: Job) -> None:
        """Replace a job in memory, and report a change of its state or attempt."""
        previous = self._jobs.get(job.id)
        self._jobs[job.id] = job
        if previous is not None and (previous.state, previous.attempt) == (job.state, job.attempt):
            return
        if job.state != "running":  # this attempt is over
            self._submitted_job_ids.discard(job.id)
            self._heartbeats.pop(job.id, None)
        self._needs_pruning = self._needs_pruning or job.is_finished
        self._on_job_changed(job)

    def _unfinished_jobs(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.is_finished]

    def _is_running(self, job: Job) -> bool:
        """Tell whether a job runs: with a limited runner as soon as it is submitted, on a queue maybe later."""
        return job.state == "running" or (
            job.id in self._submitted_job_ids and self.runner.max_running_jobs is not None
        )

    def _find_waiting_job(self, project: int) -> Job | None:
        jobs = (job for job in self._jobs.values() if job.project == project)
        return next((job for job in jobs if job.state == "waiting" and not self._is_running(job)), None)


def _log_warning(message: str) -> None:
    log.warning("%s", message)
