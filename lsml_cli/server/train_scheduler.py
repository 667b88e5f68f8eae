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
from lsml_cli.server.job_runners import Runner, Sight
from lsml_cli.server.job_store import Job, JobStore, Recipe, Superseded, new_job, utc_now

INTERVAL = 1.0  # seconds between two looks
SILENCE = 15.0  # seconds without a heartbeat after which a job is taken for dead
ATTEMPTS = 2  # a job whose process dies twice would die again

_WAITING = {"state": "waiting", "started": None, "progress": None}


@dataclass
class _Pulse:
    """The last heartbeat of an attempt, and for how long none has come since, in seconds of this server's own clock."""

    beat: str | None
    quiet: float = 0.0


class Trainer:
    """One job per project at a time, and at most one more that waits.

    What it knows is in memory and read there; the files of `store` are the truth, and looked at every `interval`
    seconds while there is something to do. Everything but `__init__` is called in the event loop.
    """

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        recipe: Recipe,
        *,
        train_every: int | None = None,
        changed: Callable[[Job], None] = lambda job: None,
        log: logging.Logger | None = None,
        interval: float = INTERVAL,
        silence: float = SILENCE,
    ) -> None:
        """Reads what is on record.

        train_every  new annotations after which a project is trained, None for never
        changed      called with each job that is new or has changed its state
        interval     seconds between two looks at the jobs
        silence      seconds without a heartbeat after which a job is taken for dead
        """
        self.store = store
        self.runner = runner
        self.recipe = recipe
        self.train_every = train_every
        self._changed = changed
        self._log = log or logging.getLogger("lsml.serve")
        self._interval = interval
        self._silence = silence
        self._jobs = {job.id: job for job in reversed(store.all(self._log.warning))}  # oldest first
        self._counts = store.annotations()
        self._counted = False  # whether the counts have changed since they were written
        self._unwritten: list[Job] = []
        self._handed: set[str] = set()  # ids of jobs whose present attempt the runner has been told to start
        self._again: dict[int, str] = {}  # projects asked for while it was open whether their job had begun, and why
        self._pulses: dict[str, _Pulse] = {}
        self._wake = asyncio.Event()
        self._looked = time.monotonic()
        self._crowded = False  # whether there may be more finished jobs than are kept
        self._troubles: set[str] = set()  # what went wrong in the last round, and is in the log
        self._ending = False

    def request(self, project: int, why: str) -> Job:
        """Ask for training; never blocks. The job that will do it: a new one, or the one that waits already."""
        self._counts.pop(project, None)
        self._counted = True
        if (waiting := self._waiting(project)) is not None:
            if waiting.id in self._handed:
                self._again[project] = why
            return waiting
        job = new_job(project, why, self.recipe)
        self._unwritten.append(job)
        self._jobs[job.id] = job
        self._changed(job)
        self._wake.set()
        return job

    def annotations_changed(self, project: int, number: int = 1) -> Job | None:
        """Count annotations that were made, changed or deleted; the job that was asked for, if that was enough."""
        if self.train_every is None or number <= 0:
            return None
        self._counts[project] = self._counts.get(project, 0) + number
        self._counted = True
        if self._counts[project] < self.train_every:
            return None
        return self.request(project, f"{self._counts[project]:,} new annotations")

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
            for step in (self._write_down, self._follow_all, self._start_all):
                try:
                    await step()
                except LsmlError as error:
                    troubles.add(str(error))
                except Exception as error:
                    troubles.add(f"This is a bug in lsml: {type(error).__name__}: {error}")
                    self._log.debug("Where it happened:", exc_info=True)
            for sentence in troubles - self._troubles:  # once, however long it lasts
                self._log.warning("%s", sentence)
            self._troubles = troubles
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._interval)

    def ending(self) -> None:
        """The server ends once it has answered what was begun. From now on nothing is started, and what dies here has
        been stopped as the server was: a service manager tells all processes of a service at once."""
        self._ending = True

    async def close(self) -> None:
        """End what runs here; it waits again, and goes on with the next start of the server."""
        self._ending = True
        try:
            for job_id in await asyncio.to_thread(self.runner.stop):
                if job_id not in self._jobs or self._jobs[job_id].finished:  # long since
                    continue
                job = await asyncio.to_thread(self.store.read, job_id)
                if job.state == "running":
                    await self._change(job, reason="The server was stopped.", **_WAITING)
                else:  # it has ended by itself after all
                    self._adopt(job)
            await self._write_down()
        except LsmlError as error:
            self._log.warning("%s", error)

    async def _follow_all(self) -> None:
        now = time.monotonic()
        # A server that was suspended has heard nothing meanwhile, which says nothing about the jobs.
        elapsed, self._looked = min(now - self._looked, 2 * self._interval), now
        for job in self._unfinished():
            if job.state == "running" or job.id in self._handed:
                await self._follow(job, elapsed)
        if self._crowded:
            self._crowded = False
            for job_id in await asyncio.to_thread(self.store.prune):
                self._jobs.pop(job_id, None)

    async def _start_all(self) -> None:
        for job in self._unfinished():
            if self._may_start(job):
                await self._start(job)

    async def _write_down(self) -> None:
        while self._unwritten:
            job = self._unwritten.pop(0)
            try:
                await asyncio.to_thread(self.store.create, job)
            except BaseException:  # cancelled, too: `close` writes it then
                self._unwritten.insert(0, job)
                raise
        if self._counted:
            self._counted = False
            try:
                await asyncio.to_thread(self.store.remember_annotations, dict(self._counts))
            except BaseException:
                self._counted = True
                raise

    async def _follow(self, job: Job, elapsed: float) -> None:
        """See what became of a job that was begun."""
        asked = self._again.pop(job.project, None)
        sight, found, beat = await asyncio.to_thread(self._observe, job)
        if isinstance(found, LsmlError):
            self._adopt(replace(job, state="failed", ended=utc_now(), reason=str(found)))
            return
        self._adopt(found)
        if asked is not None and found.state != "waiting":
            self.request(found.project, asked)  # it may have had its tasks already when it was asked for
        if found.finished or found.attempt != job.attempt or self._ending:
            return
        sight = self._judge(found, sight, beat, elapsed)
        if sight.state == "failed":
            await self._change(found, state="failed", ended=utc_now(), reason=sight.reason)
        elif sight.state == "died" and found.attempt >= ATTEMPTS:
            reason = f"{sight.reason} That was attempt {found.attempt}, and the last one."
            await self._change(found, state="failed", ended=utc_now(), reason=reason)
        elif sight.state == "died":
            await self._change(found, attempt=found.attempt + 1, reason=sight.reason, **_WAITING)
        elif sight.state == "missing" and found.state == "waiting":
            self._handed.discard(job.id)

    def _observe(self, job: Job) -> tuple[Sight, Job | LsmlError, str | None]:
        """The runner first: what it sees is then older than the record, which has the last word."""
        sight = self.runner.look(job)
        try:
            found: Job | LsmlError = self.store.read(job.id)
        except InputError as error:
            found = error
        return sight, found, self.store.heartbeat(job)

    def _judge(self, job: Job, sight: Sight, beat: str | None, elapsed: float) -> Sight:
        """What the runner sees; where it sees nothing, what the heartbeat says."""
        pulse = self._pulses.setdefault(job.id, _Pulse(beat))
        beating = pulse.beat != beat or sight.state in ("there", "failed", "died")
        pulse.beat, pulse.quiet = beat, 0.0 if beating else pulse.quiet + elapsed
        if pulse.quiet > self._silence and not (sight.state == "missing" and job.state == "waiting"):
            return Sight("died", f"Nothing was heard of it for {self._silence:.0f} seconds: what ran it has died.")
        return sight

    async def _change(self, job: Job, **changes: Any) -> None:
        with suppress(Superseded):  # it has ended in this very moment; the next look sees how
            self._adopt(await asyncio.to_thread(self.store.update, job, **changes))

    def _may_start(self, job: Job) -> bool:
        if self._ending or job.state != "waiting" or job.id in self._handed or job in self._unwritten:
            return False
        busy = [each for each in self._unfinished() if each.state == "running" or each.id in self._handed]
        if self.runner.at_once is not None and len(busy) >= self.runner.at_once:
            return False
        return all(each.project != job.project for each in busy)

    async def _start(self, job: Job) -> None:
        self._handed.add(job.id)
        self._pulses.pop(job.id, None)
        try:
            remark = await asyncio.to_thread(self.runner.start, job)
        except TransientError:
            self._handed.discard(job.id)
            raise  # said once, and tried again
        except LsmlError as error:
            await self._change(job, state="failed", ended=utc_now(), reason=str(error))
            return
        if remark:
            self._log.warning("%s", remark)

    def _adopt(self, job: Job) -> None:
        """Take over what a job has become."""
        before = self._jobs.get(job.id)
        self._jobs[job.id] = job
        if before is not None and (before.state, before.attempt) == (job.state, job.attempt):
            return
        if job.state != "running":  # this attempt is over
            self._handed.discard(job.id)
            self._pulses.pop(job.id, None)
        self._crowded = self._crowded or job.finished
        self._changed(job)

    def _unfinished(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.finished]

    def _is_running(self, job: Job) -> bool:
        """A process of our own counts as running from the moment it starts; a queue may take its time."""
        return job.state == "running" or (job.id in self._handed and self.runner.at_once is not None)

    def _waiting(self, project: int) -> Job | None:
        jobs = (job for job in self._jobs.values() if job.project == project)
        return next((job for job in jobs if job.state == "waiting" and not self._is_running(job)), None)
