"""What an annotator sees: predicted boxes, and what was read, on their pictures in a real Label Studio and browser.

LSML_SCREENSHOTS=DIR keeps the screenshots, to be looked at.
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


@pytest.mark.timeout(1800)
def test_what_was_read_stands_beside_its_region(lsml, reader, label_studio, page, tmp_path):
    words = [Word("47", (100, 60)), Word("312", (330, 80)), Word("58", (120, 250), 40), Word("906", (350, 250), -30)]
    picture = writing.draw_page(words)
    picture.save(tmp_path / "numbers.png")
    drawn = [
        each for i, word in enumerate(words) for each in writing.make_ocr_regions(word, picture.size, str(i), text="?")
    ]
    task = {"id": 1, "data": {"ocr": shown_as(tmp_path / "numbers.png")}, "annotations": [{"id": 1, "result": drawn}]}
    (tmp_path / "numbers.json").write_text(json.dumps([task]))
    template = writing.OCR_CONFIG.replace('perRegion="true"', 'perRegion="true" displayMode="region-list"')
    (tmp_path / "template.xml").write_text(template)
    given = ("--model", reader, "-c", "template.xml", "-o", "out.json")
    run = lsml("predict", "numbers.json", *given, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    predicted = json.loads((tmp_path / "out.json").read_bytes())
    project, ids = put_up(label_studio, "numbers", template, predicted)
    page.open(f"{label_studio.url}/projects/{project}/data?task={ids[0]}")
    assert page.regions() == ["Handwriting"] * len(words)  # as they were drawn
    page.photograph("texts")
    shown = page.run("return [...document.querySelectorAll('textarea, input, p')].map(e => e.value || e.innerText)")
    read = [
        region["value"]["text"][0]
        for region in predicted[0]["predictions"][0]["result"]
        if region["type"] == "textarea"
    ]
    assert len(read) == len(words)
    assert [text for text in read if text not in map(str.strip, shown)] == []
