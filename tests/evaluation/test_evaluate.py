"""Test `lsml evaluate` as a process: models and files, gates, comparisons, the report."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.evaluation.evaluate import evaluate_outcomes
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure, Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task
from tests.helpers.cli import EXAMPLE, ROOT, Lsml, run_in_process
from tests.helpers.evaluation_data import (
    TEXT_CONFIG,
    choice_region,
    exported_task,
    other_mood,
    perturb_annotations,
    prediction_record,
    write_records,
)
from tests.helpers.report_page import HOSTILE_TEXT, ParsedPage, require_self_contained

# Predicts the topic from the annotated mood, which is part of its input.
TOPICS = """
from lsml_cli import Model, Prediction

class Topics(Model):
    def input_controls(self, config):
        return frozenset({"mood"})

    def forward(self, inputs, binding):
        return [task.raw["annotations"][0]["result"] for task in inputs]

    def decode(self, output, task, binding):
        [mood] = output  # no other annotated region is passed in
        topic = "food" if mood["value"]["choices"] == ["good"] else "drink"
        region = binding.config.controls["topic"].region(task, {"choices": [topic]}, score=1.0)
        return Prediction.of((region,), self.version)

    def fit(self, train, holdout, binding, out_dir, progress):
        return {}
"""


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """A folder with 100 annotated tasks; `a.jsonl` is wrong about 10 of them, `b.jsonl` about 20."""
    (tmp_path / "config.xml").write_text(TEXT_CONFIG)
    truth = ["good" if i % 2 else "bad" for i in range(100)]
    write_records(tmp_path / "export.json", [exported_task(i, mood, topics=["food"]) for i, mood in enumerate(truth)])
    for name, wrong in (("a", 10), ("b", 20)):
        moods = [other_mood(mood) if i < wrong else mood for i, mood in enumerate(truth)]
        write_records(
            tmp_path / f"{name}.jsonl", [prediction_record(i, mood, 0.8, ["food"]) for i, mood in enumerate(moods)]
        )
    return tmp_path


def evaluate(lsml: Lsml, data_folder: Path, *args: str | Path, predictions: str = "a.jsonl") -> Any:
    command = ("evaluate", "export.json", "--predictions", predictions, "--label-config", "config.xml")
    return lsml(*command, *args, cwd=data_folder)


def test_metrics_of_prediction_file_are_printed_and_written(lsml: Lsml, data_folder: Path) -> None:
    run = evaluate(lsml, data_folder, "--json", "numbers.json")
    assert run.returncode == 0, run.stderr
    assert re.search(
        r"^mood: accuracy 0\.9000 \(0\.8\d+ to 0\.9\d+\), macro F1 0\.9000 .* on 100 tasks$", run.stdout, re.M
    )
    assert "topic: accuracy 1.0000" in run.stdout
    assert "mood: expected calibration error 0.1000 over 100 scores" in run.stdout
    assert "Measured a.jsonl on 100 annotated tasks." in run.stderr
    found = json.loads((data_folder / "numbers.json").read_text())
    mood = found["controls"]["mood"]
    assert (found["tasks"], mood["kind"], mood["accuracy"]) == (100, "choices", 0.9)
    assert mood["confusion"]["counts"] == [[45, 5], [5, 45]]
    assert mood["intervals"]["accuracy"]["low"] < 0.9 < mood["intervals"]["accuracy"]["high"]
    assert len(mood["worst"]) == 10
    assert "confusion" not in found["controls"]["topic"]


def test_both_record_shapes_give_equal_results(lsml: Lsml, data_folder: Path) -> None:
    records = [json.loads(line) for line in (data_folder / "a.jsonl").read_text().splitlines()]
    whole = [
        {"data": {"text": f"text {each['task']}"}, "predictions": [{key: each[key] for key in each if key != "task"}]}
        for each in records
    ]
    random.Random(0).shuffle(whole)
    write_records(data_folder / "whole.json", whole)
    runs = [evaluate(lsml, data_folder, predictions=name) for name in ("a.jsonl", "whole.json")]
    assert runs[0].stdout == runs[1].stdout
    assert runs[1].returncode == 0, runs[1].stderr


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["--fail-under", "mood.accuracy=0.9"], 0, "Gate passed: mood.accuracy is 0.9000, at 0.9."),
        (["--fail-under", "mood.accuracy=0.95"], 4, "a.jsonl missed its gate: mood.accuracy is 0.9000, 0.0500 below"),
        (["--fail-under", "accuracy=0.5", "--fail-under", "f1:good=0.99"], 4, "missed 1 of 3 gates: mood.f1:good is"),
        (["--fail-under", "map=0.5"], 2, "there is no metric 'map'"),
        (["--fail-under", "f1:odd=0.5"], 2, "there is no class 'odd'"),
        (
            ["--compare", "b.jsonl", "--fail-if-worse", "mood.accuracy"],
            0,
            "mood.accuracy is 0.9000, +0.1000 (95 %: +0.0",
        ),
        (["--fail-if-worse", "accuracy"], 2, "--fail-if-worse needs something to compare with"),
        (["--compare", "b.jsonl", "--fail-if-worse", "f1:odd"], 2, "there is no class 'odd'"),
        (["--compare", "b.jsonl", "--fail-if-worse", "accuracy=2"], 2, "the margin must be a number from 0 to 1"),
    ],
)
def test_gates_decide_exit_code(lsml: Lsml, data_folder: Path, args: list[str], code: int, sentence: str) -> None:
    run = evaluate(lsml, data_folder, *args)
    assert run.returncode == code, run.stderr
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("margin", "code"), [("", 4), ("=0.05", 4), ("=0.1", 0), ("=0.2", 0)])
def test_fail_if_worse_respects_margin(lsml: Lsml, data_folder: Path, margin: str, code: int) -> None:
    args = ("--compare", "a.jsonl", "--fail-if-worse", f"mood.accuracy{margin}", "--json", "n.json")
    run = evaluate(lsml, data_folder, *args, predictions="b.jsonl")
    assert run.returncode == code, run.stderr
    assert re.search(r"^mood accuracy +0\.8000 +0\.9000 +-0\.1000 +-0\.1\d+ to -0\.0\d+$", run.stdout, re.M)
    [gate] = json.loads((data_folder / "n.json").read_text())["not_worse"]
    assert gate["passed"] is (code == 0)
    assert gate["low"] < -0.1 < gate["high"] < 0


def test_failed_tasks_count_as_wrong_and_missing_ones_are_left_out(lsml: Lsml, data_folder: Path) -> None:
    records = [json.loads(line) for line in (data_folder / "a.jsonl").read_text().splitlines()][10:90]
    records[0] = {"task": 10, "result": [], "error": {"stage": "fetch", "reason": "no such file"}}
    write_records(data_folder / "c.jsonl", records)
    run = evaluate(lsml, data_folder, "--json", "n.json", predictions="c.jsonl")
    assert run.returncode == 3
    assert "1 task failed (fetch, counted as wrong): task 10: no such file." in run.stderr
    assert "Left out: no prediction in the file (20)." in run.stderr
    found = json.loads((data_folder / "n.json").read_text())
    assert found["tasks"] == 80
    assert found["controls"]["mood"]["accuracy"] == pytest.approx(79 / 80)


IMAGE_CONFIG = """
<View><Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image"><Label value="cat"/></RectangleLabels>
  <TextArea name="caption" toName="image"/>
  <Choices name="kind" toName="image"><Choice value="photo"/><Choice value="drawing"/></Choices>
