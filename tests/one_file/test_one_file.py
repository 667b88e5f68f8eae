"""The one-file lsml of `make binary`: on a system without Python, killed, interrupted, damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from lsml_cli import label_studio
from tests.helpers.cli import EXAMPLE, run_in_process
from tests.helpers.processes import kill_process, wait_until_journaled
from tests.helpers.serve_process import ServerFactory, wait_until
from tests.helpers.studio_server import KEY, StubExportServer, run_export_server

pytestmark = pytest.mark.one_file

CONFIG = EXAMPLE / "label_config.xml"
# What the C library of a system consists of; nothing else is in the root without Python.
C_LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libresolv.so.2",
)
LOADER = Path("/lib64/ld-linux-x86-64.so.2")

MODEL_CODE = """\
import time
from fractions import Fraction  # of the standard library
from lsml_cli import Model, Prediction
from words import LONG  # beside this file


class Careful(Model):
    params = {"pause": 0.0}

    def forward(self, inputs, binding):
        time.sleep(self.param("pause") * len(inputs))
        return [Fraction(len(task.data["text"]), LONG) for task in inputs]

    def decode(self, output, task, binding):
        control = binding.config.controls["category"]
        region = control.region(task, {"choices": ["Billing"]}, score=float(min(output, 1)))
        return Prediction.of([region], self.version)
