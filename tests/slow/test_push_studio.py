"""`lsml pull` and `lsml push` against a real Label Studio: what is pushed is there once, whatever came in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.slow.scenario import (
    CONFIG,
    add_unlabeled,
    count_stored_predictions,
    create_ticket_project,
    expected_predictions,
    load_annotated_tickets,
)

if TYPE_CHECKING:
    from conftest import LabelStudio, Lsml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def environment(label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def one_line(command: str) -> subprocess.CompletedProcess[str]:
    """A pipeline, as somebody types it; it fails when any part of it does."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=env, timeout=300, check=False
    )


def version_of(records: list[dict[str, Any]]) -> str:
    (version,) = {record["model_version"] for record in records}
    return str(version)


def predicted(lsml: Lsml, project: int, model: Path, folder: Path) -> list[dict[str, Any]]:
    """Every task of a project, predicted."""
    tasks = lsml("pull", "--project", str(project), "-o", folder / "tasks.jsonl", "--fields", "data")
    assert tasks.returncode == 0, tasks.stderr
    run = lsml("predict", folder / "tasks.jsonl", "--model", model, "--shape", "predictions")
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def next_predictions(label_studio: LabelStudio, project: int) -> list[str]:
    """The versions that an annotator is shown with the next task of the label stream."""
    answer = label_studio.request_ok("GET", f"/api/projects/{project}/next")
    return [prediction["model_version"] for prediction in answer["predictions"]]


@pytest.mark.usefixtures("environment")
def test_the_pipeline_is_one_line_and_may_run_twice(label_studio: LabelStudio, ticket_model: Path) -> None:
    made = create_ticket_project(label_studio, "one line", annotated=20, unlabeled=60)
    assert next_predictions(label_studio, made.project) == []
    line = (
        f"lsml pull --project {made.project} --only unlabelled"
        f" | lsml predict - --model {ticket_model} --shape predictions | lsml push - --project {made.project}"
    )
    for created in (60, 0):
        run = one_line(line)
        assert run.returncode == 0, run.stderr
        assert f"{created} created" in run.stderr
        found = count_stored_predictions(label_studio, made.project)
        (version,) = {name for versions in found.values() for name in versions}
        assert found == expected_predictions(made.unlabeled, version)
    assert next_predictions(label_studio, made.project) == [version]

    run = one_line(f"lsml pull --project {made.project} --only unpredicted | wc -l")
    assert run.stdout.strip() == "20"
    run = one_line(f"lsml push --delete {version} --project {made.project}")
    assert (run.returncode, count_stored_predictions(label_studio, made.project)) == (0, {})


@pytest.mark.usefixtures("environment")
def test_a_killed_push_and_the_next_one_leave_one_prediction(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("killed", CONFIG)
    tasks = add_unlabeled(label_studio, project, 2000)
    records = predicted(lsml, project, ticket_model, tmp_path)
    file, version = written(tmp_path / "p.jsonl", records), version_of(records)
    for moment in (0.0, 0.3, 1.5):  # of the call: as it begins, while it is checked, while it is stored
        with subprocess.Popen([sys.executable, "-m", "lsml_cli", "push", str(file), "--project", str(project)]) as run:
            deadline = time.monotonic() + 60
            while not list((tmp_path / "state").rglob("*.json")):
                assert time.monotonic() < deadline
                assert run.poll() is None
                time.sleep(0.01)
            time.sleep(moment)
            run.kill()
        again = lsml("push", file, "--project", str(project), timeout=300)
        assert again.returncode == 0, again.stderr
        assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version)
        assert next_predictions(label_studio, project) == [version]
        assert lsml("push", "--delete", version, "--project", str(project), timeout=300).returncode == 0


@pytest.mark.usefixtures("environment")
def test_invalid_predictions_are_named_and_the_rest_is_there(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("three are wrong", CONFIG)
    tasks = add_unlabeled(label_studio, project, 30)
    records = predicted(lsml, project, ticket_model, tmp_path)
    version = version_of(records)
    records[3]["result"][0]["from_name"] = "nobody"
    records[7]["result"][0]["value"] = {"choices": ["Weather"]}
    records[20]["score"] = 2.5
    wrong = {records[number]["task"] for number in (3, 7, 20)}
    run = lsml(
        "push", written(tmp_path / "p.jsonl", records), "--project", str(project), "--errors", tmp_path / "e.jsonl"
    )
    assert run.returncode == 3, run.stderr
    assert "27 created, 3 rejected" in run.stderr
    told = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert {line["id"] for line in told} == wrong
    assert all(f"task {task}: " in run.stderr for task in wrong)
    assert count_stored_predictions(label_studio, project) == expected_predictions(
        [task for task in tasks if task not in wrong], version
    )


@pytest.mark.usefixtures("environment")
def test_replacing_touches_one_version_and_doubles_go(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("replace", CONFIG)
    tasks = add_unlabeled(label_studio, project, 20)
    records = predicted(lsml, project, ticket_model, tmp_path)
    version = version_of(records)
    label_studio.request_ok("POST", f"/api/projects/{project}/import/predictions", [*records, *records[:5]])
    other = [{**record, "model_version": f"{version}-2"} for record in records]
    label_studio.request_ok("POST", f"/api/projects/{project}/import/predictions", other)
    before = {prediction["id"] for prediction in label_studio.predictions(project)}

    run = lsml("push", written(tmp_path / "p.jsonl", records), "--project", str(project))
    assert "5 predictions that an interrupted push had left twice were removed" in run.stderr
    assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version, f"{version}-2")
    assert {prediction["id"] for prediction in label_studio.predictions(project)} < before

    part = written(tmp_path / "part.jsonl", records[:6])
    run = lsml("push", part, "--project", str(project), "--existing", "replace")
    assert run.returncode == 0, run.stderr
    assert "6 older predictions" in run.stderr
    assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version, f"{version}-2")
    anew = {prediction["task"] for prediction in label_studio.predictions(project) if prediction["id"] not in before}
    assert anew == {record["task"] for record in records[:6]}
    whole = lsml("push", tmp_path / "p.jsonl", "--project", str(project), "--existing", "replace")
    assert whole.returncode == 0, whole.stderr
    assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version, f"{version}-2")
    assert next_predictions(label_studio, project) == [version]


