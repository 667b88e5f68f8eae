"""`lsml fit` from outside: hold-outs, gates, refits, earlier versions, dry runs, signals."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import LsmlError
from lsml_cli.registry import resolve, versions
from tests.helpers import models, trainable_models
from tests.helpers.cli import Lsml

MODEL = f"{trainable_models.__file__}:Counting"
XML = """<View><Text name="text" value="$text"/>
  <Choices name="mood" toName="text"><Choice value="good"/><Choice value="bad"/><Choice value="odd"/></Choices>
</View>"""
COLOURS = ["red", "green", "blue", "black", "white", "grey", "pink", "brown"]


def exported(index: int, mood: str | None, text: str | None = None, **annotation: Any) -> dict[str, Any]:
    rng = random.Random(index)
    text = text or f"{mood} {rng.choice(COLOURS)} number{index}"
    result = [{"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": [mood]}}]
    return {
        "id": index,
        "data": {"text": text},
        "annotations": [{"id": index, "result": result if mood else [], **annotation}],
    }


def sample(count: int = 100) -> list[dict[str, Any]]:
    return [exported(i, "good" if i % 2 else "bad") for i in range(count)]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with `export.json` and `config.xml`."""
    (tmp_path / "export.json").write_text(json.dumps(sample()))
    (tmp_path / "config.xml").write_text(XML)
    return tmp_path


def fit(lsml: Lsml, work: Path, *more: str | Path, code: int = 0, export: str = "export.json") -> Any:
    arguments = [] if "--init-from" in more or "--model" in more else ["--model", MODEL]
    run = lsml("fit", export, *arguments, "-c", "config.xml", "-o", "models/m", *more, cwd=work)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    assert "bug in lsml" not in run.stderr
    return run


def summary(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "summary.json").read_bytes())
    return found


def promoted(work: Path) -> versions.Version:
    return versions.read(versions.resolve(str(work / "models/m")))


def without_settings(work: Path) -> set[str]:
    return {path.name for path in work.iterdir()}


# --- gates


def test_missed_gate_keeps_version_unpromoted(lsml: Lsml, work: Path) -> None:
    fit(lsml, work)
    before = promoted(work)
    # It learns nothing but "bad", and is asked about both.
    (work / "export.json").write_text(json.dumps([exported(i, "bad", f"x number{i}") for i in range(50)]))
    (work / "hold.json").write_text(json.dumps([exported(90 + i, "good", f"x {i}") for i in range(5)]))
    gates = ["--fail-under", "accuracy=0.999", "--fail-under", "f1:odd=0.5", "--fail-under", "recall:good=0"]
    run = fit(lsml, work, "--holdout", "hold.json", *gates, "--summary", "summary.json", code=4)
    assert promoted(work) == before
    first, kept = versions.list_versions(work / "models/m")
    assert first == before.version
    message, hint = run.stderr.splitlines()[-2:]
    assert "missed 2 of 3 gates and was not promoted" in message
    assert "mood.accuracy is 0.0000, 0.9990 below 0.999" in message
    assert "mood.f1:odd could not be measured" in message
    assert f"It is kept in models/m/{kept}" in hint
    assert hint.endswith(f"lsml versions models/m --promote {kept}")
    assert "Gate passed: mood.recall:good is 0.0000, at 0.0." in run.stderr
    assert run.stdout.startswith("mood: accuracy 0.0000")
    fit_summary = summary(work)
    assert (fit_summary["promoted"], fit_summary["version"], fit_summary["metrics"]["mood"]["accuracy"]) == (
        False,
        kept,
        0.0,
    )
    assert [(gate["name"], gate["passed"]) for gate in fit_summary["gates"]] == [
        ("mood.accuracy", False),
        ("mood.f1:odd", False),
        ("mood.recall:good", True),
    ]
    assert versions.read(work / "models/m" / kept).failed_gates == ["mood.accuracy", "mood.f1:odd"]
    command = hint[hint.index("lsml versions") :].split()[1:]
    assert lsml(*command, cwd=work).returncode == 0
    assert promoted(work).version == kept


