"""Training jobs in a Redis queue: workers that run and reject them, and workers that are killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_client
from rq.job import Job as Entry

from lsml_cli import label_studio
from lsml_cli.errors import LsmlError, UsageError
from lsml_cli.registry import versions
from lsml_cli.server.job_record import Job, TrainingJobConfig, config_to_json, new_job
from lsml_cli.server.job_runners.redis import RedisRunner, connect_redis
from lsml_cli.server.job_store import JobStore
from lsml_cli.server.train_scheduler import TrainScheduler
from tests.helpers.cli import Lsml
from tests.helpers.serve_process import ServerFactory
from tests.helpers.studio_server import KEY, StubExportServer, find_files_containing, run_export_server
from tests.helpers.trainable_models import Waiting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TRAINABLE = Path(__file__).parents[1] / "helpers" / "trainable_models.py"
WORKER_ENV = {label_studio.API_KEY_ENV_VAR: KEY, "NO_PROXY": "127.0.0.1"}
TIMEOUT = 60.0  # seconds


@pytest.fixture
def server() -> Iterator[StubExportServer]:
    with run_export_server() as stub:
        yield stub


def job_config(server: StubExportServer, name: str = "Counting", **params: Any) -> TrainingJobConfig:
    return TrainingJobConfig(f"{TRAINABLE}:{name}", server.url, params)


@asynccontextmanager
async def training(folder: Path, url: str, config: TrainingJobConfig, **options: Any) -> AsyncIterator[TrainScheduler]:
    trainer = TrainScheduler(JobStore(folder), RedisRunner(folder, url), config, **{"poll_interval": 0.05} | options)
    run_task = asyncio.create_task(trainer.run())
    try:
        yield trainer
    finally:
        run_task.cancel()
        await trainer.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.02)


def get_only_job(trainer: TrainScheduler) -> Job:
    (job,) = trainer.jobs()
    return job


def rq_worker(url: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run RQ's own worker until the queue is empty."""
    return subprocess.run(
        [Path(sys.executable).with_name("rq"), "worker", "lsml", "--url", url, "--burst"],
        env={"PATH": "/usr/bin:/bin", **WORKER_ENV},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize("worker", ["lsml worker", "rq worker"])
def test_lsml_worker_and_rq_worker_run_the_job(
    server: StubExportServer,
    serve: ServerFactory,
    lsml: Lsml,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worker: str,
) -> None:
    monkeypatch.setenv(label_studio.API_KEY_ENV_VAR, KEY)
    url = serve.redis()
    folder = tmp_path / "served"

    async def scenario() -> None:
        async with training(folder, url, job_config(server)) as trainer:
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: trainer._submitted_job_ids)
            with redis_client.Redis.from_url(url) as connection:
                entry = Entry.fetch(f"{get_only_job(trainer).id}-1", connection=connection)
                settings = config_to_json(trainer.job_config)
                assert entry.args == (str(folder), get_only_job(trainer).id, 1, settings), (
                    "it holds only these arguments"
                )
                assert KEY not in settings
            if worker == "rq worker":
                run = await asyncio.to_thread(rq_worker, url, tmp_path)
                assert run.returncode == 0, run.stderr
            else:
                run = await asyncio.to_thread(lsml, "worker", "--jobs", url, "--burst", env=WORKER_ENV)
                assert (run.returncode, run.stdout) == (0, "")
                lines = run.stderr.splitlines()
                assert lines[0] == f"lsml: Waiting for jobs on the queue lsml at {url}."
                assert lines[1] == f"lsml: Job {get_only_job(trainer).id}: training project 3 (attempt 1)."
                assert lines[2].startswith(f"lsml: Job {get_only_job(trainer).id}: done. project-3@")
                assert len(lines) == 3
            await until(lambda: get_only_job(trainer).is_finished)
            assert (get_only_job(trainer).state, get_only_job(trainer).reason) == ("done", None)

    asyncio.run(scenario())
    assert versions.current_version(folder / "project-3") is not None
    assert find_files_containing(folder, KEY) == []
    with redis_client.Redis.from_url(url) as connection:
        connection.config_set("rdbcompression", "no")
        connection.save()  # writes all that Redis holds to a file
    (dump,) = tmp_path.rglob("dump.rdb")
    assert find_files_containing(dump.parent, "rq:queues") == [dump]
    assert find_files_containing(tmp_path, KEY) == [], "the API key was stored"


