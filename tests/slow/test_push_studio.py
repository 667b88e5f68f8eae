"""`lsml pull` and `lsml push` against Label Studio: predictions are stored once, also after interruptions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.reverse_proxy import run_reverse_proxy
from tests.slow.scenario import (
    CONFIG,
    add_unlabeled,
    count_stored_predictions,
    create_ticket_project,
    expected_predictions,
    load_annotated_tickets,
)

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(params=["legacy token", "personal token below /ls"])
def environment(
    label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[dict[str, str]]:
    """Both kinds of keys; with one of them, Label Studio is behind a reverse proxy."""
    with run_reverse_proxy(label_studio.url, "/ls") as proxy:
        variables = {
            "LABEL_STUDIO_URL": proxy.url if "/ls" in request.param else label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.token if "legacy" in request.param else label_studio.personal_token,
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield variables
        assert not proxy.outside_paths


def run_pipeline(command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell pipeline; it fails if any of its commands does."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=env, timeout=300, check=False
    )


def version_of(records: list[dict[str, Any]]) -> str:
    (version,) = {record["model_version"] for record in records}
    return str(version)


def predict_project(lsml: Lsml, project: int, model: Path, folder: Path) -> list[dict[str, Any]]:
    """Return predictions for all tasks of a project."""
    tasks = lsml("pull", "--project", str(project), "-o", folder / "tasks.jsonl", "--fields", "data")
    assert tasks.returncode == 0, tasks.stderr
    run = lsml("predict", folder / "tasks.jsonl", "--model", model, "--shape", "predictions")
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def next_predictions(label_studio: LabelStudio, project: int) -> list[str]:
    """Return the versions of the predictions that the next task of the label stream shows."""
    answer = label_studio.request_ok("GET", f"/api/projects/{project}/next")
    return [prediction["model_version"] for prediction in answer["predictions"]]


@pytest.mark.usefixtures("environment")
def test_pipeline_can_run_twice(label_studio: LabelStudio, ticket_model: Path) -> None:
    tickets = create_ticket_project(label_studio, "one line", annotated=20, unlabeled=60)
    assert next_predictions(label_studio, tickets.project) == []
    line = (
        f"lsml pull --project {tickets.project} --only unlabelled"
        f" | lsml predict - --model {ticket_model} --shape predictions | lsml push - --project {tickets.project}"
    )
    for created in (60, 0):
        run = run_pipeline(line)
        assert run.returncode == 0, run.stderr
        assert f"{created} created" in run.stderr
        stored = count_stored_predictions(label_studio, tickets.project)
        (version,) = {name for versions in stored.values() for name in versions}
        assert stored == expected_predictions(tickets.unlabeled, version)
    assert next_predictions(label_studio, tickets.project) == [version]

    run = run_pipeline(f"lsml pull --project {tickets.project} --only unpredicted | wc -l")
    assert run.stdout.strip() == "20"
    run = run_pipeline(f"lsml push --delete {version} --project {tickets.project}")
    assert (run.returncode, count_stored_predictions(label_studio, tickets.project)) == (0, {})


@pytest.mark.usefixtures("environment")
def test_killed_push_leaves_one_prediction_after_the_next(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("killed", CONFIG)
    tasks = add_unlabeled(label_studio, project, 2000)
    records = predict_project(lsml, project, ticket_model, tmp_path)
    file, version = write_records(tmp_path / "p.jsonl", records), version_of(records)
    for delay in (0.0, 0.3, 1.5):  # seconds: while the request starts, is validated, is stored
        with subprocess.Popen([sys.executable, "-m", "lsml_cli", "push", str(file), "--project", str(project)]) as push:
            deadline = time.monotonic() + 60
            while not list((tmp_path / "state").rglob("*.json")):
                assert time.monotonic() < deadline
                assert push.poll() is None
                time.sleep(0.01)
            time.sleep(delay)
            push.kill()
        run = lsml("push", file, "--project", str(project), timeout=300)
        assert run.returncode == 0, run.stderr
        assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version)
        assert next_predictions(label_studio, project) == [version]
        assert lsml("push", "--delete", version, "--project", str(project), timeout=300).returncode == 0


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("machines", [1, 2])
def test_two_pushes_at_a_time_leave_one_prediction_per_task(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path, machines: int
) -> None:
    """On one machine the second waits for the first; on two, both may send everything, and both remove duplicates."""
    project = label_studio.create_project(f"raced on {machines}", CONFIG)
    tasks = add_unlabeled(label_studio, project, 100)
    records = predict_project(lsml, project, ticket_model, tmp_path)
    file, version = write_records(tmp_path / "p.jsonl", records), version_of(records)
    pushes = [
        subprocess.Popen(
            [sys.executable, "-m", "lsml_cli", "push", str(file), "--project", str(project)],
            env=os.environ | {"XDG_STATE_HOME": str(tmp_path / f"state {number % machines}")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    messages = [process.communicate(timeout=300)[1] for process in pushes]
    assert [process.returncode for process in pushes] == [0, 0], messages
    assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version), messages
    if machines == 1:
        assert sorted(int("100 created" in message) for message in messages) == [0, 1], messages
        assert "were removed" not in "".join(messages)
    removed = [
        int(number) for number in re.findall(r"(\d+) predictions? that .* (?:was|were) removed", "".join(messages))
    ]
    created = [int(number) for number in re.findall(r"(\d+) created", "".join(messages))]
    # Label Studio may answer 204 to both machines when they delete the same prediction at the same time.
    assert sum(created) - sum(removed) <= len(tasks), messages
    assert next_predictions(label_studio, project) == [version]


@pytest.mark.usefixtures("environment")
def test_older_versions_are_deleted(label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path) -> None:
    project = label_studio.create_project("old versions", CONFIG)
    tasks = add_unlabeled(label_studio, project, 10)
    records = predict_project(lsml, project, ticket_model, tmp_path)
    model, version = version_of(records).split("@")
    older = [f"{model}@2024010{day}T000000" for day in range(1, 5)]
    others = [f"{model}@by-hand", f"not-{older[0]}"]
    for name in [*older, *others]:
        stored = [{**record, "model_version": name} for record in records]
        label_studio.request_ok("POST", f"/api/projects/{project}/import/predictions", stored)
    file = write_records(tmp_path / "p.jsonl", records)
    run = lsml("push", file, "--project", str(project), "--keep-versions", "2")
    assert run.returncode == 0, run.stderr
    assert f"Older versions were deleted: {older[0]} (10 predictions), " in run.stderr
    kept = [f"{model}@{version}", older[3], *others]
    assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, *kept)
    assert next_predictions(label_studio, project) == [f"{model}@{version}"]


@pytest.mark.usefixtures("environment")
def test_invalid_predictions_are_reported_and_the_others_stored(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("three are wrong", CONFIG)
    tasks = add_unlabeled(label_studio, project, 30)
    records = predict_project(lsml, project, ticket_model, tmp_path)
    version = version_of(records)
    records[3]["result"][0]["from_name"] = "nobody"
    records[7]["result"][0]["value"] = {"choices": ["Weather"]}
    records[20]["score"] = 2.5
    invalid = {records[number]["task"] for number in (3, 7, 20)}
    run = lsml(
        "push",
        write_records(tmp_path / "p.jsonl", records),
        "--project",
        str(project),
        "--errors",
        tmp_path / "e.jsonl",
    )
    assert run.returncode == 3, run.stderr
    assert "27 created, 3 rejected" in run.stderr
    errors = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert {line["id"] for line in errors} == invalid
    assert all(f"task {task}: " in run.stderr for task in invalid)
    assert count_stored_predictions(label_studio, project) == expected_predictions(
        [task for task in tasks if task not in invalid], version
    )


@pytest.mark.usefixtures("environment")
def test_replace_keeps_other_versions_and_removes_duplicates(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("replace", CONFIG)
    tasks = add_unlabeled(label_studio, project, 20)
    records = predict_project(lsml, project, ticket_model, tmp_path)
    version = version_of(records)
    label_studio.request_ok("POST", f"/api/projects/{project}/import/predictions", [*records, *records[:5]])
    other = [{**record, "model_version": f"{version}-2"} for record in records]
    label_studio.request_ok("POST", f"/api/projects/{project}/import/predictions", other)
    before = {prediction["id"] for prediction in label_studio.predictions(project)}

    run = lsml("push", write_records(tmp_path / "p.jsonl", records), "--project", str(project))
    assert "5 predictions that an interrupted push had left twice were removed" in run.stderr
    assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version, f"{version}-2")
    assert {prediction["id"] for prediction in label_studio.predictions(project)} < before

    part = write_records(tmp_path / "part.jsonl", records[:6])
    run = lsml("push", part, "--project", str(project), "--existing", "replace")
    assert run.returncode == 0, run.stderr
    assert "6 older predictions" in run.stderr
    assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version, f"{version}-2")
    replaced = {
        prediction["task"] for prediction in label_studio.predictions(project) if prediction["id"] not in before
    }
    assert replaced == {record["task"] for record in records[:6]}
    run = lsml("push", tmp_path / "p.jsonl", "--project", str(project), "--existing", "replace")
    assert run.returncode == 0, run.stderr
    assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version, f"{version}-2")
    assert next_predictions(label_studio, project) == [version]


@pytest.mark.usefixtures("environment")
def test_pull_annotated_tasks_and_push_into_new_projects(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    tickets = create_ticket_project(label_studio, "round trip", annotated=40, unlabeled=10)
    project = str(tickets.project)
    annotated, config = tmp_path / "annotated.jsonl", tmp_path / "config.xml"
    run = lsml("pull", "--project", project, "--only", "annotated", "-o", annotated, "--label-config-out", config)
    assert run.returncode == 0, run.stderr
    pulled = [json.loads(line) for line in annotated.read_text().splitlines()]
    exported = [task for task in label_studio.export(tickets.project) if task["annotations"]]
    assert [task["id"] for task in pulled] == list(tickets.annotated)
    assert [task["annotations"][0]["result"] for task in pulled] == [
        task["annotations"][0]["result"] for task in exported
    ]
    fitted = lsml("fit", annotated, "--model", "text-classifier", "-c", config, "-o", tmp_path / "model")
    assert fitted.returncode == 0, fitted.stderr

    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    time.sleep(1.1)
    label_studio.annotate(tickets.unlabeled[4], load_annotated_tickets()[0]["annotations"][0]["result"])
    recent = lsml("pull", "--project", project, "--only", "annotated", "--since", since)
    assert [json.loads(line)["id"] for line in recent.stdout.splitlines()] == [tickets.unlabeled[4]]
    # Pushed predictions do not change the date of a task; a prediction created on its own does.
    unlabelled = [*lsml("pull", "--project", project, "--only", "unlabelled").stdout.splitlines()][:3]
    predicted = lsml(
        "predict", "-", "--model", ticket_model, "--shape", "predictions", input="\n".join(unlabelled)
    ).stdout
    assert lsml("push", "-", "--project", project, input=predicted).returncode == 0
    single = {"task": tickets.unlabeled[7], "result": [], "model_version": "by hand"}
    label_studio.request_ok("POST", "/api/predictions/", single)
    recent = lsml("pull", "--project", project, "--since", since)
    assert [json.loads(line)["id"] for line in recent.stdout.splitlines()] == [
        tickets.unlabeled[4],
        tickets.unlabeled[7],
    ]

    written_tasks = tmp_path / "predicted.jsonl"
    assert lsml("predict", annotated, "--model", ticket_model, "-o", written_tasks).returncode == 0
    new_project = label_studio.create_project("filled", CONFIG)
    run = lsml("push", written_tasks, "--project", str(new_project), "--create-tasks")
    assert run.returncode == 0, run.stderr
    count = label_studio.counts(new_project)
    assert count == {"tasks": 40, "annotations": 0, "skipped": 0, "predictions": 40}
    assert len(next_predictions(label_studio, new_project)) == 1
    # Label Studio's import answers 500 for an export with prediction ids, and imports the tasks twice.
    export = tmp_path / "export.json"
    export.write_text(json.dumps(label_studio.export(new_project)))
    other = label_studio.create_project("filled again", CONFIG)
    run = lsml("push", export, "--project", str(other), "--create-tasks")
    assert run.returncode == 0, run.stderr
    assert label_studio.counts(other)["tasks"] == 40


def test_personal_access_token_is_accepted(
    label_studio: LabelStudio, lsml: Lsml, environment: dict[str, str], ticket_model: Path, tmp_path: Path
) -> None:
    project = label_studio.create_project("personal", CONFIG)
    tasks = add_unlabeled(label_studio, project, 5)
    with label_studio.legacy_tokens_disabled():
        rejected = lsml("pull", "--project", str(project), env={"LABEL_STUDIO_API_KEY": label_studio.token})
        assert "does not accept the API key" in rejected.stderr
        env = {**environment, "LABEL_STUDIO_API_KEY": label_studio.personal_token}
        pulled = lsml("pull", "--project", str(project), env=env)
        assert [json.loads(line)["id"] for line in pulled.stdout.splitlines()] == tasks
        predicted = lsml("predict", "-", "--model", ticket_model, "--shape", "predictions", input=pulled.stdout)
        run = lsml("push", "-", "--project", str(project), input=predicted.stdout, env=env)
        assert run.returncode == 0, run.stderr
    assert Counter(prediction["task"] for prediction in label_studio.predictions(project)) == Counter(tasks)
