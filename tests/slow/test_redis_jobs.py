"""Training jobs on a real Redis: who runs them, who refuses, and what is left when a worker is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from rq.job import Job as Entry

from lsml_cli import label_studio
from lsml_cli.errors import LsmlError, UsageError
from lsml_cli.registry import versions
from lsml_cli.server.job_runners import RedisRunner, connect_redis
from lsml_cli.server.job_store import Job, JobStore, TrainingJobConfig, new_job
from lsml_cli.server.train_scheduler import TrainScheduler
from tests.helpers.cli import Lsml
from tests.helpers.serve_process import ServerFactory
from tests.helpers.studio_server import KEY, StubExportServer, find_files_containing, run_export_server
from tests.helpers.trainable_models import Waiting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TRAINABLE = Path(__file__).parents[1] / "helpers" / "trainable_models.py"
ENV = {label_studio.API_KEY_ENV_VAR: KEY, "NO_PROXY": "127.0.0.1"}
PATIENCE = 60.0  # seconds


@pytest.fixture
def server() -> Iterator[StubExportServer]:
    with run_export_server() as running:
        yield running


def recipe(server: StubExportServer, name: str = "Counting", **params: Any) -> TrainingJobConfig:
    return TrainingJobConfig(f"{TRAINABLE}:{name}", server.url, params)


@asynccontextmanager
async def training(folder: Path, url: str, common: TrainingJobConfig, **options: Any) -> AsyncIterator[TrainScheduler]:
    trainer = TrainScheduler(JobStore(folder), RedisRunner(folder, url), common, **{"poll_interval": 0.05} | options)
    watch = asyncio.create_task(trainer.run())
    try:
        yield trainer
    finally:
        watch.cancel()
        await trainer.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


def only(trainer: TrainScheduler) -> Job:
    (job,) = trainer.jobs()
    return job


def rq_worker(url: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """RQ's own worker, until the queue is empty."""
    return subprocess.run(
        [Path(sys.executable).with_name("rq"), "worker", "lsml", "--url", url, "--burst"],
        env={"PATH": "/usr/bin:/bin", **ENV},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("who", ["lsml worker", "rq worker"])
def test_either_worker_runs_the_job(
    server: StubExportServer,
    serve: ServerFactory,
    lsml: Lsml,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    who: str,
) -> None:
    monkeypatch.setenv(label_studio.API_KEY_ENV_VAR, KEY)
    url = serve.redis()
    folder = tmp_path / "served"

    async def scenario() -> None:
        async with training(folder, url, recipe(server)) as trainer:
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: trainer._submitted_job_ids)
            with redis_client.Redis.from_url(url) as connection:
                entry = Entry.fetch(f"{only(trainer).id}-1", connection=connection)
                assert entry.args == (str(folder), only(trainer).id, 1), "nothing else travels"
            if who == "rq worker":
                run = await asyncio.to_thread(rq_worker, url, tmp_path)
                assert run.returncode == 0, run.stderr
            else:
                run = await asyncio.to_thread(lsml, "worker", "--jobs", url, "--burst", env=ENV)
                assert (run.returncode, run.stdout) == (0, "")
                lines = run.stderr.splitlines()
                assert lines[0] == f"lsml: Waiting for jobs on the queue lsml at {url}."
                assert lines[1] == f"lsml: Job {only(trainer).id}: training project 3 (attempt 1)."
                assert lines[2].startswith(f"lsml: Job {only(trainer).id}: done. project-3@")
                assert len(lines) == 3
            await until(lambda: only(trainer).is_finished)
            assert (only(trainer).state, only(trainer).reason) == ("done", None)

    asyncio.run(scenario())
    assert versions.current_version(folder / "project-3") is not None
    assert find_files_containing(folder, KEY) == []
    with redis_client.Redis.from_url(url) as connection:
        connection.config_set("rdbcompression", "no")
        connection.save()  # everything that Redis holds, as a file
    (dump,) = tmp_path.rglob("dump.rdb")
    assert find_files_containing(dump.parent, "rq:queues") == [dump]
    assert find_files_containing(tmp_path, KEY) == [], "the key stands nowhere"


def test_a_worker_killed_in_the_middle_is_replaced(
    server: StubExportServer, serve: ServerFactory, tmp_path: Path
) -> None:
    url = serve.redis()
    sign = tmp_path / "go"
    folder = tmp_path / "served"

    async def scenario() -> None:
        async with training(folder, url, recipe(server, "Waiting", until=str(sign)), heartbeat_timeout=4.0) as trainer:
            doomed = serve.worker("--jobs", url, env=ENV)
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: only(trainer).progress == Waiting.MESSAGE)
            doomed.kill()
            died = time.monotonic()
            serve.worker("--jobs", url, env=ENV)
            await until(lambda: only(trainer).attempt == 2)
            assert 3.0 < time.monotonic() - died < 15.0, "it is its silence that tells"
            assert only(trainer).reason == "Nothing was heard of it for 4 seconds: what ran it has died."
            await until(lambda: only(trainer).state == "running")
            sign.touch()
            await until(lambda: only(trainer).is_finished)
            assert (only(trainer).state, only(trainer).attempt, only(trainer).reason) == ("done", 2, None)

    asyncio.run(scenario())
    assert len(versions.list_versions(folder / "project-3")) == 1


