"""What an annotator sees: the labelling page of a real Label Studio, in a real browser, filled in by `lsml serve`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scenario import CATEGORIES, category_of, tickets
from serving import until

if TYPE_CHECKING:
    from conftest import LabelStudio
    from selenium.webdriver import Chrome
    from serving import Serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PATIENCE = 60  # seconds until something is on the page


class Page:
    """The browser, with what these tests do in it. Every look waits until what it looks for is there."""

    def __init__(self, browser: Chrome, folder: Path) -> None:
        self._browser = browser
        self._folder = folder

    def open(self, url: str) -> None:
        self._browser.get(url)

    def shown(self, selector: str) -> Any:
        """The first visible element of this CSS selector."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support import expected_conditions
        from selenium.webdriver.support.ui import WebDriverWait

        found = expected_conditions.visibility_of_element_located((By.CSS_SELECTOR, selector))
        return WebDriverWait(self._browser, PATIENCE).until(found, f"{selector} at {self._browser.current_url}")

    def chosen(self) -> set[str]:
        """The names of all choices that have their tick, once there is one."""
        from selenium.webdriver.common.by import By

        self.shown(".lsf-choice .ant-checkbox-checked")
        found = self._browser.find_elements(By.CSS_SELECTOR, ".lsf-choice input:checked")
        return {str(each.get_attribute("name")) for each in found}

    def log_in(self, label_studio: LabelStudio) -> None:
        self.open(f"{label_studio.url}/user/login/")
        self.shown("input[name=email]").send_keys(label_studio.email)
        self.shown("input[name=password]").send_keys(label_studio.password)
        self.shown("form button[type=submit]").click()
        until("somebody is logged in", lambda: self._browser.get_cookie("sessionid"))

    def photograph(self, name: str) -> None:
        """A failing test shows where it is; LSML_SCREENSHOTS names a folder for copies of what was to be seen."""
        path = self._folder / f"{name}.png"
        self._browser.save_screenshot(str(path))
        print(f"screenshot: {path}")
        if name != "end" and (keep := os.environ.get("LSML_SCREENSHOTS")):
            Path(keep).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, keep)


@pytest.fixture
def page(label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """Chromium without a window, which reaches this machine and nothing else; logged in."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: `make test-slow` installs it")
    from selenium.webdriver.chrome.service import Service

    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("needs chromium and chromedriver: scripts/system-deps installs them")
    chromium, driver = map(str, programs)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--window-size=1400,1000",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--no-sandbox",  # root has none
        "--disable-dev-shm-usage",  # which is small in a container
        "--disable-gpu",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(driver, log_output=str(tmp_path / "driver.log")))
    page = Page(browser, tmp_path)
    try:
        page.log_in(label_studio)
        yield page
    finally:
        page.photograph("end")
        browser.quit()


def test_the_labelling_page_shows_the_prediction(
    label_studio: LabelStudio, serve: Serve, ticket_model: Path, page: Page
) -> None:
    server = serve("--model", ticket_model)
    made = tickets(label_studio, "in a browser", annotated=0, fresh=3)
    backend = label_studio.connect(made.project, server.url)
    task = made.fresh[1]

    # Opening the task is what asks for its prediction.
    assert label_studio.predictions(made.project) == []
    page.open(f"{label_studio.url}/projects/{made.project}/data?task={task}")
    chosen = page.chosen()
    tab = page.shown(".lsf-annotation-button:has(.lsf-annotation-button__userpic_prediction)").text
    page.photograph("task")

    (prediction,) = label_studio.predictions(made.project)
    assert prediction["task"] == task
    category = category_of(prediction["result"])
    assert category in CATEGORIES
    assert chosen == {choice for region in prediction["result"] for choice in region["value"]["choices"]}
    # A tab names the model and how sure it is: "tickets@...015328", "seconds ago · 88.30%".
    version = label_studio.model_version(backend)
    assert version[:8] in tab
    assert version[-6:] in tab
    assert f"{prediction['score']:.2%}" in tab


def test_an_annotator_submits_what_the_model_says(
    label_studio: LabelStudio, serve: Serve, ticket_model: Path, page: Page
) -> None:
    """The label stream: the task comes filled in, one click makes an annotation of it."""
    server = serve("--model", ticket_model)
    made = tickets(label_studio, "in a stream", annotated=0, fresh=3)
    label_studio.connect(made.project, server.url)

    page.open(f"{label_studio.url}/projects/{made.project}/data?labeling=1")
    chosen = page.chosen()
    page.photograph("stream")
    page.shown("button[name=submit]").click()

    until("the annotation is stored", lambda: label_studio.count(made.project)["annotations"])
    (task,) = [each for each in label_studio.export(made.project) if each["annotations"]]
    (annotation,) = task["annotations"]
    assert category_of(annotation["result"]) in CATEGORIES & chosen
    assert {choice for region in annotation["result"] for choice in region["value"]["choices"]} == chosen
