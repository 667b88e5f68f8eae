"""`lsml predict --retry-failed`: failed tasks are predicted again and take their place in the output."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.helpers import models
from tests.helpers.predict_runs import FLAKY, make_task


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with 5,000 tasks, 300 of which fail as long as the file `outage` exists."""
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    failing = random.Random(7).sample(range(5_000), 300)
    tasks = [make_task(n, do="fail while there is an outage" if n in failing else None) for n in range(5_000)]
    Path("tasks.json").write_text(json.dumps(tasks))
    Path("outage").touch()
    return tmp_path


def run(lsml, *options: str, output: str = "out.json", tasks: str = "tasks.json"):
    fixed = ["--model", FLAKY, "--label-config", "config.xml", "--with", f"outage={Path('outage').absolute()}"]
    return lsml("predict", tasks, *fixed, "-o", output, "--errors", "errors.jsonl", *options)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("shape", ["tasks", "predictions"])
@pytest.mark.parametrize("output_format", ["json", "jsonl"])
def test_retry_after_outage_gives_bytes_of_clean_run(lsml, work, shape, workers, output_format):
    output, clean = f"out.{output_format}", f"clean.{output_format}"
    assert run(lsml, "--shape", shape, output=output).returncode == 3
    assert len(Path("errors.jsonl").read_text().splitlines()) == 300
    Path("outage").unlink()
    retry = run(lsml, "--shape", shape, "--retry-failed", "errors.jsonl", "--workers", workers, output=output)
    assert retry.returncode == 0, retry.stderr
    assert "300 predicted, 4,700 left as they were, 0 failed" in retry.stderr
    assert run(lsml, "--shape", shape, output=clean).returncode == 0
    assert Path(output).read_bytes() == Path(clean).read_bytes()
    assert Path("errors.jsonl").read_bytes() == b""
    assert not list(Path().glob("*.part*"))


def test_retry_of_some_error_lines_leaves_others_failed(lsml, work):
    run(lsml)
    errors = Path("errors.jsonl").read_text().splitlines(keepends=True)
    Path("some.jsonl").write_text("".join(errors[::3]))
    Path("outage").unlink()
    assert run(lsml, "--retry-failed", "some.jsonl").returncode == 0
    unpredicted = [task["id"] for task in json.loads(Path("out.json").read_bytes()) if not task["predictions"]]
    assert unpredicted == [json.loads(line)["id"] for n, line in enumerate(errors) if n % 3]


def test_tasks_that_fail_again_stay_in_errors(lsml, work):
    run(lsml)
    before = Path("out.json").read_bytes(), Path("errors.jsonl").read_bytes()
    assert run(lsml, "--retry-failed", "errors.jsonl").returncode == 3
    assert (Path("out.json").read_bytes(), Path("errors.jsonl").read_bytes()) == before


def test_repaired_line_takes_its_place(lsml, work):
    lines = [json.dumps(make_task(n)) for n in range(40)]
    broken = [*lines]
    broken[17] = broken[17][:-1] + " "
    Path("tasks.jsonl").write_text("\n".join(broken))
    assert run(lsml, tasks="tasks.jsonl").returncode == 3
    Path("tasks.jsonl").write_text("\n".join(lines))
    assert run(lsml, "--retry-failed", "errors.jsonl", tasks="tasks.jsonl").returncode == 0
    assert [task["id"] for task in json.loads(Path("out.json").read_bytes())] == list(range(40))


def test_mismatched_files_are_rejected_unchanged(lsml, work):
    run(lsml)
    Path("outage").unlink()
    finished, errors = Path("out.json").read_bytes(), Path("errors.jsonl").read_text()

    def assert_rejected(sentence: str, code: int = 1, *options: str, **files: str) -> None:
        retry = run(lsml, "--retry-failed", "errors.jsonl", *options, **files)
        assert (retry.returncode, sentence in retry.stderr) == (code, True), retry.stderr
        if Path("out.json").exists():
            assert not list(Path().glob("*.part*"))

    assert_rejected("needs the finished output", 2, output="other.json")
    Path("errors.jsonl").write_text('{"hello": 1}\n')
    assert_rejected("line 1 is no line of an error file")
    Path("errors.jsonl").write_text("".join(reversed(errors.splitlines(keepends=True))))
    assert_rejected("line 2 is out of order")
    Path("errors.jsonl").write_text(errors.replace('"id":', '"id":1', 1))
    assert_rejected("of the output is not task")
    Path("errors.jsonl").write_text(errors)
    Path("out.json").write_text(json.dumps(json.loads(finished)[:4_000]))
    assert_rejected("the output has no record for") if '"index":4' not in errors else assert_rejected(
        "do not belong together"
    )
    Path("out.json").write_bytes(finished)
    Path("fewer.json").write_text(json.dumps(json.loads(Path("tasks.json").read_bytes())[:4_900]))
    assert_rejected("do not belong together", 1, tasks="fewer.json")
    assert Path("out.json").read_bytes() == finished
