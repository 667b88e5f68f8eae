"""Training in the background: decides what is trained when, and knows what became of it. Lives in the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lsml_cli.errors import InputError, LsmlError, TransientError
from lsml_cli.server.job_runners import JobStatus, Runner
from lsml_cli.server.job_store import Job, JobStore, StaleAttempt, TrainingJobConfig, new_job, utc_now

POLL_INTERVAL = 1.0  # seconds between two looks
HEARTBEAT_TIMEOUT = 15.0  # seconds without a heartbeat after which a job is taken for dead
MAX_ATTEMPTS = 2  # a job whose process dies twice would die again

_WAITING_FIELDS = {"state": "waiting", "started": None, "progress": None}


@dataclass
class _HeartbeatState:
    """The last heartbeat of an attempt, and for how long none has come since, in seconds of this server's own clock."""

    last_heartbeat: str | None
    silent_seconds: float = 0.0


class TrainScheduler:
    """One job per project at a time, and at most one more that waits.

    What it knows is in memory and read there; the files of `store` are the truth, and looked at every `interval`
    seconds while there is something to do. Everything but `__init__` is called in the event loop.
    """

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        job_config: TrainingJobConfig,
        *,
        train_every: int | None = None,
        on_job_changed: Callable[[Job], None] = lambda job: None,
        log: logging.Logger | None = None,
        poll_interval: float = POLL_INTERVAL,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    ) -> None:
        """Reads what is on record.

        train_every  new annotations after which a project is trained, None for never
        changed      called with each job that is new or has changed its state
        interval     seconds between two looks at the jobs
        silence      seconds without a heartbeat after which a job is taken for dead
        """
        self.store = store
        self.runner = runner
        self.job_config = job_config
        self.train_every = train_every
        self._on_job_changed = on_job_changed
        self._log = log or logging.getLogger("lsml.serve")
        self._poll_interval = poll_interval
        self._heartbeat_timeout = heartbeat_timeout
        self._jobs = {job.id: job for job in reversed(store.list_jobs(self._log.warning))}  # oldest first
        self._annotation_counts = store.read_annotation_counts()
        self._has_unsaved_counts = False  # whether the counts have changed since they were written
        self._unsaved_jobs: list[Job] = []
        self._submitted_job_ids: set[str] = set()  # ids of jobs whose present attempt the runner has been told to start
        self._repeated_requests: dict[
            int, str
        ] = {}  # projects asked for while it was open whether their job had begun, and why
        self._heartbeats: dict[str, _HeartbeatState] = {}
        self._wake = asyncio.Event()
        self._last_polled_at = time.monotonic()
        self._needs_pruning = False  # whether there may be more finished jobs than are kept
        self._logged_errors: set[str] = set()  # what went wrong in the last round, and is in the log
        self._is_shutting_down = False

    def request_training(self, project: int, why: str) -> Job:
        """Ask for training; never blocks. The job that will do it: a new one, or the one that waits already."""
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

    def count_annotations(self, project: int, count: int = 1) -> Job | None:
        """Count annotations that were made, changed or deleted; the job that was asked for, if that was enough."""
        if self.train_every is None or count <= 0:
            return None
        self._annotation_counts[project] = self._annotation_counts.get(project, 0) + count
        self._has_unsaved_counts = True
        if self._annotation_counts[project] < self.train_every:
            return None
        return self.request_training(project, f"{self._annotation_counts[project]:,} new annotations")

    def is_training(self, project: int) -> bool:
        return any(job.project == project and self._is_running(job) for job in self._jobs.values())

    def jobs(self) -> list[Job]:
        """Every job on record, newest first."""
        return list(reversed(self._jobs.values()))

    async def run(self) -> None:
        """Watch over the jobs until cancelled."""
        while True:
            self._wake.clear()
            troubles = set()
            for step in (self._save_pending, self._poll_all, self._start_all):
                try:
                    await step()
                except LsmlError as error:
                    troubles.add(str(error))
                except Exception as error:
                    troubles.add(f"This is a bug in lsml: {type(error).__name__}: {error}")
                    self._log.debug("Where it happened:", exc_info=True)
            for sentence in troubles - self._logged_errors:  # once, however long it lasts
                self._log.warning("%s", sentence)
            self._logged_errors = troubles
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._poll_interval)

    def begin_shutdown(self) -> None:
        """The server ends once it has answered what was begun. From now on nothing is started, and what dies here has
        been stopped as the server was: a service manager tells all processes of a service at once."""
        self._is_shutting_down = True

    async def close(self) -> None:
        """End what runs here; it waits again, and goes on with the next start of the server."""
        self._is_shutting_down = True
        try:
            for job_id in await asyncio.to_thread(self.runner.stop):
                if job_id not in self._jobs or self._jobs[job_id].is_finished:  # long since
                    continue
                job = await asyncio.to_thread(self.store.read, job_id)
                if job.state == "running":
                    await self._update_job(job, reason="The server was stopped.", **_WAITING_FIELDS)
                else:  # it has ended by itself after all
                    self._set_job(job)
            await self._save_pending()
        except LsmlError as error:
            self._log.warning("%s", error)

    async def _poll_all(self) -> None:
        now = time.monotonic()
        # A server that was suspended has heard nothing meanwhile, which says nothing about the jobs.
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
            except BaseException:  # cancelled, too: `close` writes it then
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
        """See what became of a job that was begun."""
        asked = self._repeated_requests.pop(job.project, None)
        sight, found, beat = await asyncio.to_thread(self._observe, job)
        if isinstance(found, LsmlError):
            self._set_job(replace(job, state="failed", ended=utc_now(), reason=str(found)))
            return
        self._set_job(found)
        if asked is not None and found.state != "waiting":
            self.request_training(found.project, asked)  # it may have had its tasks already when it was asked for
        if found.is_finished or found.attempt != job.attempt or self._is_shutting_down:
            return
        sight = self._apply_heartbeat_timeout(found, sight, beat, elapsed)
        if sight.state == "failed":
            await self._update_job(found, state="failed", ended=utc_now(), reason=sight.reason)
        elif sight.state == "died" and found.attempt >= MAX_ATTEMPTS:
            reason = f"{sight.reason} That was attempt {found.attempt}, and the last one."
            await self._update_job(found, state="failed", ended=utc_now(), reason=reason)
        elif sight.state == "died":
            await self._update_job(found, attempt=found.attempt + 1, reason=sight.reason, **_WAITING_FIELDS)
        elif sight.state == "missing" and found.state == "waiting":
            self._submitted_job_ids.discard(job.id)

    def _observe(self, job: Job) -> tuple[JobStatus, Job | LsmlError, str | None]:
        """The runner first: what it sees is then older than the record, which has the last word."""
        sight = self.runner.get_status(job)
        try:
            found: Job | LsmlError = self.store.read(job.id)
        except InputError as error:
            found = error
        return sight, found, self.store.read_heartbeat(job)

    def _apply_heartbeat_timeout(self, job: Job, status: JobStatus, heartbeat: str | None, elapsed: float) -> JobStatus:
        """What the runner sees; where it sees nothing, what the heartbeat says."""
        pulse = self._heartbeats.setdefault(job.id, _HeartbeatState(heartbeat))
        beating = pulse.last_heartbeat != heartbeat or status.state in ("there", "failed", "died")
        pulse.last_heartbeat, pulse.silent_seconds = heartbeat, 0.0 if beating else pulse.silent_seconds + elapsed
        if pulse.silent_seconds > self._heartbeat_timeout and not (
            status.state == "missing" and job.state == "waiting"
        ):
            return JobStatus(
                "died", f"Nothing was heard of it for {self._heartbeat_timeout:.0f} seconds: what ran it has died."
            )
        return status

    async def _update_job(self, job: Job, **changes: Any) -> None:
        with suppress(StaleAttempt):  # it has ended in this very moment; the next look sees how
            self._set_job(await asyncio.to_thread(self.store.update, job, **changes))

    def _can_start(self, job: Job) -> bool:
        if (
            self._is_shutting_down
            or job.state != "waiting"
            or job.id in self._submitted_job_ids
            or job in self._unsaved_jobs
        ):
            return False
        busy = [
            each for each in self._unfinished_jobs() if each.state == "running" or each.id in self._submitted_job_ids
        ]
        if self.runner.max_running_jobs is not None and len(busy) >= self.runner.max_running_jobs:
            return False
        return all(each.project != job.project for each in busy)

    async def _start_job(self, job: Job) -> None:
        self._submitted_job_ids.add(job.id)
        self._heartbeats.pop(job.id, None)
        try:
            remark = await asyncio.to_thread(self.runner.start, job)
        except TransientError:
            self._submitted_job_ids.discard(job.id)
            raise  # said once, and tried again
        except LsmlError as error:
            await self._update_job(job, state="failed", ended=utc_now(), reason=str(error))
            return
        if remark:
            self._log.warning("%s", remark)

    def _set_job(self, job: Job) -> None:
        """Take over what a job has become."""
        before = self._jobs.get(job.id)
        self._jobs[job.id] = job
        if before is not None and (before.state, before.attempt) == (job.state, job.attempt):
            return
        if job.state != "running":  # this attempt is over
            self._submitted_job_ids.discard(job.id)
            self._heartbeats.pop(job.id, None)
        self._needs_pruning = self._needs_pruning or job.is_finished
        self._on_job_changed(job)

    def _unfinished_jobs(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.is_finished]

    def _is_running(self, job: Job) -> bool:
        """A process of our own counts as running from the moment it starts; a queue may take its time."""
        return job.state == "running" or (
            job.id in self._submitted_job_ids and self.runner.max_running_jobs is not None
        )

    def _find_waiting_job(self, project: int) -> Job | None:
        jobs = (job for job in self._jobs.values() if job.project == project)
        return next((job for job in jobs if job.state == "waiting" and not self._is_running(job)), None)