def test_passed_gates_promote(lsml: Lsml, work: Path) -> None:
    run = fit(lsml, work, "--fail-under", "mood.accuracy=0.9", "--summary", "summary.json")
    assert "Gate passed: mood.accuracy is 1.0000, 0.1000 above 0.9." in run.stderr
    assert summary(work)["promoted"] is True
    assert promoted(work).gates[0]["passed"] is True
    assert promoted(work).failed_gates == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fail-under", "acuracy=1"], "Known metrics: accuracy, "),
        (["--fail-under", "f1:god=1"], "Known classes: good, "),
        (["--fail-under", "mod.accuracy=1"], "Known controls: mood."),
        (["--holdout", "0", "--fail-under", "accuracy=1"], "nothing is measured"),
        (["--holdout", "0", "--refit"], "--refit has nothing to add"),
        (["--holdout", "export.json", "--refit"], "--refit has nothing to add"),
        (["--holdout", "nowhere.json"], "neither a number nor a file"),
        (["--holdout", "1"], "--holdout must be"),
        (["--holdout", "nan"], "--holdout must be"),
        (["--annotation", "best"], "'first', 'last', 'all'"),
        (["--summary", "nowhere/summary.json"], "mkdir -p nowhere"),
        (["--summary", "models"], "is a folder"),
        (["--init-from", "text-classifier"], "is not a trained version"),
        (["--init-from", "models/nwes"], "There is no model 'models/nwes'"),
    ],
)
def test_usage_errors_come_before_reading_tasks(lsml: Lsml, work: Path, arguments: list[str], sentence: str) -> None:
    (work / "models").mkdir()
    for more in ([], ["--dry-run"]):
        run = fit(lsml, work, *arguments, *more, code=2, export="export.json" if "hold" in sentence else "gone.json")
        assert sentence in run.stderr.replace("│", "")
        assert run.stdout == ""
    assert list((work / "models").iterdir()) == []


def test_gate_on_class_from_data_is_checked_after_reading(lsml: Lsml, work: Path) -> None:
    (work / "config.xml").write_text(
        '<View><Text name="text" value="$text"/><Choices name="mood" toName="text" value="$options"/></View>'
    )
    run = fit(lsml, work, "--fail-under", "f1:goood=0.1", code=2)
    assert "Known classes: good, bad." in run.stderr
    fit(lsml, work, "--fail-under", "f1:good=0.1")


# --- the hold-out


def test_holdout_file_is_measured_and_never_trained_on(lsml: Lsml, work: Path) -> None:
    held_out = sample()[:10]
    repeats = [exported(500 + i, "bad", each["data"]["text"]) for i, each in enumerate(held_out[:3])]
    skipped = exported(600, "bad", was_cancelled=True)
    (work / "export.json").write_text(json.dumps([*sample(), *repeats, exported(601, None), exported(602, "odd")]))
    (work / "hold.json").write_text(json.dumps([*held_out, skipped, 7]))
    run = fit(lsml, work, "--holdout", "hold.json", "--summary", "summary.json", code=3)
    counts = summary(work)["counts"]
    assert (counts["train"], counts["holdout"]) == (91, 10)
    assert counts["left_out"] == {"content that is in the hold-out file": 13, "empty result": 1}
    assert counts["holdout_left_out"] == {"skipped": 1, "unreadable": 1}
    assert counts["holdout_file"] == "hold.json"
    assert counts["classes"]["mood"]["good"] == {"train": 45, "holdout": 5}
    assert "Left out: content that is in the hold-out file (13), empty result (1)." in run.stderr
    assert "Left out of hold.json: skipped (1), unreadable (1)." in run.stderr
    assert "1 task could not be read: hold.json, byte " in run.stderr
    assert "expected a task, an object, found the number 7.\n" in run.stderr
    assert 'Too small to be held out, so not measured, for "mood": odd.' in run.stderr
    assert promoted(work).state == {"rounds": 1, "saw": 91, "held_out": 10}


