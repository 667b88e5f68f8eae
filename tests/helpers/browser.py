"""Drive a headless browser in slow tests."""

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
    from selenium.webdriver import Chrome

    from tests.helpers.label_studio_server import LabelStudio

TIMEOUT = 60  # seconds to wait for an element of a page


class Page:
    """The browser's page. Methods wait until the elements that they need are visible.

    Args:
        folder: receives screenshots.
    """

    def __init__(self, browser: Chrome, folder: Path) -> None:
        self._browser = browser
        self._folder = folder

    def open(self, url: str) -> None:
        self._browser.get(url)

    def wait_visible(self, selector: str) -> Any:
        """Return the first visible element of a CSS selector."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support import expected_conditions
        from selenium.webdriver.support.ui import WebDriverWait

        visible = expected_conditions.visibility_of_element_located((By.CSS_SELECTOR, selector))
        return WebDriverWait(self._browser, TIMEOUT).until(visible, f"{selector} at {self._browser.current_url}")

    def click(self, selector: str, index: int = 0, offset: tuple[int, int] = (0, 0)) -> None:
        """Click on one of the elements of a CSS selector, at an offset in pixels from its centre."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.by import By

        self.wait_visible(selector)
        element = self._browser.find_elements(By.CSS_SELECTOR, selector)[index]
        ActionChains(self._browser).move_to_element_with_offset(element, *offset).click().perform()

    def selected_choices(self) -> set[str]:
        """Return the names of the selected choices; wait until there is one."""
        from selenium.webdriver.common.by import By

        self.wait_visible(".lsf-choice .ant-checkbox-checked")
        inputs = self._browser.find_elements(By.CSS_SELECTOR, ".lsf-choice input:checked")
        return {str(element.get_attribute("name")) for element in inputs}

    def region_labels(self) -> list[str]:
        """Return the labels, and texts, in the list of regions; wait until there is one."""
        from selenium.webdriver.common.by import By

        self.wait_visible(".lsf-outliner-item__title")
        titles = self._browser.find_elements(By.CSS_SELECTOR, ".lsf-outliner-item__title")
        return [element.text for element in titles]

    def log_in(self, label_studio: LabelStudio) -> None:
        self.open(f"{label_studio.url}/user/login/")
        self.wait_visible("input[name=email]").send_keys(label_studio.email)
        self.wait_visible("input[name=password]").send_keys(label_studio.password)
        self.wait_visible("form button[type=submit]").click()
        wait_until("the login has succeeded", lambda: self._browser.get_cookie("sessionid"))

    def emulate(self, width: int, height: int, dark: bool = False, mobile: bool = False) -> None:
        """Emulate a screen of this size in CSS pixels, and a preferred color scheme."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str) -> Any:
        """Run JavaScript and return its result."""
        return self._browser.execute_script(script)

    def tab_through(self, max_steps: int) -> tuple[list[str], bool]:
        """Press the tab key through the page: (URLs of focused links, whether all had an outline)."""
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
        """Return errors and warnings in the console since the last call."""
        return [str(entry["message"]) for entry in self._browser.get_log("browser") if entry["level"] != "INFO"]

    def take_screenshot(self, name: str, full_page: bool = False) -> None:
        """Save a screenshot and print its path; copy it into the folder LSML_SCREENSHOTS if that is set.

        Args:
            full_page: capture the whole page instead of the window.
        """
        path = self._folder / f"{name}.png"
        if full_page:
            screenshot = self._browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
            path.write_bytes(base64.b64decode(screenshot["data"]))
        else:
            self._browser.save_screenshot(str(path))
        print(f"screenshot: {path}")
        if name != "end" and (copies := os.environ.get("LSML_SCREENSHOTS")):
            Path(copies).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copies)


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Page]:
    """Start headless Chromium, which can reach only this machine."""
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
        "--no-sandbox",  # it does not work for root
        "--disable-dev-shm-usage",  # it is small in a container
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
