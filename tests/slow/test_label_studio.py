"""Files that lsml writes import into Label Studio completely and without duplicates."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "support-tickets"
SMS = ROOT.parent / "shared" / "data" / "exports"

# A label config with aliases, a multiple choice and a text field without a control.
REVIEWS = """
<View>
  <Header value="$title"/>
  <Text name="body" value="$body"/>
  <Choices name="verdict" toName="body" choice="single">
    <Choice value="Positive" alias="pos"/>
    <Choice value="Negative" alias="neg"/>
  </Choices>
  <Choices name="topics" toName="body" choice="multiple">
    <Choice value="Food"/>
    <Choice value="Service"/>
    <Choice value="Price" alias="money"/>
  </Choices>
</View>
"""


class Corpus(NamedTuple):
    annotated: Path
    tasks: Path
    config: Path


class PredictedFile(NamedTuple):
    """The records that `lsml predict` wrote, and their model version."""

    records: list[dict[str, Any]]
    version: str


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """5,574 real messages if they are available, else the support-tickets example."""
    if SMS.is_dir():
        return Corpus(SMS / "sms-spam-annotated.json", SMS / "sms-spam-all-tasks.json", SMS / "sms-spam.xml")
    return Corpus(EXAMPLE / "annotated.json", EXAMPLE / "tasks.json", EXAMPLE / "label_config.xml")


@pytest.fixture(scope="module")
def model(lsml: Lsml, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(lsml, corpus.annotated, corpus.config, tmp_path_factory.mktemp("models") / "corpus")


def fit(lsml: Lsml, export: Path, config: Path, output: Path) -> Path:
    run = lsml("fit", export, "--model", "text-classifier", "--label-config", config, "--output", output)
    assert run.returncode == 0, run.stderr
    return output


def predict(lsml: Lsml, tasks: Path, model: Path | str, output: Path, *options: str | Path) -> PredictedFile:
    run = lsml("predict", tasks, "--model", model, "-o", output, *options, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    records = json.loads(output.read_text("utf-8"))
    versions = {prediction["model_version"] for record in records for prediction in record.get("predictions", [record])}
    (version,) = versions
    assert isinstance(version, str)
    return PredictedFile(records, version)


def write_file(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def choices_of(result: list[dict[str, Any]], control: str) -> list[str]:
    return [choice for region in result if region["from_name"] == control for choice in region["value"]["choices"]]


def test_tasks_with_predictions_import(
    label_studio: LabelStudio, lsml: Lsml, corpus: Corpus, model: Path, tmp_path: Path
) -> None:
    written = predict(lsml, corpus.tasks, model, tmp_path / "out.json")
    tasks = json.loads(corpus.tasks.read_text("utf-8"))
    assert len(written.records) == len(tasks)

    project = label_studio.create_project("tasks shape", corpus.config.read_text("utf-8"))
    imported = label_studio.import_tasks(project, written.records)

    assert imported["task_count"] == imported["prediction_count"] == len(tasks)
    assert label_studio.counts(project) == {
        "tasks": len(tasks),
        "annotations": 0,
        "skipped": 0,
        "predictions": len(tasks),
    }
    stored = label_studio.predictions(project)
    assert Counter(prediction["task"] for prediction in stored) == Counter(imported["task_ids"])
    assert {prediction["model_version"] for prediction in stored} == {written.version}
    assert all(prediction["result"] for prediction in stored)

    # Each task has its own prediction, with all fields that Label Studio stores.
    by_task = {prediction["task"]: prediction for prediction in stored}
    for task_id, record in zip(imported["task_ids"], written.records, strict=True):
        (sent,) = record["predictions"]
        assert by_task[task_id]["result"] == sent["result"]
        assert by_task[task_id]["score"] == pytest.approx(sent["score"])


def test_predictions_import_into_existing_tasks(
    label_studio: LabelStudio, lsml: Lsml, corpus: Corpus, model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("predictions shape", corpus.config.read_text("utf-8"))
    tasks = json.loads(corpus.tasks.read_text("utf-8"))[:1000]
    label_studio.import_tasks(project, [{"data": task["data"]} for task in tasks])
    export = write_file(tmp_path / "export.json", label_studio.export(project))

    written = predict(lsml, export, model, tmp_path / "out.json", "--shape", "predictions")
    assert len(written.records) == len(tasks)

    # This endpoint validates, and drops invalid predictions without an error.
    answer = label_studio.request_ok("POST", f"/api/projects/{project}/import/predictions", written.records)
    assert answer["created"] == len(tasks)

    stored = label_studio.predictions(project)
    assert {prediction["task"]: prediction["result"] for prediction in stored} == {
        record["task"]: record["result"] for record in written.records
    }
    assert label_studio.counts(project)["tasks"] == len(tasks)
    # The project accepts the version, which makes its predictions visible to annotators.
    label_studio.request_ok("PATCH", f"/api/projects/{project}", {"model_version": written.version})


def test_export_with_predictions_drafts_and_skipped_tasks_imports_again(
    label_studio: LabelStudio, lsml: Lsml, tmp_path: Path
) -> None:
    """Label Studio's import fails for the unmodified export."""
    config = (EXAMPLE / "label_config.xml").read_text("utf-8")
    project = label_studio.create_project("used", config)
    tasks = json.loads((EXAMPLE / "annotated.json").read_text("utf-8"))[:120]  # each is annotated by one request
    label_studio.import_tasks(project, [{"data": task["data"], "meta": {"row": n}} for n, task in enumerate(tasks)])
    ids = [task["id"] for task in label_studio.export(project)]

    example = next(annotation["result"] for task in tasks for annotation in task["annotations"] if annotation["result"])
    for task in ids[:5]:
        label_studio.request_ok(
            "POST", "/api/predictions", {"task": task, "result": example, "model_version": "by hand"}
        )
    for task in ids[3:8]:
        label_studio.request_ok("POST", f"/api/tasks/{task}/drafts", {"result": example, "lead_time": 1})
    for task in ids[6:10]:
        label_studio.request_ok("POST", f"/api/tasks/{task}/annotations", {"result": [], "was_cancelled": True})
    for task, ticket in zip(ids[10:], tasks[10:], strict=True):
        result = next((a["result"] for a in ticket["annotations"] if not a["was_cancelled"]), example)
        label_studio.request_ok("POST", f"/api/tasks/{task}/annotations", {"result": result})

    exported = label_studio.export(project)
    assert all(isinstance(prediction, int) for task in exported[:5] for prediction in task["predictions"])
    assert exported[0]["predictions"]
    assert exported[4]["drafts"]
    assert exported[6]["annotations"][0]["was_cancelled"]
    export = write_file(tmp_path / "export.json", exported)
    model = fit(lsml, export, write_file(tmp_path / "config.xml", config), tmp_path / "model")

    written = predict(lsml, export, model, tmp_path / "out.json")
    assert [record["id"] for record in written.records] == ids

    new_project = label_studio.create_project("used, again", config)
    imported = label_studio.import_tasks(new_project, written.records)
    assert imported["task_count"] == imported["prediction_count"] == len(ids)
    assert label_studio.counts(new_project) == {
        "tasks": len(ids),
        "annotations": 0,
        "skipped": 0,
        "predictions": len(ids),
    }
    reexported = label_studio.export(new_project)
    assert [task["data"] for task in reexported] == [task["data"] for task in exported]
    assert [task["meta"] for task in reexported] == [task["meta"] for task in exported]
    assert not any(task["drafts"] for task in reexported)
    assert {prediction["model_version"] for prediction in label_studio.predictions(new_project)} == {written.version}

    # The same predictions for the first project leave its annotations and drafts unchanged.
    before = label_studio.counts(project)
    pushed = predict(lsml, export, model, tmp_path / "predictions.json", "--shape", "predictions")
    answer = label_studio.request_ok("POST", f"/api/projects/{project}/import/predictions", pushed.records)
    assert answer["created"] == len(ids)
    assert label_studio.counts(project) == before | {"predictions": before["predictions"] + len(ids)}


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "untrained"])
def test_aliases_and_multiple_choice(label_studio: LabelStudio, lsml: Lsml, tmp_path: Path, trained: bool) -> None:
    project = label_studio.create_project("reviews", REVIEWS)
    label_studio.import_tasks(
        project,
        [{"data": {"title": f"Review {n}", "body": body}} for n, (body, _, _) in enumerate(reviews())],
    )
    config = write_file(tmp_path / "reviews.xml", REVIEWS)
    exported = label_studio.export(project)
    model: Path | str = "text-classifier"
    options: list[str | Path] = ["--label-config", config]
    if trained:
        for task, (_, verdict, topics) in zip(exported, reviews(), strict=True):
            label_studio.request_ok(
                "POST", f"/api/tasks/{task['id']}/annotations", {"result": regions(verdict, topics)}
            )
        annotated = write_file(tmp_path / "annotated.json", label_studio.export(project))
        model, options = fit(lsml, annotated, config, tmp_path / "model"), []
    export = write_file(tmp_path / "export.json", label_studio.export(project))

    pushed = predict(lsml, export, model, tmp_path / "predictions.json", "--shape", "predictions", *options)
    answer = label_studio.request_ok("POST", f"/api/projects/{project}/import/predictions", pushed.records)
    assert answer["created"] == len(exported)

    written = predict(lsml, export, model, tmp_path / "tasks.json", *options)
    new_project = label_studio.create_project("reviews, again", REVIEWS)
    imported = label_studio.import_tasks(new_project, written.records)
    assert imported["task_count"] == imported["prediction_count"] == len(exported)

    stored = label_studio.predictions(new_project)
    for prediction in stored:
        (verdict,) = choices_of(prediction["result"], "verdict")
        assert verdict in {"pos", "neg"}
        assert set(choices_of(prediction["result"], "topics")) <= {"Food", "Service", "money"}
    if trained:
        # It was trained on these tasks: this checks that labels belong to their tasks, not that the model is good.
        by_task = {prediction["task"]: prediction["result"] for prediction in stored}
        correct = [
            choices_of(by_task[task], "verdict") == [verdict]
            for task, (_, verdict, _) in zip(imported["task_ids"], reviews(), strict=True)
        ]
        assert sum(correct) / len(correct) > 0.9
        assert any(len(choices_of(result, "topics")) > 1 for result in by_task.values())


