"""`lsml serve` behind a real Label Studio: every way in which that asks for predictions or for training."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.serve_process import Server, ServerFactory, read_jobs, wait_until
from tests.slow.scenario import (
    CATEGORIES,
    CONFIG,
    TicketProject,
    add_unlabeled,
    category_of,
    count_stored_predictions,
    create_ticket_project,
    expected_predictions,
    load_annotated_tickets,
    train_and_repredict,
    trained_version,
)

if TYPE_CHECKING:
    from conftest import LabelStudio, Lsml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Another config than the tickets': other names, an alias.
REVIEWS = """
<View>
  <Text name="body" value="$body"/>
  <Choices name="verdict" toName="body" choice="single">
    <Choice value="Positive" alias="pos"/>
    <Choice value="Negative" alias="neg"/>
  </Choices>
</View>
"""


def reviews(count: int) -> list[dict[str, Any]]:
    return [
        {"data": {"body": f"Visit {n}: the {('soup', 'waiter', 'bill')[n % 3]} was {('awful', 'lovely')[n % 2]}."}}
        for n in range(count)
    ]


def verdict(n: int) -> list[dict[str, Any]]:
    """The right annotation of review `n`."""
    value = {"choices": ["pos" if n % 2 else "neg"]}
    return [{"from_name": "verdict", "to_name": "body", "type": "choices", "value": value}]


@pytest.fixture
def key(label_studio: LabelStudio) -> dict[str, str]:
    return {"LABEL_STUDIO_API_KEY": label_studio.token}


def test_every_way_to_ask_for_predictions(
    label_studio: LabelStudio, serve: ServerFactory, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    server = serve("--model", ticket_model)
    made = create_ticket_project(label_studio, "asked", annotated=0, unlabeled=9)
    project, tasks = made.project, made.unlabeled

    # Connecting.
    backend = label_studio.connect_backend(project, server.url)
    version = label_studio.model_version(backend)
    assert version.startswith("tickets@")
    assert label_studio.request_ok("GET", f"/api/projects/{project}")["model_version"] == "lsml"
    assert count_stored_predictions(label_studio, project) == {}

    # Opening a task, twice.
    for _ in range(2):
        opened = label_studio.request_ok("GET", f"/api/tasks/{tasks[3]}")
        (prediction,) = opened["predictions"]
        assert prediction["model_version"] == version
        assert category_of(prediction["result"]) in CATEGORIES
    assert count_stored_predictions(label_studio, project) == expected_predictions([tasks[3]], version)

    # The next task of the label stream, twice: nobody annotates, so it is the same one.
    for _ in range(2):
        task = label_studio.request_ok("GET", f"/api/projects/{project}/next")
        assert [prediction["model_version"] for prediction in task["predictions"]] == [version]
    expected = expected_predictions(list({task["id"], tasks[3]}), version)
    assert count_stored_predictions(label_studio, project) == expected

    # A selection of the Data Manager, with a task in it that has its prediction; then all, then all again.
    chosen = [tasks[3], tasks[5], tasks[6]]
    label_studio.retrieve_predictions(project, chosen)
    expected |= expected_predictions(chosen, version)
    assert count_stored_predictions(label_studio, project) == expected
    for _ in range(2):
        label_studio.retrieve_predictions(project)
        assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version)

    # The list of the Data Manager, where the project asks for that.
    added = add_unlabeled(label_studio, project, 2, start=50)
    label_studio.request_ok("PATCH", f"/api/projects/{project}", {"evaluate_predictions_automatically": True})
    for _ in range(2):
        label_studio.request_ok("GET", f"/api/tasks?project={project}&fields=all")
        assert count_stored_predictions(label_studio, project) == expected_predictions([*tasks, *added], version)

    # What is stored is what `lsml predict` gives for the same tasks, to the last region.
    export = tmp_path / "export.json"
    export.write_text(json.dumps(label_studio.export(project)), "utf-8")
    run = lsml("predict", export, "--model", ticket_model, "--shape", "predictions", "-o", tmp_path / "out.json")
    assert run.returncode == 0, run.stderr
    in_bulk = {record["task"]: record for record in json.loads((tmp_path / "out.json").read_text("utf-8"))}
    for prediction in label_studio.predictions(project):
        assert prediction["result"] == in_bulk[prediction["task"]]["result"]
        assert prediction["score"] == pytest.approx(in_bulk[prediction["task"]]["score"])

    # Versions, and the test request of the settings page; it stores nothing.
    versions = label_studio.request_ok("GET", f"/api/ml/{backend}/versions")["versions"]
    assert version in versions
    tried = label_studio.request_ok("POST", f"/api/ml/{backend}/predict/test?random=true")
    assert tried["status"] == 200
    (result,) = tried["response"]
    assert result["model_version"] == version
    assert count_stored_predictions(label_studio, project) == expected_predictions([*tasks, *added], version)


def test_interactive(label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path) -> None:
    server = serve("--model", ticket_model)
    made = create_ticket_project(label_studio, "interactive", annotated=0, unlabeled=2)
    backend = label_studio.connect_backend(made.project, server.url, is_interactive=True)
    context = {
        "result": [
            {
                "id": "x",
                "from_name": "category",
                "to_name": "ticket",
                "type": "choices",
                "value": {"choices": ["Returns"]},
            }
        ]
    }
    for asked in ({"task": made.unlabeled[0], "context": context}, {"task": made.unlabeled[0]}):
        answer = label_studio.request_ok("POST", f"/api/ml/{backend}/interactive-annotating", asked)
        assert "errors" not in answer, answer
        assert category_of(answer["data"]["result"]) in CATEGORIES
        assert answer["data"]["model_version"] == label_studio.model_version(backend)
    assert count_stored_predictions(label_studio, made.project) == {}


def test_a_large_selection(label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path) -> None:
    server = serve("--model", ticket_model)
    made = create_ticket_project(label_studio, "large", annotated=0, unlabeled=200)
    backend = label_studio.connect_backend(made.project, server.url)
    label_studio.retrieve_predictions(made.project)
    assert count_stored_predictions(label_studio, made.project) == expected_predictions(
        made.unlabeled, label_studio.model_version(backend)
    )


@pytest.mark.parametrize("token", ["legacy", "personal"])
def test_training(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, token: str
) -> None:
    def training(api_key: str) -> None:
        server = serve(
            *("--model", ticket_model, "--versions", tmp_path / "versions"),
            *("--label-studio-url", label_studio.url),
            env={"LABEL_STUDIO_API_KEY": api_key},
        )
        train_and_repredict(label_studio, server)

    if token == "legacy":
        training(label_studio.token)
    else:
        # As Label Studio comes: what /setup hands out opens nothing.
        with label_studio.legacy_tokens_disabled():
            training(label_studio.personal_token)


def test_training_that_label_studio_starts_by_itself(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """min_annotations_to_start_training: inside the request of the annotator, who must not wait for it."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        env=key,
    )
    made = create_ticket_project(label_studio, "automatic", annotated=60, unlabeled=4)
    label_studio.request_ok("PATCH", f"/api/projects/{made.project}", {"min_annotations_to_start_training": 62})
    backend = label_studio.connect_backend(made.project, server.url)
    first = label_studio.model_version(backend)

    label_studio.annotate(made.unlabeled[0], load_annotated_tickets()[70]["annotations"][0]["result"])
    assert read_jobs(tmp_path / "versions") == []
    label_studio.annotate(made.unlabeled[1], load_annotated_tickets()[71]["annotations"][0]["result"])
    second = trained_version(label_studio, server, backend, made.project)

    assert second != first
    label_studio.retrieve_predictions(made.project, made.unlabeled)
    assert count_stored_predictions(label_studio, made.project) == expected_predictions(made.unlabeled, second)


