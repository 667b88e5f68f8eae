"""Show predicted boxes and texts in a real Label Studio, in a browser.

LSML_SCREENSHOTS=DIR keeps the screenshots.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.browser import open_browser
from tests.openmmlab import shapes, writing
from tests.openmmlab.writing import Word

pytestmark = [pytest.mark.openmmlab, pytest.mark.timeout(900)]


@pytest.fixture
def page(label_studio, tmp_path):
    with open_browser(tmp_path) as page:
        page.log_in(label_studio)
        yield page


def import_predictions(label_studio, project: str, config: str, tasks: list[dict]) -> tuple[int, list[int]]:
    """Create a project with predicted tasks; return its id and theirs."""
    project_id = label_studio.create_project(project, config)
    answer = label_studio.import_tasks(
        project_id, [{"data": task["data"], "predictions": task["predictions"]} for task in tasks]
    )
    assert answer["prediction_count"] == len(tasks)
    return project_id, answer["task_ids"]


def data_uri(image: Path) -> str:
    """Return an image as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()


def test_predicted_boxes_are_shown(lsml, trained_detector, label_studio, page, tmp_path):
    work = Path(shutil.copytree(trained_detector, tmp_path / "work"))
    tasks = json.loads((work / "shapes.json").read_bytes())[:3]
    fresh = [{"id": task["id"], "data": {"image": data_uri(work / task["data"]["image"])}} for task in tasks]
    (work / "fresh.json").write_text(json.dumps(fresh))
    run = lsml("predict", "fresh.json", "--model", "models/shapes", "-o", "out.json", cwd=work, timeout=300)
    assert run.returncode == 0, run.stderr
    predicted = json.loads((work / "out.json").read_bytes())
    project, ids = import_predictions(label_studio, "shapes", shapes.CONFIG, predicted)
    most = max(range(len(ids)), key=lambda i: len(predicted[i]["predictions"][0]["result"]))
    page.open(f"{label_studio.url}/projects/{project}/data?task={ids[most]}")
    shown = page.region_labels()
    page.take_screenshot("boxes")
    labels = [region["value"]["rectanglelabels"][0] for region in predicted[most]["predictions"][0]["result"]]
    assert len(labels) > 1
    assert sorted(shown) == sorted(labels)


def test_read_texts_are_shown_beside_regions(lsml, trained_recognizer, label_studio, page, tmp_path):
    words = [Word("47", (100, 60)), Word("312", (330, 80)), Word("58", (120, 250), 40), Word("906", (350, 250), -30)]
    image = writing.draw_page(words)
    image.save(tmp_path / "numbers.png")
    drawn = [
        region
        for i, word in enumerate(words)
        for region in writing.make_ocr_regions(word, image.size, str(i), text="?")
    ]
    task = {"id": 1, "data": {"ocr": data_uri(tmp_path / "numbers.png")}, "annotations": [{"id": 1, "result": drawn}]}
    (tmp_path / "numbers.json").write_text(json.dumps([task]))
    template = writing.OCR_CONFIG.replace('perRegion="true"', 'perRegion="true" displayMode="region-list"')
    (tmp_path / "template.xml").write_text(template)
    options = ("--model", trained_recognizer, "-c", "template.xml", "-o", "out.json")
    run = lsml("predict", "numbers.json", *options, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    predicted = json.loads((tmp_path / "out.json").read_bytes())
    project, ids = import_predictions(label_studio, "numbers", template, predicted)
    page.open(f"{label_studio.url}/projects/{project}/data?task={ids[0]}")
    assert page.region_labels() == ["Handwriting"] * len(words)
    page.take_screenshot("texts")
    shown = page.run("return [...document.querySelectorAll('textarea, input, p')].map(e => e.value || e.innerText)")
    read = [
        region["value"]["text"][0]
        for region in predicted[0]["predictions"][0]["result"]
        if region["type"] == "textarea"
    ]
    assert len(read) == len(words)
    assert [text for text in read if text not in map(str.strip, shown)] == []
