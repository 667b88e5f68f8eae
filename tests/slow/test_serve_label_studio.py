"""`lsml serve` as a backend of Label Studio: all its requests for predictions and for training."""

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
    from tests.helpers.cli import Lsml
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Unlike the tickets' label config, it has other names and aliases.
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
    """Return the correct annotation of review `n`."""
    value = {"choices": ["pos" if n % 2 else "neg"]}
    return [{"from_name": "verdict", "to_name": "body", "type": "choices", "value": value}]


@pytest.fixture
def key(label_studio: LabelStudio) -> dict[str, str]:
    return {"LABEL_STUDIO_API_KEY": label_studio.token}


def test_every_request_for_predictions(
    label_studio: LabelStudio, serve: ServerFactory, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    server = serve("--model", ticket_model)
    tickets = create_ticket_project(label_studio, "all requests", annotated=0, unlabeled=9)
    project, tasks = tickets.project, tickets.unlabeled

    # Connect the backend.
    backend = label_studio.connect_backend(project, server.url)
    version = label_studio.model_version(backend)
    assert version.startswith("tickets@")
    assert label_studio.request_ok("GET", f"/api/projects/{project}")["model_version"] == "lsml"
    assert count_stored_predictions(label_studio, project) == {}

    # Open a task twice.
    for _ in range(2):
        opened = label_studio.request_ok("GET", f"/api/tasks/{tasks[3]}")
        (prediction,) = opened["predictions"]
        assert prediction["model_version"] == version
        assert category_of(prediction["result"]) in CATEGORIES
    assert count_stored_predictions(label_studio, project) == expected_predictions([tasks[3]], version)

    # Get the next task of the label stream twice: it is the same one, since there are no annotations.
    for _ in range(2):
        task = label_studio.request_ok("GET", f"/api/projects/{project}/next")
        assert [prediction["model_version"] for prediction in task["predictions"]] == [version]
    expected = expected_predictions(list({task["id"], tasks[3]}), version)
    assert count_stored_predictions(label_studio, project) == expected

    # Retrieve predictions for a selection, in which one task has its prediction; then for all, twice.
    selection = [tasks[3], tasks[5], tasks[6]]
    label_studio.retrieve_predictions(project, selection)
    expected |= expected_predictions(selection, version)
    assert count_stored_predictions(label_studio, project) == expected
    for _ in range(2):
        label_studio.retrieve_predictions(project)
        assert count_stored_predictions(label_studio, project) == expected_predictions(tasks, version)

    # List tasks as the Data Manager does, with automatic evaluation of predictions.
    added = add_unlabeled(label_studio, project, 2, start=50)
    label_studio.request_ok("PATCH", f"/api/projects/{project}", {"evaluate_predictions_automatically": True})
    for _ in range(2):
        label_studio.request_ok("GET", f"/api/tasks?project={project}&fields=all")
        assert count_stored_predictions(label_studio, project) == expected_predictions([*tasks, *added], version)

    # The stored predictions equal those of `lsml predict`.
    export = tmp_path / "export.json"
    export.write_text(json.dumps(label_studio.export(project)), "utf-8")
    run = lsml("predict", export, "--model", ticket_model, "--shape", "predictions", "-o", tmp_path / "out.json")
    assert run.returncode == 0, run.stderr
    in_bulk = {record["task"]: record for record in json.loads((tmp_path / "out.json").read_text("utf-8"))}
    for prediction in label_studio.predictions(project):
        assert prediction["result"] == in_bulk[prediction["task"]]["result"]
        assert prediction["score"] == pytest.approx(in_bulk[prediction["task"]]["score"])

    # Get the versions, and send the test request of the settings page, which stores nothing.
    versions = label_studio.request_ok("GET", f"/api/ml/{backend}/versions")["versions"]
    assert version in versions
    answer = label_studio.request_ok("POST", f"/api/ml/{backend}/predict/test?random=true")
    assert answer["status"] == 200
    (result,) = answer["response"]
    assert result["model_version"] == version
    assert count_stored_predictions(label_studio, project) == expected_predictions([*tasks, *added], version)


def test_interactive_requests(label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path) -> None:
    server = serve("--model", ticket_model)
    tickets = create_ticket_project(label_studio, "interactive", annotated=0, unlabeled=2)
    backend = label_studio.connect_backend(tickets.project, server.url, is_interactive=True)
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
    for request in ({"task": tickets.unlabeled[0], "context": context}, {"task": tickets.unlabeled[0]}):
        answer = label_studio.request_ok("POST", f"/api/ml/{backend}/interactive-annotating", request)
        assert "errors" not in answer, answer
        assert category_of(answer["data"]["result"]) in CATEGORIES
        assert answer["data"]["model_version"] == label_studio.model_version(backend)
    assert count_stored_predictions(label_studio, tickets.project) == {}


def test_retrieve_for_a_large_selection(label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path) -> None:
    server = serve("--model", ticket_model)
    tickets = create_ticket_project(label_studio, "large", annotated=0, unlabeled=200)
    backend = label_studio.connect_backend(tickets.project, server.url)
    label_studio.retrieve_predictions(tickets.project)
    assert count_stored_predictions(label_studio, tickets.project) == expected_predictions(
        tickets.unlabeled, label_studio.model_version(backend)
    )


@pytest.mark.parametrize("token", ["legacy", "personal"])
def test_training_with_each_kind_of_token(
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
        # Label Studio's default: the token that /setup gets is rejected.
        with label_studio.legacy_tokens_disabled():
            training(label_studio.personal_token)


def test_training_started_by_min_annotations(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """Label Studio requests it while it stores an annotation, so the answer must come at once."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        env=key,
    )
    tickets = create_ticket_project(label_studio, "automatic", annotated=60, unlabeled=4)
    label_studio.request_ok("PATCH", f"/api/projects/{tickets.project}", {"min_annotations_to_start_training": 62})
    backend = label_studio.connect_backend(tickets.project, server.url)
    first = label_studio.model_version(backend)

    label_studio.annotate(tickets.unlabeled[0], load_annotated_tickets()[70]["annotations"][0]["result"])
    assert read_jobs(tmp_path / "versions") == []
    label_studio.annotate(tickets.unlabeled[1], load_annotated_tickets()[71]["annotations"][0]["result"])
    second = trained_version(label_studio, server, backend, tickets.project)

    assert second != first
    label_studio.retrieve_predictions(tickets.project, tickets.unlabeled)
    assert count_stored_predictions(label_studio, tickets.project) == expected_predictions(tickets.unlabeled, second)


def test_train_every_counts_annotations(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """lsml counts the events, independently of the project's settings."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        *("--train-every", "3"),
        env=key,
    )
    tickets = create_ticket_project(label_studio, "every three", annotated=60, unlabeled=8)
    backend = label_studio.connect_backend(tickets.project, server.url)
    first = label_studio.model_version(backend)
    results = [task["annotations"][0]["result"] for task in load_annotated_tickets()[70:78]]

    for n in range(2):
        label_studio.annotate(tickets.unlabeled[n], results[n])
    assert label_studio.model_version(backend) == first
    assert read_jobs(tmp_path / "versions") == []

    label_studio.annotate(tickets.unlabeled[2], results[2])
    second = trained_version(label_studio, server, backend, tickets.project)
    for n in range(3, 6):
        label_studio.annotate(tickets.unlabeled[n], results[n])
    third = trained_version(label_studio, server, backend, tickets.project, other_than=second)
    assert len({first, second, third}) == 3
    assert [job["why"] for job in read_jobs(tmp_path / "versions")] == ["3 new annotations"] * 2


def test_annotations_do_not_train_after_the_backend_was_deleted(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """Label Studio keeps the webhook of a deleted backend."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        *("--train-every", "2", "--verbose"),
        env=key,
    )
    tickets = create_ticket_project(label_studio, "left behind", annotated=60, unlabeled=4)
    label_studio.request_ok("DELETE", f"/api/ml/{label_studio.connect_backend(tickets.project, server.url)}")
    results = [task["annotations"][0]["result"] for task in load_annotated_tickets()[70:74]]
    events_before = count_webhooks(server)
    for task, result in zip(tickets.unlabeled[:2], results, strict=False):
        label_studio.annotate(task, result)
    assert count_webhooks(server) - events_before == 2
    message = f"Project {tickets.project} does not have this server as its model any more"
    wait_until("the server has noticed", lambda: any(message in line for line in server.lines()), 20)
    for task, result in zip(tickets.unlabeled[2:], results[2:], strict=True):
        label_studio.annotate(task, result)
    assert read_jobs(tmp_path / "versions") == []


def test_failed_training_becomes_the_error_message_of_the_backend(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """Label Studio shows it with the next request for training, and goes on asking for predictions."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        env=key,
    )
    tickets = create_ticket_project(label_studio, "nothing to learn", annotated=0, unlabeled=2)
    backend = label_studio.connect_backend(tickets.project, server.url)

    def live_backend() -> dict[str, Any]:
        path = f"/api/projects/{tickets.project}/model-versions?extended=true&include_live_models=true"
        (live,) = label_studio.request_ok("GET", path)["live"]
        assert isinstance(live, dict)
        return live

    label_studio.request_ok("POST", f"/api/ml/{backend}/train", {})
    assert live_backend()["readable_state"] == "Training"
    message = "failed. There is nothing to learn from: no tasks at all."
    wait_until("the server knows that it has failed", lambda: any(message in line for line in server.lines()))
    label_studio.request_ok("POST", f"/api/ml/{backend}/train", {})
    live = live_backend()
    assert live["readable_state"] == "Error"
    assert "the last one failed (lsml jobs says why)" in live["error_message"]
    assert len(label_studio.request_ok("GET", f"/api/tasks/{tickets.unlabeled[0]}")["predictions"]) == 1
    assert live_backend()["readable_state"] == "Connected"


def test_webhook_events_are_accepted(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """Each event is answered within Label Studio's timeout of one second; none starts a training by itself."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        "--verbose",
        env=key,
    )
    tickets = create_ticket_project(label_studio, "events", annotated=0, unlabeled=3)
    backend = label_studio.connect_backend(tickets.project, server.url)
    version = label_studio.model_version(backend)

    events_before = count_webhooks(server)
    add_unlabeled(label_studio, tickets.project, 1, start=9)  # TASKS_CREATED
    annotation = label_studio.annotate(tickets.unlabeled[0], load_annotated_tickets()[0]["annotations"][0]["result"])
    label_studio.request_ok("PATCH", f"/api/annotations/{annotation}/", {"result": []})
    label_studio.request_ok("DELETE", f"/api/annotations/{annotation}/")
    label_studio.request_ok("PATCH", f"/api/projects/{tickets.project}", {"title": "events, seen"})
    assert count_webhooks(server) - events_before == 5

    # Label Studio still sends events after the backend was deleted.
    label_studio.request_ok("DELETE", f"/api/ml/{backend}")
    label_studio.annotate(tickets.unlabeled[1], load_annotated_tickets()[1]["annotations"][0]["result"])
    assert count_webhooks(server) - events_before == 6

    assert server.request_ok("GET", "/health")["status"] == "UP"
    assert read_jobs(tmp_path / "versions") == []
    assert server.request_ok("POST", "/setup", setup_of(tickets))["model_version"] == version


def count_webhooks(server: Server) -> int:
    """Return the number of events in the server's metrics; none of them may have failed."""
    samples = [line for line in server.request_ok("GET", "/metrics").splitlines() if "_requests_total{" in line]
    by_status = [line.split(" ") for line in samples if 'route="/webhook"' in line]
    assert all('status="200"' in labels for labels, _ in by_status), by_status
    return int(sum(float(value) for _, value in by_status))


def setup_of(tickets: TicketProject) -> dict[str, Any]:
    return {"project": f"{tickets.project}.1795192449", "schema": CONFIG, "hostname": "", "extra_params": None}


def test_deleted_backend_gets_no_requests(label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path) -> None:
    server = serve("--model", ticket_model)
    tickets = create_ticket_project(label_studio, "deleted", annotated=0, unlabeled=3)
    backend = label_studio.connect_backend(tickets.project, server.url)
    label_studio.request_ok("GET", f"/api/tasks/{tickets.unlabeled[0]}")
    label_studio.request_ok("DELETE", f"/api/ml/{backend}")
    opened = label_studio.request_ok("GET", f"/api/tasks/{tickets.unlabeled[1]}")
    assert opened["predictions"] == []
    # Connected again, it predicts the remaining tasks.
    again = label_studio.connect_backend(tickets.project, server.url)
    label_studio.retrieve_predictions(tickets.project)
    assert count_stored_predictions(label_studio, tickets.project) == expected_predictions(
        tickets.unlabeled, label_studio.model_version(again)
    )


def test_basic_auth_is_required(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        env=key | {"LSML_BASIC_AUTH": "studio:a secret: with colons"},
    )
    tickets = create_ticket_project(label_studio, "behind a password", annotated=0, unlabeled=2)
    wrong = {"auth_method": "BASIC_AUTH", "basic_auth_user": "studio", "basic_auth_pass": "guess"}
    for fields in ({}, wrong):
        body = {"url": server.url, "project": tickets.project, **fields}
        status, answer = label_studio.request("POST", "/api/ml", body)
        assert status == 400, answer
    assert count_stored_predictions(label_studio, tickets.project) == {}

    status, _ = server.request("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": tickets.project}})
    assert status == 401
    credentials = wrong | {"basic_auth_pass": "a secret: with colons"}
    backend = label_studio.connect_backend(tickets.project, server.url, **credentials)
    label_studio.retrieve_predictions(tickets.project)
    assert count_stored_predictions(label_studio, tickets.project) == expected_predictions(
        tickets.unlabeled, label_studio.model_version(backend)
    )


def test_secret_path_with_basic_auth(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path, key: dict[str, str]
) -> None:
    """Label Studio sends events without the password, so they need the path only; other requests need both."""
    server = serve(
        *("--model", ticket_model, "--versions", tmp_path / "versions", "--label-studio-url", label_studio.url),
        *("--secret-path", "a/b", "--basic-auth", "studio:secret", "--train-every", "2"),
        env=key,
    )
    credentials = {"auth_method": "BASIC_AUTH", "basic_auth_user": "studio", "basic_auth_pass": "secret"}
    tickets = create_ticket_project(label_studio, "behind a path", annotated=60, unlabeled=6)
    status, answer = label_studio.request(
        "POST", "/api/ml", {"url": server.root, "project": tickets.project, **credentials}
    )
    assert status == 400, answer

    backend = label_studio.connect_backend(tickets.project, server.url, **credentials)
    first = label_studio.model_version(backend)
    label_studio.retrieve_predictions(tickets.project, tickets.unlabeled)
    assert count_stored_predictions(label_studio, tickets.project) == expected_predictions(tickets.unlabeled, first)

    # Two events start a training.
    results = [task["annotations"][0]["result"] for task in load_annotated_tickets()[70:72]]
    for n in range(2):
        label_studio.annotate(tickets.unlabeled[n], results[n])

    def version_other_than(previous: str) -> str | None:
        version = label_studio.model_version(backend)
        return version if version != previous else None

    second = wait_until("events have started a training", lambda: version_other_than(first), 90)
    assert second.startswith(f"project-{tickets.project}@")
    # A request for training needs the password.
    event = {"action": "START_TRAINING", "project": {"id": tickets.project, "label_config": CONFIG}}
    assert server.request("POST", "/webhook", event)[0] == 401
    label_studio.request_ok("POST", f"/api/ml/{backend}/train", {})
    third = wait_until("the button has started a training", lambda: version_other_than(second), 90)
    label_studio.retrieve_predictions(tickets.project, tickets.unlabeled)
    assert count_stored_predictions(label_studio, tickets.project) == expected_predictions(
        tickets.unlabeled, first, third
    )


def test_one_project_predicts_while_another_trains(
    label_studio: LabelStudio, serve: ServerFactory, tmp_path: Path, key: dict[str, str]
) -> None:
    """With one server and two label configs, each project gets a version of its own."""
    server = serve(
        *("--model", "text-classifier", "--versions", tmp_path / "versions"),
        *("--label-studio-url", label_studio.url),
        env=key,
    )
    learning = create_ticket_project(label_studio, "learning", annotated=397, unlabeled=3)
    project = label_studio.create_project("predicting", REVIEWS)
    ids = label_studio.import_tasks(project, reviews(100))["task_ids"]
    backends = {id_: label_studio.connect_backend(id_, server.url) for id_ in (learning.project, project)}
    untrained = label_studio.model_version(backends[project])
    assert label_studio.model_version(backends[learning.project]) == untrained

    label_studio.request_ok("POST", f"/api/ml/{backends[learning.project]}/train", {})
    wait_until("the training has started", lambda: server.is_training(learning.project), 10)
    predicted_meanwhile = 0
    pending = iter(ids)
    while server.is_training(learning.project) and (task := next(pending, None)):
        opened = label_studio.request_ok("GET", f"/api/tasks/{task}")
        (prediction,) = opened["predictions"]
        assert prediction["model_version"] == untrained
        assert category_of(prediction["result"], "verdict") in {"pos", "neg"}
        predicted_meanwhile += server.is_training(learning.project)
    assert predicted_meanwhile > 0, "the training ended before the other project was predicted"

    trained = trained_version(label_studio, server, backends[learning.project], learning.project)
    assert label_studio.model_version(backends[project]) == untrained
    # Retrieve predictions for both projects at the same time.
    thread = threading.Thread(target=label_studio.retrieve_predictions, args=(project, ids[:40]))
    thread.start()
    label_studio.retrieve_predictions(learning.project, learning.tasks[-40:])
    thread.join(60)
    assert count_stored_predictions(label_studio, learning.project) == expected_predictions(
        learning.tasks[-40:], trained
    )
    stored = count_stored_predictions(label_studio, project)
    assert set(ids[:40]) <= set(stored)
    assert all(versions == {untrained: 1} for versions in stored.values())

    # Train the other project too; the first one keeps its version.
    for n, task in enumerate(ids[:30]):
        label_studio.annotate(task, verdict(n))
    label_studio.request_ok("POST", f"/api/ml/{backends[project]}/train", {})
    own = trained_version(label_studio, server, backends[project], project)
    assert label_studio.model_version(backends[learning.project]) == trained
    label_studio.retrieve_predictions(project, ids[60:])
    own_predictions = [
        prediction for prediction in label_studio.predictions(project) if prediction["model_version"] == own
    ]
    correct = [
        category_of(p["result"], "verdict") == ("pos" if ids.index(p["task"]) % 2 else "neg") for p in own_predictions
    ]
    assert len(correct) == 40
    assert sum(correct) / len(correct) > 0.9
