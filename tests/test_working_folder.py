"""The working folder may hold data from a stranger: no module in it is imported, by no process that lsml starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lsml_cli import runtime
from lsml_cli.registry import extras
from lsml_cli.server.job_record import TrainingJobConfig, new_job
from lsml_cli.server.job_runners.embedded import EmbeddedRunner
from tests.helpers.cli import EXAMPLE, ROOT

# Of the standard library and of packages: what Python and multiprocessing import first, and what lsml imports late.
MODULES = ("multiprocessing", "signal", "socket", "pickle", "tempfile", "sklearn", "numpy", "orjson", "httpx", "torch")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules that leave a file `was-here-MODULE` when they are imported."""
    for name in MODULES:
        mark = str(tmp_path / f"was-here-{name}")
        (tmp_path / f"{name}.py").write_text(f"open({mark!r}, 'w').close()\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


def planted_modules_that_ran(work: Path) -> list[str]:
    return sorted(path.name for path in work.glob("was-here-*"))


@pytest.mark.parametrize("command", [[str(Path(sys.executable).with_name("lsml"))], [sys.executable, "-m", "lsml_cli"]])
def test_predicting_in_several_processes_imports_nothing_from_the_data(
    work: Path, ticket_model: Path, command: list[str]
) -> None:
    options = ["--model", str(ticket_model), "--workers", "2", "-o", "out.json", "--quiet"]
    run = subprocess.run(
        [*command, "predict", str(EXAMPLE / "tasks.json"), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, planted_modules_that_ran(work)) == (0, []), run.stderr


def test_module_in_the_data_is_no_model(work: Path) -> None:
    (work / "evil.py").write_text("open('was-here-evil', 'w').close()\n")
    run = subprocess.run(
        [sys.executable, "-m", "lsml_cli", "models", "evil:Evil"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, planted_modules_that_ran(work)) == (2, []), run.stderr
    assert "There is no module evil." in run.stderr


def test_module_run_from_a_checkout_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the working folder is the one that lsml itself is imported from."""
    monkeypatch.chdir(ROOT)
    command = [sys.executable, "-m", "lsml_cli", "models", "tests.helpers.models:Words"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_training_process_imports_nothing_from_the_data(work: Path) -> None:
    runner = EmbeddedRunner(work / "versions")
    job = new_job(1, "test", TrainingJobConfig("text-classifier", "http://localhost:1"))
    runner.start(job)
    runner._processes[job.id, job.attempt].wait(30)
    assert planted_modules_that_ran(work) == []


def test_doctor_imports_nothing_from_the_data(work: Path) -> None:
    works, detail = extras._run_probe("lsml_cli.models.torch_runtime:probe")
    assert planted_modules_that_ran(work) == [], (works, detail)


def test_child_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that a model starts imports from its own folder as usual; what the user has set stays set."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with runtime.safe_child_import_path():
        assert os.environ["PYTHONSAFEPATH"]
        runtime.restore_child_environment()
        assert "PYTHONSAFEPATH" not in os.environ
    assert "PYTHONSAFEPATH" not in os.environ
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with runtime.safe_child_import_path():
        runtime.restore_child_environment()
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ["PYTHONSAFEPATH"] == "1"
