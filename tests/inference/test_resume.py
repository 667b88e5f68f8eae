"""A killed run resumes to the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lsml_cli.errors import ResumeRefused
from lsml_cli.io.journal import Journal, JournalEntry, JournalState
from tests.helpers import models
from tests.helpers.predict_runs import FRAGILE, make_task
from tests.helpers.processes import kill_process, start_lsml, wait_for, wait_until_journaled

SEED = 20261120


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    actions = {n: ("raise in encode", "raise in forward", "unknown label")[n % 3] for n in range(7, 3_000, 97)}
    lines = [json.dumps(make_task(n, do=actions.get(n))) for n in range(3_000)]
    lines[1_234] = "{truncated"
    Path("tasks.jsonl").write_text("\n".join(lines))
    Path("tasks.json").write_text("[" + ",".join(line for line in lines if line != "{truncated") + "]")
    return tmp_path


def arguments(tasks: str, output: str, workers: int = 1) -> list[str]:
    options = ["predict", tasks, "-m", FRAGILE, "-c", "config.xml", "-o", output, "--errors", "errors.jsonl"]
    return [*options, "--with", "pause=0.004", "--workers", str(workers), "--quiet"]


@pytest.mark.parametrize(("output_format", "workers"), [("json", 1), ("jsonl", 1), ("json", 2), ("jsonl", 2)])
def test_run_killed_at_random_resumes_to_same_bytes(lsml, work, output_format, workers):
    rng = random.Random(f"{SEED} {output_format} {workers}")
    tasks = "tasks.json" if output_format == "json" else "tasks.jsonl"
    assert lsml(*arguments(tasks, f"clean.{output_format}")).returncode == 3
    clean = Path(f"clean.{output_format}").read_bytes(), Path("errors.jsonl").read_bytes()
    Path("errors.jsonl").unlink()
    for target in (-1, *sorted(rng.sample(range(1_600), 4))):  # in tasks; -1: while the run still starts
        run = start_lsml(*arguments(tasks, f"out.{output_format}", workers), "--resume")
        time.sleep(rng.uniform(0, 0.3))
        wait_until_journaled(f"out.{output_format}", target)
        time.sleep(rng.uniform(0, 0.05))
        assert run.poll() is None, "it ended before it was killed"
        kill_process(run)
    assert lsml(*arguments(tasks, f"out.{output_format}", workers), "--resume").returncode == 3
    assert (Path(f"out.{output_format}").read_bytes(), Path("errors.jsonl").read_bytes()) == clean
    assert not list(Path().glob("*.part*"))


def test_bytes_behind_last_journal_entry_are_cut_off(lsml, work):
    """As after a kill between two writes: each file is longer than the journal says, by anything."""
    assert lsml(*arguments("tasks.json", "clean.json")).returncode == 3
    clean = Path("clean.json").read_bytes(), Path("errors.jsonl").read_bytes()
    run = start_lsml(*arguments("tasks.json", "out.json"))
    wait_until_journaled("out.json", 300)
    kill_process(run)
    part_files = {path.name: path.read_bytes() for path in Path().glob("*.part*")}
    rng = random.Random(SEED)
    for _ in range(4):
        for name, content in part_files.items():
            content = content[: len(content) - rng.randrange(40)] if name.endswith("journal") else content
            Path(name).write_bytes(content + rng.choice([b"", b'{"id": 1', b"\0" * 50, b'{"records": 12}\n'[:-1]]))
        Path("errors.jsonl").unlink(missing_ok=True)
        assert lsml(*arguments("tasks.json", "out.json"), "--resume").returncode == 3
        assert (Path("out.json").read_bytes(), Path("errors.jsonl").read_bytes()) == clean


@pytest.mark.parametrize("moment", ["before the renames", "between the renames", "before the journal goes"])
def test_run_killed_while_finishing_resumes(lsml, work, moment):
    assert lsml(*arguments("tasks.json", "clean.json")).returncode == 3
    clean = Path("clean.json").read_bytes(), Path("errors.jsonl").read_bytes()
    script = f"""
import sys, os, signal
from pathlib import Path
from lsml_cli import cli
steps = iter({["before the renames", "between the renames", "before the journal goes"]!r})
def die_at(function):
    def stepped(*args, **options):
        if next(steps) == {moment!r}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return stepped
Path.replace = die_at(Path.replace)
Path.unlink = die_at(Path.unlink)
sys.argv = ["lsml", *{arguments("tasks.json", "out.json")!r}]
cli.main()
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert lsml(*arguments("tasks.json", "out.json"), "--resume").returncode == 3
    assert (Path("out.json").read_bytes(), Path("errors.jsonl").read_bytes()) == clean
    assert not list(Path().glob("*.part*"))


def test_workers_end_when_run_is_killed(work):
    run = start_lsml(*arguments("tasks.json", "out.json", workers=2))
    wait_until_journaled("out.json", 0)
    kill_process(run)
    wait_for(lambda: not is_group_alive(run.pid), seconds=10)


def is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def unfinished(work):
    run = start_lsml(*arguments("tasks.json", "out.json"))
    wait_until_journaled("out.json", 100)
    kill_process(run)
    return work


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--with", "pause=0.001"], "model digest was"),
        (["--batch-size", "5"], "--batch-size was 16, now it is 5"),
        (["--threshold", "0.5"], "--threshold was not set, now it is 0.5"),
        (["--shape", "predictions"], "--shape was tasks, now it is predictions"),
        (["--limit", "2000"], "--limit was not set, now it is 2000"),
        (["--model-version", "mine"], "model was models:Fragile@"),
    ],
)
def test_resume_rejects_changed_option(lsml, unfinished, change, sentence):
    before = Path("out.json.part").read_bytes()
    run = lsml(*arguments("tasks.json", "out.json"), "--resume", *change)
    assert run.returncode == 2
    assert sentence in run.stderr
    assert Path("out.json.part").read_bytes() == before