def test_holdout_file_without_annotations_is_rejected(lsml: Lsml, work: Path) -> None:
    (work / "hold.json").write_text(json.dumps([{"id": 1, "data": {"text": "x"}}]))
    run = fit(lsml, work, "--holdout", "hold.json", code=1)
    assert "hold.json has no annotated task to measure with: 1 with no annotation." in run.stderr
    run = fit(lsml, work, "--holdout", "export.json", code=1)
    assert "nothing to learn from: 100 with content that is in the hold-out file" in run.stderr
    assert "Give other tasks to train on than those of --holdout" in run.stderr
    assert not (work / "models").exists()


def test_annotations_of_another_label_config_name_both(lsml: Lsml, work: Path) -> None:
    (work / "config.xml").write_text(XML.replace('"mood"', '"feeling"'))
    run = fit(lsml, work, code=1)
    assert "nothing to learn from: 100 with no answer for this label config" in run.stderr
    assert "The annotations are for mood, and the label config has feeling" in run.stderr


def test_annotation_policy_selects_annotation(lsml: Lsml, work: Path) -> None:
    def several(index: int, *moods: str, truth: int | None = None) -> dict[str, Any]:
        task = exported(index, moods[0])
        parts = [exported(index, mood)["annotations"][0] | {"id": 10 * index + i} for i, mood in enumerate(moods)]
        if truth is not None:
            parts[truth]["ground_truth"] = True
        return task | {"annotations": parts}

    tasks = [several(i, "good", "odd", "bad", truth=1 if i == 3 else None) for i in range(20)]
    (work / "export.json").write_text(json.dumps(tasks))
    seen = {}
    for which in ("first", "last", "all"):
        fit(lsml, work, "--annotation", which, "--holdout", "0", "--summary", "summary.json")
        counts = summary(work)["counts"]
        seen[which] = {label: each["train"] for label, each in counts["classes"]["mood"].items()}
        assert (counts["train"], counts["annotation"]) == (20, which)
        assert counts["annotations"]["train"] == (60 if which == "all" else 20)
    assert seen == {
        "first": {"good": 19, "bad": 0, "odd": 1},
        "last": {"good": 0, "bad": 19, "odd": 1},
        "all": {"good": 20, "bad": 20, "odd": 20},
    }


def test_unusable_tasks_are_counted_by_reason(lsml: Lsml, work: Path) -> None:
    foreign = exported(204, "good")
    foreign["annotations"][0]["result"][0]["from_name"] = "renamed"
    tasks = [*sample(20), exported(200, None), exported(201, "good", was_cancelled=True)]
    tasks += [{"id": 202, "data": {"text": "x"}}, foreign]
    lines = [json.dumps(each) for each in tasks] + ['{"id": 205, "data": ', "[1]"]
    (work / "export.jsonl").write_text("\n".join(lines) + "\n")
    run = fit(lsml, work, "--holdout", "0", "--summary", "summary.json", export="export.jsonl", code=3)
    assert "Nothing was measured: nothing was held out." in run.stderr
    assert summary(work)["counts"]["left_out"] == {
        "empty result": 1,
        "no annotation": 1,
        "no answer for this label config": 1,
        "skipped": 1,
        "unreadable": 2,
    }
    assert "1 task could not be read: the export, line 25: not JSON" in run.stderr
    last = "\n".join(run.stderr.splitlines()[-2:])
    assert last.startswith("lsml: 1 task could not be read: export.jsonl, line 25: not JSON")
    assert "lsml: 1 task could not be read: export.jsonl, line 26: expected a task, an object, found a list." in last
    assert promoted(work).counts["torn"] is summary(work)["torn"] is False, "one bad task costs one task"
    assert fit(lsml, work, "--quiet", export="export.jsonl", code=3).stderr == f"{last}\n"
    assert last in fit(lsml, work, "--dry-run", export="export.jsonl", code=3).stderr


