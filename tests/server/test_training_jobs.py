"""Training jobs as processes, with a stub of Label Studio's API."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from lsml_cli import label_studio
from lsml_cli.errors import LsmlError, UsageError
from lsml_cli.io import task_reader
from lsml_cli.label_studio import client
from lsml_cli.registry import resolve, versions
from lsml_cli.registry.version_writer import VersionWriter
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.server import training_job
from lsml_cli.server.job_record import Job, TrainingJobConfig, config_to_json, new_job, utc_now
from lsml_cli.server.job_runners.embedded import EmbeddedRunner
from lsml_cli.server.job_runners.redis import connect_redis
from lsml_cli.server.job_store import JobStore
from lsml_cli.server.train_scheduler import TrainScheduler
from lsml_cli.training.fit import fit_version
from tests.helpers import serve_process, trainable_models
from tests.helpers.cli import EXAMPLE, run_in_process
from tests.helpers.models import IMAGE_CONFIG
from tests.helpers.serve_process import ServerFactory
from tests.helpers.studio_server import KEY, StubExportServer, find_files_containing, run_export_server
from tests.helpers.trainable_models import Waiting

TRAINABLE = Path(trainable_models.__file__)
TIMEOUT = 60.0  # seconds to wait for a job; it takes three, mostly for importing the SDK


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubExportServer]:
    monkeypatch.setenv(label_studio.API_KEY_ENV_VAR, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with run_export_server() as running:
        yield running


def make_config(
    server: StubExportServer, name: str = "Counting", gates: tuple[str, ...] = (), **params: Any
) -> TrainingJobConfig:
    return TrainingJobConfig(f"{TRAINABLE}:{name}", server.url, params, gates)


@asynccontextmanager
async def running_scheduler(folder: Path, config: TrainingJobConfig, **options: Any) -> AsyncIterator[TrainScheduler]:
    """Run a scheduler with embedded jobs, as in a server, and close it at the end."""
    scheduler = TrainScheduler(JobStore(folder), EmbeddedRunner(folder), config, **{"poll_interval": 0.05} | options)
    task = asyncio.create_task(scheduler.run())
    try:
        yield scheduler
    finally:
        task.cancel()
        await scheduler.close()


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.02)


def only_job(scheduler: TrainScheduler) -> Job:
    (job,) = scheduler.jobs()
    return job


def run_training(folder: Path, config: TrainingJobConfig, project: int = 3) -> Job:
    """Request training, and return the finished job."""

    async def scenario() -> Job:
        async with running_scheduler(folder, config) as scheduler:
            scheduler.request_training(project, "START_TRAINING")
            await wait_until(lambda: only_job(scheduler).is_finished)
            return only_job(scheduler)

    return asyncio.run(scenario())


def find_processes(folder: Path) -> list[psutil.Process]:
    """Return the processes that have a folder among their arguments."""
    processes = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(folder) in (process.info["cmdline"] or []):
            processes.append(process)
    return processes


def test_version_is_trained_promoted_and_listed(server: StubExportServer, tmp_path: Path) -> None:
    job = run_training(tmp_path, TrainingJobConfig("text-classifier", server.url, {}, ("category.accuracy=0.1",)))
    assert (job.state, job.reason) == ("done", None)
    promoted = versions.read(versions.resolve(str(tmp_path / "project-3")))
    assert job.version == f"project-3@{promoted.version}"
    assert (promoted.family, promoted.name) == ("text-classifier", "project-3")
    assert promoted.label_config == server.config, "from Label Studio, not from the request"
    assert job.facts["counts"]["train"] + job.facts["counts"]["holdout"] == 79, "one of the 80 was skipped"
    assert job.facts["metrics"]["category"]["accuracy"] == promoted.metrics["category"]["accuracy"]
    assert JobStore(tmp_path).list_jobs() == [job]
    assert {path.name for path in (tmp_path / ".jobs").iterdir()} == {"annotations", f"{job.id}.json", "lock"}
    assert find_files_containing(tmp_path, KEY) == []

    run = run_in_process("jobs", tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    heading, row = run.stdout.splitlines()
    assert heading.split() == ["job", "project", "state", "why", "created", "took", "version", "or", "reason"]
    assert row.split()[:4] == [job.id, "3", "done", "START_TRAINING"]
    assert row.split()[-1] == job.version
    (line,) = json.loads(run_in_process("jobs", tmp_path, "--json", "--project", "3").stdout)
    assert (line["version"], line["state"], line["seconds"]) == (job.version, "done", job.seconds)


def test_missed_gate_keeps_promoted_version(server: StubExportServer, tmp_path: Path) -> None:
    first = run_training(tmp_path, make_config(server))
    config = make_config(server, gates=("category.accuracy=1", "category.f1:Billing=1"))

    async def scenario() -> Job:
        async with running_scheduler(tmp_path, config) as scheduler:
            job = scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: scheduler.jobs()[0].is_finished)
            assert scheduler.jobs()[0].id == job.id
            return scheduler.jobs()[0]

    job = asyncio.run(scenario())
    assert job.state == "missed"
    assert "was not promoted: category.accuracy" in str(job.reason)
    assert job.version != first.version
    assert versions.current_version(tmp_path / "project-3") == str(first.version).partition("@")[2]
    assert len(versions.list_versions(tmp_path / "project-3")) == 2, "it is kept for inspection"
    assert " missed " in run_in_process("jobs", tmp_path).stdout


def test_projects_are_trained_separately(server: StubExportServer, tmp_path: Path) -> None:
    server.tasks[4] = server.tasks[3][:40]

    async def scenario() -> None:
        async with running_scheduler(tmp_path, make_config(server)) as scheduler:
            scheduler.request_training(3, "START_TRAINING")
            scheduler.request_training(4, "START_TRAINING")
            await wait_until(lambda: all(job.is_finished for job in scheduler.jobs()))
            second, first = scheduler.jobs()
            assert [first.state, second.state] == ["done", "done"]
            assert str(first.ended) <= str(second.started), "one after the other on this machine"

    asyncio.run(scenario())
    sizes = [
        versions.read(versions.resolve(str(tmp_path / name))).counts["train"] for name in ("project-3", "project-4")
    ]
    assert sizes[0] > 50 > sizes[1]


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("nothing annotated", "annotat"),
        ("no such project", "knows nothing of project 3. Does the project exist there"),
        ("wrong key", "does not accept the API key. Set LABEL_STUDIO_API_KEY to a token that is valid there"),
        ("no key", "needs an API key, and LABEL_STUDIO_API_KEY is not set here."),
        ("truncated export", "broke off over the annotations of project 3"),
        ("another model", "There is no file"),
        ("a model that raises", "Stumbling failed while training: RuntimeError: out of patience."),
        ("a config it cannot fill", "Choose a model that fills these controls"),
    ],
)
def test_failure_reason_is_one_sentence(
    server: StubExportServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str, message: str
) -> None:
    config = make_config(server)
    if cause == "nothing annotated":
        server.tasks[3] = []
    elif cause == "no such project":
        server.tasks.clear()
    elif cause == "wrong key":
        monkeypatch.setenv(label_studio.API_KEY_ENV_VAR, "no-key-at-all")
    elif cause == "no key":
        monkeypatch.delenv(label_studio.API_KEY_ENV_VAR)
    elif cause == "truncated export":
        server.truncate_after = 20_000
    elif cause == "another model":
        config = replace(config, model=str(tmp_path / "gone.py:Model"))
    elif cause == "a model that raises":
        config = make_config(server, "Stumbling", how="raise")
    else:
        config = TrainingJobConfig("text-classifier", server.url)
        server.config = '<View><Text name="t" value="$text"/><TextArea name="a" toName="t"/></View>'
    job = run_training(tmp_path, config)
    assert job.state == "failed"
    assert message in str(job.reason)
    assert "Traceback" not in str(job.reason)
    assert "\n" not in str(job.reason)
    assert not (tmp_path / "project-3").exists()
    assert not list(tmp_path.rglob("*.tasks")), "downloaded tasks are deleted"


def test_killed_job_fails_and_the_next_one_succeeds(server: StubExportServer, tmp_path: Path) -> None:
    go_file = tmp_path / "go"

    async def scenario() -> None:
        async with running_scheduler(tmp_path, make_config(server, "Waiting", until=str(go_file))) as scheduler:
            scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: only_job(scheduler).progress == Waiting.MESSAGE)
            assert scheduler.is_training(3)
            assert list(tmp_path.glob("project-3/.unfinished-*")), "it has not finished the version"
            (process,) = find_processes(tmp_path)
            assert process.nice() == 10
            waiting = scheduler.request_training(3, "START_TRAINING")
            process.kill()
            await wait_until(lambda: scheduler.jobs()[1].is_finished)
            killed = scheduler.jobs()[1]
            assert (killed.state, killed.reason) == ("failed", "Its process was killed by SIGKILL.")
            assert not versions.list_versions(tmp_path / "project-3")
            go_file.touch()
            await wait_until(lambda: scheduler.jobs()[0].is_finished)
            assert (scheduler.jobs()[0].id, scheduler.jobs()[0].state) == (waiting.id, "done")

    asyncio.run(scenario())
    assert versions.current_version(tmp_path / "project-3") is not None


def test_stopped_job_continues_after_restart_of_the_server(server: StubExportServer, tmp_path: Path) -> None:
    go_file = tmp_path / "go"
    config = make_config(server, "Waiting", until=str(go_file))

    async def first_server() -> None:
        async with running_scheduler(tmp_path, config) as scheduler:
            scheduler.request_training(3, "START_TRAINING")
            await wait_until(lambda: only_job(scheduler).progress == Waiting.MESSAGE)

    asyncio.run(first_server())
    assert not find_processes(tmp_path), "its processes are gone"
    (job,) = JobStore(tmp_path).list_jobs()
    assert (job.state, job.reason) == ("waiting", "The server was stopped.")
    assert not list(tmp_path.rglob(".unfinished-*")), "it could clean up"
    assert not list(tmp_path.rglob("*.tasks"))
    go_file.touch()

    async def second_server() -> None:
        async with running_scheduler(tmp_path, config) as scheduler:
            await wait_until(lambda: only_job(scheduler).is_finished)
            assert (only_job(scheduler).id, only_job(scheduler).state, only_job(scheduler).attempt) == (
                job.id,
                "done",
                1,
            )

    asyncio.run(second_server())


def test_job_of_killed_server_is_followed_by_the_next_one(server: StubExportServer, tmp_path: Path) -> None:
    go_file = tmp_path / "go"
    config = make_config(server, "Waiting", until=str(go_file))
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", config)
    store.create(job)
    command = [sys.executable, "-m", "lsml_cli.server.training_job"]
    orphan = subprocess.Popen([*command, tmp_path, job.id, "1", config_to_json(config)])
    try:
        deadline = time.monotonic() + TIMEOUT
        while store.read(job.id).progress != Waiting.MESSAGE:
            assert time.monotonic() < deadline
            time.sleep(0.02)

        async def next_server() -> None:
            async with running_scheduler(tmp_path, config, heartbeat_timeout=5.0) as scheduler:
                assert scheduler.is_training(3)
                await asyncio.sleep(0.3)
                go_file.touch()
                await wait_until(lambda: only_job(scheduler).is_finished)
                assert (only_job(scheduler).state, only_job(scheduler).attempt) == ("done", 1)

        asyncio.run(next_server())
        assert orphan.wait(TIMEOUT) == 0
    finally:
        orphan.kill()
        orphan.wait()


def test_job_that_died_with_its_server_is_started_again(server: StubExportServer, tmp_path: Path) -> None:
    config = make_config(server)
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", config)
    store.create(job)
    store.write_heartbeat(store.claim(job.id, 1), 7)

    async def next_server() -> None:
        async with running_scheduler(tmp_path, config, heartbeat_timeout=0.5) as scheduler:
            await wait_until(lambda: only_job(scheduler).is_finished)
            assert (only_job(scheduler).state, only_job(scheduler).attempt) == ("done", 2)

    asyncio.run(next_server())


def test_process_without_a_job_file_exits_with_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lsml_cli.server.training_job"]
    job = "20261121T101500-123-3f2a"
    end = [job, "1", config_to_json(TrainingJobConfig("text-classifier", "http://localhost:1"))]
    run = subprocess.run([*command, tmp_path / "gone", *end], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "There is no folder" in run.stderr
    assert "has to be shared with this host" in run.stderr
    run = subprocess.run([*command, tmp_path, *end], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "is not the server's: There is no job" in run.stderr
    assert "Traceback" not in run.stderr


def test_terminated_job_cleans_up_and_ends_by_sigterm(server: StubExportServer, tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", make_config(server, "Waiting", until=str(tmp_path / "never")))
    store.create(job)
    runner = EmbeddedRunner(tmp_path)
    runner.start(job)
    runner.start(job)  # has no effect: it is started already
    deadline = time.monotonic() + TIMEOUT
    while store.read(job.id).progress != Waiting.MESSAGE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert runner.get_status(job).state == "active"
    (process,) = find_processes(tmp_path)
    assert os.getsid(process.pid) == process.pid, "ctrl-C of the server's terminal does not reach it"
    process.send_signal(signal.SIGTERM)
    while runner.get_status(job).state == "active":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert runner.get_status(job).reason == "Its process was killed by SIGTERM."
    assert runner.stop() == [job.id]
    assert runner.get_status(replace(job, attempt=2)).state == "unknown"


def test_request_for_training_tells_how_the_last_one_ended(
    server: StubExportServer, ticket_model: Path, tmp_path: Path
) -> None:
    """Label Studio keeps the status and its phrase as the error message of the backend."""
    store = JobStore(tmp_path / "versions")
    config = TrainingJobConfig(str(ticket_model), server.url)
    endings: dict[int, dict[str, Any]] = {
        3: {"state": "failed", "reason": "There is nothing to learn."},
        4: {"state": "missed", "reason": "accuracy is 0.2, below 0.8."},
        5: {"state": "done", "version": "project-5@20261121T101502"},
    }
    for project, ending in endings.items():
        store.create(replace(new_job(project, "START_TRAINING", config), ended=utc_now(), **ending))
    serve = ServerFactory(tmp_path)
    options = "--versions", tmp_path / "versions", "--label-studio-url", server.url
    try:
        running = serve("--model", ticket_model, *options, env={label_studio.API_KEY_ENV_VAR: KEY})
        answers = {}
        for project in (3, 4, 5, 6):
            body = json.dumps({"action": "START_TRAINING", "project": {"id": project}})
            connection = http.client.HTTPConnection(running.root.removeprefix("http://"), timeout=10)
            connection.request("POST", "/webhook", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answers[project] = (response.status, response.reason, json.loads(response.read()))
            connection.close()
        assert [answers[project][0] for project in (3, 4, 5, 6)] == [470, 471, 201, 201]
        assert answers[3][1] == "A new training was requested; the last one failed (lsml jobs says why)"
        assert answers[3][2]["detail"] == f"{answers[3][1]}: There is nothing to learn."
        assert answers[4][1] == "A new training was requested; the last one missed a gate (see lsml jobs)"
        assert running.request_ok("POST", "/setup", {"project": "3.17"})["model_version"]
        assert all(answer["job"] for _, _, answer in answers.values())
    finally:
        serve.close()


def test_job_waits_when_sigterm_goes_to_all_processes(server: StubExportServer, tmp_path: Path) -> None:
    """systemd stops a service this way."""
    go_file, model_folder, versions_folder = tmp_path / "go", tmp_path / "model", tmp_path / "versions"
    go_file.touch()
    config = LabelConfig.parse(server.config)
    name = f"{TRAINABLE}:Waiting"
    training_tasks = task_reader.read_tasks(str(EXAMPLE / "annotated.json"))
    fit_version(resolve.find_model(name, {"until": str(go_file)}), training_tasks, config, model_folder)
    go_file.unlink()
    serve = ServerFactory(tmp_path)
    options = "--versions", versions_folder, "--label-studio-url", server.url, "--with", f"until={go_file}"
    environment = {label_studio.API_KEY_ENV_VAR: KEY}
    try:
        first = serve("--model", f"{name}@{model_folder}", *options, env=environment)
        first.request_ok("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": 3}})
        serve_process.wait_until(
            "the job is training",
            lambda: any(job["progress"] == Waiting.MESSAGE for job in serve_process.read_jobs(versions_folder)),
        )
        task = {"id": 1, "data": {"text": "hello", "seconds": 3}}
        request = {"tasks": [task], "project": "4.1", "label_config": server.config}
        with ThreadPoolExecutor(1) as pool:  # the server ends after this answer; until then it polls its jobs
            answer = pool.submit(first.request_ok, "POST", "/predict", request)
            time.sleep(1)
            leader = psutil.Process(first.process.pid)
            for process in (*leader.children(recursive=True), leader):
                process.send_signal(signal.SIGTERM)
            assert all(answer.result()["results"])
        assert first.process.wait(30) == 0
        (job,) = JobStore(versions_folder).list_jobs()
        assert (job.state, job.attempt, job.reason) == ("waiting", 1, "The server was stopped.")
        go_file.touch()
        serve("--model", f"{name}@{model_folder}", *options, env=environment)
        serve_process.wait_until("the job is done", lambda: JobStore(versions_folder).read(job.id).state == "done")
    finally:
        serve.close()


def write_image(folder: Path, name: str, shade: int) -> bytes:
    """Write a grey image of 4 x 4 pixels, and return its bytes."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"P5\n4 4\n255\n" + bytes([shade] * 16))
    return (folder / name).read_bytes()


