"""Predictions of `lsml serve` and `lsml push` as an annotator sees them in Label Studio, in a browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.helpers.browser import Page, open_browser
from tests.helpers.guides import read_examples
from tests.helpers.serve_process import ServerFactory, wait_until
from tests.slow.scenario import CATEGORIES, category_of, create_ticket_project

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def page(label_studio: LabelStudio, tmp_path: Path) -> Iterator[Page]:
    """A browser that is logged in."""
    with open_browser(tmp_path) as page:
        page.log_in(label_studio)
        yield page


def test_labelling_page_shows_the_prediction(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, page: Page
) -> None:
    server = serve("--model", ticket_model)
    tickets = create_ticket_project(label_studio, "in a browser", annotated=0, unlabeled=3)
    backend = label_studio.connect_backend(tickets.project, server.url)
    task = tickets.unlabeled[1]

    # Opening the task requests its prediction.
    assert label_studio.predictions(tickets.project) == []
    page.open(f"{label_studio.url}/projects/{tickets.project}/data?task={task}")
    chosen = page.selected_choices()
    tab = page.wait_visible(".lsf-annotation-button:has(.lsf-annotation-button__userpic_prediction)").text
    page.take_screenshot("task")

    (prediction,) = label_studio.predictions(tickets.project)
    assert prediction["task"] == task
    category = category_of(prediction["result"])
    assert category in CATEGORIES
    assert chosen == {choice for region in prediction["result"] for choice in region["value"]["choices"]}
    # A tab shows the version and the score: "tickets@...015328", "seconds ago · 88.30%".
    version = label_studio.model_version(backend)
    assert version[:8] in tab
    assert version[-6:] in tab
    assert f"{prediction['score']:.2%}" in tab


def test_annotator_submits_the_prediction(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, page: Page
) -> None:
    """The label stream shows the prediction, and one click turns it into an annotation."""
    server = serve("--model", ticket_model)
    tickets = create_ticket_project(label_studio, "in a stream", annotated=0, unlabeled=3)
    label_studio.connect_backend(tickets.project, server.url)

    page.open(f"{label_studio.url}/projects/{tickets.project}/data?labeling=1")
    chosen = page.selected_choices()
    page.take_screenshot("stream")
    page.wait_visible("button[name=submit]").click()

    wait_until("the annotation is stored", lambda: label_studio.counts(tickets.project)["annotations"])
    (task,) = [task for task in label_studio.export(tickets.project) if task["annotations"]]
    (annotation,) = task["annotations"]
    assert category_of(annotation["result"]) in CATEGORIES & chosen
    assert {choice for region in annotation["result"] for choice in region["value"]["choices"]} == chosen


def test_pushed_predictions_show_in_the_stream(
    label_studio: LabelStudio, lsml: Lsml, ticket_model: Path, page: Page, tmp_path: Path
) -> None:
    tickets = create_ticket_project(label_studio, "pushed", annotated=0, unlabeled=3)
    env = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    tasks = lsml("pull", "--project", str(tickets.project), env=env)
    predicted = lsml("predict", "-", "--model", ticket_model, "--shape", "predictions", input=tasks.stdout)
    pushed = lsml("push", "-", "--project", str(tickets.project), input=predicted.stdout, env=env)
    assert pushed.returncode == 0, pushed.stderr

    page.open(f"{label_studio.url}/projects/{tickets.project}/data?labeling=1")
    chosen = page.selected_choices()
    page.take_screenshot("pushed")
    stored = [
        {choice for region in prediction["result"] for choice in region["value"]["choices"]}
        for prediction in label_studio.predictions(tickets.project)
    ]
    assert chosen in stored


def test_smart_key_points_get_the_boxes_of_the_readme(
    label_studio: LabelStudio, serve: ServerFactory, page: Page, tmp_path: Path
) -> None:
    """The editor sends what was drawn; a suggestion does not replace the one that was accepted before."""
    blocks = read_examples("guides/own-model.md", "## Suggestions while somebody draws")
    (tmp_path / "around.py").write_text(blocks["python"])
    server = serve("--model", f"{tmp_path / 'around.py'}:Around")
    picture = io.BytesIO()
    Image.new("RGB", (600, 400), (200, 220, 255)).save(picture, "PNG")
    project = label_studio.create_project("smart tools", blocks["xml"])
    address = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    label_studio.import_tasks(project, [{"data": {"image": address}}])
    label_studio.connect_backend(project, server.url, is_interactive=True)

    page.open(f"{label_studio.url}/projects/{project}/data")
    page.run("localStorage.setItem('autoAnnotation', 'true')")
    (task,) = label_studio.request_ok("GET", f"/api/tasks?project={project}")["tasks"]
    page.open(f"{label_studio.url}/projects/{project}/data?task={task['id']}")
    page.click(".lsf-tool_smart")
    for accepted, offset in enumerate([(-200, -100), (60, 30)]):
        page.click(".lsf-label_clickable", 1)
        page.click("canvas", -1, offset)
        wait_until("there is a suggestion", lambda: page.run("return Htx.annotationStore.selected.suggestions.size"))
        page.take_screenshot(f"suggestion-{accepted}")
        page.run("Htx.annotationStore.selected.acceptAllSuggestions()")
        wait_until("it is accepted", lambda: not page.run("return Htx.annotationStore.selected.suggestions.size"))
    page.click("button[name=submit]")

    wait_until("the annotation is stored", lambda: label_studio.counts(project)["annotations"])
    [exported] = label_studio.export(project)
    boxes = [region["value"] for region in exported["annotations"][0]["result"]]
    assert [box["rectanglelabels"] for box in boxes] == [["Car"], ["Car"]]
    assert all(box["width"] == box["height"] == 10 for box in boxes)
    assert boxes[0]["x"] < boxes[1]["x"] < 60
