"""What an annotator sees: predicted boxes, and what was read, on their pictures in a real Label Studio and browser.

LSML_SCREENSHOTS=DIR keeps the screenshots, to be looked at.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
import shapes
from browsing import browsing

pytestmark = [pytest.mark.openmmlab, pytest.mark.timeout(900)]


@pytest.fixture
def page(label_studio, tmp_path):
    with browsing(tmp_path) as page:
        page.log_in(label_studio)
        yield page


def put_up(label_studio, project: str, config: str, tasks: list[dict]) -> tuple[int, list[int]]:
    """A project with these predicted tasks; its id, and theirs."""
    made = label_studio.project(project, config)
    answer = label_studio.import_tasks(
        made, [{"data": task["data"], "predictions": task["predictions"]} for task in tasks]
    )
    assert answer["prediction_count"] == len(tasks)
    return made, answer["task_ids"]


def shown_as(picture: Path) -> str:
    """The picture as an address that holds all of it."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def test_predicted_boxes_lie_on_the_picture(lsml, learned, label_studio, page, tmp_path):
    work = Path(shutil.copytree(learned, tmp_path / "work"))
    tasks = json.loads((work / "shapes.json").read_bytes())[:3]
    fresh = [{"id": task["id"], "data": {"image": shown_as(work / task["data"]["image"])}} for task in tasks]
    (work / "fresh.json").write_text(json.dumps(fresh))
    run = lsml("predict", "fresh.json", "--model", "models/shapes", "-o", "out.json", cwd=work, timeout=300)
    assert run.returncode == 0, run.stderr
    predicted = json.loads((work / "out.json").read_bytes())
    project, ids = put_up(label_studio, "shapes", shapes.CONFIG, predicted)
    most = max(range(len(ids)), key=lambda i: len(predicted[i]["predictions"][0]["result"]))
    page.open(f"{label_studio.url}/projects/{project}/data?task={ids[most]}")
    shown = page.regions()
    page.photograph("boxes")
    labels = [region["value"]["rectanglelabels"][0] for region in predicted[most]["predictions"][0]["result"]]
    assert len(labels) > 1
    assert sorted(shown) == sorted(labels)
