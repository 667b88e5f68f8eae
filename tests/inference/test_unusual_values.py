"""Large numbers and deep nesting: N tasks in, N records out, and every later command still takes the files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import models
from tests.helpers.cli import run_in_process, run_lsml
from tests.helpers.predict_runs import MODELS, WORDS, make_task, predicted_choice


def nested(depth: int) -> str:
    """Return a JSON array that has a string inside of `depth` brackets."""
    return "[" * depth + '"x"' + "]" * depth


# A value in the data of a task, as JSON, and whether the task can be predicted.
VALUES = {
    "65 bits": (str(2**64), True),
    "-70 bits": (str(-(2**70)), True),
    "400 digits": ("1" + "0" * 399, True),
    "5,000 digits": ("1" * 5_000, False),
    "1e400": ("1e400", False),
    "-1e400": ("-1E+400", False),
    "1e-400": ("1e-400", True),
    **{f"{depth} levels": (nested(depth), depth + 2 <= 500) for depth in (253, 300, 498, 499, 700, 960)},
    **{f"{depth} levels": (nested(depth), False) for depth in (985, 990, 995, 1_000, 1_010, 1_022, 1_023, 1_024)},
    "50,000 levels": (nested(50_000), False),
}
GOOD = [name for name, (_, is_good) in VALUES.items() if is_good]


def task_lines() -> list[str]:
    """Return the JSON of a plain task, then by turns an unusual one and a plain one; ids are positions from 1."""
    lines = [json.dumps(make_task(1))]
    for value, _ in VALUES.values():
        data = json.dumps({"text": "one two"})[:-1]
        lines.append(f'{{"id": {len(lines) + 1}, "data": {data}, "value": {value}}}}}')
        lines.append(json.dumps(make_task(len(lines) + 1)))
    return lines


BAD_IDS = [2 + 2 * n for n, (_, is_good) in enumerate(VALUES.values()) if not is_good]
IDS = list(range(1, 2 * len(VALUES) + 2))
WRITERS = {
    "array": lambda lines: f"[{', '.join(lines)}]".encode(),
    "lines": lambda lines: "\n".join(lines).encode(),
    "gzipped array": lambda lines: gzip.compress(f"[{','.join(lines)}]".encode()),
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, with a label config."""
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    return tmp_path


def predict(*arguments: str, run: Any = run_in_process, **kwargs: Any) -> Any:
    command = ["predict", *arguments, "--model", WORDS, "--label-config", "config.xml", "--errors", "errors.jsonl"]
    return run(*command, **kwargs)


def read_errors() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("errors.jsonl").read_text().splitlines()]


def check_output(path: str, shape: str) -> None:
    records = json.loads(Path(path).read_bytes())
    errors = read_errors()
    assert [error["index"] + 1 for error in errors] == BAD_IDS
    assert {error["stage"] for error in errors} == {"read"}
    if shape == "predictions":
        assert len(records) == len(IDS)
        assert [n + 1 for n, record in enumerate(records) if "error" in record] == BAD_IDS
        assert [record["task"] for record in records if "error" not in record] == [n for n in IDS if n not in BAD_IDS]
        return
    assert [record["id"] for record in records] == [n for n in IDS if n not in BAD_IDS]
    assert all(predicted_choice(record) for record in records)
    by_id = {record["id"]: record for record in records}
    for n, (value, is_good) in enumerate(VALUES.values()):
        if is_good:
            assert by_id[2 + 2 * n]["data"]["value"] == json.loads(value)


@pytest.mark.parametrize("shape", ["tasks", "predictions"])
@pytest.mark.parametrize("source_format", WRITERS)
def test_unusual_values_keep_their_places(work, source_format, shape):
    Path("tasks").write_bytes(WRITERS[source_format](task_lines()))
    assert predict("tasks", "-o", "out.json", "--shape", shape).returncode == 3
    check_output("out.json", shape)
    # A retry reads the output again, and pairs it with the input.
    before = Path("out.json").read_bytes()
    retry = predict("tasks", "-o", "out.json", "--shape", shape, "--retry-failed", "errors.jsonl")
    assert retry.returncode == 3, retry.stderr
    assert Path("out.json").read_bytes() == before
    assert f"{len(BAD_IDS)} failed" in retry.stderr


@pytest.mark.parametrize("first", ["1e400", "400 digits", "50,000 levels", "1000 levels"])
def test_unusual_first_line_is_one_task(work, first):
    value = VALUES[first][0]
    Path("tasks").write_text(f'{{"data": {{"text": "a", "value": {value}}}}}\n' + json.dumps(make_task(2)))
    predict("tasks", "-o", "out.jsonl", "--shape", "predictions")
    check = predict("tasks", "--check")
    assert "2 tasks checked" in check.stdout, check.stderr