@pytest.mark.usefixtures("environment")
def test_annotated_tasks_come_in_full_and_new_projects_are_filled(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    made = create_ticket_project(label_studio, "round trip", annotated=40, unlabeled=10)
    project = str(made.project)
    annotated, config = tmp_path / "annotated.jsonl", tmp_path / "config.xml"
    run = lsml("pull", "--project", project, "--only", "annotated", "-o", annotated, "--label-config-out", config)
    assert run.returncode == 0, run.stderr
    pulled = [json.loads(line) for line in annotated.read_text().splitlines()]
    exported = [task for task in label_studio.export(made.project) if task["annotations"]]
    assert [task["id"] for task in pulled] == list(made.annotated)
    assert [task["annotations"][0]["result"] for task in pulled] == [
        task["annotations"][0]["result"] for task in exported
    ]
    fitted = lsml("fit", annotated, "--model", "text-classifier", "-c", config, "-o", tmp_path / "model")
    assert fitted.returncode == 0, fitted.stderr

    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    time.sleep(1.1)
    label_studio.annotate(made.unlabeled[4], load_annotated_tickets()[0]["annotations"][0]["result"])
    recent = lsml("pull", "--project", project, "--only", "annotated", "--since", since)
    assert [json.loads(line)["id"] for line in recent.stdout.splitlines()] == [made.unlabeled[4]]
    # Pushed predictions change no task, a single one does.
    few = [*lsml("pull", "--project", project, "--only", "unlabelled").stdout.splitlines()][:3]
    shown = lsml("predict", "-", "--model", ticket_model, "--shape", "predictions", input="\n".join(few)).stdout
    assert lsml("push", "-", "--project", project, input=shown).returncode == 0
    single = {"task": made.unlabeled[7], "result": [], "model_version": "by hand"}
    label_studio.request_ok("POST", "/api/predictions/", single)
    recent = lsml("pull", "--project", project, "--since", since)
    assert [json.loads(line)["id"] for line in recent.stdout.splitlines()] == [made.unlabeled[4], made.unlabeled[7]]

    written_tasks = tmp_path / "predicted.jsonl"
    assert lsml("predict", annotated, "--model", ticket_model, "-o", written_tasks).returncode == 0
    fresh = label_studio.create_project("filled", CONFIG)
    run = lsml("push", written_tasks, "--project", str(fresh), "--create-tasks")
    assert run.returncode == 0, run.stderr
    count = label_studio.counts(fresh)
    assert count == {"tasks": 40, "annotations": 0, "skipped": 0, "predictions": 40}
    assert len(next_predictions(label_studio, fresh)) == 1
    # An export with prediction ids, which costs an import a 500 and doubles its tasks, is no trouble either.
    export = tmp_path / "export.json"
    export.write_text(json.dumps(label_studio.export(fresh)))
    other = label_studio.create_project("filled again", CONFIG)
    run = lsml("push", export, "--project", str(other), "--create-tasks")
    assert run.returncode == 0, run.stderr
    assert label_studio.counts(other)["tasks"] == 40


def test_a_personal_access_token_will_do(
    label_studio: LabelStudio, lsml: Lsml, environment: dict[str, str], ticket_model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("personal", CONFIG)
    tasks = add_unlabeled(label_studio, project, 5)
    with label_studio.legacy_tokens_disabled():
        refused = lsml("pull", "--project", str(project))
        assert "does not accept the API key" in refused.stderr
        env = {**environment, "LABEL_STUDIO_API_KEY": label_studio.personal_token}
        pulled = lsml("pull", "--project", str(project), env=env)
        assert [json.loads(line)["id"] for line in pulled.stdout.splitlines()] == tasks
        made = lsml("predict", "-", "--model", ticket_model, "--shape", "predictions", input=pulled.stdout)
        run = lsml("push", "-", "--project", str(project), input=made.stdout, env=env)
        assert run.returncode == 0, run.stderr
    assert Counter(prediction["task"] for prediction in label_studio.predictions(project)) == Counter(tasks)