def regions(verdict: str, topics: list[str]) -> list[dict[str, Any]]:
    return [
        {"from_name": name, "to_name": "body", "type": "choices", "value": {"choices": choices}}
        for name, choices in (("verdict", [verdict]), ("topics", topics))
        if choices
    ]


def reviews() -> list[tuple[str, str, list[str]]]:
    """Return (text, verdict, topics) of 60 generated restaurant reviews."""
    phrases = {
        "pos": {
            "Food": ["the soup was wonderful", "best noodles in town", "fresh bread and great fish"],
            "Service": ["the waiter was kind and quick", "friendly people", "we were looked after so well"],
            "money": ["fair prices", "a lot of value for the bill", "cheap for what you get"],
        },
        "neg": {
            "Food": ["the soup was cold", "stale bread and bland fish", "noodles like glue"],
            "Service": ["the waiter was rude and slow", "nobody came for an hour", "we were ignored"],
            "money": ["prices are a joke", "the bill was a shock", "far too expensive for what you get"],
        },
    }
    topics = ["Food", "Service", "money"]
    generated = []
    for n in range(60):
        verdict = "pos" if n % 2 else "neg"
        chosen_topics = [topic for k, topic in enumerate(topics) if (n // 2 + 1) >> k & 1] or ["Food"]
        parts = [phrases[verdict][topic][(n // 6 + k) % 3] for k, topic in enumerate(chosen_topics)]
        generated.append((f"Visit number {n}: {', and '.join(parts)}.", verdict, chosen_topics))
    return generated