def test_job_of_a_killed_worker_is_run_by_another(
    server: StubExportServer, serve: ServerFactory, tmp_path: Path
) -> None:
    url = serve.redis()
    release_file = tmp_path / "go"
    folder = tmp_path / "served"

    async def scenario() -> None:
        async with training(
            folder, url, job_config(server, "Waiting", until=str(release_file)), heartbeat_timeout=4.0
        ) as trainer:
            killed_worker = serve.worker("--jobs", url, env=WORKER_ENV)
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: get_only_job(trainer).progress == Waiting.MESSAGE)
            killed_worker.kill()
            killed_at = time.monotonic()
            serve.worker("--jobs", url, env=WORKER_ENV)
            await until(lambda: get_only_job(trainer).attempt == 2)
            assert 3.0 < time.monotonic() - killed_at < 15.0, "the missing heartbeat is noticed"
            assert get_only_job(trainer).reason == "It sent no heartbeat for 4 seconds and counts as dead."
            await until(lambda: get_only_job(trainer).state == "running")
            release_file.touch()
            await until(lambda: get_only_job(trainer).is_finished)
            assert (get_only_job(trainer).state, get_only_job(trainer).attempt, get_only_job(trainer).reason) == (
                "done",
                2,
                None,
            )

    asyncio.run(scenario())
    assert len(versions.list_versions(folder / "project-3")) == 1


def test_process_of_a_worker_that_is_killed_alone_ends_itself(
    server: StubExportServer, serve: ServerFactory, tmp_path: Path
) -> None:
    url = serve.redis()
    release_file, folder = tmp_path / "go", tmp_path / "served"

    async def scenario() -> None:
        config = job_config(server, "Waiting", until=str(release_file))
        async with training(folder, url, config, heartbeat_timeout=1000) as trainer:
            worker = serve.worker("--jobs", url, env=WORKER_ENV)
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: get_only_job(trainer).progress == Waiting.MESSAGE)
            (orphan,) = psutil.Process(worker.process.pid).children()
            worker.process.kill()
            worker.process.wait()
            await until(lambda: get_only_job(trainer).attempt == 2)
            assert get_only_job(trainer).reason == "Its worker has died."
            await asyncio.to_thread(orphan.wait, TIMEOUT)
            assert not list(folder.rglob(".unfinished-*")), "it cleaned up"
            serve.worker("--jobs", url, env=WORKER_ENV)
            release_file.touch()
            await until(lambda: get_only_job(trainer).is_finished)
            assert (get_only_job(trainer).state, get_only_job(trainer).attempt) == ("done", 2)

    asyncio.run(scenario())


def test_suspended_worker_that_goes_on_does_not_promote(
    server: StubExportServer, serve: ServerFactory, tmp_path: Path
) -> None:
    url = serve.redis()
    release_file, folder = tmp_path / "go", tmp_path / "served"

    async def scenario() -> None:
        config = job_config(server, "Waiting", until=str(release_file))
        async with training(folder, url, config, heartbeat_timeout=3.0) as trainer:
            worker = psutil.Process(serve.worker("--jobs", url, env=WORKER_ENV).process.pid)
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: get_only_job(trainer).progress == Waiting.MESSAGE)
            (stale,) = worker.children()
            for process in (worker, stale):
                process.suspend()
            serve.worker("--jobs", url, env=WORKER_ENV)
            await until(lambda: get_only_job(trainer).attempt == 2)
            release_file.touch()
            await until(lambda: get_only_job(trainer).is_finished)
            for process in (stale, worker):
                process.resume()
            await asyncio.to_thread(psutil.wait_procs, [stale], TIMEOUT)
            assert not stale.is_running() or stale.status() == psutil.STATUS_ZOMBIE
            job = get_only_job(trainer)
            assert (job.state, job.attempt) == ("done", 2)
            assert job.version == f"project-3@{versions.current_version(folder / 'project-3')}"

    asyncio.run(scenario())
    assert len(versions.list_versions(folder / "project-3")) == 1


def test_job_fails_when_its_process_is_killed_twice(
    server: StubExportServer, serve: ServerFactory, tmp_path: Path
) -> None:
    """A worker notices at once that the process of its job was killed, for example by the out-of-memory killer."""
    url = serve.redis()

    async def scenario() -> None:
        config = job_config(server, "Waiting", until=str(tmp_path / "never"))
        async with training(tmp_path / "served", url, config) as trainer:
            worker = serve.worker("--jobs", url, env=WORKER_ENV)
            trainer.request_training(3, "START_TRAINING")

            def is_waiting(attempt: int) -> bool:
                job = get_only_job(trainer)
                return job.attempt == attempt and job.progress == Waiting.MESSAGE

            for attempt in (1, 2):
                await until(partial(is_waiting, attempt))
                (job_process,) = psutil.Process(worker.process.pid).children()
                job_process.kill()
            await until(lambda: get_only_job(trainer).is_finished)
            assert get_only_job(trainer).state == "failed"
            assert get_only_job(trainer).reason == (
                "Its process on the worker was killed by SIGKILL. That was attempt 2, and the last one."
            )

    asyncio.run(scenario())


