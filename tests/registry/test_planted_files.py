"""Files that a stranger put into a folder of versions or jobs: read in bounded time and memory, and never obeyed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import InputError, ModelError
from lsml_cli.registry import resolve, versions
from lsml_cli.registry.seen_tasks import read_seen_tasks
from lsml_cli.runtime import read_small_file
from lsml_cli.server.job_record import Job, TrainingJobConfig, job_to_dict, new_job
from lsml_cli.server.job_store import JobStore
from tests.helpers.cli import EXAMPLE
from tests.helpers.cli import run_in_process as run

CONFIG = TrainingJobConfig("text-classifier", "http://localhost:1")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


ENDLESS = [make_pipe, link_to_endless_device, make_large]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE / "tasks.json", "tasks.json")
    shutil.copy(EXAMPLE / "annotated.json", "annotated.json")
    return tmp_path


@pytest.fixture
def version(work: Path, ticket_model: Path) -> Path:
    """The folder of a trained version, a copy, of the model `m`."""
    shutil.copytree(ticket_model, "m")
    return versions.resolve("m")


@pytest.mark.parametrize("plant", ENDLESS)
def test_small_file_is_read_in_bounded_time_and_memory(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "file")
    with pytest.raises(OSError, match=r"it is no regular file|it is larger than 100 bytes"):
        read_small_file(tmp_path / "file", 100)
    (tmp_path / "other").write_bytes(b"a" * 100)
    assert read_small_file(tmp_path / "other", 100) == b"a" * 100


@pytest.mark.parametrize("plant", ENDLESS)
@pytest.mark.parametrize("name", ["current", "model.json", "model.toml"])
def test_endless_file_of_a_model_is_refused(version: Path, plant: Callable[[Path], None], name: str) -> None:
    path = {"current": Path("m/current"), "model.json": version / name, "model.toml": Path("p/model.toml")}[name]
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    plant(path)
    root = path.parts[0]
    for args in (["models", root], ["predict", "tasks.json", "-m", root], ["versions", root]):
        assert run(*args).returncode in (0, 1)  # `versions` lists what it can


@pytest.mark.parametrize("plant", [make_pipe, link_to_endless_device])
def test_pipe_that_model_json_does_not_name_is_refused(version: Path, plant: Callable[[Path], None]) -> None:
    """A model opens its weights by their name."""
    (version / "weights.safetensors").unlink()
    plant(version / "weights.safetensors")
    content = json.loads((version / "model.json").read_text())
    content["files"], content["digests"] = {}, {}
    (version / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="is a pipe or a device, which no version has"):
        resolve.find_model("m")


@pytest.mark.parametrize("size", [1 << 20, 1 << 200, "(("])
def test_sidecar_that_claims_more_than_it_holds_is_damaged(version: Path, size: object) -> None:
    path = version / versions.TRAINED_TASKS_FILE
    header = f"{{'descr': '<u8', 'fortran_order': False, 'shape': ({size},), }}".ljust(117).encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16))
    content = json.loads((version / "model.json").read_text())
    content["files"][path.name] = path.stat().st_size
    (version / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="is damaged"):
        read_seen_tasks(version)


@pytest.mark.parametrize("name", ["a\0b", "../../elsewhere", "x" * 300, "/etc"])
def test_promoted_version_of_an_impossible_name_is_no_version(version: Path, name: str) -> None:
    Path("m/current").write_text(name)
    options = ["--model", "text-classifier", "-c", str(EXAMPLE / "label_config.xml"), "-o", "m"]
    done = run("fit", "annotated.json", *options, "--skip-unchanged", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert run("models", "m").returncode == 1


# Jobs


def write_job(folder: Path, **changes: Any) -> Job:
    job = new_job(3, "START_TRAINING", CONFIG)
    (folder / ".jobs").mkdir(parents=True, exist_ok=True)
    content = {"format": 1} | job_to_dict(job) | changes
    (folder / ".jobs" / f"{job.id}.json").write_text(json.dumps(content))
    return job


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": {"a": nested(600)}},
        {"started": "yesterday"},
        {"started": "2026-11-21T10:15:00Z", "ended": "2026-13-21T10:15:00Z"},
        {"started": "2026-11-21T10:15:00", "ended": "2026-11-21T10:15:00.000Z"},
        {"created": None},
        {"attempt": 2**63},
        {"attempt": -1},
        {"project": -3},
        {"state": "unheard of"},
        {"params": [1]},
    ],
)
def test_damaged_job_is_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    job = write_job(tmp_path, **changes)
    with pytest.raises(InputError, match=r"is damaged \(it"):
        JobStore(tmp_path).read(job.id)
    listed = run("jobs", str(tmp_path))
    assert "is damaged" in listed.stderr
    assert "bug" not in listed.stderr


@pytest.mark.parametrize("plant", ENDLESS)
def test_endless_file_of_a_job_costs_that_job(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    kept, lost = write_job(tmp_path), write_job(tmp_path)
    store = JobStore(tmp_path)
    for path in (tmp_path / ".jobs" / f"{lost.id}.json", store.heartbeat_file(kept), store.jobs_folder / "annotations"):
        path.unlink(missing_ok=True)
        plant(path)
    assert [job.id for job in store.list_jobs()] == [kept.id]
    assert store.read_heartbeat(kept) is None
    assert store.read_annotation_counts() == {}


def test_impossible_counts_of_annotations_are_dropped(tmp_path: Path) -> None:
    (tmp_path / ".jobs").mkdir()
    counts = '{"3": 4, "5": 99999999999999999999, "6": -1, "7": 1.5, "8": "9", "9": true}'
    (tmp_path / ".jobs" / "annotations").write_text(counts)
    assert JobStore(tmp_path).read_annotation_counts() == {3: 4}