def test_a_job_whose_process_is_killed_twice_has_failed(
    server: StubExportServer, serve: ServerFactory, tmp_path: Path
) -> None:
    """A worker sees at once when the process of its job is killed, out of memory for one."""
    import psutil

    url = serve.redis()

    async def scenario() -> None:
        common = recipe(server, "Waiting", until=str(tmp_path / "never"))
        async with training(tmp_path / "served", url, common) as trainer:
            worker = serve.worker("--jobs", url, env=ENV)
            trainer.request_training(3, "START_TRAINING")
            for attempt in (1, 2):
                await until(
                    lambda attempt=attempt: (
                        only(trainer).attempt == attempt and only(trainer).progress == Waiting.MESSAGE
                    )
                )
                (horse,) = psutil.Process(worker.process.pid).children()
                horse.kill()
            await until(lambda: only(trainer).is_finished)
            assert only(trainer).state == "failed"
            assert only(trainer).reason == (
                "Its process on the worker was killed by SIGKILL. That was attempt 2, and the last one."
            )

    asyncio.run(scenario())


def test_a_worker_that_cannot_see_the_folder_refuses(
    server: StubExportServer, serve: ServerFactory, lsml: Lsml, tmp_path: Path
) -> None:
    url = serve.redis()
    (tmp_path / "elsewhere").mkdir()

    async def scenario(mounted: Path) -> str:
        async with training(tmp_path / "served", url, recipe(server)) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            await until(lambda: job.id in trainer._submitted_job_ids)
            run = await asyncio.to_thread(
                lsml, "worker", "--jobs", url, "--burst", "--versions", mounted, env=ENV, cwd=tmp_path
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
    assert "has to be shared with this host; where it has another name here, say so: lsml worker --versions" in reason
    (tmp_path / "mounted").symlink_to(tmp_path / "served")
    asyncio.run(scenario(Path("mounted")))
    run = lsml("worker", "--jobs", url, "--versions", tmp_path / "gone", env=ENV)
    assert run.returncode == 2
    assert run.stderr.startswith("lsml: There is no folder ")


def test_a_redis_that_loses_everything_is_told_again(
    server: StubExportServer, serve: ServerFactory, tmp_path: Path
) -> None:
    url = serve.redis()

    async def scenario() -> None:
        async with training(tmp_path / "served", url, recipe(server)) as trainer:
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: trainer._submitted_job_ids)
            with redis_client.Redis.from_url(url) as connection:
                connection.flushall()
            serve.worker("--jobs", url, env=ENV)
            await until(lambda: only(trainer).is_finished)
            assert (only(trainer).state, only(trainer).attempt) == ("done", 1)

    asyncio.run(scenario())


def test_starting_twice_queues_once(serve: ServerFactory, tmp_path: Path) -> None:
    """A restarted server finds its waiting jobs in the queue already."""
    url = serve.redis()
    job = new_job(3, "START_TRAINING", TrainingJobConfig("m", "http://localhost"))
    first = RedisRunner(tmp_path, url)
    remark = first.start(job)
    assert remark == f"No worker listens to the queue lsml yet: lsml worker --jobs {url}"
    second = RedisRunner(tmp_path, url)
    assert second.start(job) is None
    assert second.get_status(job).state == "there"
    with redis_client.Redis.from_url(url) as connection:
        assert connection.llen("rq:queue:lsml") == 1
    assert (first.stop(), second.stop()) == ([], [])


def test_an_idle_worker_ends_with_ctrl_c(serve: ServerFactory) -> None:
    import signal

    worker = serve.worker("--jobs", serve.redis(), env=ENV)
    deadline = time.monotonic() + PATIENCE
    while not any("Waiting for jobs" in line for line in worker.lines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)  # RQ has put its own handlers in place by then
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(15) == 0
    assert len(worker.lines()) == 1, worker.lines()


def test_what_is_no_redis_is_a_sentence(lsml: Lsml) -> None:
    with pytest.raises(UsageError, match=r"http://localhost is not the address of a Redis"):
        connect_redis("http://localhost")
    with pytest.raises(LsmlError, match=r"There is no Redis at redis://127\.0\.0\.1:9/0: ") as raised:
        connect_redis("redis://somebody:secret@127.0.0.1:9/0")
    assert "secret" not in str(raised.value)
    run = lsml("worker", "--jobs", "redis://127.0.0.1:9/0")
    assert run.returncode == 1
    assert run.stderr.startswith("lsml: There is no Redis at redis://127.0.0.1:9/0: ")
    assert "Is redis-server running?" in run.stderr