@pytest.mark.parametrize("role", ["export", "hold-out file"])
def test_truncated_export_trains_without_promotion(lsml: Lsml, work: Path, role: str) -> None:
    fit(lsml, work)
    before = promoted(work)
    whole = (work / "export.json").read_bytes()
    (work / "truncated.json").write_bytes(whole[: len(whole) // 2])
    if role == "export":
        arguments: dict[str, Any] = {"export": "truncated.json"}
        more = ["--refit", "--summary", "summary.json", "--fail-under", "accuracy=0.1"]
    else:
        arguments = {}
        more = ["--holdout", "truncated.json", "--summary", "summary.json"]
    run = fit(lsml, work, *more, **arguments, code=3)
    assert promoted(work) == before
    kept = versions.list_versions(work / "models/m")[-1]
    unread, why, hint = run.stderr.splitlines()[-3:]
    assert unread.startswith("lsml: 1 task could not be read: truncated.json, byte ")
    assert unread.endswith(": truncated.json ends in the middle of a task.")
    assert why == "lsml: The new version was not promoted, because the export ends too early."
    assert hint.endswith(
        f"It is kept in models/m/{kept}; to promote it anyway: lsml versions models/m --promote {kept}"
    )
    assert "Next: " not in run.stderr
    fit_summary = summary(work)
    assert (fit_summary["promoted"], fit_summary["torn"], fit_summary["version"]) == (False, True, kept)
    assert "trained on a file that ends too early" in lsml("versions", "models/m", cwd=work).stdout
    # A gate that is missed as well says so, and decides about the exit code.
    both = fit(lsml, work, *more, "--fail-under", "f1:odd=0.5", **arguments, code=4)
    assert "1 task could not be read: truncated.json" in both.stderr
    assert "nobody knows how much is missing" not in both.stderr
    assert promoted(work) == before


def test_truncation_after_many_bad_tasks_is_located(lsml: Lsml, work: Path) -> None:
    lines = [*(json.dumps(each) for each in sample(20)), *["[1]"] * 9, '{"id": 30, "data": {"te']
    (work / "export.jsonl").write_text("\n".join(lines))
    assert fit(lsml, work, "-q", export="export.jsonl", code=3).stderr.splitlines()[:2] == [
        "lsml: 9 tasks could not be read, such as export.jsonl, line 21: expected a task, an object, found a list.",
        "lsml: 1 task could not be read: export.jsonl, line 30: export.jsonl ends in the middle of a task.",
    ]


# --- what is shipped


def test_refit_trains_on_all_tasks(lsml: Lsml, work: Path) -> None:
    fit(lsml, work, "--summary", "summary.json")
    plain, fit_summary = promoted(work), summary(work)
    run = fit(lsml, work, "--refit", "--fail-under", "accuracy=0.5", "--summary", "summary.json")
    again = promoted(work)
    assert (plain.refit, again.refit, summary(work)["refit"], fit_summary["refit"]) == (False, True, True, False)
    assert again.metrics == plain.metrics
    assert again.digest != plain.digest
    assert again.state == {"rounds": 1, "saw": 100, "held_out": 0}
    assert plain.trained_on == plain.state["saw"] == plain.counts["train"] < 100
    assert again.trained_on == 100
    assert set(again.files) == {"counts.json", "held_out_tasks.npy", "trained_tasks.npy"}
    assert "Training again on everything" in run.stderr
    assert "then trained again on all (--refit)" in run.stderr
    assert "refit on all tasks after the measurement" in lsml("versions", "models/m", cwd=work).stdout


def test_no_promote_keeps_version_unused(lsml: Lsml, work: Path) -> None:
    fit(lsml, work)
    before = promoted(work)
    run = fit(lsml, work, "--no-promote", "--fail-under", "accuracy=0.5", "--summary", "summary.json")
    fit_summary = summary(work)
    assert (promoted(work).version, fit_summary["promoted"]) == (before.version, False)
    assert f"not promoted. To promote it: lsml versions models/m --promote {fit_summary['version']}" in run.stderr
    assert "Next: lsml predict" not in run.stderr
    assert lsml("versions", "models/m", "--promote", fit_summary["version"], cwd=work).returncode == 0
    assert promoted(work).version == fit_summary["version"] != before.version


def test_missed_gate_prevents_refit(lsml: Lsml, work: Path) -> None:
    fit(lsml, work, "--refit", "--fail-under", "f1:odd=0.5", code=4)
    [kept] = versions.list_versions(work / "models/m")
    version = versions.read(work / "models/m" / kept)
    assert not version.refit
    assert version.state["saw"] == version.counts["train"]
    run = lsml("predict", "export.json", "--model", "models/m", cwd=work)
    assert run.returncode == 1
    assert f"has no promoted version.\n      Name one of its versions: models/m@{kept}" in run.stderr


def test_init_from_continues_earlier_version(lsml: Lsml, work: Path) -> None:
    fit(lsml, work, "--with", "weight=3")
    first = promoted(work)
    more = [exported(900 + i, "good" if i % 2 else "bad") for i in range(30)]
    (work / "export.json").write_text(json.dumps(more))
    # It remembers the rest; but which code is its own is for the user to say.
    assert (
        "--model path/to/trainable_models.py:Counting@models/m"
        in fit(lsml, work, "--init-from", "models/m", code=1).stderr
    )
    run = lsml("fit", "export.json", "--init-from", f"{MODEL}@models/m", "-o", "models/m", cwd=work)
    assert run.returncode == 0, run.stderr
    second = promoted(work)
    assert (first.parent, second.parent) == (None, first.version)
    assert (second.state["rounds"], second.params, second.label_config) == (2, {"weight": 3}, first.label_config)
    counts = json.loads((second.folder / "counts.json").read_bytes())
    assert counts["good"]["good"] == 3 * (_good(first) + _good(second))
    assert f"continues from {first.version}" in lsml("versions", "models/m", cwd=work).stdout
    earlier = f"{MODEL}@models/m@{first.version}"
    elsewhere = lsml("fit", "export.json", "--init-from", earlier, "--model", MODEL, "-o", "models/n", cwd=work)
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert versions.read(versions.resolve(str(work / "models/n"))).parent == f"m@{first.version}"
    # Named by --model, a version is only what to be like: the same parameters and label config, but from scratch.
    like = lsml("fit", "export.json", "--model", f"{MODEL}@models/m", "-o", "models/m", cwd=work)
    assert like.returncode == 0, like.stderr
    assert (promoted(work).parent, promoted(work).params, promoted(work).state["rounds"]) == (None, {"weight": 3}, 1)


def _good(version: versions.Version) -> int:
    found: int = version.counts["classes"]["mood"]["good"]["train"]
    return found


def test_init_from_unsupported_model_is_rejected(lsml: Lsml, work: Path, ticket_model: Path) -> None:
    run = fit(lsml, work, "--init-from", ticket_model, code=2)
    assert "TextClassifier cannot continue from an earlier version; it always learns from scratch." in run.stderr
    assert f"--model {ticket_model}/2" in run.stderr
    fit(lsml, work)
    other = fit(lsml, work, "--init-from", f"{MODEL}@models/m", "--model", "text-classifier", code=2)
    assert "Leave out --model" in other.stderr
    words = f"{models.__file__}:Words"
    assert "cannot be trained" in fit(lsml, work, "--model", words, "--dry-run", code=2).stderr


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("raise", "trainable_models:Stumbling failed while training: RuntimeError: out of patience."),
        ("return a set", "returned from `fit` what cannot be stored"),
        ("return nothing", "returned from `fit` what cannot be stored"),
    ],
)
def test_failing_fit_names_model_and_error(lsml: Lsml, work: Path, how: str, sentence: str) -> None:
    model = MODEL.replace("Counting", "Stumbling")
    run = fit(lsml, work, "--model", model, "--with", f'how="{how}"', "--summary", "summary.json", code=1)
    assert sentence in run.stderr
    assert not (work / "models").exists(), "there was no such folder before"
    assert not (work / "summary.json").exists()


