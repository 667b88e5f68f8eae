"""The trainer: what it starts when, and what it makes of what it sees. The jobs here are acted by the test."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import LsmlError, TransientError
from lsml_cli.server.job_runners import JobStatus
from lsml_cli.server.job_store import Job, JobStore, StaleAttempt, TrainingJobConfig, new_job, utc_now
from lsml_cli.server.train_scheduler import TrainScheduler

RECIPE = TrainingJobConfig("text-classifier", "http://localhost:8080", {"C": 2}, ("macro-f1=0.5",))
SOON = 10.0  # seconds that anything here may take; it takes hundredths


class Pretend:
    """A runner that starts nothing and sees what the test says."""

    def __init__(self, at_once: int | None = None) -> None:
        self.max_running_jobs = at_once
        self.started: list[tuple[str, int]] = []
        self.sights: dict[str, JobStatus] = {}
        self.refusal: LsmlError | None = None
        self.running_here: list[str] = []

    def start(self, job: Job) -> str | None:
        if self.refusal is not None:
            raise self.refusal
        self.started.append((job.id, job.attempt))
        return None

    def get_status(self, job: Job) -> JobStatus:
        return self.sights.get(job.id, JobStatus("there"))

    def stop(self) -> list[str]:
        return self.running_here


@asynccontextmanager
async def watching(store: JobStore, runner: Pretend, **options: Any) -> AsyncIterator[TrainScheduler]:
    trainer = TrainScheduler(store, runner, RECIPE, **{"poll_interval": 0.01, "heartbeat_timeout": 0.3} | options)
    watch = asyncio.create_task(trainer.run())
    try:
        yield trainer
    finally:
        watch.cancel()
        await trainer.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.005)


def state_of(trainer: TrainScheduler, job: Job) -> str:
    return next(each.state for each in trainer.jobs() if each.id == job.id)


def play(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_one_runs_and_one_waits(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), Pretend()
    seen: list[tuple[str, str]] = []

    async def scenario() -> None:
        async with watching(store, runner, on_job_changed=lambda job: seen.append((job.id, job.state))) as trainer:
            first = trainer.request_training(3, "START_TRAINING")
            await until(lambda: runner.started == [(first.id, 1)])
            assert trainer.request_training(3, "START_TRAINING").id == first.id, (
                "it waits in the queue, nobody has begun it"
            )
            running = store.claim(first.id, 1)
            await until(lambda: trainer.is_training(3))
            # It was asked for again while nobody here knew whether it had begun; that is made up for.
            await until(lambda: len(trainer.jobs()) == 2)
            second = trainer.jobs()[0]
            assert [trainer.request_training(3, why).id for why in ("a", "b")] == [second.id, second.id]
            await asyncio.sleep(0.05)
            assert runner.started == [(first.id, 1)], "one job per project at a time"
            store.update(running, state="done", ended=utc_now(), version="project-3@20261121T101500")
            await until(lambda: (second.id, 1) in runner.started)
            assert not trainer.is_training(3)
            assert [job.id for job in trainer.jobs()] == [second.id, first.id]
            assert seen == [
                (first.id, "waiting"),
                (first.id, "running"),
                (second.id, "waiting"),
                (first.id, "done"),
            ]

    play(scenario())


@pytest.mark.parametrize(("at_once", "expected"), [(1, 1), (None, 2)])
def test_projects_side_by_side(tmp_path: Path, at_once: int | None, expected: int) -> None:
    """Here one job at a time, or the server would have no core left; the workers of a queue decide for themselves."""
    runner = Pretend(at_once)

    async def scenario() -> None:
        async with watching(JobStore(tmp_path), runner) as trainer:
            trainer.request_training(3, "START_TRAINING")
            trainer.request_training(4, "START_TRAINING")
            await until(lambda: len(runner.started) == expected)
            await asyncio.sleep(0.05)
            assert len(runner.started) == expected
            # A process of our own has begun when it was started, so another request is for another job.
            again = trainer.request_training(3, "START_TRAINING")
            assert len(trainer.jobs()) == (3 if at_once else 2)
            assert trainer.request_training(3, "START_TRAINING").id == again.id

    play(scenario())


def test_a_job_holds_what_it_needs_and_no_more(tmp_path: Path) -> None:
    job = new_job(3, "START_TRAINING", RECIPE)
    JobStore(tmp_path).create(job)
    found = JobStore(tmp_path).read(job.id)
    assert found == job
    assert (found.model, found.params, found.fail_under) == ("text-classifier", {"C": 2}, ("macro-f1=0.5",))
    assert (found.state, found.attempt, found.seconds) == ("waiting", 1, None)


def test_a_job_of_an_older_lsml_is_read(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    media = {"allow_hosts": ("a.example",), "document_root": "/d", "upload_root": "/u", "maps": {"s3://b/": "/m"}}
    job = new_job(3, "START_TRAINING", replace(RECIPE, device="cuda:1", media_cache="/c", media_cache_size=5, **media))
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
    assert store.read(job.id) == replace(new_job(3, "START_TRAINING", RECIPE), id=job.id, created=job.created)


def test_annotations_are_counted_over_a_restart(tmp_path: Path) -> None:
    async def first_server() -> None:
        async with watching(JobStore(tmp_path), Pretend(), train_every=5) as trainer:
            assert trainer.count_annotations(3, 2) is None
            assert trainer.count_annotations(4) is None
            assert trainer.count_annotations(3, 0) is None

    async def second_server() -> None:
        async with watching(JobStore(tmp_path), Pretend(), train_every=5) as trainer:
            assert trainer.count_annotations(3, 2) is None
            job = trainer.count_annotations(3, 2)
            assert job is not None
            assert (job.project, job.why) == (3, "6 new annotations")
            assert trainer.count_annotations(3, 4) is None, "it counts anew"
            assert trainer.count_annotations(4, 3) is None, "each project by itself"
            assert trainer.count_annotations(3) is not None
            assert trainer.count_annotations(4) is not None

    play(first_server())
    play(second_server())


def test_what_was_asked_for_counts_as_well(tmp_path: Path) -> None:
    """A job learns from every annotation there is when it begins, so those are no longer new."""

    async def scenario() -> None:
        async with watching(JobStore(tmp_path), Pretend(), train_every=3) as trainer:
            trainer.count_annotations(3, 2)
            trainer.request_training(3, "START_TRAINING")
            assert trainer.count_annotations(3, 2) is None

    play(scenario())


def test_without_a_number_nothing_is_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watching(JobStore(tmp_path), Pretend()) as trainer:
            assert trainer.count_annotations(3, 10_000) is None

    play(scenario())


def test_a_beating_heart_keeps_a_job_alive_and_silence_does_not(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), Pretend()

    async def scenario() -> None:
        async with watching(store, runner) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            runner.sights[job.id] = JobStatus("unknown")
            await until(lambda: runner.started)
            first = store.claim(job.id, 1)
            for number in range(60):  # twice as long as silence would be borne
                store.write_heartbeat(first, number)
                await asyncio.sleep(0.01)
            assert state_of(trainer, job) == "running"
            await until(lambda: (job.id, 2) in runner.started)
            waiting = store.read(job.id)
            assert (waiting.state, waiting.attempt) == ("waiting", 2)
            assert waiting.reason == "Nothing was heard of it for 0 seconds: what ran it has died."
            with pytest.raises(StaleAttempt):  # the first attempt was alive after all
                store.update(first, state="done", ended=utc_now())
            store.claim(job.id, 2)
            await until(lambda: state_of(trainer, job) == "failed")
            assert str(store.read(job.id).reason).endswith("That was attempt 2, and the last one.")
            assert len(runner.started) == 2

    play(scenario())


def test_a_process_that_died_elsewhere_is_begun_once_more(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), Pretend()

    async def scenario() -> None:
        async with watching(store, runner) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            await until(lambda: runner.started)
            store.claim(job.id, 1)
            runner.sights[job.id] = JobStatus("died", "Its process on the worker was killed by SIGKILL.")
            await until(lambda: store.read(job.id).attempt == 2)
            runner.sights[job.id] = JobStatus("there")
            await until(lambda: (job.id, 2) in runner.started)
            done = store.update(store.claim(job.id, 2), state="done", ended=utc_now(), version="project-3@x")
            await until(lambda: state_of(trainer, job) == "done")
            assert done.attempt == 2

    play(scenario())


def test_a_refusal_is_final(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), Pretend()

    async def scenario() -> None:
        async with watching(store, runner) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            runner.sights[job.id] = JobStatus("failed", "There is no folder /served on this host.")
            await until(lambda: state_of(trainer, job) == "failed")
            assert store.read(job.id).reason == "There is no folder /served on this host."
            assert runner.started == [(job.id, 1)]

    play(scenario())


def test_a_queue_that_forgets_is_told_again(tmp_path: Path) -> None:
    runner = Pretend()

    async def scenario() -> None:
        async with watching(JobStore(tmp_path), runner) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            runner.sights[job.id] = JobStatus("missing")
            await until(lambda: runner.started == [(job.id, 1)] * 3)
            assert state_of(trainer, job) == "waiting"

    play(scenario())


def test_a_queue_that_is_away_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = Pretend()
    runner.refusal = TransientError("Redis does not answer.")

    async def scenario() -> None:
        async with watching(JobStore(tmp_path), runner) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            await until(lambda: caplog.messages)
            await asyncio.sleep(0.1)
            assert caplog.messages == ["Redis does not answer."], "said once, however often it was tried"
            runner.refusal = None
            await until(lambda: runner.started == [(job.id, 1)])

    with caplog.at_level(logging.WARNING, "lsml.serve"):
        play(scenario())


def test_a_restarted_server_takes_up_what_was_there(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), Pretend()
    done, waiting, orphan, dead = (new_job(project, "START_TRAINING", RECIPE) for project in (3, 4, 5, 6))
    for job in (done, waiting, orphan, dead):
        store.create(job)
    store.update(store.claim(done.id, 1), state="done", ended=utc_now(), version="project-3@x")
    orphan, dead = store.claim(orphan.id, 1), store.claim(dead.id, 1)
    runner.sights |= {orphan.id: JobStatus("unknown"), dead.id: JobStatus("unknown")}

    async def scenario() -> None:
        async with watching(store, runner) as trainer:
            assert {job.id: job.state for job in trainer.jobs()} == {
                done.id: "done",
                waiting.id: "waiting",
                orphan.id: "running",
                dead.id: "running",
            }
            assert trainer.is_training(5)
            assert trainer.request_training(4, "START_TRAINING").id == waiting.id
            for number in range(60):
                store.write_heartbeat(orphan, number)
                await asyncio.sleep(0.01)
            assert runner.started == [(waiting.id, 1), (dead.id, 2)]
            store.update(orphan, state="done", ended=utc_now(), version="project-5@x")
            await until(lambda: state_of(trainer, orphan) == "done")

    play(scenario())


def test_what_runs_here_waits_when_the_server_stops(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), Pretend(at_once=1)

    async def scenario() -> None:
        async with watching(store, runner) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            await until(lambda: runner.started)
            store.claim(job.id, 1)
            runner.running_here = [job.id]

    play(scenario())
    (job,) = store.list_jobs()
    assert (job.state, job.attempt, job.started, job.reason) == ("waiting", 1, None, "The server was stopped.")


def test_what_dies_while_the_server_ends_was_stopped_with_it_and_nothing_begins(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), Pretend(at_once=1)

    async def scenario() -> None:
        async with watching(store, runner) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            await until(lambda: runner.started)
            store.claim(job.id, 1)
            trainer.begin_shutdown()
            runner.sights[job.id] = JobStatus("failed", "Its process was killed by SIGTERM.")
            other = trainer.request_training(4, "START_TRAINING")
            await asyncio.sleep(0.2)
            assert (state_of(trainer, job), state_of(trainer, other)) == ("running", "waiting")
            runner.running_here = [job.id]

    play(scenario())
    assert [(job.project, job.state, job.attempt) for job in store.list_jobs()] == [
        (4, "waiting", 1),
        (3, "waiting", 1),
    ]
    assert len(runner.started) == 1


def test_a_record_that_is_lost_or_damaged_ends_its_job_and_nothing_else(tmp_path: Path) -> None:
    store, runner = JobStore(tmp_path), Pretend()

    async def scenario() -> None:
        async with watching(store, runner) as trainer:
            first, second, third = (trainer.request_training(project, "START_TRAINING") for project in (3, 4, 5))
            await until(lambda: len(runner.started) == 3)
            (store.jobs_folder / f"{first.id}.json").unlink()
            (store.jobs_folder / f"{second.id}.json").write_text('{"id": ')
            await until(lambda: state_of(trainer, first) == state_of(trainer, second) == "failed")
            reasons = {job.id: str(job.reason) for job in trainer.jobs()}
            assert reasons[first.id] == f"There is no job {first.id} in {store.jobs_folder}."
            assert "is damaged" in reasons[second.id]
            assert state_of(trainer, third) == "waiting"

    play(scenario())


def test_damaged_files_are_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = JobStore(tmp_path)
    jobs = [new_job(project, "START_TRAINING", RECIPE) for project in range(4)]
    for job in jobs:
        store.create(job)
    (store.jobs_folder / f"{jobs[0].id}.json").write_text("{")
    (store.jobs_folder / f"{jobs[1].id}.json").write_text('{"project": 3}')
    other = (store.jobs_folder / f"{jobs[2].id}.json").read_text()
    (store.jobs_folder / f"{jobs[3].id}.json").write_text(other)
    (store.jobs_folder / "annotations").write_text('{"3": "many"}')
    (store.jobs_folder / "notes.json").write_text("somebody's own")

    async def scenario() -> None:
        with caplog.at_level(logging.WARNING, "lsml.serve"):
            async with watching(store, Pretend(), train_every=2) as trainer:
                assert [job.id for job in trainer.jobs()] == [jobs[2].id]
                assert trainer.count_annotations(3) is None

    play(scenario())
    assert len(caplog.messages) == 3
    assert all(f"{job.id}.json is damaged (" in caplog.text for job in (jobs[0], jobs[1], jobs[3]))


def test_a_folder_that_cannot_be_written_is_said_once_and_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, runner = JobStore(tmp_path / "served"), Pretend()
    (tmp_path / "served").write_text("a file where the folder should be")

    async def scenario() -> None:
        async with watching(store, runner) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            await until(lambda: caplog.messages)
            await asyncio.sleep(0.1)
            assert len(caplog.messages) == 1
            assert runner.started == []
            (tmp_path / "served").unlink()
            await until(lambda: runner.started == [(job.id, 1)])
            assert store.read(job.id).state == "waiting"

    with caplog.at_level(logging.WARNING, "lsml.serve"):
        play(scenario())


def test_only_one_can_claim_an_attempt(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", RECIPE)
    store.create(job)
    with pytest.raises(StaleAttempt):
        store.claim(job.id, 2)
    store.claim(job.id, 1)
    with pytest.raises(StaleAttempt):
        store.claim(job.id, 1)


def test_old_jobs_are_forgotten_but_never_those_that_are_not_finished(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    jobs = [new_job(3, "START_TRAINING", RECIPE) for _ in range(6)]
    jobs = [replace(job, id=f"20261121T101500-{n:03d}-00ff") for n, job in enumerate(jobs)]
    for job in jobs[1:]:
        store.create(replace(job, state="done"))
    store.create(jobs[0])
    (store.jobs_folder / f"{jobs[1].id}.1.tasks").write_text("[")
    assert store.prune(2) == [jobs[3].id, jobs[2].id, jobs[1].id]
    assert [job.id for job in store.list_jobs()] == [jobs[5].id, jobs[4].id, jobs[0].id]
    assert not list(store.jobs_folder.glob(f"{jobs[1].id}*"))
