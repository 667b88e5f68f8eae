"""Autotune: done once before the first batch, stored with the run, and reused when it is resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lsml_cli.models.base import AutotuneResult, Binding
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import Task
from tests.helpers import models
from tests.helpers.cli import Lsml, run_in_process
from tests.helpers.processes import wait_until_journaled

AUTOTUNED_MODEL = f"{__file__}:Autotuned"
COUNT = 400


class Autotuned(models.Words):
    """Scores are halved in "bf16", so that they show the precision. Each call of `autotune` is a line in `log`."""

    batch_size = 16
    auto_params = ("precision",)
    params: ClassVar = {"pause": 0.0, "precision": "auto", "log": "autotune.log", "decides": True}

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Task:
        if task.data.get("bad"):
            raise ValueError("this one cannot be encoded")
        return task

    def autotune(self, binding: Binding, inputs: Sequence[Any], batch_size: int | None) -> AutotuneResult | None:
        with Path(self.param("log")).open("a") as log:
            log.write(json.dumps({"inputs": len(inputs), "batch_size": batch_size}) + "\n")
        if not self.param("decides"):
            return None
        return AutotuneResult({"precision": "bf16"}, batch_size or 5, "It was tried out.")

    def decode(self, output: int, task: Task, binding: Binding) -> Prediction:
        assert self.param("precision") != "auto" or len(task.data) == 2, "no precision was chosen for this task"
        score = 0.5 if self.param("precision") == "bf16" else 1.0
        return models.make_choice_prediction(self, task, binding, "long" if output > 5 else "short", score)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    Path("tasks.jsonl").write_text("\n".join(lines(COUNT)))
    return tmp_path


def lines(count: int, **more: Any) -> list[str]:
    return [json.dumps({"id": n, "data": {"text": "word " * (n % 9)} | more}) for n in range(count)]


def arguments(*options: str, tasks: str = "tasks.jsonl", output: str = "out.json") -> list[str]:
    return ["predict", tasks, "-m", AUTOTUNED_MODEL, "-c", "config.xml", "-o", output, *options]


def autotune_calls() -> list[dict[str, Any]]:
    log = Path("autotune.log")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def scores(output: str = "out.json") -> set[float]:
    return {task["predictions"][0]["score"] for task in json.loads(Path(output).read_bytes())}


@pytest.mark.parametrize("workers", ["1", "3"])
def test_autotune_runs_once_for_all_replicas(lsml: Lsml, work: Path, workers: str) -> None:
    run = lsml(*arguments("--workers", workers))
    assert run.returncode == 0, run.stderr
    assert autotune_calls() == [{"inputs": 64, "batch_size": 16}]
    assert scores() == {0.5}
    assert run.stderr.count("It was tried out.") == 1
    records = json.loads(Path("out.json").read_bytes())
    assert [task["id"] for task in records] == list(range(COUNT))  # those of the sample once, too


def test_batch_size_auto_is_measured(lsml: Lsml, work: Path) -> None:
    run = lsml(*arguments("--batch-size", "auto", "--with", "precision=fp32"))
    assert run.returncode == 0, run.stderr
    assert autotune_calls() == [{"inputs": 64, "batch_size": None}]


def test_given_values_are_not_autotuned(lsml: Lsml, work: Path) -> None:
    assert lsml(*arguments("--precision", "fp32")).returncode == 0
    assert autotune_calls() == []
    assert scores() == {1.0}
    wrong = lsml(*arguments("--batch-size", "many"))
    assert wrong.returncode == 2
    assert "--batch-size 'many' is neither a whole number from 1 to 2^63 - 1 nor auto." in wrong.stderr


@pytest.mark.parametrize("options", [["--limit", "63"], []])
def test_short_run_is_not_autotuned(lsml: Lsml, work: Path, options: list[str]) -> None:
    Path("few.jsonl").write_text("\n".join(lines(100 if options else 63, few=True)))
    run = lsml(*arguments(*options, "--batch-size", "auto", tasks="few.jsonl"))
    assert run.returncode == 0, run.stderr
    assert autotune_calls() == []
    assert len(json.loads(Path("out.json").read_bytes())) == 63


def test_unusable_tasks_are_left_out_of_sample(lsml: Lsml, work: Path) -> None:
    bad = lines(COUNT)
    bad[3] = json.dumps({"id": 3, "data": {"text": "x", "bad": True}})
    bad[5] = "{truncated"
    Path("tasks.jsonl").write_text("\n".join(bad))
    run = lsml(*arguments())
    assert run.returncode == 3, run.stderr
    assert autotune_calls() == [{"inputs": 62, "batch_size": 16}]


def test_model_may_decline_to_autotune(lsml: Lsml, work: Path) -> None:
    Path("tasks.jsonl").write_text("\n".join(lines(COUNT, few=True)))
    run = lsml(*arguments("--with", "decides=false"))
    assert run.returncode == 0, run.stderr
    assert len(autotune_calls()) == 1
    assert scores() == {1.0}


def test_autotune_on_pipe_keeps_all_tasks(lsml: Lsml, work: Path) -> None:
    run = lsml("predict", "-", "-m", AUTOTUNED_MODEL, "-c", "config.xml", input=Path("tasks.jsonl").read_text())
    assert [json.loads(line)["id"] for line in run.stdout.splitlines()] == list(range(COUNT))
    assert "It was tried out." in run.stderr


@pytest.fixture
def unfinished(work: Path) -> Path:
    command = [sys.executable, "-m", "lsml_cli", *arguments("--with", "pause=0.05", "--quiet")]
    with subprocess.Popen(command) as run:
        wait_until_journaled("out.json", 50)
        run.kill()
    return work


def test_resumed_run_reuses_autotuned_values(lsml: Lsml, unfinished: Path) -> None:
    header = json.loads(Path("out.json.part.journal").read_text().splitlines()[0])
    assert header["started_with"]["tuned"] == {"precision": "bf16", "batch_size": 16}
    run = lsml(*arguments("--with", "pause=0.05", "--resume"))
    assert run.returncode == 0, run.stderr
    assert len(autotune_calls()) == 1  # in the run that was killed
    assert scores() == {0.5}
    assert lsml(*arguments("--with", "pause=0.05", output="clean.json")).returncode == 0
    assert Path("out.json").read_bytes() == Path("clean.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--batch-size", "7"], "--batch-size was 16, now it is 7"),
        (["--precision", "bf16"], "model digest was"),
    ],
)
def test_resume_rejects_other_autotune_options(lsml: Lsml, unfinished: Path, options: list[str], sentence: str) -> None:
    run = lsml(*arguments("--with", "pause=0.05", "--resume", *options))
    assert run.returncode == 2
    assert sentence in run.stderr


@pytest.mark.parametrize(
    ("autotuned", "objection"),
    [
        ({"log": "elsewhere.log"}, "it sets log"),
        ({"trust_checkpoint": True, "checkpoint_file": "evil.pth"}, "it sets checkpoint_file, trust_checkpoint"),
        ({"precision": {"a": 1}}, "precision must be a text"),
        ({"precision": "bf16", "batch_size": 10**12}, "its batch size is not between 1 and 4,096"),
        ({"precision": "bf16", "batch_size": True}, "its batch size is not between 1 and 4,096"),
    ],
)
def test_planted_journal_decides_nothing_but_what_is_autotuned(
    work: Path, autotuned: dict[str, Any], objection: str
) -> None:
    Path("out.json.part").touch()
    Path("out.json.part.journal").write_text(json.dumps({"started_with": {"tuned": autotuned}}) + "\n")
    run = run_in_process(*arguments("--resume"))
    assert (run.returncode, run.stdout) == (2, "")
    assert f"out.json.part.journal is damaged, so the run cannot be resumed: {objection}" in run.stderr
    assert "Delete it, and start over without --resume." in run.stderr
    assert not Path("elsewhere.log").exists()