def test_resume_rejects_changed_input_or_label_config(lsml, unfinished):
    original = Path("tasks.json").read_text()
    Path("tasks.json").write_text(original + " ")
    run = lsml(*arguments("tasks.json", "out.json"), "--resume")
    assert (run.returncode, "size of the input was" in run.stderr) == (2, True)
    Path("tasks.json").write_text(original.replace("word", "WORD", 1))  # the same size, other tasks
    run = lsml(*arguments("tasks.json", "out.json"), "--resume")
    assert run.returncode == 2
    assert "are not the ones that the unfinished run has done" in run.stderr
    Path("tasks.json").write_text(original)
    Path("config.xml").write_text(models.TEXT_CONFIG.replace('"short"', '"tiny"'))
    run = lsml(*arguments("tasks.json", "out.json"), "--resume")
    assert (run.returncode, "label config was" in run.stderr) == (2, True)


def test_resume_rejects_changed_model_file(lsml, work):
    options = ["predict", "tasks.json", "-m", f"{models.__file__}:Stored", "-c", "config.xml", "-o", "out.json"]
    options += ["--with", "weights=w.bin", "--with", "pause=0.004", "--quiet"]
    Path("w.bin").write_text("one")
    run = start_lsml(*options)
    wait_until_journaled("out.json", 100)
    kill_process(run)
    Path("w.bin").write_text("two")
    rejected = lsml(*options, "--resume")
    assert (rejected.returncode, "content of w.bin was" in rejected.stderr) == (2, True), rejected.stderr
    Path("w.bin").write_text("one")
    assert lsml(*options, "--resume").returncode in (0, 3)


def test_unfinished_run_is_not_overwritten(lsml, unfinished):
    run = lsml(*arguments("tasks.json", "out.json"))
    assert run.returncode == 2
    assert "tasks of an unfinished run" in run.stderr
    assert "--resume" in run.stderr
    Path("out.json.part").unlink()
    assert lsml(*arguments("tasks.json", "out.json"), "--limit", "10").returncode == 3


def test_run_over_pipe_resumes(lsml, work):
    assert lsml(*arguments("tasks.json", "clean.json")).returncode == 3
    text = Path("tasks.json").read_text()
    command = [sys.executable, "-m", "lsml_cli", *arguments("-", "out.json")]
    with Path("tasks.json").open("rb") as file, subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat:
        run = subprocess.Popen(command, stdin=cat.stdout)
        wait_until_journaled("out.json", 100)
        kill_process(run)
    assert lsml(*arguments("-", "out.json"), "--resume", input=text).returncode == 3
    assert Path("out.json").read_bytes() == Path("clean.json").read_bytes()


def test_output_is_locked_against_second_run(lsml, work):
    slow = ["--with", "pause=0.2"]  # the first run must still be there when the second one has started
    run = start_lsml(*arguments("tasks.json", "out.json"), *slow)
    wait_until_journaled("out.json", 0)
    second = lsml(*arguments("tasks.json", "out.json"), *slow, "--resume")
    kill_process(run)
    assert second.returncode == 1
    assert "Another lsml is writing" in second.stderr
    assert "out.json right now" in second.stderr


def test_journal_ignores_truncated_lines_and_missing_bytes(tmp_path):
    path = tmp_path / "journal"
    journal = Journal.create(path, {"model": "a"})
    for records in (10, 20):
        journal.append(JournalEntry(records=records, output=records * 100))
    journal.close()
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        lines = content[:size].count(b"\n")
        if lines == 0:
            with pytest.raises(ResumeRefused, match="is damaged"):
                Journal.reopen(path, {"model": "a"}, 5_000, 0)
            continue
        reopened = Journal.reopen(path, {"model": "a"}, 5_000, 0)
        assert reopened.last_entry.records == (lines - 1) * 10
        reopened.close()
    path.write_bytes(content)  # as after a power cut: the journal is ahead of the output
    for output, records in ((5_000, 20), (1_999, 10), (999, 0)):
        assert JournalState.read(path, output, 0).last_entry.records == records


@pytest.mark.parametrize(
    "entry",
    [
        {"records": "3"},
        {"records": -1},
        {"records": 1.5},
        {"records": True},
        {"counts": {"failed": "many"}},
        {"counts": [1]},
        {"finished": "yes"},
        {"unknown": 1},
        {},
    ],
)
def test_entry_that_no_run_has_written_is_not_trusted(tmp_path, entry):
    path = tmp_path / "journal"
    Journal.create(path, {"model": "a"}).close()
    before = path.stat().st_size
    if entry:
        entry = {"records": 3, "crc": 0, "output": 0, "errors": 0, "counts": {}, "finished": False} | entry
    path.write_bytes(path.read_bytes() + json.dumps(entry).encode() + b"\n")
    state = JournalState.read(path, 100, 100)
    assert state.last_entry.records == 0
    assert state.valid_bytes == (before if entry else path.stat().st_size)


def test_journal_nested_deeply_is_refused(tmp_path):
    path = tmp_path / "journal"
    path.write_text('{"started_with": {"model": ' + "[" * 1_000 + "]" * 1_000 + "}}\n")
    with pytest.raises(ResumeRefused, match="model was damaged, now it is a"):
        Journal.reopen(path, {"model": "a"}, 0, 0)
