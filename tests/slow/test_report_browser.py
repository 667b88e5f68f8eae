"""The pages of `lsml evaluate` and `lsml show` in a browser, on laptop and phone screens, in light and dark mode."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.browser import Page, open_browser
from tests.slow.scenario import EXAMPLE

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCREENS = {"laptop": (1366, 768, False), "phone": (390, 844, True)}  # width and height in CSS pixels, whether mobile
OVERFLOWING_ELEMENTS = """
const wide = document.documentElement.clientWidth;
const scrolls = element => {
  for (let ancestor = element.parentElement; ancestor; ancestor = ancestor.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(ancestor).overflowX)) return true;
  return false;
};
return [...document.querySelectorAll('body *')]
  .filter(node => node.getClientRects().length && node.getBoundingClientRect().right > wide + 1 && !scrolls(node))
  .map(node => node.outerHTML.slice(0, 100));
"""

OVERLAPPING_CAPTIONS = """
const overlaps = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
const found = [];
for (const picture of document.querySelectorAll('.picture')) {
  const texts = [...picture.querySelectorAll('text')].map(node => [node.textContent, node.getBoundingClientRect()]);
  texts.forEach(([name, box], i) => texts.slice(0, i).forEach(([other, second]) => {
    if (overlaps(box, second)) found.push(name + ' covers ' + other);
  }));
}
return found;
"""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with open_browser(tmp_path) as page:
        yield page


def check_report(page: Page, report: Path, name: str) -> None:
    """Check on all screens: no overflow, all images load, the color scheme applies, and the console is empty."""
    for screen, (width, height, mobile) in SCREENS.items():
        for dark in (False, True):
            page.emulate(width, height, dark, mobile)
            page.open(report.as_uri())
            assert page.run("return document.documentElement.scrollWidth") <= width
            assert page.run(OVERFLOWING_ELEMENTS) == []
            assert page.run("return [...document.images].filter(image => !image.naturalWidth).length") == 0
            brightness = page.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (sum(brightness[:3]) < 3 * 128) == dark
            assert page.console_messages() == []
            page.take_screenshot(f"{name}-{screen}-{'dark' if dark else 'light'}", full_page=True)


def test_report_on_texts(lsml: Lsml, page: Page, ticket_model: Path, tmp_path: Path) -> None:
    export, report = EXAMPLE / "annotated.json", tmp_path / "texts.html"
    other = lsml("fit", export, "-m", "text-classifier", "-c", EXAMPLE / "label_config.xml", "-o", tmp_path / "other")
    assert other.returncode == 0, other.stderr
    run = lsml(
        *("evaluate", export, "--model", ticket_model, "--compare", tmp_path / "other", "--report", report),
        *("--fail-under", "category.accuracy=0.5", "--label-studio-url", "https://label.example.com"),
    )
    assert run.returncode == 0, run.stderr
    check_report(page, report, "texts")


def test_report_on_boxes(lsml: Lsml, page: Page, shared_data: Path, tmp_path: Path) -> None:
    exports, report = shared_data / "exports", tmp_path / "boxes.html"
    tasks = json.loads((exports / "coco128-annotated.json").read_text())
    (tmp_path / "predictions.json").write_text(json.dumps(make_noisy_predictions(tasks)))
    run = lsml(
        *("evaluate", exports / "coco128-annotated.json", "--predictions", tmp_path / "predictions.json"),
        *("-c", exports / "coco128.xml", "--document-root", shared_data, "--report", report),
    )
    assert run.returncode == 0, run.stderr
    check_report(page, report, "boxes")


def test_page_of_predictions_on_texts(lsml: Lsml, page: Page, ticket_model: Path, tmp_path: Path) -> None:
    predictions, shown = tmp_path / "predictions.json", tmp_path / "shown.html"
    run = lsml("predict", EXAMPLE / "tasks.json", "--model", ticket_model, "-o", predictions)
    assert run.returncode == 0, run.stderr
    run = lsml("show", predictions, "-c", EXAMPLE / "label_config.xml", "--examples", "32", "-o", shown)
    assert run.returncode == 0, run.stderr
    check_report(page, shown, "shown-texts")
    assert count_cards(page) == 32
    wanted = page.run("const box = document.querySelector('.f-group'); box.selectedIndex = 1; return box.value")
    assert wanted == "the least certain (4)"
    assert count_cards(page) == 4
    page.run("document.querySelector('.f-group').selectedIndex = 0")
    wanted = page.run("const box = document.querySelector('.f-label'); box.selectedIndex = 2; return box.value")
    assert f"({count_cards(page)})" in wanted


def test_page_of_predictions_on_boxes(lsml: Lsml, page: Page, shared_data: Path, tmp_path: Path) -> None:
    exports, shown = shared_data / "exports", tmp_path / "shown.html"
    command = ("show", exports / "coco128-annotated.json", "--limit", "24", "--document-root", shared_data, "-o", shown)
    run = lsml(*command)
    assert run.returncode == 0, run.stderr
    check_report(page, shown, "shown-boxes")
    assert page.run(OVERLAPPING_CAPTIONS) == []
    assert page.run("return document.querySelectorAll('.picture text').length") > 60


def count_cards(page: Page) -> int:
    cards = "return [...document.querySelectorAll('.card')].filter(card => card.getClientRects().length).length"
    return int(page.run(cards))


def test_keyboard_reaches_every_task_link(page: Page, lsml: Lsml, ticket_model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    command = ("evaluate", EXAMPLE / "annotated.json", "--model", ticket_model, "--report", report)
    assert lsml(*command, "--label-studio-url", "https://label.example.com").returncode == 0
    page.open(report.as_uri())
    links = page.run("return document.querySelectorAll('a[href*=\"task=\"]').length")
    assert links > 5
    reached, visible = page.tab_through(300)
    assert len([url for url in reached if "task=" in url]) == links
    assert visible, "a focused link has no outline"


def make_noisy_predictions(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the annotated boxes with noise: shifted, some missing, some with a wrong label."""
    rng = random.Random(0)
    predictions = []
    for task in tasks:
        result = []
        for region in task["annotations"][0]["result"]:
            value = dict(region["value"])
            for start, length in (("x", "width"), ("y", "height")):
                value[start] = min(95.0, max(0.0, value[start] + rng.gauss(0, 0.1) * value[length]))
                value[length] = min(100 - value[start], max(0.5, value[length] * (1 + rng.gauss(0, 0.1))))
            if rng.random() < 0.1:
                value["rectanglelabels"] = ["person"]
            if rng.random() > 0.15:
                result.append({**region, "value": value, "score": round(rng.uniform(0.3, 1), 3)})
        predictions.append({"task": task["id"], "result": result, "score": 0.5, "model_version": "roughly"})
    return predictions
