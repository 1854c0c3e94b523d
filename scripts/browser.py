"""A headless Chromium that shows one page at a given width and colour scheme."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def browser_problem() -> str:
    """Why no page can be shown here, or ""."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install selenium"
    if not _program("chromium", "chromium-browser", "google-chrome") or not _program("chromedriver"):
        return "chromium and chromedriver are not installed: apt-get install chromium chromium-driver"
    return ""


class Page:
    """A page in the browser."""

    def __init__(self, driver: Any, file: Path):
        self.driver = driver
        self.address = file.resolve().as_uri()

    def show(self, width: int, scheme: str, height: int = 900, scripts: bool = True) -> None:
        """Loads the page anew.

        Args:
            width, height: of the window, in CSS pixels.
            scheme: `light` or `dark`, as a reader's system prefers it.
            scripts: whether the browser runs the page's scripts.
        """
        self._command("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        self._resize(width, height)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(self.address)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self.driver.execute_script(f"return ({expression})")

    def complaints(self) -> list[str]:
        """What the browser's console has said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self, path: Path, width: int, height: int | None = None, top: float = 0) -> None:
        """Writes a PNG of the page, from `top` on.

        Args:
            height: CSS pixels; None: to the page's end.
        """
        height = height or int(self.ask("document.documentElement.scrollHeight"))
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        found = self._command("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(found["data"]))

    def _resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", size)

    def _command(self, name: str, values: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(name, values)


@contextmanager
def opened(file: Path) -> Iterator[Page]:
    """A browser of its own for one page; ends with the context."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        driver = webdriver.Chrome(options, webdriver.ChromeService(_program("chromedriver")))
        try:
            yield Page(driver, file)
        finally:
            driver.quit()


def _program(*names: str) -> str:
    return next((found for name in names if (found := shutil.which(name))), "")
