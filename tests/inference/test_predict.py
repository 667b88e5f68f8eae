"""`lsml predict` as a process: files and pipes in, predictions out, whatever the input is like."""

from __future__ import annotations

import gzip
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import models
from tests.helpers.predict_runs import FRAGILE, MISBEHAVING_MODELS, MODELS, WORDS, make_task, predict, predicted_choice
from tests.helpers.processes import wait_for, wait_until_journaled


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, with a label config."""
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    return tmp_path


def test_output_keeps_tasks_whole_and_in_order(lsml, work):
    tasks = [make_task(n) for n in range(40)]
    Path("tasks.json").write_text(json.dumps(tasks))
    run = predict(lsml, "tasks.json", "-o", "out.json", "--summary", "summary.json")
    assert (run.returncode, run.stdout) == (0, "")
    records = json.loads(Path("out.json").read_bytes())
    assert [predicted_choice(record) for record in records] == ["long" if n % 9 > 5 else "short" for n in range(40)]
    assert [{key: record[key] for key in ("id", "data", "meta")} for record in records] == tasks
    prediction = records[0]["predictions"][0]
    assert prediction["score"] == prediction["result"][0]["score"] == 1.0
    assert prediction["model_version"].startswith("models:Words@")
    summary = json.loads(Path("summary.json").read_bytes())
    assert (summary["tasks"], summary["predicted"], summary["failed"]) == (40, 40, 0)
    assert "40 tasks: 40 predicted, 0 failed" in run.stderr
    assert sorted(path.name for path in work.iterdir()) == ["config.xml", "out.json", "summary.json", "tasks.json"]


INPUT_FORMATS = {
    "array": lambda tasks: json.dumps(tasks).encode(),
    "pretty array": lambda tasks: json.dumps(tasks, indent=2).encode(),
    "lines": lambda tasks: "\n".join(map(json.dumps, tasks)).encode(),
    "pretty stream": lambda tasks: "\n".join(json.dumps(task, indent=2) for task in tasks).encode(),
    "gzipped array": lambda tasks: gzip.compress(json.dumps(tasks).encode()),
    "with a byte order mark": lambda tasks: b"\xef\xbb\xbf" + json.dumps(tasks).encode(),
}


@pytest.mark.parametrize("input_format", INPUT_FORMATS)
def test_every_input_format_gives_same_output(lsml, work, input_format):
    Path("tasks").write_bytes(INPUT_FORMATS[input_format]([make_task(n) for n in range(7)]))
    run = predict(lsml, "tasks", "--quiet")
    assert run.stderr == ""
    assert [json.loads(line)["id"] for line in run.stdout.splitlines()] == list(range(7))
    assert run.stdout == predict(lsml, "-", input="\n".join(json.dumps(make_task(n)) for n in range(7))).stdout


def test_csv_bare_items_and_json_min_are_read(lsml, work):
    Path("tasks.csv").write_text('id,text\n7,"one, two"\n')
    [line] = predict(lsml, "tasks.csv").stdout.splitlines()
    assert {key: value for key, value in json.loads(line).items() if key != "predictions"} == {
        "data": {"id": "7", "text": "one, two"}
    }
    [line] = predict(lsml, "tasks.csv", "--id-column", "id", "--shape", "predictions").stdout.splitlines()
    assert json.loads(line)["task"] == 7
    [line] = predict(lsml, "-", input='{"text": "one", "id": 3}').stdout.splitlines()
    assert json.loads(line)["data"] == {"text": "one", "id": 3}
    row = {
        "text": "one",
        "id": 3,
        "size": "short",
        "annotator": 1,
        "annotation_id": 5,
        "created_at": "",
        "lead_time": 1,
    }
    [line] = predict(lsml, "-", input=json.dumps([row])).stdout.splitlines()
    assert (json.loads(line)["id"], json.loads(line)["data"]) == (3, {"text": "one"})


def test_annotations_drafts_and_prediction_ids_are_dropped(lsml, work):
    other_version = {"id": 9, "result": [], "model_version": "other", "score": None, "created_ago": "1 day", "task": 1}
    export = make_task(1) | {
        "annotations": [{"id": 5, "completed_by": 77, "result": [], "was_cancelled": True}],
        "drafts": [{"id": 2}],
        "predictions": [126, other_version],
    }
    [line] = predict(lsml, "-", input=json.dumps([export])).stdout.splitlines()
    record = json.loads(line)
    assert "annotations" not in record
    assert "drafts" not in record
    kept, new = record["predictions"]
    assert kept == {"result": [], "score": None, "model_version": "other"}
    assert new["model_version"].startswith("models:Words@")
    [line] = predict(lsml, "-", "--keep-annotations", input=json.dumps([export])).stdout.splitlines()
    assert json.loads(line)["annotations"] == export["annotations"]
    assert json.loads(line)["drafts"] == export["drafts"]


def test_predicting_twice_replaces_and_skip_predicted_keeps(lsml, work):
    Path("tasks.json").write_text(json.dumps([make_task(n) for n in range(5)]))
    predict(lsml, "tasks.json", "-o", "once.json")
    predict(lsml, "once.json", "-o", "twice.json")
    assert Path("twice.json").read_bytes() == Path("once.json").read_bytes()
    mixed = [*json.loads(Path("once.json").read_bytes()), make_task(5)]
    mixed[0]["predictions"][0]["score"] = 0.123
    run = predict(lsml, "-", "--skip-predicted", input=json.dumps(mixed))
    assert json.loads(run.stdout.splitlines()[0])["predictions"][0]["score"] == 0.123
    assert "1 predicted, 5 left as they were" in run.stderr
    run = predict(lsml, "-", "--skip-predicted", "--shape", "predictions", input=json.dumps(mixed))
    assert json.loads(run.stdout.splitlines()[0])["score"] == 0.123


def test_model_version_option_names_version(lsml, work):
    run = predict(lsml, "-", "--model-version", "mine", input=json.dumps(make_task(1)))
    assert json.loads(run.stdout)["predictions"][0]["model_version"] == "mine"


def test_shape_predictions_names_tasks_by_id(lsml, work):
    tasks = [make_task(n, **({"do": "raise in forward"} if n == 2 else {})) for n in range(1, 4)]
    run = predict(lsml, "-", "--shape", "predictions", model=FRAGILE, input=json.dumps(tasks))
    assert run.returncode == 3
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert [record["task"] for record in records] == [1, 2, 3]
    assert records[1] == {"task": 2, "result": [], "error": {"stage": "forward", "reason": "RuntimeError: out of luck"}}
    assert set(records[0]) == {"task", "result", "score", "model_version"}
    run = predict(lsml, "-", "--shape", "predictions", input='{"text": "no id"}')
    assert (run.returncode, run.stdout) == (2, "")
    assert "line 1: this task has no id" in run.stderr
    assert "--id-column" in run.stderr


def test_failed_tasks_keep_place_and_are_listed_in_errors(lsml, work):
    actions = {3: "raise in encode", 5: "raise in forward", 7: "unknown label"}
    lines = [json.dumps(make_task(n, do=actions.get(n))) for n in range(10)]
    lines[8] = '{"id": 8, "data": '
    Path("tasks.jsonl").write_text("\n".join(lines))
    run = predict(lsml, "tasks.jsonl", "-o", "out.json", "--errors", "errors.jsonl", model=FRAGILE)
    assert run.returncode == 3
    records = json.loads(Path("out.json").read_bytes())
    assert [record["id"] for record in records] == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert [record["id"] for record in records if not record["predictions"]] == [3, 5, 7]
    errors = [json.loads(line) for line in Path("errors.jsonl").read_text().splitlines()]
    assert [(e["id"], e["index"], e["stage"], e["transient"]) for e in errors] == [
        (3, 3, "encode", False),
        (5, 5, "forward", False),
        (7, 7, "check", False),
        (None, 8, "read", False),
    ]
    assert errors[3]["place"] == "line 9"
    assert "failed: tasks.jsonl, line 4, task 3: this one cannot be encoded" in run.stderr
    assert "All failures are in errors.jsonl." in run.stderr


def test_truncated_input_is_predicted_up_to_its_end(lsml, work):
    text = json.dumps([make_task(n) for n in range(50)])
    Path("tasks.json").write_text(text[: len(text) * 3 // 4])
    run = predict(lsml, "tasks.json", "-o", "out.json")
    assert run.returncode == 3
    records = json.loads(Path("out.json").read_bytes())
    assert [record["id"] for record in records] == list(range(len(records)))
    assert 30 < len(records) < 45
    assert f"{len(records) + 1} tasks: {len(records)} predicted, 1 failed" in run.stderr
    assert "tasks.json ends in the middle of a task" in run.stderr


def test_on_error_fail_stops_at_first_failure(lsml, work):
    tasks = [make_task(n, **({"do": "raise in encode"} if n == 40 else {})) for n in range(80)]
    Path("tasks.json").write_text(json.dumps(tasks))
    run = predict(lsml, "tasks.json", "-o", "out.json", "--on-error", "fail", model=FRAGILE)
    assert run.returncode == 1
    assert "task 40: this one cannot be encoded" in run.stderr
    assert "32 tasks are done; continue with --resume" in run.stderr
    assert not Path("out.json").exists()
    run = predict(lsml, "tasks.json", "-o", "out.json", "--resume", model=FRAGILE)
    assert run.returncode == 3
    assert len(json.loads(Path("out.json").read_bytes())) == 80


def test_max_failures_stops_run(lsml, work):
    tasks = [make_task(n, do="raise in encode") for n in range(40)]
    assert predict(lsml, "-", "--max-failures", "50", model=FRAGILE, input=json.dumps(tasks)).returncode == 3
    run = predict(lsml, "-", "--max-failures", "5", model=FRAGILE, input=json.dumps(tasks))
    assert run.returncode == 1
    assert "More than 5 tasks failed" in run.stderr


def test_printing_model_does_not_corrupt_stdout(lsml, work):
    for workers in ("1", "2"):
        run = predict(lsml, "-", "--workers", workers, model=FRAGILE, input=json.dumps(make_task(1, do="print")))
        assert json.loads(run.stdout)["id"] == 1
        assert "a model that talks" in run.stderr
        assert "below Python" in run.stderr


def test_closed_pipe_ends_run_quietly(work):
    Path("tasks.jsonl").write_text("\n".join(json.dumps(make_task(n)) for n in range(20_000)))
    lsml = f"{sys.executable} -m lsml_cli predict tasks.jsonl -m {WORDS} -c config.xml -q"
    command = f"{lsml} | head -3; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    *records, code = run.stdout.splitlines()
    assert [json.loads(line)["id"] for line in records] == [0, 1, 2]
    assert (code, run.stderr) == ("0", "")


def test_records_are_written_before_input_ends(work):
    command = [sys.executable, "-m", "lsml_cli", "predict", "-", "-m", WORDS, "-c", "config.xml", "--batch-size", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdin
        assert run.stdout
        for n in range(3):
            run.stdin.write(json.dumps(make_task(n)).encode() + b"\n")
            run.stdin.flush()
            assert select.select([run.stdout], [], [], 20)[0], "no answer while the input is open"
            assert json.loads(run.stdout.readline())["id"] == n
        run.stdin.close()
        assert run.wait(20) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_tells_how_to_resume(work, workers):
    Path("tasks.jsonl").write_text("\n".join(json.dumps(make_task(n)) for n in range(5_000)))
    command = [sys.executable, "-m", "lsml_cli", "predict", "tasks.jsonl", "-m", WORDS, "-c", "config.xml"]
    command += ["-o", "out.json", "--with", "pause=0.05", "--workers", workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        wait_until_journaled("out.json", 0)
        os.killpg(run.pid, signal.SIGINT)
        _, stderr = run.communicate(timeout=20)
    assert run.returncode == 130
    assert "continue with --resume" in stderr
    assert "Traceback" not in stderr
    assert Path("out.json.part").exists()
    assert not Path("out.json").exists()


def test_progress_bar_on_terminal_unless_quiet(work):
    Path("tasks.jsonl").write_text("\n".join(json.dumps(make_task(n)) for n in range(200)))
    command = [sys.executable, "-m", "lsml_cli", "predict", "tasks.jsonl", "-m", WORDS, "-c", "config.xml"]
    for quiet in ([], ["--quiet"]):
        terminal, other_end = pty.openpty()
        subprocess.run([*command, "-o", "out.json", *quiet], stderr=other_end, timeout=60, check=True)
        os.close(other_end)
        terminal_output = b""
        while select.select([terminal], [], [], 0)[0]:
            try:
                terminal_output += os.read(terminal, 4096)
            except OSError:
                break
        assert (b"200 tasks" in terminal_output) == (not quiet)
        assert (b"100%" in terminal_output) == (not quiet)


def test_records_on_a_terminal_have_no_bar_among_them(work):
    Path("tasks.jsonl").write_text("\n".join(json.dumps(make_task(n)) for n in range(3)))
    command = [sys.executable, "-m", "lsml_cli", "predict", "tasks.jsonl", "-m", WORDS, "-c", "config.xml"]
    terminal, other_end = pty.openpty()
    subprocess.run(command, stdout=other_end, stderr=other_end, timeout=60, check=True)
    os.close(other_end)
    *records, summary = os.read(terminal, 1 << 16).decode().splitlines()
    assert [json.loads(record)["id"] for record in records] == [0, 1, 2]
    assert summary.startswith("lsml: 3 tasks: 3 predicted")


BAD_INPUT: dict[str, tuple[bytes | None, int, str]] = {
    "no file": (None, 2, "There is no file tasks.json"),
    "empty": (b"", 1, "tasks.json is empty"),
    "not JSON": (b"<html>", 1, "tasks.json is neither JSON nor CSV"),
    "UTF-16": ("[{}]".encode("utf-16"), 1, "is UTF-16 or binary"),
    "latin-1": (b'[{"data": {"text": "\xe4"}}]', 3, "not UTF-8 text"),
    "an object": (b'{"tasks": [{"data": {"text": "a"}}]}', 3, 'no "text"'),
    "without data": (b'[{"id": 1, "meta": {}}]', 3, 'no "text"'),
    "data is no object": (b'[{"data": "text"}]', 3, '"data" is a string, expected an object'),
    "null for text": (b'[{"data": {"text": null}}]', 3, "text"),
    "a number for text": (b'[{"data": {"text": 5}}]', 3, '"text" is a number (5)'),
    "nested brackets": (b"[" * 100_000 + b"]" * 100_000, 3, "expected a task, an object, found a list"),
    "nested objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 3, "nested more than 500 deep"),
    "half a surrogate pair": (b'[{"data": {"text": "\\ud83d"}}]', 3, "one half of a surrogate pair"),
    "NaN": (b'[{"data": {"text": "a"}, "score": NaN}]', 3, "NaN and Infinity are no JSON numbers"),
    "truncated gzip": (gzip.compress(os.urandom(100_000).hex().encode())[:60_000], 1, "neither JSON nor CSV"),
    "a 50 MB line": (
        b'{"data": {"text": "%s"}}\n{"data": {"text": "b"}}\n' % (b"a" * 50_000_000),
        3,
        "33,554,432 is the most",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_sentence(lsml, work, ticket_model, case):
    content, code, sentence = BAD_INPUT[case]
    if content is not None:
        Path("tasks.json").write_bytes(content)
    run = lsml("predict", "tasks.json", "--model", ticket_model, "-o", "out.json")
    assert run.returncode == code, run.stderr
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    if code == 3:
        json.loads(Path("out.json").read_bytes())
    else:
        assert len(run.stderr.splitlines()) <= 2
        assert not Path("out.json").exists()
        assert not list(Path().glob("*.part*"))


def test_empty_list_is_no_error(lsml, work):
    run = predict(lsml, "-", "-o", "out.json", input="[]")
    assert run.returncode == 0
    assert json.loads(Path("out.json").read_bytes()) == []
    assert predict(lsml, "-", input="[]").stdout == ""
    assert json.loads(predict(lsml, "-", "--format", "json", input="[]").stdout) == []


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--model", "text-clasifier"], 2, "Known models: text-classifier"),
        (["--model", "tasks.json"], 2, "tasks.json is a file, not a model"),
        (["--model", "."], 1, "holds no trained model"),
        (["--model", f"{MODELS}"], 2, "which class in it is the model"),
        (["--model", f"{MODELS}:Wrods"], 1, "has no Wrods"),
        (["--model", f"{MODELS}:make_choice_prediction"], 1, "is not a subclass of"),
        (["-o", "nowhere/out.json"], 2, "There is no folder nowhere"),
        (["-o", "out.txt"], 2, "--format json"),
        (["-o", "tasks.json"], 2, "tasks.json is the input and --output at once"),
        (["--resume"], 2, "cannot be resumed"),
        (["--with", "color=red"], 2, "has no parameter 'color'"),
        (["--with", "color"], 2, "is not KEY=VALUE"),
        (["--device", "cuda"], 2, "cannot run on 'cuda'"),
        (["--label-map", "config.xml"], 2, "is not JSON"),
        (["--label-config", "missing.xml"], 2, "missing.xml"),
        (["--workers", "0"], 2, "--workers"),
        (["--shape", "boxes"], 2, "--shape"),
    ],
)
def test_wrong_usage_gives_one_sentence(lsml, work, options, code, sentence):
    Path("tasks.json").write_text(json.dumps([make_task(1)]))
    arguments = {"--model": WORDS, "--label-config": "config.xml"} | dict(
        zip(options[::2], options[1::2], strict=False)
    )
    flat = [part for pair in arguments.items() for part in pair]
    run = lsml("predict", "tasks.json", *flat, *(["--resume"] if "--resume" in options else []))
    assert run.returncode == code, run.stderr
    assert sentence in " ".join(run.stderr.replace("│", " ").split())
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_broken_label_config_is_rejected(lsml, work):
    for xml, sentence in {
        "<View>": "no element found",
        '<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>': "DOCTYPE",
        '<View><Text name="t" value="$t"/><Choices name="c" toName="x"/></View>': 'toName="x"',
    }.items():
        Path("config.xml").write_text(xml)
        run = predict(lsml, "-", input="[]")
        assert (run.returncode, run.stdout) == (1, "")
        assert sentence in run.stderr
    Path("config.xml").write_text(models.TEXT_CONFIG.replace("<Choices", "<Choises").replace("</Choices", "</Choises"))
    run = predict(lsml, "-", model="text-classifier", input="[]")
    assert run.returncode == 1
    assert "<Choises> is not a tag that Label Studio knows; did you mean <Choices>?" in run.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_full_disk_is_reported_and_resumable(lsml, work, workers):
    Path("tasks.jsonl").write_text("\n".join(json.dumps(make_task(n)) for n in range(2_000)))
    arguments = ["predict", "tasks.jsonl", "-m", WORDS, "-c", "config.xml", "-o", "out.jsonl", "--workers", workers]
    command = [sys.executable, "-m", "lsml_cli", *arguments]

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    run = subprocess.run(command, preexec_fn=limit_file_size, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1, run.stderr
    assert "The disk is full: out.jsonl.part cannot grow any more" in run.stderr
    assert "--resume" in run.stderr
    assert not Path("out.jsonl").exists()
    assert lsml(*arguments, "--resume").returncode == 0
    lsml("predict", "tasks.jsonl", "-m", WORDS, "-c", "config.xml", "-o", "clean.jsonl")
    assert Path("out.jsonl").read_bytes() == Path("clean.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        ({"predictions": 5}, {"predictions": []}),
        ({"meta": json.loads('{"a":' * 300 + "1" + "}" * 300)}, {}),
        ({"n": 123456789012345678901234, "f": 1e30}, {"n": 123456789012345678901234, "f": 1e30}),
    ],
)
def test_unusual_tasks_are_written_unchanged(lsml, work, extra, kept):
    run = predict(lsml, "-", input=json.dumps([make_task(1), make_task(2) | extra, make_task(3)]))
    assert run.returncode == 0, run.stderr
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert [record["id"] for record in records] == [1, 2, 3]
    expected = extra | kept
    del records[1]["predictions"]
    expected.pop("predictions", None)
    assert {key: records[1][key] for key in expected} == expected


def test_task_without_data_keeps_its_place(lsml, work):
    run = predict(lsml, "-", input=json.dumps([make_task(1), {"id": 2, "data": None, "meta": {}}, make_task(3)]))
    assert run.returncode == 3
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert [record["id"] for record in records] == [1, 2, 3]
    assert records[1] == {"id": 2, "data": None, "meta": {}, "predictions": []}


def test_exception_with_odd_text_fails_one_task(lsml, work):
    model = f"{MISBEHAVING_MODELS}:SaysOddThings"
    tasks = json.dumps([make_task(1), make_task(2, do="surrogate"), make_task(3, do="no text"), make_task(4)])
    for workers in ("1", "2"):
        run = predict(lsml, "-", "--errors", "errors.jsonl", "--workers", workers, model=model, input=tasks)
        assert run.returncode == 3, run.stderr
        assert [bool(json.loads(line)["predictions"]) for line in run.stdout.splitlines()] == [True, False, False, True]
        assert len(Path("errors.jsonl").read_text().splitlines()) == 2


def test_stdout_redirected_into_input_is_rejected(work):
    Path("tasks.jsonl").write_text(json.dumps(make_task(1)) + "\n")
    command = f"{sys.executable} -m lsml_cli predict tasks.jsonl -m {WORDS} -c config.xml >> tasks.jsonl"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, "at once" in run.stderr) == (2, True)
    assert Path("tasks.jsonl").read_text() == json.dumps(make_task(1)) + "\n"


def test_unwritable_prediction_fails_its_task(lsml, work):
    model = f"{MISBEHAVING_MODELS}:Unpicklable"
    for workers in ("1", "2"):
        tasks = json.dumps([make_task(n, do="misbehave" if n == 2 else None) for n in range(1, 4)])
        run = predict(lsml, "-", "--workers", workers, model=model, input=tasks)
        assert run.returncode == 3
        assert [bool(json.loads(line)["predictions"]) for line in run.stdout.splitlines()] == [True, False, True]


def test_older_predictions_stay_if_valid_and_of_other_version(lsml, work):
    region = {"id": "r", "from_name": "size", "to_name": "text", "type": "choices", "value": {"choices": ["long"]}}
    valid = {"result": [region], "score": 0.5, "model_version": "other"}
    invalid = {"result": [region | {"from_name": "zzz"}], "score": 0.5, "model_version": "another"}
    stale = {"result": [region], "score": 0.5, "model_version": "mine"}
    tasks = [
        make_task(1, do="raise in encode") | {"predictions": [valid, invalid, stale]},
        make_task(2) | {"predictions": [stale]},
    ]
    run = predict(lsml, "-", "--model-version", "mine", model=FRAGILE, input=json.dumps(tasks))
    failed, predicted = (json.loads(line) for line in run.stdout.splitlines())
    assert failed["predictions"] == [valid]
    assert [prediction["model_version"] for prediction in predicted["predictions"]] == ["mine"]
    assert predicted["predictions"][0]["result"][0]["value"] == {"choices": ["short"]}
    assert "1 older prediction was left out: it does" in run.stderr


def test_older_predictions_without_region_ids_are_kept(lsml, work):
    region = {"from_name": "size", "to_name": "text", "type": "choices", "value": {"choices": ["long"]}}
    older = {"result": [region], "score": 0.5, "model_version": "other"}
    task = make_task(1) | {"predictions": [older]}
    written = [
        json.loads(predict(lsml, "-", model=FRAGILE, input=json.dumps([task])).stdout)["predictions"] for _ in range(2)
    ]
    assert written[0] == written[1]
    [kept] = [prediction for prediction in written[0] if prediction["model_version"] == "other"]
    [kept_region] = kept["result"]
    assert kept_region.pop("id")
    assert kept_region == region


@pytest.mark.parametrize(
    "options",
    [
        ["--errors", "tasks.json"],
        ["-o", "out.json", "--errors", "out.json"],
        ["-o", "out.json", "--summary", "out.json"],
        ["-o", "out.json", "--summary", "tasks.json"],
        ["-o", "config.xml", "--format", "json"],
        ["-o", "out.json", "--label-map", "map.json", "--summary", "map.json"],
        ["-o", "out.json", "--errors", "out.json.part"],
        ["-o", "link.json"],
        ["-o", "out.json", "--summary", "settings.toml"],
    ],
)
def test_output_may_not_overwrite_inputs_or_outputs(lsml, work, options):
    Path("tasks.json").write_text(json.dumps([make_task(1)]))
    Path("map.json").write_text("{}")
    Path("settings.toml").write_text("[predict]")
    Path("link.json").symlink_to("tasks.json")
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    run = predict(lsml, "tasks.json", *options)
    assert (run.returncode, "at once" in run.stderr or "is not a summary" in run.stderr) == (2, True), run.stderr
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before


def test_output_may_not_overwrite_stdin(work):
    Path("tasks.json").write_text(json.dumps([make_task(1)]))
    command = [sys.executable, "-m", "lsml_cli", "predict", "-", "-m", WORDS, "-c", "config.xml", "-o", "tasks.json"]
    with Path("tasks.json").open("rb") as stdin:
        assert subprocess.run(command, stdin=stdin, stderr=subprocess.DEVNULL, check=False).returncode == 2
    assert json.loads(Path("tasks.json").read_bytes()) == [make_task(1)]


def test_output_link_stays_and_target_is_written(lsml, work):
    Path("big-disk").mkdir()
    Path("out.json").symlink_to("big-disk/out.json")
    assert predict(lsml, "-", "-o", "out.json", input=json.dumps([make_task(1)])).returncode == 0
    assert Path("out.json").is_symlink()
    assert json.loads(Path("big-disk/out.json").read_bytes())[0]["id"] == 1


def test_named_pipe_as_output(lsml, work):
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True) as cat:
        run = predict(lsml, "-", "-o", "pipe", input=json.dumps([make_task(1), make_task(2)]))
        assert run.returncode == 0, run.stderr
        assert cat.stdout is not None
        assert [json.loads(line)["id"] for line in cat.stdout] == [1, 2]
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize(
    ("redirection", "code", "sentence"),
    [
        ("<&-", 2, "Standard input is closed"),
        (">&-", 1, "standard output cannot be written"),
        (">/dev/full", 1, "The disk is full: standard output"),
        ("2>&-", 0, ""),
    ],
)
def test_closed_and_full_streams_are_reported(work, redirection, code, sentence):
    lsml = f"{sys.executable} -m lsml_cli predict - -m {WORDS} -c config.xml {redirection}"
    tasks = json.dumps(make_task(1))
    pipe_input = "" if "<" in redirection else f"echo '{tasks}' | "
    run = subprocess.run(["bash", "-c", pipe_input + lsml], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == code, run.stderr
    assert sentence in run.stderr
    assert "bug" not in run.stderr
    for line in run.stdout.splitlines():
        assert json.loads(line)["id"] == 1


def test_unwritable_summary_is_rejected_at_start(lsml, work):
    run = predict(lsml, "-", "-o", "out.json", "--summary", "nowhere/s.json", input=json.dumps([make_task(1)]))
    assert run.returncode == 2
    assert not Path("out.json").exists()


def test_removed_part_file_is_reported(work):
    Path("tasks.jsonl").write_text("\n".join(json.dumps(make_task(n)) for n in range(300)))
    command = [sys.executable, "-m", "lsml_cli", "predict", "tasks.jsonl", "-m", WORDS, "-c", "config.xml"]
    command += ["-o", "out.json", "--with", "pause=0.05"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        wait_until_journaled("out.json", 0)
        Path("out.json.part").unlink()
        _, stderr = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "was removed while it was written" in stderr


def test_ctrl_c_while_model_loads(work):
    command = [sys.executable, "-m", "lsml_cli", "predict", "-", "-m", f"{MODELS}:LoadsSlowly", "-c", "config.xml"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdin
        run.stdin.write(json.dumps(make_task(1)) + "\n")
        run.stdin.close()
        wait_for(lambda: Path("loading").exists())
        run.send_signal(signal.SIGINT)
        assert run.wait(5) == 130
        assert run.stderr
        assert "Interrupted." in run.stderr.read()


def test_failures_are_reported_when_quiet(lsml, work):
    run = predict(lsml, "-", "--quiet", model=FRAGILE, input=json.dumps([make_task(1, do="raise in encode")]))
    assert run.returncode == 3
    assert "1 failed" in run.stderr


def test_label_map_must_name_existing_labels(lsml, work):
    Path("map.json").write_text('{"a": "lnog"}')
    run = predict(lsml, "-", "--label-map", "map.json", input="[]")
    assert run.returncode == 2
    assert "The label map names 'lnog'" in run.stderr
    assert "It has: long, short" in run.stderr