def test_unregistered_class_is_named_with_its_versions(lsml: Lsml, work: Path) -> None:
    shutil.copy(MODEL.partition(":")[0], work / "counting.py")
    run = fit(lsml, work, "--model", "counting.py:Counting")
    [line] = [line for line in run.stderr.splitlines() if "Next: " in line]
    command = line.partition("Next: lsml ")[2].replace("TASKS", "export.json").split()
    assert command[3] == "counting.py:Counting@models/m"
    assert lsml(*command, cwd=work).returncode == 0
    refused = lsml("predict", "export.json", "--model", "models/m", cwd=work)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "models/m is a version of counting.py:Counting" in refused.stderr
    assert "--model path/to/counting.py:Counting@models/m" in refused.stderr
    (work / "counting.py").write_text((work / "counting.py").read_text() + "# changed\n")
    run = lsml(*command, cwd=work)
    assert f"The code of Counting has changed since m@{promoted(work).version} was trained." in run.stderr
    assert "has changed" in fit(lsml, work, "--init-from", "counting.py:Counting@models/m").stderr
    assert "has changed" not in fit(lsml, work, "--model", "counting.py:Counting").stderr


def test_version_folder_is_rejected_as_output(lsml: Lsml, work: Path) -> None:
    fit(lsml, work)
    before = promoted(work)
    run = fit(lsml, work, "-o", f"models/m/{before.version}", code=2, export="gone.json")
    assert f"models/m/{before.version} is one version of a model, and no place for another." in run.stderr
    assert f"--output {work / 'models/m'}" in run.stderr
    assert versions.list_versions(before.folder) == []


