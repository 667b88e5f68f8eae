"""`lsml predict --check`: problems are found before the run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers import models
from tests.helpers.predict_runs import WORDS, make_task, predict


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    return tmp_path


def check(lsml, tasks, *options: str | Path, **kwargs: Any) -> dict[str, Any]:
    """Run the check and return its summary."""
    check_option = () if "--check=media" in options else ("--check",)
    run = predict(lsml, tasks, *check_option, "--summary", "summary.json", *options, **kwargs)
    assert run.returncode in (0, 3), run.stderr
    summary: dict[str, Any] = json.loads(Path("summary.json").read_bytes())
    assert (run.returncode == 3) == bool(summary["problems"])
    return summary


def test_valid_tasks_have_no_problems(lsml, work):
    run = predict(lsml, "-", "--check", "-o", "out.json", input=json.dumps([make_task(n) for n in range(20)]))
    assert run.returncode == 0
    assert "20 tasks checked, 0 problems" in run.stdout
    assert not list(Path().glob("out*"))


def test_planted_problems_are_counted_and_located(lsml, work):
    rng = random.Random(5)
    tasks: list[Any] = [make_task(n) for n in range(100_000)]
    planted = rng.sample(range(100_000), 60)
    missing, number, null, duplicate, no_object, truncated = (planted[k::6] for k in range(6))
    for n in missing:
        del tasks[n]["data"]["text"]
    for n in number:
        tasks[n]["data"]["text"] = 5
    for n in null:
        tasks[n]["data"]["text"] = None
    for n in duplicate:
        tasks[n]["id"] = 100_000 - 1 if n < 50_000 else 0
    for n in no_object:
        tasks[n]["data"] = ["text"]
    lines = [json.dumps(item) for item in tasks]
    for n in truncated:
        lines[n] = lines[n][:-9]
    Path("tasks.jsonl").write_text("\n".join(lines) + "\n")
    summary = check(lsml, "tasks.jsonl", "-o", "out.json")
    assert summary["tasks"] == 100_000
    assert summary["problems"] == {"data": 40, "unreadable": 10, "duplicate id": 10}
    sentences = [sentence for examples in summary["first"].values() for sentence in examples]
    assert len(sentences) == 9
    assert all(sentence.startswith("tasks.jsonl, line ") for sentence in sentences)


def test_check_memory_is_flat(lsml, work):
    """Ten times as many tasks take no more memory, since ids are compared on disk; checked in this process."""
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.inference import preflight
    from lsml_cli.inference.plan import PredictOptions, PredictPlan
    from lsml_cli.registry import resolve
    from lsml_cli.schema.label_config import LabelConfig

    plan = PredictPlan.from_options(
        resolve.find_model(WORDS), LabelConfig.load(Path("config.xml")), PredictOptions(input_path="tasks.jsonl")
    )
    peaks = []
    for count in (20_000, 200_000):
        with Path("tasks.jsonl").open("w") as file:  # line by line: one text of all tasks would be measured too
            file.writelines(f"{json.dumps(make_task(n))}\n" for n in range(count))
        assert preflight.check_file(plan, Console(quiet=True)).tasks == count
        peaks.append(psutil.Process().memory_info().rss)
    assert peaks[1] - peaks[0] < 20_000_000


def test_missing_media_are_reported(lsml, work):
    Path("config.xml").write_text(models.IMAGE_CONFIG)
    Path("a.pgm").write_bytes(b"")
    images = ["a.pgm", "b.pgm", "../c.pgm", "gs://bucket/d.pgm", "https://example.com/d.pgm"]
    tasks = json.dumps([{"id": n, "data": {"image": image}} for n, image in enumerate(images)])
    summary = check(lsml, "-", model=f"{models.__file__}:Brightness", input=tasks)
    assert summary["problems"] == {"media": 3}


def test_values_that_are_no_media_refs_are_reported(lsml, work):
    Path("config.xml").write_text(models.IMAGE_CONFIG)
    Path("strict.py").write_text(
        "from lsml_cli import Model\n\n\nclass Strict(Model):\n"
        "    def media_refs(self, task, binding):\n"
        "        if not task.data['image']:\n            raise ValueError('the image has no path')\n"
        "        return [task.data['image']]\n\n    forward = decode = None\n"
    )
    tasks = json.dumps([{"id": 1, "data": {"image": ""}}, {"id": 2, "data": {"image": "b.pgm"}}])
    summary = check(lsml, "-", model="strict.py:Strict", input=tasks)
    assert summary["problems"] == {"data": 1, "media": 1}
    assert "the image has no path" in summary["first"]["data"][0]


def test_label_mapping_is_shown(lsml, work, ticket_model):
    Path("config.xml").write_text(
        '<View><Text name="ticket" value="$text"/><Choices name="category" toName="ticket">'
        '<Choice value="Billing"/><Choice value="Versand" predicted_values="Shipping"/><Choice value="Other"/>'
        "</Choices></View>"
    )
    run = predict(lsml, "-", "--check", model=ticket_model, input='{"text": "a"}')
    assert "category: 2 of the model's 5 classes have a label" in run.stdout
    assert "labels:  Billing, Versand, Other" in run.stdout
    assert "Shipping -> Versand" in run.stdout


def test_check_validates_output_without_touching_it(lsml, work):
    tasks = json.dumps([make_task(1)])
    assert check(lsml, "-", "-o", "nowhere/out.json", input=tasks)["problems"] == {"output": 1}
    Path("out.json.part").write_text("[\n{}")
    journal = Path("out.json.part.journal")
    journal.write_text('{"started_with": {"model": "other"}}\n{"records": 1, "output": 3, "errors": 0}\n')
    before = journal.read_bytes()
    summary = check(lsml, "-", "-o", "out.json", "--resume", input=tasks)
    assert summary["problems"] == {"output": 1}
    assert "model was other" in summary["first"]["output"][0]
    assert "tasks of an unfinished run" in check(lsml, "-", "-o", "out.json", input=tasks)["first"]["output"][0]
    assert journal.read_bytes() == before


def test_shape_predictions_requires_ids(lsml, work):
    summary = check(lsml, "-", "--shape", "predictions", input='{"text": "a"}\n{"id": 1, "data": {"text": "a"}}')
    assert summary["problems"] == {"no id": 1}


def test_remote_media_are_requested_only_with_check_media(lsml, work):
    """No server listens at the URL: only a check that sends requests can find out."""
    Path("config.xml").write_text(models.IMAGE_CONFIG)
    tasks = json.dumps([{"id": 1, "data": {"image": "http://127.0.0.1:9/a.pgm"}}])
    model = f"{models.__file__}:Brightness"
    assert check(lsml, "-", model=model, input=tasks)["problems"] == {}
    summary = check(lsml, "-", "--check=media", model=model, input=tasks)
    assert summary["problems"] == {"media": 1}
    assert "http://127.0.0.1:9/a.pgm: " in summary["first"]["media"][0]
