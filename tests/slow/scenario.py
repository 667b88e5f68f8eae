"""Create projects of the support-tickets example, and train one, for several test modules."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.helpers.serve_process import Server, wait_until

if TYPE_CHECKING:
    from tests.helpers.label_studio_server import LabelStudio

EXAMPLE = Path(__file__).parents[2] / "examples" / "support-tickets"
CONFIG = (EXAMPLE / "label_config.xml").read_text("utf-8")
CATEGORIES = {"Billing", "Shipping", "Returns", "Technical", "Account"}


@dataclass(frozen=True)
class TicketProject:
    """A project with tasks of the support-tickets example.

    Attributes:
        project: its id.
        annotated: the category of each annotated task, by id.
        unlabeled: ids of the tasks without annotations.
    """

    project: int
    annotated: dict[int, str]
    unlabeled: list[int]

    @property
    def tasks(self) -> list[int]:
        return [*self.annotated, *self.unlabeled]


def create_ticket_project(label_studio: LabelStudio, title: str, annotated: int, unlabeled: int) -> TicketProject:
    """Create a project with these numbers of annotated and of unlabelled tasks, and no backend."""
    project = label_studio.create_project(title, CONFIG)
    tickets = load_annotated_tickets()[:annotated]
    ids: list[int] = label_studio.import_tasks(project, tickets)["task_ids"] if tickets else []
    categories = [category_of(task["annotations"][0]["result"]) for task in tickets]
    return TicketProject(
        project, dict(zip(ids, categories, strict=True)), add_unlabeled(label_studio, project, unlabeled)
    )


def add_unlabeled(label_studio: LabelStudio, project: int, count: int, start: int = 0) -> list[int]:
    """Import unlabelled tickets from index `start` on, starting over at the end; return the ids of the tasks."""
    tasks = json.loads((EXAMPLE / "tasks.json").read_text("utf-8"))
    chosen = [{"data": tasks[n % len(tasks)]["data"]} for n in range(start, start + count)]
    return list(label_studio.import_tasks(project, chosen)["task_ids"]) if chosen else []


def load_annotated_tickets() -> list[dict[str, Any]]:
    """Return the annotated tickets that were not skipped, as tasks to import."""
    exported = json.loads((EXAMPLE / "annotated.json").read_text("utf-8"))
    return [
        {"data": task["data"], "annotations": [{"result": annotation["result"]}]}
        for task in exported
        for annotation in task["annotations"][:1]
        if not annotation["was_cancelled"] and category_of(annotation["result"])
    ]


def category_of(result: list[dict[str, Any]], control: str = "category") -> str:
    """Return the single choice of a control, or an empty string."""
    chosen = [choice for region in result if region["from_name"] == control for choice in region["value"]["choices"]]
    assert len(chosen) <= 1, chosen
    return chosen[0] if chosen else ""


def count_stored_predictions(label_studio: LabelStudio, project: int) -> dict[int, Counter[str]]:
    """Return the number of predictions of each task by model version."""
    counts: dict[int, Counter[str]] = {}
    for prediction in label_studio.predictions(project):
        counts.setdefault(prediction["task"], Counter())[prediction["model_version"]] += 1
    return counts


def expected_predictions(tasks: list[int], *versions: str) -> dict[int, Counter[str]]:
    """Return what `count_stored_predictions` does if each task has exactly one prediction of each version."""
    return {task: Counter(versions) for task in tasks}


def trained_version(label_studio: LabelStudio, server: Server, backend: int, project: int, other_than: str = "") -> str:
    """Wait until the project has a version of its own other than `other_than`, and no training; return the version."""

    def own_version() -> str | None:
        version = label_studio.model_version(backend)
        return version if version.startswith(f"project-{project}@") and version != other_than else None

    version = wait_until(f"project {project} has a version of its own", own_version, 90)
    wait_until("no training is left", lambda: not server.is_training(project))
    return version


def train_and_repredict(
    label_studio: LabelStudio,
    server: Server,
    *,
    on_training_started: Callable[[int], None] = lambda project: None,
) -> str:
    """Predict a project, train on its annotations, predict it again with the new version, and return that version.

    Args:
        on_training_started: called with the project's id when training was requested.
    """
    tickets = create_ticket_project(label_studio, "trained", annotated=120, unlabeled=8)
    project = tickets.project
    backend = label_studio.connect_backend(project, server.url)
    first = label_studio.model_version(backend)
    assert not first.startswith("project-")
    label_studio.retrieve_predictions(project)
    assert count_stored_predictions(label_studio, project) == expected_predictions(tickets.tasks, first)

    label_studio.request_ok("POST", f"/api/ml/{backend}/train", {})
    on_training_started(project)
    second = trained_version(label_studio, server, backend, project)

    # No prediction was requested since.
    assert count_stored_predictions(label_studio, project) == expected_predictions(tickets.tasks, first)
    added = add_unlabeled(label_studio, project, 2, start=100)
    opened = label_studio.request_ok("GET", f"/api/tasks/{added[0]}")
    assert [prediction["model_version"] for prediction in opened["predictions"]] == [second]
    # The label stream predicts again what only the first version has predicted, and shows the new prediction.
    streamed = label_studio.request_ok("GET", f"/api/projects/{project}/next")
    assert streamed["id"] in tickets.unlabeled
    assert [prediction["model_version"] for prediction in streamed["predictions"]] == [second]

    label_studio.retrieve_predictions(project)
    expected = expected_predictions(tickets.tasks, first, second) | expected_predictions(added, second)
    assert count_stored_predictions(label_studio, project) == expected
    label_studio.retrieve_predictions(project)
    assert count_stored_predictions(label_studio, project) == expected

    new = [prediction for prediction in label_studio.predictions(project) if prediction["model_version"] == second]
    assert {category_of(prediction["result"]) for prediction in new} <= CATEGORIES
    hits = [category_of(p["result"]) == tickets.annotated[p["task"]] for p in new if p["task"] in tickets.annotated]
    # It was trained on most of these: this checks that labels belong to their tasks, not that the model is good.
    assert sum(hits) / len(hits) >= 0.8
    assert second in server.request_ok("GET", "/versions")["versions"]
    return second