@pytest.mark.parametrize("model", [MODEL, "text-classifier"])
@pytest.mark.parametrize("bytes_left", [0, 1024])
def test_full_disk_leaves_no_version(work: Path, model: str, bytes_left: int) -> None:
    """As `ulimit -f` has it: what goes beyond raises an error, as on a full disk. Only what exists can be read."""
    (work / "export.json").write_text(json.dumps(sample(3000)))
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_left}, {bytes_left}))\n"
        "sys.dont_write_bytecode = True; from lsml_cli.cli import main; main()"
    )
    command = [sys.executable, "-c", script, "fit", "export.json", "--model", model, "-c", "config.xml"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    before = {path.name for path in work.iterdir()}
    run = subprocess.run(
        [*command, "-o", "models/m"], cwd=work, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 1, run.stderr
    assert "lsml: The version cannot be written to models/m: the disk is full" in run.stderr
    assert {path.name for path in work.iterdir()} == before


def test_unwritable_stdout_keeps_version(lsml: Lsml, work: Path) -> None:
    gates = ("--fail-under", "f1:odd=0.5")
    for more, code in (((), 1), (gates, 4), (("--dry-run",), 1)):
        command = [sys.executable, "-m", "lsml_cli", "fit", "export.json", "--model", MODEL, "-c", "config.xml"]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with Path("/dev/full").open("w") as full:
            run = subprocess.run(
                [*command, "-o", "models/m", *more], cwd=work, env=env, stdout=full, stderr=-1, text=True, check=False
            )
        assert run.returncode == code, run.stderr
        assert "Exception ignored" not in run.stderr
        if not more:
            assert "Wrote and promoted models/m/" in run.stderr
        if code == 1:
            assert run.stderr.endswith("lsml: Standard output cannot be written: No space left on device.\n")


def test_closed_stdout_pipe_keeps_version(lsml: Lsml, work: Path) -> None:
    command = f"{sys.executable} -m lsml_cli fit export.json --model {MODEL} -c config.xml -o models/m --dry-run | true"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for line in (command, command.replace("--dry-run", "")):
        script = f"set -o pipefail; {line}"
        run = subprocess.run(["bash", "-c", script], cwd=work, env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert "rror" not in run.stderr
    assert promoted(work)


# --- the dry run


def test_dry_run_reports_and_writes_nothing(lsml: Lsml, work: Path) -> None:
    tasks = [*sample(), exported(300, "odd"), exported(301, None)]
    (work / "export.json").write_text(json.dumps(tasks))
    before = without_settings(work)
    run = lsml("fit", "export.json", "--model", "text-classifier", "-c", "config.xml", "--dry-run", cwd=work)
    assert run.returncode == 0, run.stderr
    assert without_settings(work) == before
    first, left_out, small, *table = run.stdout.splitlines()
    dry_run = fit(lsml, work, "--dry-run", "--summary", "summary.json")
    assert dry_run.stdout == run.stdout
    assert without_settings(work) == before | {"summary.json"}
    counts = summary(work)
    assert first == f"{counts['train']} tasks to train on, {counts['holdout']} held out"
    assert left_out == "Left out: empty result (1)."
    side = 'Too small to be held out, so not measured, for "mood": odd.'
    assert small in (side, 'Only in held-out tasks, so never learned, for "mood": odd.')
    classes = counts["classes"]["mood"]
    assert [row.split() for row in table] == [
        ["mood", "train", "held", "out"],
        *[[name, str(each["train"]), str(each["holdout"])] for name, each in classes.items()],
    ]
    # What a dry run says is what a fit does.
    fit(lsml, work, "--summary", "summary.json")
    assert {key: value for key, value in counts.items() if key in promoted(work).counts} == promoted(work).counts
    assert summary(work)["too_small"] == counts["too_small"]


def test_dry_run_imports_no_framework(work: Path) -> None:
    code = (
        "import sys; from lsml_cli.cli import app\n"
        "app(['fit', 'export.json', '-m', 'text-classifier', '-c', 'config.xml', '--dry-run'], standalone_mode=False)\n"
        "print(*{'sklearn', 'scipy', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=True)
    assert run.stderr.strip() == ""


# --- signals


def test_interrupt_leaves_nothing_half_written(work: Path) -> None:
    (work / "export.json").write_text(json.dumps(sample(3000)))
    root = work / "models/m"
    command = [sys.executable, "-m", "lsml_cli", "fit", "export.json", "--model", "text-classifier"]
    command += ["-c", "config.xml", "-o", str(root), "--summary", "summary.json", "--refit"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    codes, interrupted_count = [], 0
    for attempt in range(7):
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=-1, stderr=-1, text=True)
        time.sleep(random.uniform(0.25, 1.5 + attempt / 2))  # on a busy machine it starts later
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        codes.append(process.returncode)
        if process.returncode == 130:
            interrupted_count += "Interrupted; no version was left half-written." in stderr
            assert "Traceback" not in stderr
            assert not list(root.glob(".*")), list(root.glob(".*"))
        else:  # it was done, or Python itself had not started yet
            assert process.returncode in (0, -signal.SIGINT, 1), stderr
        for name in versions.list_versions(root):
            versions.read(root / name)
        if (work / "summary.json").exists():
            json.loads((work / "summary.json").read_bytes())
        assert not list(work.glob(".summary*"))
    assert 130 in codes
    assert interrupted_count, "each of them was hit before the command had begun"


class Reader(threading.Thread):
    """Loads the promoted version again and again; remembers what it saw, and every trouble."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.seen, self.trouble, self.done = root, set[str](), list[str](), threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            try:
                spec = resolve.find_model(f"{MODEL}@{self.root}")
                model: Any = spec.open("cpu")
                assert model.counts, spec
                assert spec.version
                self.seen.add(spec.version)
            except (LsmlError, OSError, ValueError, AssertionError) as error:
                self.trouble.append(f"{type(error).__name__}: {error}")
            time.sleep(0.002)


def test_killed_fits_and_promotions_never_expose_partial_version(lsml: Lsml, work: Path) -> None:
    fit(lsml, work)
    fit(lsml, work, "--with", "weight=2")
    root = work / "models/m"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    lsml_cli = [sys.executable, "-m", "lsml_cli"]
    reader = Reader(root)
    reader.start()
    ends = []
    try:
        for number in range(24):
            if number % 2:
                names = versions.list_versions(root)
                command = ["versions", str(root), "--promote", names[number // 2 % len(names)]]
            else:
                command = ["fit", "export.json", "--model", MODEL, "-c", "config.xml", "-o", str(root), "--refit"]
            process = subprocess.Popen([*lsml_cli, *command], cwd=work, env=environment, stdout=-3, stderr=-3)
            if number not in (5, 11):  # these promote the first version, and another one
                time.sleep(random.uniform(0.05, 0.3 if number % 2 else 0.6))
                process.send_signal(signal.SIGKILL)
            ends.append(process.wait())
    finally:
        reader.done.set()
        reader.join()
    assert not reader.trouble
    assert len(reader.seen) > 1, "nothing was promoted before it was killed"
    assert -signal.SIGKILL in ends
    for name in versions.list_versions(root):
        versions.read(root / name)
    assert lsml("versions", root).returncode == 0


def test_moved_version_still_predicts(lsml: Lsml, work: Path) -> None:
    fit(lsml, work, "--model", "text-classifier")
    here = lsml("predict", "export.json", "--model", "models/m", "--format", "jsonl", cwd=work)
    (work / "other").mkdir()
    shutil.move(work / "models/m", work / "other/m")
    there = lsml("predict", "../export.json", "--model", "m", "--format", "jsonl", cwd=work / "other")
    assert here.returncode == there.returncode == 0
    assert there.stdout == here.stdout != ""


def test_system_exit_in_fit_is_a_failure(lsml, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text(
        "import sys\nfrom tests.helpers.models import Words\n\n\nclass Leaves(Words):\n"
        "    def fit(self, *args):\n        sys.exit(0)\n"
    )
    example = Path(__file__).parents[2] / "examples" / "support-tickets"
    run = lsml(
        "fit",
        example / "annotated.json",
        *("--model", f"{tmp_path / 'leaves.py'}:Leaves", "--label-config", example / "label_config.xml"),
        *("--output", tmp_path / "models"),
    )
    assert run.returncode == 1
    assert "failed while training: SystemExit" in run.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("target", ["export.json", "config.xml"])
def test_summary_never_overwrites_input(lsml, tmp_path: Path, target: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "support-tickets"
    export, config = tmp_path / "export.json", tmp_path / "config.xml"
    export.write_bytes((example / "annotated.json").read_bytes())
    config.write_bytes((example / "label_config.xml").read_bytes())
    options = ("--model", "text-classifier", "--label-config", config, "--output", tmp_path / "models")
    run = lsml("fit", export, *options, "--summary", tmp_path / target)
    assert run.returncode == 2
    assert export.read_bytes() == (example / "annotated.json").read_bytes()
    assert config.read_bytes() == (example / "label_config.xml").read_bytes()


def test_spans_of_texts_train_without_pycocotools(lsml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    (tmp_path / "config.xml").write_text(
        '<View><Text name="text" value="$text"/>'
        '<Labels name="ner" toName="text"><Label value="PERSON"/></Labels></View>'
    )
    value = {"start": 0, "end": 3, "text": "Ada", "labels": ["PERSON"]}
    region = {"id": "a", "from_name": "ner", "to_name": "text", "type": "labels", "value": value}
    tasks = [
        {"id": i, "data": {"text": f"Ada bought lamp {i}"}, "annotations": [{"id": i, "result": [region]}]}
        for i in range(20)
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    run = fit(lsml, tmp_path, "--model", f"{trainable_models.__file__}:Names")
    assert "Cannot be measured yet: ner (<Labels> over <Text>)." in run.stderr


def test_missing_pycocotools_is_found_before_regions_of_images_are_trained(
    lsml, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    (work / "model.py").write_text(
        "from lsml_cli import Model\nfrom tests.helpers.trainable_models import Names\n"
        "class Boxes(Names):\n    supported_controls = {'RectangleLabels': ('Image',)}\n"
    )
    (work / "config.xml").write_text(
        '<View><Image name="image" value="$image"/>'
        '<RectangleLabels name="box" toName="image"><Label value="cat"/></RectangleLabels></View>'
    )
    run = fit(lsml, work, "--model", "model.py:Boxes", code=2)
    assert "Measuring regions of images needs the package pycocotools" in run.stderr