"""


@pytest.fixture(scope="session")
def one_file() -> Path:
    path = os.environ.get("LSML_ONE_FILE")
    if not path:
        pytest.fail("LSML_ONE_FILE names no file: run `make test-binary`")
    return Path(path).resolve()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the file unpacks into, for all tests that do not test that."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(cache: Path) -> dict[str, str]:
    return make_environment(cache)


def make_environment(cache: Path) -> dict[str, str]:
    """Return variables of a system where no program is found, and with a Python that would do harm if it were used."""
    return {
        "PATH": "/nowhere",
        "HOME": "/nowhere",
        "XDG_CACHE_HOME": str(cache),
        "PYTHONHOME": "/nowhere",
        "COLUMNS": "120",
    }


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    (tmp_path / "words.py").write_text("LONG = 80\n")
    path = tmp_path / "model.py"
    path.write_text(MODEL_CODE)
    return path


def run(
    one_file: Path, environment: Mapping[str, str], *arguments: str | Path, cwd: Path | None = None
) -> CompletedProcess[str]:
    command = [str(one_file), *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        timeout=150,
        check=False,
    )


def unpacked(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "lsml" / "binary").iterdir())


class Root:
    """A root file system with a C library, the one file, and data; without Python, a shell or any other program."""

    def __init__(self, folder: Path, one_file: Path) -> None:
        self.folder = folder
        for name in ("proc", "dev", "tmp", "home", "lib64", "lib/x86_64-linux-gnu"):
            (folder / name).mkdir(parents=True)
        for name in C_LIBRARIES:
            shutil.copy(Path("/lib/x86_64-linux-gnu") / name, folder / "lib/x86_64-linux-gnu")
        shutil.copy(LOADER, folder / "lib64")
        shutil.copy(one_file, folder / "lsml")
        shutil.copytree(EXAMPLE, folder / "home/example")

    def run(self, *arguments: str) -> CompletedProcess[str]:
        mounts = 'mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && root=$1 && shift && '
        script = f'{mounts}exec chroot "$root" /lsml "$@"'
        isolate = ["unshare", "--map-root-user", "--mount", "--pid", "--fork"]
        command = [*isolate, "sh", "-c", script, "sh", str(self.folder), *arguments]
        environment = {"HOME": "/home", "PATH": os.environ["PATH"]}  # whose folders are not in this root
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=170, check=False
        )


def test_main_job_runs_on_a_system_without_python(one_file: Path, tmp_path: Path) -> None:
    root = Root(tmp_path / "root", one_file)
    assert not list(root.folder.rglob("*python*"))
    fit = root.run(
        *("fit", "/home/example/annotated.json", "-m", "text-classifier"),
        *("-c", "/home/example/label_config.xml", "-o", "/home/tickets"),
    )
    assert fit.returncode == 0, fit.stderr
    predict = root.run("predict", "/home/example/tasks.json", "-m", "/home/tickets", "-o", "/home/p.json", "-w", "2")
    assert (predict.returncode, predict.stdout) == (0, ""), predict.stderr
    assert "158 tasks: 158 predicted, 0 failed" in predict.stderr
    assert root.run("evaluate", "/home/example/annotated.json", "-m", "/home/tickets").returncode == 0
    assert root.run("rank", "/home/p.json", "-o", "/home/r.json").returncode == 0
    assert " yes " in root.run("versions", "/home/tickets").stdout
    assert root.run("init", "/home/project", "--model", "text-classifier").returncode == 0

    installed = run_in_process("predict", EXAMPLE / "tasks.json", "-m", root.folder / "home/tickets")
    expected = [json.loads(line)["predictions"] for line in installed.stdout.splitlines()]
    assert [task["predictions"] for task in json.loads((root.folder / "home/p.json").read_bytes())] == expected


def test_predictions_equal_those_of_another_process_count(
    one_file: Path, environment: dict[str, str], own_model: Path
) -> None:
    outputs = [
        run(
            one_file, environment, "predict", EXAMPLE / "tasks.json", "-m", own_model, "-c", CONFIG, "-w", workers
        ).stdout
        for workers in ("1", "2")
    ]
    assert outputs[0].count("\n") == 158
    assert outputs[0] == outputs[1]


def test_missing_packages_are_explained(one_file: Path, environment: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "config.xml"
    config.write_text(
        '<View><Image name="i" value="$image"/><Choices name="c" toName="i">'
        '<Choice value="a"/><Choice value="b"/></Choices></View>'
    )
    (tmp_path / "tasks.json").write_text('[{"data": {"image": "a.jpg"}}]')
    result = run(one_file, environment, "predict", tmp_path / "tasks.json", "-m", "image-classifier", "-c", config)
    assert result.returncode == 1
    assert "This one-file lsml cannot install packages" in result.stderr
    doctor = run(one_file, environment, "doctor")
    assert doctor.returncode == 0
    assert str(one_file) not in doctor.stdout


# --- unpacking


def test_two_first_starts_at_once_succeed(one_file: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path)
    starts = [
        subprocess.Popen([one_file, "--version"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [start.communicate(timeout=120) for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0]
    assert {output for output, _ in outputs} == {outputs[0][0]}
    assert [error for _, error in outputs] == [b"", b"", b""]
    assert len(unpacked(tmp_path)) == 1


def test_cache_that_cannot_be_written_is_replaced_by_a_private_folder(one_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    result = run(one_file, make_environment(tmp_path / "cache") | {"TMPDIR": str(temporary)}, "--version")
    assert (result.returncode, result.stderr) == (0, "")
    (folder,) = temporary.iterdir()
    assert folder.name == f"lsml-binary-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", ["a link", "a folder that others may write"])
def test_planted_folder_is_not_run(
    one_file: Path, cache: Path, environment: dict[str, str], tmp_path: Path, planted: str
) -> None:
    run(one_file, environment, "--version")
    (digest,) = unpacked(cache)
    evil = tmp_path / "evil"
    (evil / "bin").mkdir(parents=True)
    python = evil / "bin/python3"
    python.write_text(f"#!/bin/sh\n: > {tmp_path}/was-run\n")
    python.chmod(0o755)
    place = tmp_path / "cache/lsml/binary"
    place.mkdir(parents=True)
    if planted == "a link":
        (place / digest).symlink_to(evil)
    else:
        evil.rename(place / digest)
        (place / digest).chmod(0o777)
    result = run(one_file, make_environment(tmp_path / "cache"), "--version")
    assert not (tmp_path / "was-run").exists()
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in place.iterdir()] == [digest], "nothing is left behind"


@pytest.mark.parametrize("damage", ["cut", "changed", "cut early"])
def test_damaged_file_is_one_sentence_and_leaves_nothing(one_file: Path, tmp_path: Path, damage: str) -> None:
    content = bytearray(one_file.read_bytes())
    if damage == "cut":
        del content[-1_000_000:]
    elif damage == "changed":
        content[len(content) // 2] ^= 0xFF
    else:
        del content[2_000_000:]
    damaged = tmp_path / "lsml"
    damaged.write_bytes(content)
    damaged.chmod(0o755)
    result = run(damaged, make_environment(tmp_path / "cache"), "--version")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Download it again." in result.stderr
    assert not (tmp_path / "cache").exists() or unpacked(tmp_path / "cache") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_unpacking_is_done_again(one_file: Path, tmp_path: Path, number: signal.Signals) -> None:
    environment = make_environment(tmp_path)
    start = subprocess.Popen([one_file, "--version"], env=environment)
    wait_until("it unpacks", lambda: (tmp_path / "lsml/binary").is_dir() and unpacked(tmp_path))
    start.send_signal(number)
    assert start.wait(30) == -number
    if number == signal.SIGTERM:
        assert unpacked(tmp_path) == []
    assert run(one_file, environment, "--version").returncode == 0


# --- processes and signals


def start_prediction(
    one_file: Path, environment: dict[str, str], folder: Path, model: Path, *options: str
) -> subprocess.Popen[bytes]:
    command: list[str | Path] = [one_file, "predict", EXAMPLE / "tasks.json", "-m", model, "-c", CONFIG]
    return subprocess.Popen(
        [*command, "-o", "out.json", "--with", "pause=0.02", "--batch-size", "4", *options],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_run_resumes_to_the_same_bytes(
    one_file: Path,
    environment: dict[str, str],
    tmp_path: Path,
    own_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    clean = run(
        *(one_file, environment, "predict", EXAMPLE / "tasks.json", "-m", own_model, "-c", CONFIG, "-o", "clean.json"),
        *("--with", "pause=0.02", "--batch-size", "4"),
    )
    assert clean.returncode == 0, clean.stderr
    process = start_prediction(one_file, environment, tmp_path, own_model, "-w", workers)
    wait_until_journaled("out.json", 30)
    kill_process(process)
    process.communicate()
    resumed = start_prediction(one_file, environment, tmp_path, own_model, "-w", workers, "--resume")
    _, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors.decode()
    assert Path("out.json").read_bytes() == Path("clean.json").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_signal_ends_a_run_that_can_be_resumed(
    one_file: Path,
    environment: dict[str, str],
    tmp_path: Path,
    own_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    process = start_prediction(one_file, environment, tmp_path, own_model, "-w", "2")
    wait_until_journaled("out.json", 10)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert Path("out.json.part").exists()


def test_closed_pipe_ends_quietly(one_file: Path, environment: dict[str, str], own_model: Path) -> None:
    command = f"{one_file} predict {EXAMPLE}/tasks.json -m {own_model} -c {CONFIG} -q | (read -r line; echo ${{#line}})"
    script = f"set -o pipefail; {command}"
    result = subprocess.run(["/bin/bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) > 100


def test_model_of_ones_own_is_checked_and_predicts(
    one_file: Path, environment: dict[str, str], own_model: Path
) -> None:
    result = run(
        one_file, environment, "predict", EXAMPLE / "tasks.json", "-m", own_model, "-c", CONFIG, "--limit", "3"
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3


@pytest.fixture
def studio() -> Iterator[StubExportServer]:
    with run_export_server() as running:
        yield running


def test_server_trains_in_the_background(
    one_file: Path, environment: dict[str, str], studio: StubExportServer, tmp_path: Path
) -> None:
    factory = ServerFactory(tmp_path, [str(one_file)])
    variables = environment | {label_studio.API_KEY_ENV_VAR: KEY, "NO_PROXY": "127.0.0.1"}
    try:
        server = factory(
            *("--model", "text-classifier", "--versions", tmp_path / "versions", "--label-studio-url", studio.url),
            env=variables,
        )
        server.request_ok("POST", "/setup", {"project": "3.1", "schema": studio.config})
        server.request_ok("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": 3}})
        task = {"id": 1, "data": {"text": "Where is my parcel?"}}
        body = {"tasks": [task], "project": "3.1", "label_config": studio.config}

        def answers_with_the_new_version() -> bool:
            (prediction,) = server.request_ok("POST", "/predict", body)["results"]
            return str(prediction["model_version"]).startswith("project-3@")

        wait_until("a version is trained and in use", answers_with_the_new_version)
    finally:
        factory.close()