</View>
"""
EMPTY_MODEL = """
from lsml_cli import Model, Prediction

class Empty(Model):
    def forward(self, inputs, binding):
        return inputs

    def decode(self, output, task, binding):
        return Prediction.of((), self.version)

    def fit(self, train, holdout, binding, out_dir, progress):
        return {}
"""


def image_task(id: int) -> dict[str, Any]:
    """Return an exported task with a box, a caption and a choice."""
    shared = {"to_name": "image", "original_width": 100, "original_height": 100, "image_rotation": 0}
    box = {"x": 10, "y": 10, "width": 30, "height": 30, "rotation": 0, "rectanglelabels": ["cat"]}
    result = [
        shared | {"id": "b", "from_name": "box", "type": "rectanglelabels", "value": box},
        {"id": "c", "from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": ["a cat"]}},
        choice_region("kind", ["photo"]) | {"to_name": "image"},
    ]
    return {"id": id, "data": {"image": f"{id}.png"}, "annotations": [{"id": id, "result": result}]}


def test_empty_result_counts_for_regions_and_texts(lsml: Lsml, tmp_path: Path) -> None:
    """A file that fills no choice was not asked about it, but it has found no region and no text."""
    (tmp_path / "config.xml").write_text(IMAGE_CONFIG)
    tasks = [image_task(id) for id in range(20)]
    write_records(tmp_path / "export.json", tasks)
    write_records(tmp_path / "a.jsonl", [{"task": id, "result": [], "model_version": "v1"} for id in range(20)])
    run = evaluate(lsml, tmp_path, "--json", "n.json", "--report", "r.html", "--fail-under", "box.map=0.5")
    assert run.returncode == 4, run.stderr
    assert "a.jsonl found nothing at all in the 20 annotated tasks." in run.stderr
    assert "Nothing was predicted, so nothing measured, for: kind." in run.stderr
    found = json.loads((tmp_path / "n.json").read_text())
    box, caption = found["controls"]["box"], found["controls"]["caption"]
    assert (box["map"], box["recall"], caption["cer"]) == (0, 0, 1)
    assert (found["nothing_found"], found["not_predicted"]) == (["box", "caption"], ["kind"])
    boxes = [{"task": id, "result": tasks[id]["annotations"][0]["result"][:1]} for id in range(20)]
    write_records(tmp_path / "b.jsonl", boxes)
    run = evaluate(lsml, tmp_path, "--compare", "a.jsonl", predictions="b.jsonl")
    assert run.returncode == 0, run.stderr
    assert "Nothing was predicted, so nothing measured, for: caption, kind." in run.stderr
    assert re.search(r"^box mAP +1\.0000 +0\.0000 ", run.stdout, re.M), run.stdout


def test_fit_evaluates_model_without_detections(lsml: Lsml, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(IMAGE_CONFIG)
    (tmp_path / "empty.py").write_text(EMPTY_MODEL)
    write_records(tmp_path / "export.json", [image_task(id) for id in range(40)])
    run = lsml("fit", "export.json", "--model", "empty.py", "-c", "config.xml", "-o", "models", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert re.search(r"The model found nothing at all in the \d+ held-out tasks\.", run.stderr), run.stderr
    assert re.search(r"^box: .*mAP.* 0\.0000", run.stdout, re.M), run.stdout


@pytest.mark.parametrize(
    ("filled", "found", "measured"),
    [
        ({"box"}, False, ["box"]),
        ({"box", "caption"}, True, ["box", "caption"]),
        (frozenset(), False, []),
        (None, False, ["box", "caption"]),
        (None, True, ["box"]),
    ],
)
def test_output_controls_decide_what_is_evaluated(filled: set[str] | None, found: bool, measured: list[str]) -> None:
    config, raw = LabelConfig.parse(IMAGE_CONFIG), image_task(1)
    result = raw["annotations"][0]["result"]
    example = AnnotatedTask(Task(0, 1, raw["data"], raw), Annotation(1, result))
    outcome = Prediction.of((config.controls["box"].region(example.task, result[0]["value"]),) if found else (), "v1")
    assert list(evaluate_outcomes(config, [example], [outcome], output_controls=filled).controls) == measured
    failed = Failure("forward", "it broke", False)
    assert not evaluate_outcomes(config, [example], [failed], output_controls=filled).controls


@pytest.fixture
def mixed_versions(data_folder: Path) -> str:
    """Tasks with an old, correct prediction; half of them also have a new, wrong one."""
    records = [json.loads(line) for line in (data_folder / "a.jsonl").read_text().splitlines()]
    whole = []
    for each in records:
        truth = "good" if each["task"] % 2 else "bad"
        made = [{"result": [choice_region("mood", [truth], 0.9)], "score": 0.9, "model_version": "old"}]
        if each["task"] % 4 < 2:
            made.append(
                {"result": [choice_region("mood", [other_mood(truth)], 0.9)], "score": 0.9, "model_version": "new"}
            )
        whole.append({"id": each["task"], "data": {"text": f"text {each['task']}"}, "predictions": made})
    write_records(data_folder / "whole.json", whole)
    return "whole.json"


def test_failed_task_is_wrong_also_where_no_label_applies(data_folder: Path) -> None:
    """An empty prediction of a multiple choice is an answer; a failure is none."""
    unlabelled, labelled = exported_task(0, "good"), exported_task(1, "good", topics=["food"])
    write_records(data_folder / "export.json", [unlabelled, labelled])
    empty = prediction_record(0, "good", 0.9)
    for first, accuracy in ((empty, 1.0), ({"task": 0, "error": {"stage": "forward", "reason": "boom"}}, 0.5)):
        write_records(data_folder / "c.jsonl", [first, prediction_record(1, "good", 0.9, ["food"])])
        run = evaluate(run_in_process, data_folder, "--json", "n.json", predictions="c.jsonl")
        controls = json.loads((data_folder / "n.json").read_text())["controls"]
        assert [controls[name]["accuracy"] for name in ("mood", "topic")] == [accuracy, accuracy], run.stderr
        assert controls["topic"]["micro_f1"] == 1.0


def test_failures_are_told_by_cause(data_folder: Path) -> None:
    records = [json.loads(line) for line in (data_folder / "a.jsonl").read_text().splitlines()]
    for i in range(46):
        records[i] = {"task": i, "error": {"stage": "fetch", "reason": f"images/{i}.png: no such file"}}
    write_records(data_folder / "c.jsonl", records)
    run = evaluate(run_in_process, data_folder, "--json", "n.json", predictions="c.jsonl")
    assert [line for line in run.stderr.splitlines() if "no such file" in line] == [
        "lsml: failed: task 0: images/0.png: no such file",
        "lsml: 10 tasks have failed so far (fetch), such as task 0: images/0.png: no such file.",
        "lsml: 46 tasks failed (fetch, counted as wrong), such as task 0: images/0.png: no such file.",
    ]
    assert json.loads((data_folder / "n.json").read_text())["failed"] == {"images/0.png: no such file": 46}


def test_task_without_requested_version_counts_as_wrong(lsml: Lsml, data_folder: Path, mixed_versions: str) -> None:
    run = evaluate(lsml, data_folder, "--model-version", "new", predictions=mixed_versions)
    assert run.returncode == 3
    assert "mood: accuracy 0.0000" in run.stdout
    assert "50 tasks failed (counted as wrong), such as task 2: no prediction of this version." in run.stderr
    old = evaluate(lsml, data_folder, "--model-version", "old", predictions=mixed_versions)
    assert (old.returncode, "mood: accuracy 1.0000" in old.stdout) == (0, True), old.stderr
    for file, known in ((mixed_versions, "old (100), new (50)"), ("a.jsonl", "v1 (100)")):
        typo = evaluate(lsml, data_folder, "--model-version", "nev", predictions=file)
        assert (typo.returncode, typo.stdout) == (2, "")
        assert f"{file} has no prediction of the version 'nev'." in typo.stderr
        assert f"It has those of: {known}." in typo.stderr


def test_mixed_model_versions_are_reported(lsml: Lsml, data_folder: Path, mixed_versions: str) -> None:
    mixed = "of whole.json are predictions of 2 versions, the last one of each task: new (50), old (50)."
    run = evaluate(lsml, data_folder, "--quiet", predictions=mixed_versions)
    assert (run.returncode, mixed in run.stderr) == (0, True), run.stderr
    run = evaluate(lsml, data_folder, "--quiet", "--compare", mixed_versions)
    assert (run.returncode, mixed in run.stderr) == (0, True), run.stderr
    assert mixed not in evaluate(lsml, data_folder).stderr


def test_compare_runs_model_file_only_if_named_by_user(lsml: Lsml, data_folder: Path) -> None:
    """A settings file beside the data must not decide which code runs."""
    (data_folder / "model.py").write_text(
        "from lsml_cli import Model, Prediction\n\n\nclass Good(Model):\n"
        "    def forward(self, inputs, binding):\n        return inputs\n\n"
        "    def decode(self, output, task, binding):\n"
        "        region = binding.config.controls['mood'].region(task, {'choices': ['good']})\n"
        "        return Prediction.of((region,), self.version)\n"
    )
    run = evaluate(lsml, data_folder, "--compare", "model.py")
    assert run.returncode == 0, run.stderr
    assert re.search(r"^mood accuracy +0\.9000 +0\.5000 ", run.stdout, re.M), run.stdout
    (data_folder / "lsml.toml").write_text('[evaluate]\ncompare = "model.py"\n')
    run = lsml(
        "evaluate",
        data_folder / "export.json",
        "--predictions",
        data_folder / "a.jsonl",
        "-c",
        data_folder / "config.xml",
    )
    assert (run.returncode, "which would run the code in" in run.stderr) == (2, True), run.stderr


def test_annotation_policy_and_agreement(lsml: Lsml, data_folder: Path) -> None:
    write_records(
        data_folder / "export.json",
        [exported_task(0, "good", "good"), exported_task(1, "bad", "good"), exported_task(2, "bad")],
    )
    write_records(
        data_folder / "a.jsonl",
        [prediction_record(0, "good", 0.9), prediction_record(1, "good", 0.9), prediction_record(2, "good", 0.9)],
    )
    last = evaluate(lsml, data_folder)
    assert "mood: accuracy 0.6667" in last.stdout
    assert "mood: people agree (the same answer) 0.5000, Krippendorff's alpha 0.0000 on 2 tasks" in last.stdout
    assert "mood: accuracy 0.3333" in evaluate(lsml, data_folder, "--annotation", "first").stdout
    everyone = evaluate(lsml, data_folder, "--annotation", "all")
    assert "mood: accuracy 0.6000" in everyone.stdout
    assert "3 annotated tasks with 5 annotations" in everyone.stderr


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["export.json", "-c", "config.xml"], 2, "What should be measured?"),
        (["export.json", "--predictions", "a.jsonl"], 2, "A label config is needed."),
        (
            ["export.json", "--predictions", "a.jsonl", "-c", "config.xml", "--json", "export.json"],
            2,
            "is not a summary",
        ),
        (["export.json", "--predictions", "a.jsonl", "-c", "config.xml", "--report", "a.jsonl"], 2, "is not a report"),
        (["export.json", "--predictions", "export.json", "-c", "config.xml"], 1, "there is no prediction"),
        (["other.json", "--predictions", "a.jsonl", "-c", "config.xml"], 1, "no prediction in the file (1)"),
    ],
)
def test_usage_error_is_one_sentence(lsml: Lsml, data_folder: Path, args: list[str], code: int, sentence: str) -> None:
    write_records(data_folder / "other.json", [exported_task(555, "good")])
    run = lsml("evaluate", *args, cwd=data_folder)
    assert run.returncode == code, run.stderr
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


def test_model_and_its_prediction_file_give_equal_results(lsml: Lsml, ticket_model: Path, tmp_path: Path) -> None:
    export = EXAMPLE / "annotated.json"
    lsml("predict", export, "--model", ticket_model, "-o", tmp_path / "p.json")
    by_model = lsml("evaluate", export, "--model", ticket_model)
    config = ("-c", EXAMPLE / "label_config.xml")
    by_file = lsml("evaluate", export, "--predictions", tmp_path / "p.json", *config, "--compare", ticket_model)
    assert "equal" in by_file.stdout
    assert by_model.returncode == by_file.returncode == 0, by_model.stderr + by_file.stderr
    assert (
        by_file.stdout.replace(re.findall(r"(?s)Compared.*?(?=category: exp)", by_file.stdout)[0], "")
        == by_model.stdout
    )
    assert "Left out: skipped (3), " in by_model.stderr


COUNTING = f"{ROOT / 'tests' / 'helpers' / 'trainable_models.py'}:Counting"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder with 100 annotated tasks, and versions that were trained on 80 of them in different ways."""
    tasks = [exported_task(i, "good" if i % 2 else "bad", text=f"word{i % 7} number{i}") for i in range(100)]
    write_records(tmp_path / "export.json", tasks)
    (tmp_path / "config.xml").write_text(TEXT_CONFIG)
    for name, *more in (("m",), ("other-seed", "--seed", "1"), ("refitted", "--refit"), ("all", "--holdout", "0")):
        fit = (*("fit", "export.json", "--model", COUNTING, "-c", "config.xml", "-o", name), *more)
        run = run_in_process(*fit, "--summary", f"{name}.fit.json", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    return tmp_path


def measure(folder: Path, *args: str, export: str = "export.json", code: int = 0) -> tuple[Any, dict[str, Any]]:
    """Return the finished run of `lsml evaluate`, and its numbers."""
    (folder / "numbers.json").unlink(missing_ok=True)
    run = run_in_process("evaluate", export, *args, "--json", "numbers.json", cwd=folder)
    assert run.returncode == code, run.stderr
    path = folder / "numbers.json"
    return run, json.loads(path.read_text()) if path.exists() else {}


def counted(folder: Path, name: str = "m") -> tuple[int, int]:
    counts = json.loads((folder / f"{name}.fit.json").read_text())["counts"]
    return counts["train"], counts["holdout"]


def version_folder(folder: Path, name: str = "m") -> Path:
    return folder / name / (folder / name / "current").read_text().strip()


def model_argument(name: str) -> str:
    return f"{COUNTING}@{name}"


def test_tasks_that_a_model_was_trained_on_are_left_out(trained: Path) -> None:
    train, held_out = counted(trained)
    run, numbers = measure(trained, "--model", model_argument("m"))
    assert (numbers["tasks"], numbers["training_data"]["left_out"]) == (held_out, train)
    assert re.search(rf"Left out: m@\S+ was trained on it \({train}\)", run.stderr)

    _, both = measure(trained, "--model", model_argument("m"), "--compare", model_argument("other-seed"))
    assert 0 < both["tasks"] < held_out  # what neither was trained on

    tasks = [exported_task(200 + i, "good", text=f"word{i % 7} new {i}") for i in range(10)]
    write_records(trained / "more.json", [*json.loads((trained / "export.json").read_text()), *tasks])
    assert measure(trained, "--model", model_argument("m"), export="more.json")[1]["tasks"] == held_out + 10
    only = measure(trained, "--model", model_argument("m"), "--held-out", export="more.json")[1]
    assert only["tasks"] == held_out


def test_include_trained_says_loudly_that_numbers_are_on_training_data(trained: Path) -> None:
    train, held_out = counted(trained)
    options = ("--model", model_argument("m"), "--include-trained", "--report", "report.html")
    run, numbers = measure(trained, *options)
    assert (numbers["tasks"], numbers["training_data"]["included"]) == (train + held_out, train)
    loud = f"PARTLY ON TRAINING DATA: measured on 100 tasks, and {train} of them were trained on"
    assert loud in run.stdout
    assert any(loud in warning for warning in numbers["warnings"])
    assert loud in (trained / "report.html").read_text()


@pytest.mark.parametrize("name", ["all", "refitted"])
def test_nothing_left_to_measure_is_one_sentence(trained: Path, name: str) -> None:
    run, _ = measure(trained, "--model", model_argument(name), code=1)
    assert "There is no task left to measure with: " in run.stderr
    assert "--include-trained" in run.stderr
    refused, _ = measure(trained, "--model", model_argument(name), "--held-out", code=2)
    assert ("--refit" if name == "refitted" else "--holdout 0") in refused.stderr
    both, _ = measure(trained, "--model", model_argument(name), "--held-out", "--include-trained", code=2)
    assert "exclude each other" in both.stderr


def test_version_of_an_older_lsml_says_that_its_training_data_are_unknown(trained: Path) -> None:
    folder = version_folder(trained)
    content = json.loads((folder / "model.json").read_text())
    for name in ("trained_tasks.npy", "held_out_tasks.npy"):
        (folder / name).unlink()
        del content["files"][name], content["digests"][name]
    (folder / "model.json").write_text(json.dumps(content))
    run, numbers = measure(trained, "--model", model_argument("m"))
    assert numbers["tasks"] == 100
    assert numbers["training_data"]["unknown"] == [f"m@{folder.name}"]
    assert f"It is not known which tasks m@{folder.name} was trained on" in run.stdout
    refused, _ = measure(trained, "--model", model_argument("m"), "--held-out", code=2)
    assert "because an older lsml wrote it" in refused.stderr
    start = ("fit", "export.json", "--init-from", model_argument("m"), "-c", "config.xml", "-o", "next")
    assert "It is not known what m@" in run_in_process(*start, cwd=trained).stderr
    assert measure(trained, "--model", model_argument("next"))[1]["training_data"]["unknown"]


def test_warm_started_version_has_seen_what_its_ancestor_saw(trained: Path) -> None:
    _, held_out = counted(trained)
    start = ("fit", "export.json", "--init-from", model_argument("m"), "-c", "config.xml", "-o", "warm")
    run = run_in_process(*start, "--seed", "1", "--summary", "warm.fit.json", cwd=trained)
    assert run.returncode == 0, run.stderr
    assert "cannot be held out, because m@" in run.stderr
    assert 0 < counted(trained, "warm")[1] < held_out
    assert measure(trained, "--model", model_argument("warm"))[1]["tasks"] == counted(trained, "warm")[1]

    tasks = json.loads((trained / "export.json").read_text())
    write_records(trained / "other.json", [exported_task(300 + i, "good", text=f"fresh {i}") for i in range(30)])
    write_records(trained / "old.json", tasks)
    again = run_in_process(
        *("fit", "other.json", "--init-from", model_argument("m"), "-c", "config.xml", "-o", "new"), cwd=trained
    )
    assert again.returncode == 0, again.stderr
    assert measure(trained, "--model", model_argument("new"), export="old.json")[1]["tasks"] == held_out


def test_training_data_of_predictions_in_a_file_are_left_out_by_predicted_by(trained: Path) -> None:
    train, held_out = counted(trained)
    predicted = run_in_process(*("predict", "export.json", "--model", model_argument("m"), "-o", "p.json"), cwd=trained)
    assert predicted.returncode == 0, predicted.stderr
    source = ("--predictions", "p.json", "-c", "config.xml")
    run, numbers = measure(trained, *source)
    assert numbers["tasks"] == 100
    assert "--predicted-by" in run.stdout
    run, numbers = measure(trained, *source, "--predicted-by", model_argument("m"))
    assert (numbers["tasks"], "--predicted-by" in run.stdout) == (held_out, False)

    rank = ("rank", "p.json", "-o", "out.json", "--accept-above", "0.1", "--annotated", "export.json")
    options = (*rank, "-c", "config.xml", "--summary", "rank.json")
    for more, compared, sentence in (
        ((), 100, "Name its folder with --predicted-by"),
        (("--predicted-by", model_argument("m")), held_out, f"{train} annotated tasks were left out: m@"),
        (("--predicted-by", model_argument("m"), "--include-trained"), 100, "PARTLY ON TRAINING DATA"),
    ):
        run = run_in_process(*options, *more, cwd=trained)
        assert run.returncode == 0, run.stderr
        assert sentence in run.stderr, run.stderr
        # The model says nothing about words that it has not seen.
        assert json.loads((trained / "rank.json").read_text())["trust"]["compared"] <= compared


def test_held_out_needs_a_trained_model(trained: Path) -> None:
    run, _ = measure(trained, "--predictions", "p.json", "-c", "config.xml", "--held-out", code=2)
    assert "Name one with --model, --predicted-by or --compare" in run.stderr
    run, _ = measure(trained, "--model", "text-classifier", "-c", "config.xml", "--held-out", code=2)
    assert "is not a trained version, so nothing was held out" in run.stderr


SPANS_CONFIG = """
<View><Text name="text" value="$text"/>
  <Labels name="entities" toName="text"><Label value="PER"/></Labels>
  <Choices name="mood" toName="text"><Choice value="good"/><Choice value="bad"/></Choices></View>
"""


def test_what_cannot_be_measured_yet_is_named(tmp_path: Path) -> None:
    span: dict[str, Any] = {"id": "s", "from_name": "entities", "to_name": "text", "type": "labels"}
    span["score"] = 0.9
    span["value"] = {"start": 0, "end": 4, "text": "text", "labels": ["PER"]}
    tasks = [exported_task(i, "good") for i in range(40)]
    records = [prediction_record(i, "good", 0.9) for i in range(40)]
    for item in [*(task["annotations"][0] for task in tasks), *records]:
        item["result"] = [span]
    (tmp_path / "config.xml").write_text(SPANS_CONFIG)
    write_records(tmp_path / "export.json", tasks)
    write_records(tmp_path / "p.json", records)
    source = ("--predictions", "p.json", "-c", "config.xml")
    run, numbers = measure(tmp_path, *source, code=1)
    assert "Nothing was measured: entities (<Labels> over <Text>) cannot be measured yet." in run.stderr
    assert numbers["cannot_be_measured"] == ["entities (<Labels> over <Text>)"]
    rank = ("rank", "p.json", "-o", "out.json", "--accept-above", "0", "--annotated", "export.json", "-c", "config.xml")
    assert "Cannot be measured yet: entities (<Labels> over <Text>)." in run_in_process(*rank, cwd=tmp_path).stderr

    for item in [*(task["annotations"][0] for task in tasks), *records]:
        item["result"] = [span, choice_region("mood", ["good"])]
    write_records(tmp_path / "export.json", tasks)
    write_records(tmp_path / "p.json", records)
    run, _ = measure(tmp_path, *source, "--report", "report.html")
    assert "Cannot be measured yet: entities (<Labels> over <Text>)." in run.stderr
    assert "cannot be measured yet" in (tmp_path / "report.html").read_text()


def test_few_tasks_have_wide_intervals_and_a_note(tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(TEXT_CONFIG)
    write_records(tmp_path / "export.json", [exported_task(i, "good") for i in range(5)])
    write_records(tmp_path / "right.json", [prediction_record(i, "good", 0.9) for i in range(5)])
    write_records(tmp_path / "wrong.json", [prediction_record(i, "good" if i > 2 else "bad", 0.9) for i in range(5)])
    source = ("--predictions", "right.json", "-c", "config.xml")
    run, numbers = measure(tmp_path, *source, "--compare", "right.json", "--report", "report.html")
    intervals = numbers["controls"]["mood"]["intervals"]
    for metric in ("accuracy", "macro-f1", "precision:good", "recall:good", "f1:good"):
        assert intervals[metric] == pytest.approx({"low": 0.5655, "high": 1.0}, abs=1e-4), metric
    assert "5 tasks say little" in run.stdout
    assert numbers["compared"]["controls"]["mood"]["accuracy"]["verdict"] == "equal"
    assert re.search(r"mood accuracy .*equal", run.stdout)
    assert "could be chance" not in (tmp_path / "report.html").read_text()

    # 3 of 5 tasks more are no proof: the exact sign test gives p = 0.25.
    _, numbers = measure(tmp_path, *source, "--compare", "wrong.json")
    assert numbers["compared"]["controls"]["mood"]["accuracy"]["verdict"] == "could be chance"


def test_gate_of_equal_sides_says_equal(data_folder: Path) -> None:
    source = ("--predictions", "a.jsonl", "-c", "config.xml", "--compare", "a.jsonl")
    run, _ = measure(data_folder, *source, "--fail-if-worse", "accuracy")
    assert "Gate passed: mood.accuracy is 0.9000, +0.0000 (equal on every task) from 0.9000." in run.stderr


def test_full_temporary_folder_is_one_sentence(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (data_folder / "a.jsonl").read_text().splitlines()
    (data_folder / "reversed.jsonl").write_text("\n".join(lines[::-1]))

    class FullDatabase:
        def close(self) -> None:
            pass

        def execute(self, statement: str, *values: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: FullDatabase())
    run, _ = measure(data_folder, "--predictions", "reversed.jsonl", "-c", "config.xml", code=1)
    assert "cannot take them: database or disk is full." in run.stderr
    assert "TMPDIR" in run.stderr
    assert "bug" not in run.stderr


def test_input_controls_are_passed_and_not_evaluated(lsml: Lsml, data_folder: Path) -> None:
    (data_folder / "topics.py").write_text(TOPICS)
    moods = ["good" if i % 2 else "bad" for i in range(40)]
    tasks = [exported_task(i, mood, topics=["food" if mood == "good" else "drink"]) for i, mood in enumerate(moods)]
    write_records(data_folder / "topics.json", tasks)
    arguments: tuple[str | Path, ...] = ("topics.json", "--model", "topics.py:Topics", "--label-config", "config.xml")
    run = lsml("evaluate", *arguments, "--json", "numbers.json", cwd=data_folder)
    assert run.returncode == 0, run.stderr
    measured = json.loads((data_folder / "numbers.json").read_text())
    assert (list(measured["controls"]), measured["failed"]) == (["topic"], {})
    assert measured["controls"]["topic"]["accuracy"] == 1.0
    run = lsml("fit", *arguments, "--output", "models/topics", "--summary", "fit.json", cwd=data_folder)
    assert run.returncode == 0, run.stderr
    fitted = json.loads((data_folder / "fit.json").read_text())
    assert (list(fitted["metrics"]), fitted["failed"]) == (["topic"], {})
    assert fitted["metrics"]["topic"]["accuracy"] == 1.0


def test_settings_file_beside_data_is_applied(lsml: Lsml, data_folder: Path) -> None:
    (data_folder / "lsml.toml").write_text(
        '[evaluate]\npredictions = "b.jsonl"\nlabel-config = "config.xml"\ncompare = "a.jsonl"\n'
        "[evaluate.fail-if-worse]\n'mood.accuracy' = 0.05\n"
    )
    run = lsml("evaluate", data_folder / "export.json")
    assert run.returncode == 4, run.stderr
    assert "the margin is 0.05" in run.stderr


# ---- the report


def test_report_is_self_contained_and_escapes_untrusted_text(lsml: Lsml, tmp_path: Path) -> None:
    quoted = (
        HOSTILE_TEXT.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace('"', "&quot;")
        .replace("\x00", "")
        .replace("\u202e", "")
    )
    label = HOSTILE_TEXT.replace("\x00", "").replace("\u202e", "")
    (tmp_path / "config.xml").write_text(TEXT_CONFIG.replace('value="good"', f'value="{quoted}"'))
    write_records(
        tmp_path / "export.json", [exported_task(i, label if i % 2 else "bad", text=HOSTILE_TEXT) for i in range(40)]
    )
    write_records(tmp_path / "a.jsonl", [prediction_record(i, label, 0.1 + i / 50) for i in range(40)])
    args = ("--report", "report.html", "--label-studio-url", "http://127.0.0.1:8080/label/", "--compare", "a.jsonl")
    run = evaluate(lsml, tmp_path, *args, "--fail-under", "accuracy=0.99")
    assert run.returncode == 4, run.stderr
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.startswith("<!doctype html>")
    page = ParsedPage(text)
    require_self_contained(page, "http://127.0.0.1:8080/label/projects/7/data?task=")
    assert len([each for each in page.all("a") if "task=" in (each["href"] or "")]) == 12
    assert label in page.text
    assert "\x00" not in text
    again = evaluate(lsml, tmp_path, *args)
    assert again.returncode == 0
    assert "Gates" not in ParsedPage((tmp_path / "report.html").read_text("utf-8")).text


def test_fit_writes_report(lsml: Lsml, tmp_path: Path) -> None:
    export, config = EXAMPLE / "annotated.json", EXAMPLE / "label_config.xml"
    fit = ("fit", export, "-m", "text-classifier", "-c", config, "-o", tmp_path / "m")
    run = lsml(*fit, "--report", tmp_path / "r.html", "--fail-under", "category.macro-f1=0.1")
    assert run.returncode == 0, run.stderr
    page = ParsedPage((tmp_path / "r.html").read_text("utf-8"))
    require_self_contained(page)
    for wanted in ("against held-out tasks", "category", "signals", "Confusion", "Reliability", "passed"):
        assert wanted in page.text
    assert lsml(*fit, "--report", tmp_path / "r.html", "--holdout", "0").returncode == 2


# ---- images and texts on them


def test_detection_metrics_gates_and_report(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    exports = shared_data / "exports"
    tasks = json.loads((exports / "coco128-annotated.json").read_text())
    write_records(tmp_path / "good.jsonl", perturb_annotations(tasks, 0, 0.02))
    write_records(tmp_path / "poor.jsonl", perturb_annotations(tasks, 1, 0.2))
    run = lsml(
        *("evaluate", exports / "coco128-annotated.json", "--predictions", tmp_path / "poor.jsonl"),
        *("-c", exports / "coco128.xml", "--compare", tmp_path / "good.jsonl", "--fail-if-worse", "map50=0.1"),
        *("--report", tmp_path / "r.html", "--document-root", shared_data, "--examples", "3"),
        *("--json", tmp_path / "n.json", "--fail-under", "ap50:person=0.01", "--annotation", "last"),
    )
    assert run.returncode == 4, run.stderr
    assert "missed 1 of 2 gates: label.map50 is" in run.stderr
    found = json.loads((tmp_path / "n.json").read_text())["controls"]["label"]
    assert found["kind"] == "regions"
    assert 0 < found["map"] < found["map50"] < 0.6
    assert found["intervals"]["map"]["low"] <= found["map"] <= found["intervals"]["map"]["high"]
    page = ParsedPage((tmp_path / "r.html").read_text("utf-8"))
    require_self_contained(page)
    assert len(page.all("img")) == 3
    assert len(page.all("path")) > 10
    assert (tmp_path / "r.html").stat().st_size < 1_500_000


def test_missing_image_is_replaced_by_reason(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    exports = shared_data / "exports"
    tasks = json.loads((exports / "coco128-annotated.json").read_text())
    write_records(tmp_path / "p.jsonl", perturb_annotations(tasks, 0, 0.1))
    command = ("evaluate", exports / "coco128-annotated.json", "--predictions", tmp_path / "p.jsonl")
    run = lsml(*command, "-c", exports / "coco128.xml", "--report", tmp_path / "r.html")
    assert run.returncode == 0, run.stderr
    assert "The image cannot be shown: " in ParsedPage((tmp_path / "r.html").read_text("utf-8")).text


def test_transcription_metrics_gates_and_report(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    exports = shared_data / "exports"
    tasks = json.loads((exports / "receipts-annotated.json").read_text())
    for task in tasks:
        result = task.pop("annotations")[0]["result"]
        for each in result:
            each["score"] = 0.9
            if each["type"] == "textarea" and each["value"]["text"][0].isalpha():
                each["value"]["text"] = [each["value"]["text"][0][:-1] + "?"]
        task["predictions"] = [{"result": result, "score": 0.9, "model_version": "reader"}]
    write_records(tmp_path / "p.json", tasks)
    run = lsml(
        *("evaluate", exports / "receipts-annotated.json", "--predictions", tmp_path / "p.json"),
        *("-c", exports / "receipts.xml", "--report", tmp_path / "r.html", "--document-root", shared_data),
        *("--fail-under", "hmean=0.99", "--fail-under", "transcription.cer=0.2", "--fail-under", "wer=0.01"),
    )
    assert run.returncode == 4, run.stderr
    assert "missed 1 of 3 gates: transcription.wer is" in run.stderr
    assert "above 0.01" in run.stderr
    assert re.search(r"transcription: CER 0\.\d+ \(.*\), WER 0\.\d+ .*, detection hmean 1\.0000", run.stdout)
    page = ParsedPage((tmp_path / "r.html").read_text("utf-8"))
    require_self_contained(page)
    assert len(page.all("img")) == 2


def test_missing_package_names_install_command(lsml_process: Lsml, shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "pycocotools").mkdir()
    (tmp_path / "pycocotools" / "__init__.py").write_text("raise ImportError('not here')")
    exports = shared_data / "exports"
    tasks = json.loads((exports / "coco128-annotated.json").read_text())
    write_records(tmp_path / "p.jsonl", perturb_annotations(tasks, 0, 0.1))
    command = ("evaluate", exports / "coco128-annotated.json", "--predictions", tmp_path / "p.jsonl")
    run = lsml_process(*command, "-c", exports / "coco128.xml", env={"PYTHONPATH": str(tmp_path)})
    assert run.returncode == 2
    assert "pip install 'lsml[evaluate]'" in run.stderr