def test_training_after_every_so_many_annotations(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """--train-every: lsml itself counts the events, whatever the project's settings are."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        *("--train-every", "3"),
        env=key,
    )
    made = create_ticket_project(label_studio, "every three", annotated=60, unlabeled=8)
    backend = label_studio.connect_backend(made.project, server.url)
    first = label_studio.model_version(backend)
    results = [task["annotations"][0]["result"] for task in load_annotated_tickets()[70:78]]

    for n in range(2):
        label_studio.annotate(made.unlabeled[n], results[n])
    assert label_studio.model_version(backend) == first
    assert read_jobs(tmp_path / "versions") == []

    label_studio.annotate(made.unlabeled[2], results[2])
    second = trained_version(label_studio, server, backend, made.project)
    for n in range(3, 6):
        label_studio.annotate(made.unlabeled[n], results[n])
    third = trained_version(label_studio, server, backend, made.project, other_than=second)
    assert len({first, second, third}) == 3
    assert [job["why"] for job in read_jobs(tmp_path / "versions")] == ["3 new annotations"] * 2


def test_events(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """Every event is taken, within the second that Label Studio waits; none of them starts a training by itself."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        "--verbose",
        env=key,
    )
    made = create_ticket_project(label_studio, "events", annotated=0, unlabeled=3)
    backend = label_studio.connect_backend(made.project, server.url)
    version = label_studio.model_version(backend)

    seen = webhooks(server)
    add_unlabeled(label_studio, made.project, 1, start=9)  # TASKS_CREATED
    annotation = label_studio.annotate(made.unlabeled[0], load_annotated_tickets()[0]["annotations"][0]["result"])
    label_studio.request_ok("PATCH", f"/api/annotations/{annotation}/", {"result": []})
    label_studio.request_ok("DELETE", f"/api/annotations/{annotation}/")
    label_studio.request_ok("PATCH", f"/api/projects/{made.project}", {"title": "events, seen"})
    assert webhooks(server) - seen == 5

    # After the backend is gone its events still come.
    label_studio.request_ok("DELETE", f"/api/ml/{backend}")
    label_studio.annotate(made.unlabeled[1], load_annotated_tickets()[1]["annotations"][0]["result"])
    assert webhooks(server) - seen == 6

    assert server.request_ok("GET", "/health")["status"] == "UP"
    assert read_jobs(tmp_path / "versions") == []
    assert server.request_ok("POST", "/setup", setup_of(made))["model_version"] == version


