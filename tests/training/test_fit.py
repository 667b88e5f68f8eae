from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.evaluation.evaluate import evaluate_outcomes
from lsml_cli.evaluation.metrics import ChoiceMetrics
from lsml_cli.io.task_reader import read_tasks
from lsml_cli.registry import resolve, versions
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Annotation, Task, UnreadableRecord
from lsml_cli.training import fit as training
from lsml_cli.training import splits
from lsml_cli.training.trainer import predict
from tests.helpers.cli import Lsml, run_in_process

CONFIG = LabelConfig.parse("""
    <View>
      <Text name="text" value="$text"/>
      <Choices name="mood" toName="text"><Choice value="good"/><Choice value="bad"/><Choice value="odd"/></Choices>
      <Choices name="topic" toName="text" choice="multiple">
        <Choice value="Food" alias="food"/><Choice value="drink"/>
      </Choices>
    </View>
""")
GOOD = ["lovely", "great", "nice", "fine", "tasty"]
BAD = ["awful", "nasty", "poor", "sour", "stale"]


def exported(index: int, mood: str | None, topics: list[str] | None = None, text: str | None = None) -> Task:
    rng = random.Random(index)
    words = rng.choices(GOOD if mood == "good" else BAD, k=3) + [topic.lower() for topic in topics or []]
    result: list[dict[str, Any]] = []
    if mood:
        result.append({"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": [mood]}})
    if topics:
        result.append({"from_name": "topic", "to_name": "text", "type": "choices", "value": {"choices": topics}})
    annotations = [{"id": index, "result": result}]
    data = {"text": text or f"{' '.join(words)} {index}"}
    return Task(index, index, data, {"id": index, "data": data, "annotations": annotations, "predictions": [7]})