def test_worker_without_the_versions_folder_rejects_the_job(
    server: StubExportServer, serve: ServerFactory, lsml: Lsml, tmp_path: Path
) -> None:
    url = serve.redis()
    (tmp_path / "elsewhere").mkdir()

    async def scenario(mounted: Path) -> str:
        async with training(tmp_path / "served", url, job_config(server)) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            await until(lambda: job.id in trainer._submitted_job_ids)
            run = await asyncio.to_thread(
                lsml, "worker", "--jobs", url, "--burst", "--versions", mounted, env=WORKER_ENV, cwd=tmp_path
            )
            assert run.returncode == 0
            assert "Traceback" not in run.stderr
            await until(lambda: trainer.jobs()[0].is_finished)
            assert (trainer.jobs()[0].state, trainer.jobs()[0].attempt) == (
                "failed" if mounted.name == "elsewhere" else "done",
                1,
            )
            return str(trainer.jobs()[0].reason)

    reason = asyncio.run(scenario(tmp_path / "elsewhere"))
    assert "elsewhere on this host is not the server's: There is no job" in reason
    assert "has to be shared with this host; if its path differs here: lsml worker --versions" in reason
    (tmp_path / "mounted").symlink_to(tmp_path / "served")
    asyncio.run(scenario(Path("mounted")))
    run = lsml("worker", "--jobs", url, "--versions", tmp_path / "gone", env=WORKER_ENV)
    assert run.returncode == 2
    assert run.stderr.startswith("lsml: There is no folder ")


def test_job_is_queued_again_after_redis_lost_it(
    server: StubExportServer, serve: ServerFactory, tmp_path: Path
) -> None:
    url = serve.redis()

    async def scenario() -> None:
        async with training(tmp_path / "served", url, job_config(server)) as trainer:
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: trainer._submitted_job_ids)
            with redis_client.Redis.from_url(url) as connection:
                connection.flushall()
            serve.worker("--jobs", url, env=WORKER_ENV)
            await until(lambda: get_only_job(trainer).is_finished)
            assert (get_only_job(trainer).state, get_only_job(trainer).attempt) == ("done", 1)

    asyncio.run(scenario())


def test_job_is_queued_once_by_a_restarted_server(serve: ServerFactory, tmp_path: Path) -> None:
    url = serve.redis()
    job = new_job(3, "START_TRAINING", TrainingJobConfig("m", "http://localhost"))
    first = RedisRunner(tmp_path, url)
    remark = first.start(job)
    assert remark == f"No worker listens to the queue lsml yet: lsml worker --jobs {url}"
    second = RedisRunner(tmp_path, url)
    assert second.start(job) is None
    assert second.get_status(job).state == "active"
    with redis_client.Redis.from_url(url) as connection:
        assert connection.llen("rq:queue:lsml") == 1
    assert (first.stop(), second.stop()) == ([], [])


def test_idle_worker_ends_with_ctrl_c(serve: ServerFactory) -> None:
    import signal

    worker = serve.worker("--jobs", serve.redis(), env=WORKER_ENV)
    deadline = time.monotonic() + TIMEOUT
    while not any("Waiting for jobs" in line for line in worker.lines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)  # until RQ has installed its signal handlers
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(15) == 0
    assert len(worker.lines()) == 1, worker.lines()


def test_invalid_and_unreachable_redis_are_reported(lsml: Lsml) -> None:
    with pytest.raises(UsageError, match=r"http://localhost is not the URL of a Redis"):
        connect_redis("http://localhost")
    with pytest.raises(LsmlError, match=r"There is no Redis at redis://127\.0\.0\.1:9/0: ") as error_info:
        connect_redis("redis://somebody:secret@127.0.0.1:9/0")
    assert "secret" not in str(error_info.value)
    run = lsml("worker", "--jobs", "redis://127.0.0.1:9/0")
    assert run.returncode == 1
    assert run.stderr.startswith("lsml: There is no Redis at redis://127.0.0.1:9/0: ")
    assert "Is redis-server running?" in run.stderr