def webhooks(server: Server) -> int:
    """How many events were taken, by the server's own count; all of them were welcome."""
    found = [line for line in server.request_ok("GET", "/metrics").splitlines() if "_requests_total{" in line]
    by_status = [line.split(" ") for line in found if 'route="/webhook"' in line]
    assert all('status="200"' in labels for labels, _ in by_status), by_status
    return int(sum(float(value) for _, value in by_status))


def setup_of(made: TicketProject) -> dict[str, Any]:
    return {"project": f"{made.project}.1795192449", "schema": CONFIG, "hostname": "", "extra_params": None}


def test_a_deleted_backend_is_asked_no_more(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path
) -> None:
    server = serve("--model", ticket_model)
    made = create_ticket_project(label_studio, "deleted", annotated=0, unlabeled=3)
    backend = label_studio.connect_backend(made.project, server.url)
    label_studio.request_ok("GET", f"/api/tasks/{made.unlabeled[0]}")
    label_studio.request_ok("DELETE", f"/api/ml/{backend}")
    opened = label_studio.request_ok("GET", f"/api/tasks/{made.unlabeled[1]}")
    assert opened["predictions"] == []
    # ... and comes back, with the same answers to what was not predicted yet.
    again = label_studio.connect_backend(made.project, server.url)
    label_studio.retrieve_predictions(made.project)
    assert count_stored_predictions(label_studio, made.project) == expected_predictions(
        made.unlabeled, label_studio.model_version(again)
    )


def test_basic_auth(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        env=key | {"LSML_BASIC_AUTH": "studio:a secret: with colons"},
    )
    made = create_ticket_project(label_studio, "behind a password", annotated=0, unlabeled=2)
    wrong = {"auth_method": "BASIC_AUTH", "basic_auth_user": "studio", "basic_auth_pass": "guess"}
    for fields in ({}, wrong):
        asked = {"url": server.url, "project": made.project, **fields}
        status, answer = label_studio.request("POST", "/api/ml", asked)
        assert status == 400, answer
    assert count_stored_predictions(label_studio, made.project) == {}

    status, _ = server.request("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": made.project}})
    assert status == 401
    right = wrong | {"basic_auth_pass": "a secret: with colons"}
    backend = label_studio.connect_backend(made.project, server.url, **right)
    label_studio.retrieve_predictions(made.project)
    assert count_stored_predictions(label_studio, made.project) == expected_predictions(
        made.unlabeled, label_studio.model_version(backend)
    )