def test_image_model_trains_on_media_of_every_origin(server: StubExportServer, tmp_path: Path) -> None:
    server.config = IMAGE_CONFIG
    server.tasks[3] = []
    open_url = server.url.replace("127.0.0.1", "localhost")
    for number in range(50):
        choice, name = ("dark", "bright")[number % 2], f"{number}.pgm"
        origin = ("documents", "uploads", "bucket", "studio", "web")[number // 2 % 5]
        content = write_image(tmp_path / origin, name, 10 + number + 180 * (number % 2))
        server.files |= {"studio": {f"/data/upload/1/{name}": content}, "web": {f"/{name}": content}}.get(origin, {})
        value = {
            "documents": f"/data/local-files/?d={name}",
            "uploads": f"/data/upload/{name}",
            "bucket": f"s3://bucket/{name}",
            "studio": f"/data/upload/1/{name}",
            "web": f"{open_url}/{name}",
        }[origin]
        region = {"from_name": "light", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
        annotations = [{"id": number, "was_cancelled": False, "result": [region]}]
        server.tasks[3].append({"id": number, "project": 3, "data": {"image": value}, "annotations": annotations})
    serve = ServerFactory(tmp_path)
    try:
        running = serve(
            *("--model", f"{TRAINABLE}:Shades", "--versions", "versions", "--label-studio-url", server.url),
            *("--document-root", "documents", "--upload-root", "uploads", "--map", "s3://bucket/=bucket"),
            *("--allow-host", "localhost", "--device", "cpu", "--media-cache", "kept"),
            env={label_studio.API_KEY_ENV_VAR: KEY, "NO_PROXY": "127.0.0.1,localhost"},
        )
        running.request_ok("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": 3}})
        store = JobStore(tmp_path / "versions")
        serve_process.wait_until("the job has finished", lambda: [job for job in store.list_jobs() if job.is_finished])
        (job,) = store.list_jobs()
        assert (job.state, job.reason) == ("done", None)
        assert job.facts["counts"]["train"] + job.facts["counts"]["holdout"] == 50
        assert job.facts["metrics"]["light"]["accuracy"] == 1.0
        promoted = versions.read(versions.resolve(str(tmp_path / "versions" / "project-3")))
        assert promoted.state["device"] == "cpu"
        assert find_files_containing(tmp_path / "versions", KEY) == []
    finally:
        serve.close()


