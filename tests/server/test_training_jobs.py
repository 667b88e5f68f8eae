"""Training jobs in processes of their own, with a Label Studio that answers from memory."""

from __future__ import annotations

import asyncio
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
from typing import Any

import psutil
import pytest

from lsml_cli import label_studio
from lsml_cli.errors import LsmlError, UsageError
from lsml_cli.io import task_reader
from lsml_cli.label_studio import client
from lsml_cli.registry import resolve, versions
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.server.job_runners import EmbeddedRunner, connect_redis
from lsml_cli.server.job_store import Job, JobStore, TrainingJobConfig, new_job
from lsml_cli.server.train_scheduler import TrainScheduler
from lsml_cli.training.fit import fit_version
from tests.helpers import serve_process, trainable_models
from tests.helpers.cli import EXAMPLE, Lsml
from tests.helpers.models import IMAGE_CONFIG
from tests.helpers.serve_process import ServerFactory
from tests.helpers.studio_server import KEY, StubExportServer, find_files_containing, run_export_server
from tests.helpers.trainable_models import Waiting

TRAINABLE = Path(trainable_models.__file__)
PATIENCE = 60.0  # seconds; a job takes three, most of them for the SDK


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubExportServer]:
    monkeypatch.setenv(label_studio.API_KEY_ENV_VAR, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with run_export_server() as running:
        yield running


def recipe(
    server: StubExportServer, name: str = "Counting", gates: tuple[str, ...] = (), **params: Any
) -> TrainingJobConfig:
    return TrainingJobConfig(f"{TRAINABLE}:{name}", server.url, params, gates)


@asynccontextmanager
async def training(folder: Path, common: TrainingJobConfig, **options: Any) -> AsyncIterator[TrainScheduler]:
    """A trainer that watches over embedded jobs, as in a server; closed at the end."""
    trainer = TrainScheduler(JobStore(folder), EmbeddedRunner(folder), common, **{"poll_interval": 0.05} | options)
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


def trained(folder: Path, common: TrainingJobConfig, project: int = 3) -> Job:
    """Ask for training and wait until it has ended."""

    async def scenario() -> Job:
        async with training(folder, common) as trainer:
            trainer.request_training(project, "START_TRAINING")
            await until(lambda: only(trainer).is_finished)
            return only(trainer)

    return asyncio.run(scenario())


def processes_about(folder: Path) -> list[psutil.Process]:
    """Every process that has this folder among its arguments."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(folder) in (process.info["cmdline"] or []):
            found.append(process)
    return found


def test_a_version_is_trained_promoted_and_told_of(server: StubExportServer, tmp_path: Path, lsml: Lsml) -> None:
    job = trained(tmp_path, TrainingJobConfig("text-classifier", server.url, {}, ("category.accuracy=0.1",)))
    assert (job.state, job.reason) == ("done", None)
    promoted = versions.read(versions.resolve(str(tmp_path / "project-3")))
    assert job.version == f"project-3@{promoted.version}"
    assert (promoted.family, promoted.name) == ("text-classifier", "project-3")
    assert promoted.label_config == server.config, "from Label Studio, not from whoever asked"
    assert job.facts["counts"]["train"] + job.facts["counts"]["holdout"] == 79, "one of the 80 was skipped"
    assert job.facts["metrics"]["category"]["accuracy"] == promoted.metrics["category"]["accuracy"]
    assert JobStore(tmp_path).list_jobs() == [job]
    assert {path.name for path in (tmp_path / ".jobs").iterdir()} == {"annotations", f"{job.id}.json", "lock"}
    assert find_files_containing(tmp_path, KEY) == []

    run = lsml("jobs", tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    heading, row = run.stdout.splitlines()
    assert heading.split() == ["job", "project", "state", "why", "created", "took", "version", "or", "reason"]
    assert row.split()[:4] == [job.id, "3", "done", "START_TRAINING"]
    assert row.split()[-1] == job.version
    (line,) = json.loads(lsml("jobs", tmp_path, "--json", "--project", "3").stdout)
    assert (line["version"], line["state"], line["seconds"]) == (job.version, "done", job.seconds)


def test_a_missed_gate_leaves_what_is_promoted(server: StubExportServer, tmp_path: Path, lsml: Lsml) -> None:
    first = trained(tmp_path, recipe(server))
    common = recipe(server, gates=("category.accuracy=1", "category.f1:Billing=1"))

    async def scenario() -> Job:
        async with training(tmp_path, common) as trainer:
            job = trainer.request_training(3, "START_TRAINING")
            await until(lambda: trainer.jobs()[0].is_finished)
            assert trainer.jobs()[0].id == job.id
            return trainer.jobs()[0]

    job = asyncio.run(scenario())
    assert job.state == "missed"
    assert "was not promoted: category.accuracy" in str(job.reason)
    assert job.version != first.version
    assert versions.current_version(tmp_path / "project-3") == str(first.version).partition("@")[2]
    assert len(versions.list_versions(tmp_path / "project-3")) == 2, "it is kept, to be looked at"
    assert " missed " in lsml("jobs", tmp_path).stdout


def test_two_projects_keep_to_themselves(server: StubExportServer, tmp_path: Path) -> None:
    server.tasks[4] = server.tasks[3][:40]

    async def scenario() -> None:
        async with training(tmp_path, recipe(server)) as trainer:
            trainer.request_training(3, "START_TRAINING")
            trainer.request_training(4, "START_TRAINING")
            await until(lambda: all(job.is_finished for job in trainer.jobs()))
            second, first = trainer.jobs()
            assert [first.state, second.state] == ["done", "done"]
            assert str(first.ended) <= str(second.started), "one after the other on this machine"

    asyncio.run(scenario())
    sizes = [
        versions.read(versions.resolve(str(tmp_path / name))).counts["train"] for name in ("project-3", "project-4")
    ]
    assert sizes[0] > 50 > sizes[1]


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("nothing annotated", "annotat"),
        ("no such project", "knows nothing of project 3. Does the project exist there"),
        ("wrong key", "does not accept the API key. Set LABEL_STUDIO_API_KEY to a token that is valid there"),
        ("no key", "wants an API key, and LABEL_STUDIO_API_KEY is not set here."),
        ("torn", "broke off over the annotations of project 3"),
        ("another model", "There is no file"),
        ("a model that raises", "Stumbling failed while training: RuntimeError: out of patience."),
        ("a config it cannot fill", "Choose a model that fills these controls"),
    ],
)
def test_what_goes_wrong_is_a_sentence(
    server: StubExportServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, sentence: str
) -> None:
    common = recipe(server)
    if trouble == "nothing annotated":
        server.tasks[3] = []
    elif trouble == "no such project":
        server.tasks.clear()
    elif trouble == "wrong key":
        monkeypatch.setenv(label_studio.API_KEY_ENV_VAR, "no-key-at-all")
    elif trouble == "no key":
        monkeypatch.delenv(label_studio.API_KEY_ENV_VAR)
    elif trouble == "torn":
        server.truncate_after = 20_000
    elif trouble == "another model":
        common = replace(common, model=str(tmp_path / "gone.py:Model"))
    elif trouble == "a model that raises":
        common = recipe(server, "Stumbling", how="raise")
    else:
        common = TrainingJobConfig("text-classifier", server.url)
        server.config = '<View><Text name="t" value="$text"/><TextArea name="a" toName="t"/></View>'
    job = trained(tmp_path, common)
    assert job.state == "failed"
    assert sentence in str(job.reason)
    assert "Traceback" not in str(job.reason)
    assert "\n" not in str(job.reason)
    assert not (tmp_path / "project-3").exists()
    assert not list(tmp_path.rglob("*.tasks")), "no task stays behind"


def test_a_killed_job_fails_and_the_next_one_works(server: StubExportServer, tmp_path: Path) -> None:
    sign = tmp_path / "go"

    async def scenario() -> None:
        async with training(tmp_path, recipe(server, "Waiting", until=str(sign))) as trainer:
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: only(trainer).progress == Waiting.MESSAGE)
            assert trainer.is_training(3)
            assert list(tmp_path.glob("project-3/.unfinished-*")), "it is in the middle of it"
            (process,) = processes_about(tmp_path)
            assert process.nice() == 10
            waiting = trainer.request_training(3, "START_TRAINING")
            process.kill()
            await until(lambda: trainer.jobs()[1].is_finished)
            killed = trainer.jobs()[1]
            assert (killed.state, killed.reason) == ("failed", "Its process was killed by SIGKILL.")
            assert not versions.list_versions(tmp_path / "project-3")
            sign.touch()
            await until(lambda: trainer.jobs()[0].is_finished)
            assert (trainer.jobs()[0].id, trainer.jobs()[0].state) == (waiting.id, "done")

    asyncio.run(scenario())
    assert versions.current_version(tmp_path / "project-3") is not None


def test_a_stopped_server_goes_on_after_its_next_start(server: StubExportServer, tmp_path: Path) -> None:
    sign = tmp_path / "go"
    common = recipe(server, "Waiting", until=str(sign))

    async def first_server() -> None:
        async with training(tmp_path, common) as trainer:
            trainer.request_training(3, "START_TRAINING")
            await until(lambda: only(trainer).progress == Waiting.MESSAGE)

    asyncio.run(first_server())
    assert not processes_about(tmp_path), "nothing of it runs on"
    (job,) = JobStore(tmp_path).list_jobs()
    assert (job.state, job.reason) == ("waiting", "The server was stopped.")
    assert not list(tmp_path.rglob(".unfinished-*")), "it had time to clean up"
    assert not list(tmp_path.rglob("*.tasks"))
    sign.touch()

    async def second_server() -> None:
        async with training(tmp_path, common) as trainer:
            await until(lambda: only(trainer).is_finished)
            assert (only(trainer).id, only(trainer).state, only(trainer).attempt) == (job.id, "done", 1)

    asyncio.run(second_server())


def test_the_job_of_a_killed_server_goes_on_and_its_next_start_sees_it_finish(
    server: StubExportServer, tmp_path: Path
) -> None:
    sign = tmp_path / "go"
    common = recipe(server, "Waiting", until=str(sign))
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", common)
    store.create(job)
    orphan = subprocess.Popen([sys.executable, "-m", "lsml_cli.server.training_job", tmp_path, job.id, "1"])
    try:
        deadline = time.monotonic() + PATIENCE
        while store.read(job.id).progress != Waiting.MESSAGE:
            assert time.monotonic() < deadline
            time.sleep(0.02)

        async def next_server() -> None:
            async with training(tmp_path, common, heartbeat_timeout=5.0) as trainer:
                assert trainer.is_training(3)
                await asyncio.sleep(0.3)
                sign.touch()
                await until(lambda: only(trainer).is_finished)
                assert (only(trainer).state, only(trainer).attempt) == ("done", 1)

        asyncio.run(next_server())
        assert orphan.wait(PATIENCE) == 0
    finally:
        orphan.kill()
        orphan.wait()


def test_the_orphan_that_died_with_its_server_is_begun_again(server: StubExportServer, tmp_path: Path) -> None:
    common = recipe(server)
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", common)
    store.create(job)
    store.write_heartbeat(store.claim(job.id, 1), 7)

    async def next_server() -> None:
        async with training(tmp_path, common, heartbeat_timeout=0.5) as trainer:
            await until(lambda: only(trainer).is_finished)
            assert (only(trainer).state, only(trainer).attempt) == ("done", 2)

    asyncio.run(next_server())


def test_a_process_without_a_record_says_so(tmp_path: Path) -> None:
    """What cannot be written down is the exit code's to say."""
    command = [sys.executable, "-m", "lsml_cli.server.training_job"]
    job = "20261121T101500-123-3f2a"
    run = subprocess.run([*command, tmp_path / "gone", job, "1"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "There is no folder" in run.stderr
    assert "has to be shared with this host" in run.stderr
    run = subprocess.run([*command, tmp_path, job, "1"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "is not the server's: There is no job" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_terminated_process_ends_as_by_sigterm(server: StubExportServer, tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", recipe(server, "Waiting", until=str(tmp_path / "never")))
    store.create(job)
    runner = EmbeddedRunner(tmp_path)
    runner.start(job)
    runner.start(job)  # that has been done
    deadline = time.monotonic() + PATIENCE
    while store.read(job.id).progress != Waiting.MESSAGE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert runner.get_status(job).state == "there"
    (process,) = processes_about(tmp_path)
    assert os.getsid(process.pid) == process.pid, "ctrl-C of the server's terminal does not reach it"
    process.send_signal(signal.SIGTERM)
    while runner.get_status(job).state == "there":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert runner.get_status(job).reason == "Its process was killed by SIGTERM."
    assert runner.stop() == [job.id]
    assert runner.get_status(replace(job, attempt=2)).state == "unknown"


def test_sigterm_for_every_process_of_a_server_is_its_end_and_not_that_of_the_job(
    server: StubExportServer, tmp_path: Path
) -> None:
    """As systemd stops a service."""
    sign, home, versions_folder = tmp_path / "go", tmp_path / "model", tmp_path / "versions"
    sign.touch()
    config = LabelConfig.parse(server.config)
    name = f"{TRAINABLE}:Waiting"
    training_tasks = task_reader.read_tasks(str(EXAMPLE / "annotated.json"))
    fit_version(resolve.find_model(name, {"until": str(sign)}), training_tasks, config, home)
    sign.unlink()
    serve = ServerFactory(tmp_path)
    options = "--versions", versions_folder, "--label-studio-url", server.url, "--with", f"until={sign}"
    environment = {label_studio.API_KEY_ENV_VAR: KEY}
    try:
        first = serve("--model", f"{name}@{home}", *options, env=environment)
        first.request_ok("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": 3}})
        serve_process.wait_until(
            "it learns",
            lambda: any(job["progress"] == Waiting.MESSAGE for job in serve_process.read_jobs(versions_folder)),
        )
        task = {"id": 1, "data": {"text": "hello", "seconds": 3}}
        request = {"tasks": [task], "project": "4.1", "label_config": server.config}
        with ThreadPoolExecutor(1) as pool:  # the server ends when this is answered; meanwhile it looks after its jobs
            answer = pool.submit(first.request_ok, "POST", "/predict", request)
            time.sleep(1)
            leader = psutil.Process(first.process.pid)
            for each in (*leader.children(recursive=True), leader):
                each.send_signal(signal.SIGTERM)
            assert all(answer.result()["results"])
        assert first.process.wait(30) == 0
        (job,) = JobStore(versions_folder).list_jobs()
        assert (job.state, job.attempt, job.reason) == ("waiting", 1, "The server was stopped.")
        sign.touch()
        serve("--model", f"{name}@{home}", *options, env=environment)
        serve_process.wait_until("it is done", lambda: JobStore(versions_folder).read(job.id).state == "done")
    finally:
        serve.close()


def grey(folder: Path, name: str, shade: int) -> bytes:
    """A picture, also as a file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"P5\n4 4\n255\n" + bytes([shade] * 16))
    return (folder / name).read_bytes()


def test_a_picture_model_trains_from_wherever_the_server_has_pictures(server: StubExportServer, tmp_path: Path) -> None:
    server.config = IMAGE_CONFIG
    server.tasks[3] = []
    open_url = server.url.replace("127.0.0.1", "localhost")
    for number in range(50):
        choice, name = ("dark", "bright")[number % 2], f"{number}.pgm"
        place = ("documents", "uploads", "bucket", "studio", "web")[number // 2 % 5]
        content = grey(tmp_path / place, name, 10 + number + 180 * (number % 2))
        server.files |= {"studio": {f"/data/upload/1/{name}": content}, "web": {f"/{name}": content}}.get(place, {})
        value = {
            "documents": f"/data/local-files/?d={name}",
            "uploads": f"/data/upload/{name}",
            "bucket": f"s3://bucket/{name}",
            "studio": f"/data/upload/1/{name}",
            "web": f"{open_url}/{name}",
        }[place]
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
        serve_process.wait_until("it has ended", lambda: [job for job in store.list_jobs() if job.is_finished])
        (job,) = store.list_jobs()
        assert (job.state, job.reason) == ("done", None)
        assert job.facts["counts"]["train"] + job.facts["counts"]["holdout"] == 50
        assert job.facts["metrics"]["light"]["accuracy"] == 1.0
        promoted = versions.read(versions.resolve(str(tmp_path / "versions" / "project-3")))
        assert promoted.state["device"] == "cpu"
        assert find_files_containing(tmp_path / "versions", KEY) == []
    finally:
        serve.close()


def test_a_worker_that_has_neither_the_folders_nor_the_device_trains_with_what_it_has(
    server: StubExportServer, tmp_path: Path
) -> None:
    server.config = IMAGE_CONFIG
    server.tasks[3] = []
    for number in range(20):
        name, choice = f"/data/upload/1/{number}.pgm", ("dark", "bright")[number % 2]
        server.files[name] = grey(tmp_path / "gone", f"{number}", 10 + number + 180 * (number % 2))
        region = {"from_name": "light", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
        annotations = [{"id": number, "was_cancelled": False, "result": [region]}]
        server.tasks[3].append({"id": number, "project": 3, "data": {"image": name}, "annotations": annotations})
    gone = str(tmp_path / "elsewhere")
    folders = {"document_root": gone, "upload_root": gone, "maps": {"/data/upload/": gone}, "media_cache": gone}
    common = replace(recipe(server, "Shades"), device="cuda:7", media_cache_size=1 << 20, **folders)
    job = trained(tmp_path, common)
    assert (job.state, job.reason) == ("done", None)
    assert not Path(gone).exists()


def test_jobs_says_what_is_not_there(lsml: Lsml, tmp_path: Path) -> None:
    run = lsml("jobs", tmp_path / "gone")
    assert run.returncode == 2
    assert run.stderr.startswith("lsml: There is no folder ")
    run = lsml("jobs", tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", f"lsml: There are no jobs in {tmp_path}.\n")
    store = JobStore(tmp_path)
    job = new_job(3, "START_TRAINING", TrainingJobConfig("m", "http://localhost"))
    store.create(job)
    (store.jobs_folder / "20261121T101500-123-3f2a.json").write_text("{")
    run = lsml("jobs", tmp_path)
    assert run.returncode == 0
    assert run.stderr.startswith(f"lsml: {store.jobs_folder}/20261121T101500-123-3f2a.json is damaged (")
    assert run.stdout.splitlines()[1].split()[:3] == [job.id, "3", "waiting"]


def test_the_tasks_come_as_they_are(server: StubExportServer, tmp_path: Path) -> None:
    with label_studio.connect(server.url) as there:
        assert there.get_label_config(3) == (EXAMPLE / "label_config.xml").read_text()
        there.download_annotated(3, tmp_path / "export.json")
    assert json.loads((tmp_path / "export.json").read_bytes()) == server.tasks[3]
    assert server.requests == ["/api/projects/3/", "/api/projects/3/export?export_type=JSON"]


def test_a_personal_access_token_is_exchanged(server: StubExportServer) -> None:
    with label_studio.connect(server.url, server.personal_token) as there:
        assert there.get_label_config(3) == server.config
    assert server.requests == ["/api/token/refresh/", "/api/projects/3/"]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (403, "refuses project 3 to the user of the API key."),
        (400, "answered 400 when asked for project 3: as the test wants it."),
    ],
)
def test_what_label_studio_refuses_is_a_sentence(server: StubExportServer, status: int, sentence: str) -> None:
    server.status = status
    with label_studio.connect(server.url) as there, pytest.raises(LsmlError) as raised:
        there.get_label_config(3)
    assert sentence in str(raised.value)
    assert KEY not in str(raised.value)


def test_an_address_that_is_none(server: StubExportServer) -> None:
    with pytest.raises(UsageError, match=r"Write http:// or https:// before the host"):
        label_studio.connect("localhost:8080", KEY)
    with label_studio.connect("http://127.0.0.1:9", KEY) as there, pytest.raises(LsmlError, match=r"cannot be reached"):
        there.get_label_config(3)


def test_an_export_that_stops_short_is_noticed(server: StubExportServer, tmp_path: Path) -> None:
    """Where nobody says how long it should be, its last sign does."""
    path = tmp_path / "export.json"
    whole = json.dumps(server.tasks[3])
    path.write_text(whole)
    assert client._is_complete_json_array(path)
    path.write_text(whole[:-1] + "\n")
    assert not client._is_complete_json_array(path)
    server.tasks[3] = {"detail": "no list"}  # type: ignore[assignment]
    with label_studio.connect(server.url) as there, pytest.raises(LsmlError, match=r"only in part"):
        there.download_annotated(3, path)


def test_a_missing_extra_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rq", None)
    with pytest.raises(LsmlError, match=r"need the packages redis and rq\. pip install 'lsml\[redis\]'"):
        connect_redis("redis://localhost:6379/0")