def test_a_secret_path_and_basic_auth(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """Events come without a password, so the path is theirs; everything else needs both."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        *("--secret-path", "a/b", "--basic-auth", "studio:secret", "--train-every", "2"),
        env=key,
    )
    right = {"auth_method": "BASIC_AUTH", "basic_auth_user": "studio", "basic_auth_pass": "secret"}
    made = create_ticket_project(label_studio, "behind a path", annotated=60, unlabeled=6)
    status, answer = label_studio.request("POST", "/api/ml", {"url": server.root, "project": made.project, **right})
    assert status == 400, answer

    backend = label_studio.connect_backend(made.project, server.url, **right)
    first = label_studio.model_version(backend)
    label_studio.retrieve_predictions(made.project, made.unlabeled)
    assert count_stored_predictions(label_studio, made.project) == expected_predictions(made.unlabeled, first)

    # Events arrive: two of them start a training.
    results = [task["annotations"][0]["result"] for task in load_annotated_tickets()[70:72]]
    for n in range(2):
        label_studio.annotate(made.unlabeled[n], results[n])

    def trained(other_than: str) -> str | None:
        version = label_studio.model_version(backend)
        return version if version != other_than else None

    second = wait_until("events have started a training", lambda: trained(first), 90)
    assert second.startswith(f"project-{made.project}@")
    # A training that somebody asks for comes with the password.
    event = {"action": "START_TRAINING", "project": {"id": made.project, "label_config": CONFIG}}
    assert server.request("POST", "/webhook", event)[0] == 401
    label_studio.request_ok("POST", f"/api/ml/{backend}/train", {})
    third = wait_until("the button has started a training", lambda: trained(second), 90)
    label_studio.retrieve_predictions(made.project, made.unlabeled)
    assert count_stored_predictions(label_studio, made.project) == expected_predictions(made.unlabeled, first, third)


def test_two_projects_one_of_them_training(
    label_studio: LabelStudio, serve: ServerFactory, tmp_path: Path, key: dict[str, str]
) -> None:
    """One server, two configs. Each project has its own version, and learning keeps nobody waiting."""
    server = serve(
        *("--model", "text-classifier", "--versions", tmp_path / "versions"),
        *("--label-studio-url", label_studio.url),
        env=key,
    )
    learning = create_ticket_project(label_studio, "learning", annotated=397, unlabeled=3)
    project = label_studio.create_project("predicting", REVIEWS)
    ids = label_studio.import_tasks(project, reviews(100))["task_ids"]
    backends = {made: label_studio.connect_backend(made, server.url) for made in (learning.project, project)}
    untrained = label_studio.model_version(backends[project])
    assert label_studio.model_version(backends[learning.project]) == untrained

    label_studio.request_ok("POST", f"/api/ml/{backends[learning.project]}/train", {})
    wait_until("the training has begun", lambda: server.is_training(learning.project), 10)
    during = 0
    pending = iter(ids)
    while server.is_training(learning.project) and (task := next(pending, None)):
        opened = label_studio.request_ok("GET", f"/api/tasks/{task}")
        (prediction,) = opened["predictions"]
        assert prediction["model_version"] == untrained
        assert category_of(prediction["result"], "verdict") in {"pos", "neg"}
        during += server.is_training(learning.project)
    assert during > 0, "the training was over before the other project was asked for anything"

    tuned = trained_version(label_studio, server, backends[learning.project], learning.project)
    assert label_studio.model_version(backends[project]) == untrained
    # Both at once: retrieve for one while the other does the same.
    other = threading.Thread(target=label_studio.retrieve_predictions, args=(project, ids[:40]))
    other.start()
    label_studio.retrieve_predictions(learning.project, learning.tasks[-40:])
    other.join(60)
    assert count_stored_predictions(label_studio, learning.project) == expected_predictions(learning.tasks[-40:], tuned)
    found = count_stored_predictions(label_studio, project)
    assert set(ids[:40]) <= set(found)
    assert all(versions == {untrained: 1} for versions in found.values())

    # The other one learns too, and the first keeps what it has.
    for n, task in enumerate(ids[:30]):
        label_studio.annotate(task, verdict(n))
    label_studio.request_ok("POST", f"/api/ml/{backends[project]}/train", {})
    own = trained_version(label_studio, server, backends[project], project)
    assert label_studio.model_version(backends[learning.project]) == tuned
    label_studio.retrieve_predictions(project, ids[60:])
    of_own = [each for each in label_studio.predictions(project) if each["model_version"] == own]
    right = [category_of(p["result"], "verdict") == ("pos" if ids.index(p["task"]) % 2 else "neg") for p in of_own]
    assert len(right) == 40
    assert sum(right) / len(right) > 0.9