def test_worker_without_the_servers_folders_and_device_trains_with_its_own(
    server: StubExportServer, tmp_path: Path
) -> None:
    server.config = IMAGE_CONFIG
    server.tasks[3] = []
    for number in range(20):
        name, choice = f"/data/upload/1/{number}.pgm", ("dark", "bright")[number % 2]
        server.files[name] = write_image(tmp_path / "gone", f"{number}", 10 + number + 180 * (number % 2))
        region = {"from_name": "light", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
        annotations = [{"id": number, "was_cancelled": False, "result": [region]}]
        server.tasks[3].append({"id": number, "project": 3, "data": {"image": name}, "annotations": annotations})
    missing = str(tmp_path / "missing")
    folders: dict[str, Any] = {
        "document_root": missing,
        "upload_root": missing,
        "maps": {"/data/upload/": missing},
        "media_cache": missing,
    }
    config = replace(make_config(server, "Shades"), device="cuda:7", media_cache_size=1 << 20, **folders)
    job = run_training(tmp_path, config)
    assert (job.state, job.reason) == ("done", None)
    assert not Path(missing).exists()


def test_jobs_command_reports_missing_and_damaged_files(tmp_path: Path) -> None:
    run = run_in_process("jobs", tmp_path / "gone")
    assert run.returncode == 2
    assert run.stderr.startswith("lsml: There is no folder ")
    run = run_in_process("jobs", tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", f"lsml: There are no jobs in {tmp_path}.\n")
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", TrainingJobConfig("m", "http://localhost"))
    store.create(job)
    (store.jobs_folder / "20261121T101500-123-3f2a.json").write_text("{")
    run = run_in_process("jobs", tmp_path)
    assert run.returncode == 0
    assert run.stderr.startswith(f"lsml: {store.jobs_folder}/20261121T101500-123-3f2a.json is damaged (")
    assert run.stdout.splitlines()[1].split()[:3] == [job.id, "3", "waiting"]


def test_export_is_downloaded_unchanged(server: StubExportServer, tmp_path: Path) -> None:
    with label_studio.connect(server.url) as studio:
        assert studio.get_label_config(3) == (EXAMPLE / "label_config.xml").read_text()
        studio.download_annotated(3, tmp_path / "export.json")
    assert json.loads((tmp_path / "export.json").read_bytes()) == server.tasks[3]
    assert server.requests == ["/api/projects/3/", "/api/projects/3/export?export_type=JSON"]


def test_personal_access_token_is_exchanged(server: StubExportServer) -> None:
    with label_studio.connect(server.url, server.personal_token) as studio:
        assert studio.get_label_config(3) == server.config
    assert server.requests == ["/api/token/refresh/", "/api/projects/3/"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "does not allow the user of the API key to access project 3."),
        (400, "answered 400 when asked for project 3: as the test wants it."),
    ],
)
def test_rejection_by_label_studio_is_one_sentence(server: StubExportServer, status: int, message: str) -> None:
    server.status = status
    with label_studio.connect(server.url) as studio, pytest.raises(LsmlError) as raised:
        studio.get_label_config(3)
    assert message in str(raised.value)
    assert KEY not in str(raised.value)


