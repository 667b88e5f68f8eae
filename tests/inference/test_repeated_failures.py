"""Failures are told by cause: the first of each at once, then counts, and a warning where nothing works."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from lsml_cli.commands.console.progress import Console
from tests.helpers import models
from tests.helpers.cli import run_in_process
from tests.helpers.predict_runs import FRAGILE, make_task

ENCODE = "this one cannot be encoded"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    return tmp_path


def predict(actions: Sequence[str | None], *options: str) -> list[str]:
    """Predict tasks that fail as `actions` say; return what was printed, without its times."""
    tasks = [make_task(n, do=action) for n, action in enumerate(actions)]
    Path("tasks.jsonl").write_text("".join(f"{json.dumps(task)}\n" for task in tasks))
    run = run_in_process("predict", "tasks.jsonl", "-m", FRAGILE, "-c", "config.xml", "-o", "out.json", *options)
    assert run.returncode == (3 if any(actions) else 0), run.stderr
    assert run.stdout == ""
    return re.sub(r" in [\d.,]+ s \([\d.,]+/s\)", "", run.stderr).splitlines()


def test_few_failures_of_one_cause_are_a_few_lines(work: Path) -> None:
    assert predict(["raise in encode"] * 46) == [
        f"lsml: failed: tasks.jsonl, line 1, task 0: {ENCODE}",
        f"lsml: 10 tasks have failed so far (encode), such as tasks.jsonl, line 1, task 0: {ENCODE}.",
        "lsml: 46 tasks: 0 predicted, 46 failed -> out.json",
        f"lsml: 46 tasks failed (encode), such as tasks.jsonl, line 1, task 0: {ENCODE}.",
        "lsml: --errors FILE lists every failure.",
    ]


def test_run_in_which_everything_fails_warns_loudly_and_goes_on(work: Path) -> None:
    assert predict(["raise in encode"] * 250, "--errors", "errors.jsonl") == [
        f"lsml: failed: tasks.jsonl, line 1, task 0: {ENCODE}",
        f"lsml: 10 tasks have failed so far (encode), such as tasks.jsonl, line 1, task 0: {ENCODE}.",
        f"lsml: 100 tasks have failed so far (encode), such as tasks.jsonl, line 1, task 0: {ENCODE}.",
        f"lsml: WARNING: all of the first 200 tasks failed, for one reason: {ENCODE} (encode).",
        "      The run goes on. Stop it with ctrl-C, or let --max-failures N stop such a run.",
        "lsml: 250 tasks: 0 predicted, 250 failed -> out.json",
        f"lsml: 250 tasks failed (encode), such as tasks.jsonl, line 1, task 0: {ENCODE}.",
        "lsml: All failures are in errors.jsonl.",
    ]


def test_quiet_runs_warn_as_well(work: Path) -> None:
    lines = predict(["raise in encode"] * 250, "--quiet")
    assert lines[0] == f"lsml: WARNING: all of the first 200 tasks failed, for one reason: {ENCODE} (encode)."


def test_one_predicted_task_among_failures_does_not_warn(work: Path) -> None:
    assert not any("WARNING" in line for line in predict([*(["raise in encode"] * 199), None, "raise in encode"] * 2))


def test_every_cause_is_told_once(work: Path) -> None:
    lines = predict(["raise in encode", None, "raise in forward", "raise in encode", None])
    assert [line for line in lines if line.startswith("lsml: failed: ")] == [
        f"lsml: failed: tasks.jsonl, line 1, task 0: {ENCODE}",
        next(line for line in lines if "line 3, task 2" in line),
    ]
    assert lines[3].startswith(f"lsml: 2 tasks failed (encode), such as tasks.jsonl, line 1, task 0: {ENCODE}.")
    assert lines[4].startswith("lsml: 1 task failed (forward): tasks.jsonl, line 3, task 2: ")


def test_retry_tells_repeated_failures_by_cause(work: Path) -> None:
    actions = ["raise in encode", None] * 46
    predict(actions, "--errors", "errors.jsonl")
    lines = predict(actions, "--errors", "again.jsonl", "--retry-failed", "errors.jsonl")
    assert [line for line in lines if ENCODE in line] == [
        f"lsml: failed: tasks.jsonl, line 1, task 0: {ENCODE}",
        f"lsml: 10 tasks have failed so far (encode), such as tasks.jsonl, line 1, task 0: {ENCODE}.",
        f"lsml: 46 tasks failed (encode), such as tasks.jsonl, line 1, task 0: {ENCODE}.",
    ]


def test_resumed_run_says_what_failed_before(work: Path) -> None:
    actions = ["raise in encode"] * 40
    files = ("-o", "out.json", "--summary", "summary.json", "--batch-size", "5")
    predict(actions)
    Path("out.json").unlink()
    stopped = run_in_process(
        *("predict", "tasks.jsonl", "-m", FRAGILE, "-c", "config.xml", *files, "--max-failures", "20")
    )
    assert stopped.returncode == 1
    lines = predict(actions, *files, "--resume")
    assert lines[-2] == "lsml: 25 tasks failed before the run was resumed."
    [cause] = json.loads(Path("summary.json").read_bytes())["failure_causes"]
    assert cause == {"stage": "encode", "reason": ENCODE, "example": "tasks.jsonl, line 26, task 25", "count": 15}


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "is_red"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_warning_is_red_on_a_terminal(
    is_terminal: bool,
    no_color: str,
    is_red: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    with Console(quiet=True) as console:
        console.warn("Nothing works.", "Stop.")
    text = "lsml: Nothing works.\n      Stop."
    assert capsys.readouterr().err == (f"\x1b[31m{text}\x1b[0m\n" if is_red else f"{text}\n")
