"""`TrainScheduler` and `JobStore`: what is started when, and how observations are interpreted.

No job runs: the tests act in their place.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import LsmlError, TransientError
from lsml_cli.server.job_record import Job, TrainingJobConfig, new_job, utc_now
from lsml_cli.server.job_runners.base import JobStatus
from lsml_cli.server.job_store import JobStore, StaleAttempt
from lsml_cli.server.train_scheduler import TrainScheduler

JOB_CONFIG = TrainingJobConfig("text-classifier", "http://localhost:8080", {"C": 2}, ("macro-f1=0.5",))
TIMEOUT = 10.0  # seconds to wait for a condition; it takes hundredths


class FakeRunner:
    """A runner that starts nothing and reports what the test sets."""

    def __init__(self, max_running_jobs: int | None = None) -> None:
        self.max_running_jobs = max_running_jobs
        self.started: list[tuple[str, int]] = []
        self.statuses: dict[str, JobStatus] = {}
        self.start_error: LsmlError | None = None
        self.stopped_job_ids: list[str] = []

    def start(self, job: Job) -> str | None:
        if self.start_error is not None:
            raise self.start_error
        self.started.append((job.id, job.attempt))
        return None

    def get_status(self, job: Job) -> JobStatus:
        return self.statuses.get(job.id, JobStatus("active"))

    def stop(self) -> list[str]:
        return self.stopped_job_ids


@asynccontextmanager
async def running_scheduler(store: JobStore, runner: FakeRunner, **options: Any) -> AsyncIterator[TrainScheduler]:
    scheduler = TrainScheduler(store, runner, JOB_CONFIG, **{"poll_interval": 0.01, "heartbeat_timeout": 0.3} | options)
    task = asyncio.create_task(scheduler.run())
    try:
        yield scheduler
    finally:
        task.cancel()
        await scheduler.close()


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


def state_of(scheduler: TrainScheduler, job: Job) -> str:
    return next(known.state for known in scheduler.jobs() if known.id == job.id)


def test_one_job_per_project_runs_and_one_waits(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner()
    reported: list[tuple[str, str]] = []

    async def scenario() -> None:
        async with running_scheduler(
            store, runner, on_job_changed=lambda job: reported.append((job.id, job.state))
        ) as scheduler:
            first = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: runner.started == [(first.id, 1)])
            assert scheduler.request_training(3, "START_TRAINING").id == first.id, (
                "it waits in the queue, no process has claimed it"
            )
            running = store.claim(first.id, 1)
            await wait_until(lambda: scheduler.is_training(3))
            # Training was requested while it was unknown whether the job ran already, so it is requested again.
            await wait_until(lambda: len(scheduler.jobs()) == 2)
            second = scheduler.jobs()[0]
            assert [scheduler.request_training(3, why).id for why in ("a", "b")] == [second.id, second.id]
            await asyncio.sleep(0.05)
            assert runner.started == [(first.id, 1)], "one job per project at a time"
            store.update(running, state="done", ended=utc_now(), version="project-3@20261121T101500")
            await wait_until(lambda: (second.id, 1) in runner.started)
            assert not scheduler.is_training(3)
            assert [job.id for job in scheduler.jobs()] == [second.id, first.id]
            assert reported == [
                (first.id, "waiting"),
                (first.id, "running"),
                (second.id, "waiting"),
                (first.id, "done"),
            ]

    asyncio.run(scenario())


@pytest.mark.parametrize(("max_running_jobs", "expected"), [(1, 1), (None, 2)])
def test_runner_limits_jobs_of_different_projects(tmp_path: Path, max_running_jobs: int | None, expected: int) -> None:
    runner = FakeRunner(max_running_jobs)

    async def scenario() -> None:
        async with running_scheduler(JobStore(tmp_path), runner) as scheduler:
            scheduler.request_training(3, "START_TRAINING")
            scheduler.request_training(4, "START_TRAINING")
            await wait_until(lambda: len(runner.started) == expected)
            await asyncio.sleep(0.05)
            assert len(runner.started) == expected
            # A limited runner starts a job at once, so another request is for another job.
            again = scheduler.request_training(3, "START_TRAINING")
            assert len(scheduler.jobs()) == (3 if max_running_jobs else 2)
            assert scheduler.request_training(3, "START_TRAINING").id == again.id

    asyncio.run(scenario())


def test_job_is_stored_and_read(tmp_path: Path) -> None:
    job = new_job(3, "START_TRAINING", JOB_CONFIG)
    JobStore(tmp_path).create(job)
    stored = JobStore(tmp_path).read(job.id)
    assert stored == job
    assert (stored.config.model, stored.config.params, stored.config.fail_under) == (
        "text-classifier",
        {"C": 2},
        ("macro-f1=0.5",),
    )
    assert (stored.state, stored.attempt, stored.seconds) == ("waiting", 1, None)


def test_job_of_older_lsml_is_read(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    media: dict[str, Any] = {
        "allow_hosts": ("a.example",),
        "document_root": "/d",
        "upload_root": "/u",
        "maps": {"s3://b/": "/m"},
    }
    job = new_job(
        3, "START_TRAINING", replace(JOB_CONFIG, device="cuda:1", media_cache="/c", media_cache_size=5, **media)
    )
    store.create(job)
    assert store.read(job.id) == job
    path = store.jobs_folder / f"{job.id}.json"
    stored = json.loads(path.read_bytes())
    for name in (*media, "device", "media_cache", "media_cache_size"):
        path.write_text(json.dumps(stored | {name: 5.5}))
        with pytest.raises(LsmlError, match=f'is damaged \\(its "{name}"'):
            store.read(job.id)
        del stored[name]
    path.write_text(json.dumps(stored))
    assert store.read(job.id) == replace(new_job(3, "START_TRAINING", JOB_CONFIG), id=job.id, created=job.created)


def test_annotation_counts_survive_restart(tmp_path: Path) -> None:
    async def first_server() -> None:
        async with running_scheduler(JobStore(tmp_path), FakeRunner(), train_every=5) as scheduler:
            assert scheduler.count_annotations(3, 2) is None
            assert scheduler.count_annotations(4) is None
            assert scheduler.count_annotations(3, 0) is None

    async def second_server() -> None:
        async with running_scheduler(JobStore(tmp_path), FakeRunner(), train_every=5) as scheduler:
            assert scheduler.count_annotations(3, 2) is None
            job = scheduler.count_annotations(3, 2)
            assert job is not None
            assert (job.project, job.why) == (3, "6 new annotations")
            assert scheduler.count_annotations(3, 4) is None, "the count starts again from 0"
            assert scheduler.count_annotations(4, 3) is None, "projects are counted separately"
            assert scheduler.count_annotations(3) is not None
            assert scheduler.count_annotations(4) is not None

    asyncio.run(first_server())
    asyncio.run(second_server())


def test_requested_training_resets_annotation_count(tmp_path: Path) -> None:
    """A job trains on every annotation that exists when it starts, so these are no longer new."""

    async def scenario() -> None:
        async with running_scheduler(JobStore(tmp_path), FakeRunner(), train_every=3) as scheduler:
            scheduler.count_annotations(3, 2)
            scheduler.request_training(3, "START_TRAINING")
            assert scheduler.count_annotations(3, 2) is None

    asyncio.run(scenario())


def test_annotations_do_not_count_without_train_every(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_scheduler(JobStore(tmp_path), FakeRunner()) as scheduler:
            assert scheduler.count_annotations(3, 10_000) is None

    asyncio.run(scenario())


def test_job_lives_as_long_as_its_heartbeat(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner()

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            runner.statuses[job.id] = JobStatus("unknown")
            await wait_until(lambda: runner.started)
            first = store.claim(job.id, 1)
            for number in range(60):  # twice the heartbeat timeout
                store.write_heartbeat(first, number)
                await asyncio.sleep(0.01)
            assert state_of(scheduler, job) == "running"
            await wait_until(lambda: (job.id, 2) in runner.started)
            waiting = store.read(job.id)
            assert (waiting.state, waiting.attempt) == ("waiting", 2)
            assert waiting.reason == "It sent no heartbeat for 0 seconds and counts as dead."
            with pytest.raises(StaleAttempt):  # the first attempt was alive, but too late
                store.update(first, state="done", ended=utc_now())
            store.claim(job.id, 2)
            await wait_until(lambda: state_of(scheduler, job) == "failed")
            assert str(store.read(job.id).reason).endswith("That was attempt 2, and the last one.")
            assert len(runner.started) == 2

    asyncio.run(scenario())


def test_job_whose_worker_process_died_is_started_again(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner()

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: runner.started)
            store.claim(job.id, 1)
            runner.statuses[job.id] = JobStatus("died", "Its process on the worker was killed by SIGKILL.")
            await wait_until(lambda: store.read(job.id).attempt == 2)
            runner.statuses[job.id] = JobStatus("active")
            await wait_until(lambda: (job.id, 2) in runner.started)
            done = store.update(store.claim(job.id, 2), state="done", ended=utc_now(), version="project-3@x")
            await wait_until(lambda: state_of(scheduler, job) == "done")
            assert done.attempt == 2

    asyncio.run(scenario())


def test_failed_job_is_not_started_again(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner()

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            runner.statuses[job.id] = JobStatus("failed", "There is no folder /served on this host.")
            await wait_until(lambda: state_of(scheduler, job) == "failed")
            assert store.read(job.id).reason == "There is no folder /served on this host."
            assert runner.started == [(job.id, 1)]

    asyncio.run(scenario())


def test_job_missing_from_queue_is_submitted_again(tmp_path: Path) -> None:
    runner = FakeRunner()

    async def scenario() -> None:
        async with running_scheduler(JobStore(tmp_path), runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            runner.statuses[job.id] = JobStatus("missing")
            await wait_until(lambda: runner.started == [(job.id, 1)] * 3)
            assert state_of(scheduler, job) == "waiting"

    asyncio.run(scenario())


def test_unavailable_queue_is_logged_once_and_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner()
    runner.start_error = TransientError("Redis does not answer.")

    async def scenario() -> None:
        async with running_scheduler(JobStore(tmp_path), runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: caplog.messages)
            await asyncio.sleep(0.1)
            assert caplog.messages == ["Redis does not answer."], "logged once for any number of tries"
            runner.start_error = None
            await wait_until(lambda: runner.started == [(job.id, 1)])

    with caplog.at_level(logging.WARNING, "lsml.serve"):
        asyncio.run(scenario())


def test_restarted_server_continues_stored_jobs(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner()
    done, waiting, orphan, dead = (new_job(project, "START_TRAINING", JOB_CONFIG) for project in (3, 4, 5, 6))
    for job in (done, waiting, orphan, dead):
        store.create(job)
    store.update(store.claim(done.id, 1), state="done", ended=utc_now(), version="project-3@x")
    orphan, dead = store.claim(orphan.id, 1), store.claim(dead.id, 1)
    runner.statuses |= {orphan.id: JobStatus("unknown"), dead.id: JobStatus("unknown")}

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            assert {job.id: job.state for job in scheduler.jobs()} == {
                done.id: "done",
                waiting.id: "waiting",
                orphan.id: "running",
                dead.id: "running",
            }
            assert scheduler.is_training(5)
            assert scheduler.request_training(4, "START_TRAINING").id == waiting.id
            for number in range(60):
                store.write_heartbeat(orphan, number)
                await asyncio.sleep(0.01)
            assert runner.started == [(waiting.id, 1), (dead.id, 2)]
            store.update(orphan, state="done", ended=utc_now(), version="project-5@x")
            await wait_until(lambda: state_of(scheduler, orphan) == "done")

    asyncio.run(scenario())


def test_running_embedded_job_waits_after_server_stops(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner(max_running_jobs=1)

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: runner.started)
            store.claim(job.id, 1)
            runner.stopped_job_ids = [job.id]

    asyncio.run(scenario())
    (job,) = store.list_jobs()
    assert (job.state, job.attempt, job.started, job.reason) == ("waiting", 1, None, "The server was stopped.")


def test_job_killed_during_shutdown_waits_and_none_starts(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner(max_running_jobs=1)

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: runner.started)
            store.claim(job.id, 1)
            scheduler.begin_shutdown()
            runner.statuses[job.id] = JobStatus("failed", "Its process was killed by SIGTERM.")
            other = scheduler.request_training(4, "START_TRAINING")
            await asyncio.sleep(0.2)
            assert (state_of(scheduler, job), state_of(scheduler, other)) == ("running", "waiting")
            runner.stopped_job_ids = [job.id]

    asyncio.run(scenario())
    assert [(job.project, job.state, job.attempt) for job in store.list_jobs()] == [
        (4, "waiting", 1),
        (3, "waiting", 1),
    ]
    assert len(runner.started) == 1


def test_lost_or_damaged_record_fails_only_its_job(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner()

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            first, second, third = (scheduler.request_training(project, "START_TRAINING") for project in (3, 4, 5))
            await wait_until(lambda: len(runner.started) == 3)
            (store.jobs_folder / f"{first.id}.json").unlink()
            (store.jobs_folder / f"{second.id}.json").write_text('{"id": ')
            await wait_until(lambda: state_of(scheduler, first) == state_of(scheduler, second) == "failed")
            reasons = {job.id: str(job.reason) for job in scheduler.jobs()}
            assert reasons[first.id] == f"There is no job {first.id} in {store.jobs_folder}."
            assert "is damaged" in reasons[second.id]
            assert state_of(scheduler, third) == "waiting"

    asyncio.run(scenario())


def test_damaged_files_are_logged_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = JobStore(tmp_path)
    jobs = [new_job(project, "START_TRAINING", JOB_CONFIG) for project in range(4)]
    for job in jobs:
        store.create(job)
    (store.jobs_folder / f"{jobs[0].id}.json").write_text("{")
    (store.jobs_folder / f"{jobs[1].id}.json").write_text('{"project": 3}')
    other = (store.jobs_folder / f"{jobs[2].id}.json").read_text()
    (store.jobs_folder / f"{jobs[3].id}.json").write_text(other)
    (store.jobs_folder / "annotations").write_text('{"3": "many"}')
    (store.jobs_folder / "notes.json").write_text("not a job")

    async def scenario() -> None:
        with caplog.at_level(logging.WARNING, "lsml.serve"):
            async with running_scheduler(store, FakeRunner(), train_every=2) as scheduler:
                assert [job.id for job in scheduler.jobs()] == [jobs[2].id]
                assert scheduler.count_annotations(3) is None

    asyncio.run(scenario())
    assert len(caplog.messages) == 3
    assert all(f"{job.id}.json is damaged (" in caplog.text for job in (jobs[0], jobs[1], jobs[3]))


def test_unwritable_folder_is_logged_once_and_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, runner = JobStore(tmp_path / "served"), FakeRunner()
    (tmp_path / "served").write_text("a file where the folder should be")

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: caplog.messages)
            await asyncio.sleep(0.1)
            assert len(caplog.messages) == 1
            assert runner.started == []
            (tmp_path / "served").unlink()
            await wait_until(lambda: runner.started == [(job.id, 1)])
            assert store.read(job.id).state == "waiting"

    with caplog.at_level(logging.WARNING, "lsml.serve"):
        asyncio.run(scenario())


def test_attempt_is_claimed_once(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", JOB_CONFIG)
    store.create(job)
    with pytest.raises(StaleAttempt):
        store.claim(job.id, 2)
    store.claim(job.id, 1)
    with pytest.raises(StaleAttempt):
        store.claim(job.id, 1)


def test_prune_deletes_oldest_finished_jobs_only(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    jobs = [new_job(3, "START_TRAINING", JOB_CONFIG) for _ in range(6)]
    jobs = [replace(job, id=f"20261121T101500-{n:03d}-00ff") for n, job in enumerate(jobs)]
    for job in jobs[1:]:
        store.create(replace(job, state="done"))
    store.create(jobs[0])
    (store.jobs_folder / f"{jobs[1].id}.1.tasks").write_text("[")
    assert store.prune(2) == [jobs[3].id, jobs[2].id, jobs[1].id]
    assert [job.id for job in store.list_jobs()] == [jobs[5].id, jobs[4].id, jobs[0].id]
    assert not list(store.jobs_folder.glob(f"{jobs[1].id}*"))


def test_result_of_a_stale_attempt_is_not_promoted(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    store.create(new_job(3, "START_TRAINING", JOB_CONFIG))
    (job,) = store.list_jobs()
    stale = store.claim(job.id, 1)
    promoted: list[str] = []
    current = store.update(stale, state="waiting", attempt=2)
    with pytest.raises(StaleAttempt):
        store.complete(stale, lambda: promoted.append("stale"), state="done")
    store.complete(store.claim(current.id, 2), lambda: promoted.append("current"), state="done")
    assert promoted == ["current"]
    with pytest.raises(StaleAttempt):
        store.complete(current, lambda: promoted.append("twice"), state="done")
    assert promoted == ["current"]


def test_attempt_cannot_be_replaced_while_it_promotes(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    store.create(new_job(3, "START_TRAINING", JOB_CONFIG))
    (job,) = store.list_jobs()
    running = store.claim(job.id, 1)
    outcomes: list[str] = []

    def replace_attempt() -> None:
        try:
            store.update(running, state="waiting", attempt=2)
            outcomes.append("replaced")
        except StaleAttempt:
            outcomes.append("too late")

    rival = threading.Thread(target=replace_attempt)

    def promote() -> None:
        rival.start()
        rival.join(0.3)
        outcomes.append("promoted")

    assert store.complete(running, promote, state="done").state == "done"
    rival.join()
    assert outcomes == ["promoted", "too late"]


def test_heartbeats_of_a_replaced_attempt_do_not_count(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner()

    async def scenario() -> None:
        async with running_scheduler(store, runner) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: runner.started)
            stale = store.claim(job.id, 1)
            runner.statuses[job.id] = JobStatus("unknown")
            await wait_until(lambda: len(runner.started) == 2)
            store.claim(job.id, 2)
            number = 0
            while state_of(scheduler, job) != "failed":  # the second attempt sends no heartbeat, the first one does
                number += 1
                assert number < 500, "the second attempt counts as alive"
                store.write_heartbeat(stale, number)
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_attempt_that_ends_itself_is_noticed_at_once(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), FakeRunner()

    async def scenario() -> None:
        async with running_scheduler(store, runner, heartbeat_timeout=1000) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: runner.started)
            running = store.claim(job.id, 1)
            runner.statuses[job.id] = JobStatus("unknown")
            store.write_last_heartbeat(running)
            await wait_until(lambda: len(runner.started) == 2)
            assert scheduler.jobs()[0].reason == "Its worker has died."

    asyncio.run(scenario())


def test_lock_of_a_suspended_process_is_not_waited_for_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsml_cli.server.job_store.LOCK_TIMEOUT", 0.1)
    store = JobStore(tmp_path)
    store.create(new_job(3, "START_TRAINING", JOB_CONFIG))
    (job,) = store.list_jobs()
    with store._locked(), pytest.raises(TransientError, match="has locked the jobs"):
        store.update(job, progress="50 %")