def test_invalid_or_unreachable_url(server: StubExportServer) -> None:
    with (
        pytest.raises(UsageError, match=r"Write http:// or https:// before the host"),
        label_studio.connect("localhost:8080", KEY),
    ):
        pytest.fail("no address was expected to do")
    with (
        label_studio.connect("http://127.0.0.1:9", KEY) as studio,
        pytest.raises(LsmlError, match=r"cannot be reached"),
    ):
        studio.get_label_config(3)


def test_truncated_export_is_detected_without_content_length(server: StubExportServer, tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    whole = json.dumps(server.tasks[3])
    path.write_text(whole)
    assert client._is_complete_json_array(path)
    path.write_text(whole[:-1] + "\n")
    assert not client._is_complete_json_array(path)
    server.tasks[3] = {"detail": "no list"}  # type: ignore[assignment]
    with label_studio.connect(server.url) as studio, pytest.raises(LsmlError, match=r"only in part"):
        studio.download_annotated(3, path)


def test_missing_redis_extra_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rq", None)
    with pytest.raises(LsmlError, match=r"need the packages redis and rq\. pip install 'lsml\[redis\]'"):
        connect_redis("redis://localhost:6379/0")


class _PausableAttempt:
    """The first attempt of a job, as a process that a test suspends and continues."""

    def __init__(self, store: JobStore, job: Job) -> None:
        self.store, self.job = store, job
        command = [sys.executable, "-m", "lsml_cli.server.training_job"]
        arguments = [str(store.versions_folder), job.id, "1", config_to_json(job.config)]
        self.process = subprocess.Popen([*command, *arguments], start_new_session=True)

    def __enter__(self) -> Self:
        serve_process.wait_until("it trains", lambda: self.store.read(self.job.id).progress == Waiting.MESSAGE)
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        with self.store._locked():  # else it might be paused with the lock in its hands, which everybody waits for
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def create_waiting_job(server: StubExportServer, folder: Path, go_file: Path) -> tuple[JobStore, Job]:
    store, job = JobStore(folder), new_job(3, "START_TRAINING", make_config(server, "Waiting", until=str(go_file)))
    store.create(job)
    return store, job


def is_waiting(job: Job, attempt: int) -> bool:
    """Return whether this attempt trains, and waits for the file that ends it."""
    return (job.attempt, job.progress) == (attempt, Waiting.MESSAGE)


@pytest.mark.parametrize("is_replacement_finished", [True, False])
def test_replaced_attempt_does_not_promote(
    server: StubExportServer, tmp_path: Path, is_replacement_finished: bool
) -> None:
    go_file = tmp_path / "go"
    store, job = create_waiting_job(server, tmp_path / "served", go_file)
    project_folder = tmp_path / "served" / "project-3"
    with _PausableAttempt(store, job) as stale:
        stale.pause()

        async def next_server() -> None:
            async with running_scheduler(store.versions_folder, job.config, heartbeat_timeout=0.5) as scheduler:
                # Of one record: the file may show the second attempt before the scheduler's memory does, which then
                # still has the message of the first.
                await wait_until(lambda: is_waiting(only_job(scheduler), attempt=2))
                if is_replacement_finished:
                    go_file.touch()
                    await wait_until(lambda: only_job(scheduler).is_finished)
                    assert (only_job(scheduler).state, only_job(scheduler).attempt) == ("done", 2)
                    stale.resume()
                    assert await asyncio.to_thread(stale.process.wait, TIMEOUT) == 0
                else:
                    (replacement,) = [p for p in find_processes(store.versions_folder) if p.pid != stale.process.pid]
                    with store._locked():
                        replacement.suspend()
                    go_file.touch()
                    stale.resume()
                    assert await asyncio.to_thread(stale.process.wait, TIMEOUT) == 0
                    assert versions.current_version(project_folder) is None, "it promoted in place of its replacement"
                    replacement.resume()
                    await wait_until(lambda: only_job(scheduler).is_finished)

        asyncio.run(next_server())
    done = store.read(job.id)
    assert (done.state, done.attempt) == ("done", 2)
    assert done.version == f"project-3@{versions.current_version(project_folder)}", "the record names what is promoted"
    assert len(versions.list_versions(project_folder)) == 1, "the version of the replaced attempt is gone"


def test_replaced_attempt_ends_itself_while_it_trains(server: StubExportServer, tmp_path: Path) -> None:
    store, job = create_waiting_job(server, tmp_path, tmp_path / "never")
    with _PausableAttempt(store, job) as stale:
        store.update(store.read(job.id), state="waiting", attempt=2, started=None)
        assert stale.process.wait(TIMEOUT) == 0
    assert not list(tmp_path.rglob(".unfinished-*")), "it cleaned up"
    assert not list(tmp_path.rglob("*.tasks"))
    assert store.read(job.id).state == "waiting"


def test_attempt_replaced_while_its_version_gets_its_name_leaves_none(
    server: StubExportServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From that moment only storing the result can discard the version, so nothing may interrupt the attempt."""
    store, job = JobStore(tmp_path), new_job(3, "START_TRAINING", make_config(server))
    store.create(job)
    rename = VersionWriter._rename_to_free_name

    def rename_and_get_replaced(writer: VersionWriter, *arguments: Any) -> versions.Version:
        version = rename(writer, *arguments)
        store.update(store.read(job.id), state="waiting", attempt=2, started=None)
        time.sleep(0.3)  # heartbeats notice it
        return version

    monkeypatch.setattr(VersionWriter, "_rename_to_free_name", rename_and_get_replaced)
    monkeypatch.setattr("lsml_cli.server.heartbeat.HEARTBEAT_INTERVAL", 0.02)
    monkeypatch.setattr(os, "nice", lambda increment: 0)
    training_job.run(str(tmp_path), job.id, 1, config_to_json(job.config))
    assert (store.read(job.id).state, store.read(job.id).attempt) == ("waiting", 2)
    assert versions.list_versions(tmp_path / "project-3") == []


def test_replaced_attempt_that_hangs_is_killed(server: StubExportServer, tmp_path: Path) -> None:
    """Its training does not return to Python's interpreter, so the exception is never raised."""
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", make_config(server, "Hanging"))
    store.create(job)
    with _PausableAttempt(store, job) as stale:
        store.update(store.read(job.id), state="waiting", attempt=2, started=None)
        assert stale.process.wait(TIMEOUT) == -signal.SIGKILL


def test_failed_promotion_is_the_result_of_the_job(server: StubExportServer, tmp_path: Path) -> None:
    go_file = tmp_path / "go"
    store, job = create_waiting_job(server, tmp_path, go_file)
    (tmp_path / "project-3" / "current").mkdir(parents=True)  # cannot be replaced by a file
    with _PausableAttempt(store, job) as attempt:
        go_file.touch()
        assert attempt.process.wait(TIMEOUT) == 0
    failed = store.read(job.id)
    assert failed.state == "failed"
    assert "cannot be written to" in str(failed.reason)


def test_planted_job_trains_with_the_settings_of_the_server(server: StubExportServer, tmp_path: Path) -> None:
    """Its own would run code, and send the key of Label Studio to another host."""
    evil, mark = tmp_path / "evil.py", tmp_path / "was-here"
    evil.write_text(f"open({str(mark)!r}, 'w').close()\n" + TRAINABLE.read_text())
    with run_export_server() as elsewhere:
        planted = TrainingJobConfig(f"{evil}:Counting", elsewhere.url, {}, (), allow_hosts=("*",), document_root="/")
        store, job = JobStore(tmp_path / "served"), new_job(3, "START_TRAINING", planted)
        store.create(job)
        config = make_config(server)

        async def scenario() -> None:
            async with running_scheduler(store.versions_folder, config) as scheduler:
                await wait_until(lambda: only_job(scheduler).is_finished)
                assert (only_job(scheduler).state, only_job(scheduler).reason) == ("done", None)

        asyncio.run(scenario())
        assert elsewhere.requests == []
    assert not mark.exists()
    assert store.read(job.id).config == config, "the record says what the job ran with"


def test_planted_links_of_jobs_are_not_followed(server: StubExportServer, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store, config = JobStore(tmp_path / "served"), make_config(server)
    job = new_job(3, "START_TRAINING", config)
    store.create(job)
    for path in (store.tasks_file(job), store.heartbeat_file(job), store.jobs_folder / "annotations"):
        path.symlink_to(victim)

    async def scenario() -> None:
        async with running_scheduler(store.versions_folder, config, train_every=9) as scheduler:
            scheduler.count_annotations(4)
            await wait_until(lambda: only_job(scheduler).is_finished)
            assert (only_job(scheduler).state, only_job(scheduler).reason) == ("done", None)

    asyncio.run(scenario())
    assert victim.read_text() == "precious"


def test_folder_of_jobs_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / ".jobs").symlink_to(tmp_path / "elsewhere")
    options = ["--model", "text-classifier", "--versions", str(tmp_path / "served"), "--label-studio-url", "http://x"]
    refused = run_in_process("serve", *options, "--port", "0")
    assert refused.returncode == 2
    assert "is a symbolic link, and jobs would be written to where it leads" in refused.stderr