def sample(count: int = 120) -> list[Task]:
    topics: list[list[str] | None] = [["Food"], ["drink"], ["food", "drink"], None]
    return [exported(i, "good" if i % 2 else "bad", topics[i // 2 % 4]) for i in range(count)]


def fit(output: Path, tasks: Sequence[Task | UnreadableRecord], **options: Any) -> training.FitResult:
    return training.fit_version(resolve.find_model("text-classifier", {}), tasks, CONFIG, output, **options)


def test_fit_writes_evaluates_and_promotes_version(tmp_path: Path) -> None:
    found = fit(tmp_path / "news", sample())
    version = versions.read(versions.resolve(str(tmp_path / "news")))
    assert version == found.version
    assert version.counts["train"] + version.counts["holdout"] == 120
    assert 10 <= version.counts["holdout"] <= 40
    assert set(found.metrics) == {"mood", "topic"}
    mood = found.metrics["mood"]
    assert isinstance(mood, ChoiceMetrics)
    assert version.metrics["mood"]["accuracy"] == mood.accuracy == 1.0
    assert [each.name for each in found.metrics["topic"].classes] == ["drink", "food"]
    assert found.metrics["topic"].count == version.counts["holdout"]
    assert version.libraries["sklearn"]
    assert version.code_digest
    assert version.data_digest


def test_evaluated_model_is_the_written_one(tmp_path: Path) -> None:
    tasks = [replace(each, data={"text": f"{each.data['text']} {i % 3}"}) for i, each in enumerate(sample(200))]
    found = fit(tmp_path, tasks)
    spec = resolve.version_spec(found.version.folder)
    held_out = splits.split_tasks(tasks, CONFIG).held_out
    outcomes = predict(spec, CONFIG, [example.task for example in held_out])
    assert evaluate_outcomes(CONFIG, held_out, outcomes).metrics == found.metrics


def _annotation(task: Task) -> Annotation:
    return Annotation(task.id, task.raw["annotations"][0]["result"])


def test_seed_determines_split_and_bytes(tmp_path: Path) -> None:
    first, same, other = (fit(tmp_path / str(i), sample(), seed=seed).version for i, seed in enumerate((0, 0, 1)))
    for name in first.files:
        assert (first.folder / name).read_bytes() == (same.folder / name).read_bytes()
    assert (first.metrics, first.digest, first.data_digest) == (same.metrics, same.digest, same.data_digest)
    assert other.digest != first.digest
    assert other.data_digest == first.data_digest


def test_unchanged_data_are_not_trained_on_again(tmp_path: Path) -> None:
    root, tasks = tmp_path / "news", sample()
    first = fit(root, tasks, skip_unchanged=True)
    assert not first.unchanged
    second = fit(root, tasks, skip_unchanged=True)
    assert (second.unchanged, second.version, second.promoted) == (True, first.version, True)
    assert second.to_json()["unchanged"] is True
    assert versions.list_versions(root) == [first.version.version]
    assert not fit(root, tasks, promote=False).unchanged  # only who asks is spared the training
    assert fit(root, tasks, skip_unchanged=True).version == first.version


def test_any_change_is_trained_on(tmp_path: Path) -> None:
    root, tasks = tmp_path / "news", sample()
    fit(root, tasks)
    other_answer = [exported(0, "good"), *tasks[1:]]
    other_text = [exported(0, "bad", text="quite new"), *tasks[1:]]
    truncated: list[Task | UnreadableRecord] = [
        *tasks,
        UnreadableRecord(120, "byte 9", "it ends too early", truncated=True),
    ]
    more = [*tasks, exported(500, "good")]
    changes: tuple[Sequence[Task | UnreadableRecord], ...] = (other_answer, other_text, tasks[1:], more, truncated)
    for changed in changes:
        assert not fit(root, changed, skip_unchanged=True, promote=False).unchanged
    for options in ({"seed": 1}, {"holdout": 0.3}, {"holdout": 0.0}, {"refit": True}, {"annotation_policy": "first"}):
        assert not fit(root, tasks, skip_unchanged=True, promote=False, **options).unchanged, options
    for params in ({"C": 2.0}, {"class_weight": "balanced"}):
        spec = resolve.find_model("text-classifier", params)
        result = training.fit_version(spec, tasks, CONFIG, root, skip_unchanged=True, promote=False)
        assert not result.unchanged
    config = LabelConfig.parse(CONFIG.xml.replace('value="odd"', 'value="strange"'))
    spec = resolve.find_model("text-classifier", {})
    assert not training.fit_version(spec, tasks, config, root, skip_unchanged=True, promote=False).unchanged
    assert fit(root, tasks, skip_unchanged=True).unchanged


def test_damaged_version_is_replaced_although_nothing_changed(tmp_path: Path) -> None:
    root = tmp_path / "news"
    first = fit(root, sample())
    (root / first.version.version / "model.json").write_text("{")
    second = fit(root, sample(), skip_unchanged=True)
    assert (second.unchanged, second.promoted, second.version != first.version) == (False, True, True)


def test_skipped_training_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(CONFIG.xml)
    (tmp_path / "export.json").write_text(json.dumps([task.raw for task in sample()]))
    arguments = ["fit", "export.json", "-m", "text-classifier", "-c", "config.xml", "-o", "news", "--skip-unchanged"]
    assert run_in_process(*arguments, cwd=tmp_path).returncode == 0
    name = f"news@{(tmp_path / 'news' / 'current').read_text().strip()}"
    for more in ([], ["--dry-run"]):
        run = run_in_process(*arguments, *more, "--summary", "fit.json", "--report", "report.html", cwd=tmp_path)
        assert (run.returncode, f"Nothing to train: {name}, which is in use, was trained" in run.stderr) == (0, True)
        assert bool(run.stdout) == bool(more)
    assert not (tmp_path / "report.html").exists()


def test_split_is_stable_and_groups_equal_content() -> None:
    def sides(tasks: list[Task]) -> dict[str, int]:
        split = splits.split_tasks(tasks, CONFIG, holdout=0.3, seed=5)
        found: dict[str, int] = {}
        for side, members in enumerate((split.train, split.held_out)):
            for member in members:
                assert found.setdefault(member.task.data["text"], side) == side
        return found

    tasks = sample()
    before = sides(tasks)
    repeats = [exported(1000 + i, "bad", text=each.data["text"]) for i, each in enumerate(tasks)]
    after = sides([*sample(140), *repeats][::-1])
    assert {text: after[text] for text in before} == before
    assert 0.15 < statistics.mean(before.values()) < 0.45


def test_split_strips_annotations_from_tasks() -> None:
    split = splits.split_tasks(sample(20), CONFIG, holdout=0.5)
    for side in (split.train, split.held_out):
        for example in side:
            assert set(example.task.raw) == {"id", "data"}


def test_unusable_tasks_are_counted_and_reported(tmp_path: Path) -> None:
    skipped = Task(0, 1, {"text": "x"}, {"data": {}, "annotations": [{"id": 1, "result": [], "was_cancelled": True}]})
    unannotated = Task(0, 2, {"text": "x"}, {"data": {}})
    notes: list[str] = []
    found = fit(
        tmp_path, [*sample(), skipped, unannotated, UnreadableRecord(7, "line 9", "not JSON")], progress=notes.append
    )
    assert found.version.counts["left_out"] == {"no annotation": 1, "skipped": 1, "unreadable": 1}
    assert "1 task could not be read: the export, line 9: not JSON." in notes
    assert found.promoted
    truncated = fit(tmp_path, [*sample(), UnreadableRecord(7, "line 9", "it ends here", truncated=True)])
    assert (truncated.promoted, truncated.split.unreadable_count) == (False, 1)
    assert versions.current_version(tmp_path) == found.version.version


def test_classes_without_holdout_are_named(tmp_path: Path) -> None:
    for seed in range(20):
        found = fit(tmp_path, [*sample(), exported(500, "odd")], seed=seed)
        if found.classes_without_holdout:
            assert found.classes_without_holdout == {"mood": ["odd"]}
            return
    pytest.fail("the only odd one was held out twenty times")


def test_zero_holdout_evaluates_nothing(tmp_path: Path) -> None:
    found = fit(tmp_path, sample(), holdout=0)
    assert (found.metrics, found.version.counts["train"]) == ({}, 120)
    with pytest.raises(UsageError, match="below 1"):
        fit(tmp_path, sample(), holdout=1)


@pytest.mark.parametrize(
    "tasks", [[], [Task(0, 1, {"text": "x"}, {"data": {}})], [exported(i, "bad") for i in range(9)]]
)
def test_fit_without_examples_leaves_no_files(tmp_path: Path, tasks: list[Task]) -> None:
    with pytest.raises(ModelError, match="nothing to learn"):
        fit(tmp_path / "news", tasks)
    assert not (tmp_path / "news").exists() or list((tmp_path / "news").iterdir()) == []


def test_held_out_tasks_that_fail_count_as_wrong(tmp_path: Path) -> None:
    tasks = sample()
    split = splits.split_tasks(tasks, CONFIG)
    train, held_out = split.train, split.held_out
    broken = held_out[0].task.index
    result = fit(tmp_path, tasks)
    outcomes = predict(
        resolve.version_spec(result.version.folder),
        CONFIG,
        [replace(each.task, data={"text": 5}) if each.task.index == broken else each.task for each in held_out],
    )
    mood = evaluate_outcomes(CONFIG, held_out, outcomes).metrics["mood"]
    assert isinstance(mood, ChoiceMetrics)
    assert mood.accuracy == pytest.approx(1 - 1 / len(held_out))
    assert len(train) + len(held_out) == len(tasks)


def test_interrupted_fit_leaves_output_unchanged(tmp_path: Path) -> None:
    before = fit(tmp_path, sample()).version.version

    def interrupt(sentence: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, sample(), progress=interrupt)
    assert versions.list_versions(tmp_path) == [before] == [versions.current_version(tmp_path)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [before, "current"]


# --- real messages, and the command line


def sms(shared_data: Path) -> tuple[Path, Path]:
    return shared_data / "exports" / "sms-spam-annotated.json", shared_data / "exports" / "sms-spam.xml"


def test_sms_accuracy_with_five_seeds(tmp_path: Path, shared_data: Path) -> None:
    export, xml = sms(shared_data)
    config = LabelConfig.load(xml)
    tasks = list(read_tasks(str(export), controls=frozenset(config.controls)))
    spec = resolve.find_model("text-classifier", {})
    found = [training.fit_version(spec, tasks, config, tmp_path, seed=seed).metrics["kind"] for seed in range(5)]
    assert all(isinstance(metrics, ChoiceMetrics) for metrics in found)
    accuracy = [metrics.values()["accuracy"] or 0 for metrics in found]
    spam = [
        of_class.values()["f1"] or 0 for metrics in found for of_class in metrics.classes if of_class.name == "spam"
    ]
    for name, values in (("accuracy", accuracy), ("F1 of spam", spam)):
        # `pytest -rP -k five_seeds` prints it
        print(f"{name}: {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}", sorted(values))
    assert statistics.mean(accuracy) >= 0.98
    assert statistics.mean(spam) >= 0.92


def test_sms_fit_is_reproducible(lsml: Lsml, tmp_path: Path, shared_data: Path) -> None:
    export, xml = sms(shared_data)
    arguments = ("--model", "text-classifier", "-c", xml, "--seed", "3", "--output", tmp_path / "sms")
    runs = [lsml("fit", export, *arguments, env={"PYTHONHASHSEED": str(i)}) for i in range(2)]
    assert [run.returncode for run in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    first, second = (tmp_path / "sms" / name for name in versions.list_versions(tmp_path / "sms"))
    one, two = versions.read(first), versions.read(second)
    assert (one.metrics, one.digest, one.counts, one.data_digest) == (
        two.metrics,
        two.digest,
        two.counts,
        two.data_digest,
    )
    for name in ("weights.safetensors", "vocabulary.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_sms_split_is_stable_as_data_grows(shared_data: Path) -> None:
    export, xml = sms(shared_data)
    config = LabelConfig.load(xml)
    everything = list(read_tasks(str(export), controls=frozenset(config.controls)))
    sides: dict[str, str] = {}
    for count in (len(everything) * 10 // 11, len(everything)):
        plan = splits.split_tasks(everything[:count], config, holdout=0.2, seed=1)
        for side, members in (("train", plan.train), ("held out", plan.held_out)):
            for member in members:
                assert sides.setdefault(member.task.data["text"], side) == side
    assert len(plan.train) + len(plan.held_out) == 4000
    assert len(sides) < 4000, "there are no repeats that could leak"


def test_fit_prints_only_metrics_on_stdout(lsml: Lsml, tmp_path: Path, shared_data: Path) -> None:
    export, xml = sms(shared_data)
    run = lsml("fit", export, "--model", "text-classifier", "--label-config", xml, "--output", tmp_path / "sms")
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines() if line.strip()]
    assert lines[0][:2] == ["kind:", "accuracy"]
    assert [line[0] for line in lines[1:]] == ["class", "ham", "spam"]
    assert "Trained on 3,208 tasks, held out 792." in run.stderr
    assert f"lsml predict TASKS --model {tmp_path / 'sms'}" in run.stderr
    quiet = lsml("fit", export, "--model", "text-classifier", "-c", xml, "--output", tmp_path / "sms", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (run.stdout, "")
    assert len(versions.list_versions(tmp_path / "sms")) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "text-classifier"], "needs a label config"),
        (["--model", "text-classifier", "-c", "config.xml", "--with", "C=none"], "C must be a number above 0"),
        (["--model", "text-classifier", "-c", "config.xml", "--holdout", "2"], "--holdout must be"),
    ],
)
def test_usage_error_is_one_sentence(lsml: Lsml, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "config.xml").write_text(CONFIG.xml)
    (tmp_path / "export.json").write_text(json.dumps([each.raw for each in sample(10)]))
    run = lsml("fit", "export.json", *arguments, "--output", "models/m", cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_killed_fit_leaves_promoted_version_intact(tmp_path: Path, kind: signal.Signals) -> None:
    """Kill it between 0.3 and 2.5 s after the start, at any stage; a version is then complete or absent."""
    root = tmp_path / "m"
    before = fit(root, sample()).version
    (tmp_path / "config.xml").write_text(CONFIG.xml)
    (tmp_path / "export.json").write_text(json.dumps([each.raw for each in sample(2000)]))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "lsml_cli",
        "fit",
        tmp_path / "export.json",
        "--model",
        "text-classifier",
    ]
    command += ["--label-config", tmp_path / "config.xml", "--output", root]
    for delay in (0.3, 0.9, 1.3, 1.7):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        time.sleep(delay)
        process.send_signal(kind)
        _, stderr = process.communicate()
        assert b"Traceback" not in stderr or delay < 0.5  # Python's own, before lsml has installed a handler
        assert process.returncode in (0, -kind, 130)
        current = versions.read(versions.resolve(str(root)))
        assert current.digest == before.digest or current.counts["train"] > 1000
        for name in versions.list_versions(root):
            versions.read(root / name)
        if kind == signal.SIGINT and delay > 0.5:
            assert not list(root.glob(".unfinished-*"))
