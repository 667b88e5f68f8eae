"""A real browser without a window, and what slow tests do in it."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.serve_process import wait_until

if TYPE_CHECKING:
    from labelling import LabelStudio
    from selenium.webdriver import Chrome

TIMEOUT = 60  # seconds until something is on the page


class Page:
    """The browser, with what these tests do in it. Every look waits until what it looks for is there."""

    def __init__(self, browser: Chrome, folder: Path) -> None:
        self._browser = browser
        self._folder = folder

    def open(self, url: str) -> None:
        self._browser.get(url)

    def wait_visible(self, selector: str) -> Any:
        """The first visible element of this CSS selector."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support import expected_conditions
        from selenium.webdriver.support.ui import WebDriverWait

        found = expected_conditions.visibility_of_element_located((By.CSS_SELECTOR, selector))
        return WebDriverWait(self._browser, TIMEOUT).until(found, f"{selector} at {self._browser.current_url}")

    def selected_choices(self) -> set[str]:
        """The names of all choices that have their tick, once there is one."""
        from selenium.webdriver.common.by import By

        self.wait_visible(".lsf-choice .ant-checkbox-checked")
        found = self._browser.find_elements(By.CSS_SELECTOR, ".lsf-choice input:checked")
        return {str(each.get_attribute("name")) for each in found}

    def region_labels(self) -> list[str]:
        """What the list of regions says, once there is one: their labels, and texts that belong to them."""
        from selenium.webdriver.common.by import By

        self.wait_visible(".lsf-outliner-item__title")
        return [each.text for each in self._browser.find_elements(By.CSS_SELECTOR, ".lsf-outliner-item__title")]

    def log_in(self, label_studio: LabelStudio) -> None:
        self.open(f"{label_studio.url}/user/login/")
        self.wait_visible("input[name=email]").send_keys(label_studio.email)
        self.wait_visible("input[name=password]").send_keys(label_studio.password)
        self.wait_visible("form button[type=submit]").click()
        wait_until("somebody is logged in", lambda: self._browser.get_cookie("sessionid"))

    def emulate(self, width: int, height: int, dark: bool = False, mobile: bool = False) -> None:
        """Another screen, in CSS pixels, and what its owner prefers."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str) -> Any:
        """What a piece of JavaScript returns."""
        return self._browser.execute_script(script)

    def tab_through(self, max_steps: int) -> tuple[list[str], bool]:
        """The addresses of the links that the tab key leads to, and whether each one that has the focus shows it."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        reached, visible = [], True
        for _ in range(max_steps):
            ActionChains(self._browser).send_keys(Keys.TAB).perform()
            href, outline = self.run(
                "const it = document.activeElement;"
                " return [it.href || '', it === document.body ? 'body' : getComputedStyle(it).outlineStyle]"
            )
            if outline == "body" or (href and href in reached):
                break
            visible = visible and outline != "none"
            reached.append(href)
        return reached, visible

    def console_messages(self) -> list[str]:
        """What the console says of errors and warnings, since it was asked last."""
        return [str(each["message"]) for each in self._browser.get_log("browser") if each["level"] != "INFO"]

    def take_screenshot(self, name: str, full_page: bool = False) -> None:
        """A failing test shows where it is; LSML_SCREENSHOTS names a folder for copies of what was to be seen.

        whole  all of the page, not only what the window shows
        """
        path = self._folder / f"{name}.png"
        if full_page:
            taken = self._browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
            path.write_bytes(base64.b64decode(taken["data"]))
        else:
            self._browser.save_screenshot(str(path))
        print(f"screenshot: {path}")
        if name != "end" and (keep := os.environ.get("LSML_SCREENSHOTS")):
            Path(keep).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, keep)


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Page]:
    """Chromium without a window, which reaches this machine and nothing else."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: `make test-slow` installs it")
    from selenium.webdriver.chrome.service import Service

    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("needs chromium and chromedriver: scripts/system-deps installs them")
    chromium, driver = map(str, programs)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--window-size=1400,1000",
        f"--user-data-dir={folder / 'profile'}",
        "--no-sandbox",  # root has none
        "--disable-dev-shm-usage",  # which is small in a container
        "--disable-gpu",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1,localhost")
        browser = webdriver.Chrome(options=options, service=Service(driver, log_output=str(folder / "driver.log")))
        page = Page(browser, folder)
        try:
            yield page
        finally:
            page.take_screenshot("end")
            browser.quit()