def test_two_workers_over_stdin_and_resume(work):
    lines = task_lines()
    Path("tasks.jsonl").write_text("\n".join(lines))
    run = predict("-", "-o", "out.json", "--workers", "2", run=run_lsml, input="\n".join(lines))
    assert run.returncode == 3, run.stderr
    check_output("out.json", "tasks")
    whole = Path("out.json").read_bytes()
    stopped = predict("tasks.jsonl", "-o", "again.json", "--max-failures", "5", "--batch-size", "2")
    assert stopped.returncode == 1
    assert Path("again.json.part").exists()
    resumed = predict("tasks.jsonl", "-o", "again.json", "--resume", "--max-failures", "99", "--batch-size", "2")
    assert resumed.returncode == 3, resumed.stderr
    assert Path("again.json").read_bytes() == whole


def test_output_with_unusual_values_goes_through_every_later_command(work):
    Path("tasks.jsonl").write_text("\n".join(task_lines()))
    predict("tasks.jsonl", "-o", "out.json")
    Path("annotated.json").write_text(
        json.dumps(
            [
                record | {"annotations": [{"id": record["id"], "result": record["predictions"][0]["result"]}]}
                for record in json.loads(Path("out.json").read_bytes())
            ]
        )
    )
    n = len(IDS) - len(BAD_IDS)
    ranked = run_in_process("rank", "out.json", "-o", "ranked.json")
    assert (ranked.returncode, len(json.loads(Path("ranked.json").read_bytes()))) == (0, n), ranked.stderr
    evaluated = run_in_process(
        "evaluate", "annotated.json", "--predictions", "out.json", "--label-config", "config.xml"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Traceback" not in evaluated.stderr
    checked = predict("out.json", "--check")
    assert f"{n} tasks checked, 0 problems" in checked.stdout


@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz"])
def test_retry_of_empty_output(work, output):
    Path("tasks.jsonl").write_text('{"data": {"text": "a", "value": 1e400}}\n{"data": {"text": "a", "value": 1e400}}')
    assert predict("tasks.jsonl", "-o", output).returncode == 3
    Path("tasks.jsonl").write_text('{"data": {"text": "a"}}\n{"data": {"text": "b"}}')
    retry = predict("tasks.jsonl", "-o", output, "--retry-failed", "errors.jsonl")
    assert retry.returncode == 0, retry.stderr
    content = Path(output).read_bytes()
    assert len((gzip.decompress(content) if output.endswith(".gz") else content).splitlines()) == 2


def test_task_that_a_model_made_unwritable_keeps_its_place(work):
    model = f"{MODELS.parent / 'misbehaving_models.py'}:Spoiling"
    Path("tasks.jsonl").write_text("\n".join(json.dumps(make_task(n)) for n in range(1, 4)))
    run = run_in_process(
        "predict", "tasks.jsonl", "--model", model, "-c", "config.xml", "-o", "out.json", "--errors", "errors.jsonl"
    )
    assert run.returncode == 3, run.stderr
    records = json.loads(Path("out.json").read_bytes())
    assert [(record["id"], len(record["predictions"])) for record in records] == [(1, 1), (2, 0), (3, 1)]
    assert [(error["id"], error["stage"]) for error in read_errors()] == [(2, "check")]


@pytest.mark.parametrize("task_id", [2**63, 2**64, 10**400])
def test_id_beyond_64_bits_is_no_id(work, task_id):
    Path("tasks.json").write_text(json.dumps([make_task(1), make_task(task_id)]))
    run = predict("tasks.json", "-o", "out.json")
    assert run.returncode == 0, run.stderr
    assert json.loads(Path("out.json").read_bytes())[1]["id"] == task_id
    assert predict("tasks.json", "--check").returncode == 0
    run = predict("tasks.json", "-o", "named.json", "--shape", "predictions")
    assert run.returncode == 3
    assert "the id of this task is no whole number of 64 bits" in run.stderr
    retry = predict("tasks.json", "-o", "named.json", "--shape", "predictions", "--retry-failed", "errors.jsonl")
    assert retry.returncode == 3, retry.stderr


@pytest.mark.parametrize("data", ["1e308", "[]", str(2**70), f'"{2**70}"'])
def test_large_integer_beside_unusable_data_costs_one_task(work, data):
    odd = f'{{"id": 2, "data": {data}, "meta": {{"n": {2**70}}}}}'
    Path("tasks.jsonl").write_text("\n".join([json.dumps(make_task(1)), odd, json.dumps(make_task(3))]))
    run = predict("tasks.jsonl", "-o", "out.json")
    assert run.returncode == 3, run.stderr
    records = json.loads(Path("out.json").read_bytes())
    assert [record["id"] for record in records] == [1, 2, 3]
    assert records[1]["meta"] == {"n": 2**70}
    assert [error["id"] for error in read_errors()] == [2]
