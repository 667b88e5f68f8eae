"""Projects of the shipped example, and the training that more than one suite goes through; nothing here is a test."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.helpers.serve_process import Server, wait_until

if TYPE_CHECKING:
    from conftest import LabelStudio

EXAMPLE = Path(__file__).parents[2] / "examples" / "support-tickets"
CONFIG = (EXAMPLE / "label_config.xml").read_text("utf-8")
CATEGORIES = {"Billing", "Shipping", "Returns", "Technical", "Account"}


@dataclass(frozen=True)
class TicketProject:
    """A project of the shipped example.

    annotated  ids of the tasks that people have answered, and their category
    fresh      ids of the tasks that nobody has looked at
    """

    project: int
    annotated: dict[int, str]
    unlabeled: list[int]

    @property
    def tasks(self) -> list[int]:
        return [*self.annotated, *self.unlabeled]


def create_ticket_project(label_studio: LabelStudio, title: str, annotated: int, unlabeled: int) -> TicketProject:
    """A new project with so many annotated and so many fresh tasks; no backend yet."""
    project = label_studio.create_project(title, CONFIG)
    answered = load_annotated_tickets()[:annotated]
    taken: list[int] = []
    if answered:
        taken = label_studio.import_tasks(project, answered)["task_ids"]
    categories = [category_of(task["annotations"][0]["result"]) for task in answered]
    return TicketProject(
        project, dict(zip(taken, categories, strict=True)), add_unlabeled(label_studio, project, unlabeled)
    )


def add_unlabeled(label_studio: LabelStudio, project: int, count: int, start: int = 0) -> list[int]:
    tasks = json.loads((EXAMPLE / "tasks.json").read_text("utf-8"))
    chosen = [{"data": tasks[n % len(tasks)]["data"]} for n in range(start, start + count)]
    return list(label_studio.import_tasks(project, chosen)["task_ids"]) if chosen else []


def load_annotated_tickets() -> list[dict[str, Any]]:
    """The annotated tickets that were not skipped, as an import takes them."""
    exported = json.loads((EXAMPLE / "annotated.json").read_text("utf-8"))
    return [
        {"data": task["data"], "annotations": [{"result": annotation["result"]}]}
        for task in exported
        for annotation in task["annotations"][:1]
        if not annotation["was_cancelled"] and category_of(annotation["result"])
    ]


def category_of(result: list[dict[str, Any]], control: str = "category") -> str:
    """The one choice of this control, or nothing."""
    chosen = [choice for region in result if region["from_name"] == control for choice in region["value"]["choices"]]
    assert len(chosen) <= 1, chosen
    return chosen[0] if chosen else ""


def count_stored_predictions(label_studio: LabelStudio, project: int) -> dict[int, Counter[str]]:
    """How many predictions each task has, of which version."""
    found: dict[int, Counter[str]] = {}
    for prediction in label_studio.predictions(project):
        found.setdefault(prediction["task"], Counter())[prediction["model_version"]] += 1
    return found


def expected_predictions(tasks: list[int], *versions: str) -> dict[int, Counter[str]]:
    """What `stored` says when each of these tasks has exactly one prediction of each of these versions."""
    return {task: Counter(versions) for task in tasks}


def trained_version(label_studio: LabelStudio, server: Server, backend: int, project: int, other_than: str = "") -> str:
    """The version that the project has of its own, once its training has ended."""

    def found() -> str | None:
        version = label_studio.model_version(backend)
        return version if version.startswith(f"project-{project}@") and version != other_than else None

    version = wait_until(f"project {project} has a version of its own", found, 90)
    wait_until("no training is left", lambda: not server.is_training(project))
    return version


def train_and_repredict(
    label_studio: LabelStudio,
    server: Server,
    *,
    backend_fields: dict[str, Any] | None = None,
    on_training_started: Callable[[int], None] = lambda project: None,
    min_accuracy: float = 0.8,
) -> str:
    """A project is predicted, trained on its annotations, and predicted anew, by the version it has now.

    connect  fields of the backend
    during   called with the project's id right after the training was asked for
    right    the share of the annotated tasks that the new version must get right. It has seen most of them: this says
             that labels and tasks belong together, not that it is good.
    """
    made = create_ticket_project(label_studio, "trained", annotated=120, unlabeled=8)
    project = made.project
    backend = label_studio.connect_backend(project, server.url, **(backend_fields or {}))
    first = label_studio.model_version(backend)
    assert not first.startswith("project-")
    label_studio.retrieve_predictions(project)
    assert count_stored_predictions(label_studio, project) == expected_predictions(made.tasks, first)

    label_studio.request_ok("POST", f"/api/ml/{backend}/train", {})
    on_training_started(project)
    second = trained_version(label_studio, server, backend, project)

    # Nobody has asked for predictions yet.
    assert count_stored_predictions(label_studio, project) == expected_predictions(made.tasks, first)
    added = add_unlabeled(label_studio, project, 2, start=100)
    opened = label_studio.request_ok("GET", f"/api/tasks/{added[0]}")
    assert [prediction["model_version"] for prediction in opened["predictions"]] == [second]
    # The label stream predicts anew what only the first version has predicted, and shows the new answer.
    streamed = label_studio.request_ok("GET", f"/api/projects/{project}/next")
    assert streamed["id"] in made.unlabeled
    assert [prediction["model_version"] for prediction in streamed["predictions"]] == [second]

    label_studio.retrieve_predictions(project)
    expected = expected_predictions(made.tasks, first, second) | expected_predictions(added, second)
    assert count_stored_predictions(label_studio, project) == expected
    label_studio.retrieve_predictions(project)
    assert count_stored_predictions(label_studio, project) == expected

    new = [each for each in label_studio.predictions(project) if each["model_version"] == second]
    assert {category_of(prediction["result"]) for prediction in new} <= CATEGORIES
    hits = [category_of(p["result"]) == made.annotated[p["task"]] for p in new if p["task"] in made.annotated]
    assert sum(hits) / len(hits) >= min_accuracy
    assert second in server.request_ok("GET", "/versions")["versions"]
    return second
