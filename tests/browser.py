"""The page in headless Chromium, for `tests/test_browser.py`, and the README's picture of it.

    apt-get install chromium chromium-driver; pip install selenium; npm install --prefix build axe-core
    pytest -m browser
    python -m tests.browser        # takes leaderboards/plots/page.png anew (make picture)

Environment: CHROMIUM and CHROMEDRIVER, where they are not on the path; AXE, the file axe.min.js.
"""

import base64
import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.paths import LEADERBOARDS, ROOT
from common.records import write_atomically
from tools.plots import TAKEN

PICTURE = (1280, 800)
AXE = ROOT / "build" / "node_modules" / "axe-core" / "axe.min.js"


def _program(variable: str, *names: str) -> str:
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise FileNotFoundError(f"{names[0]} is not installed (apt-get install chromium chromium-driver)")
    return found


class Page:
    """A page in a browser of its own, and what it asked of the network and said on the console since it was opened."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, fragment: str = "") -> "Page":
        """Load the page anew at `#fragment`."""
        self.driver.get("about:blank")
        self.requests(), self.console()
        self.driver.get(self.address + (f"#{fragment}" if fragment else ""))
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def requests(self) -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def rows(self) -> list[str]:
        """Ids of the claims that can be seen."""
        return self.run("return [...document.querySelectorAll('.row')].filter(r => r.checkVisibility()).map(r => r.id)")

    def axe(self) -> list[str]:
        """What axe-core has against the page as it stands, one line a place."""
        file = Path(os.environ.get("AXE", AXE))
        if not self.run("return Boolean(window.axe)"):
            self.run(file.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            "axe.run(document, {resultTypes: ['violations']}).then(arguments[0], error => arguments[0](String(error)))"
        )
        return [f"{v['id']}: {node['html'][:200]}" for v in found["violations"] for node in v["nodes"][:3]]

    def png(self) -> bytes:
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])


@contextlib.contextmanager
def opened(file: Path, width: int = 1280, height: int = 800, dark: bool = False) -> Iterator[Page]:
    """The page of a file, at this size, in a browser that has no network."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = _program("CHROMIUM", "chromium", "google-chrome", "chrome")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(_program("CHROMEDRIVER", "chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        driver.set_script_timeout(120)
        yield Page(driver, file.resolve().as_uri())
    finally:
        driver.quit()


def main() -> None:
    from PIL import Image

    with opened(LEADERBOARDS / "index.html", *PICTURE) as page:
        taken = Image.open(io.BytesIO(page.open().png())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    out = io.BytesIO()
    taken.save(out, "PNG", optimize=True)
    write_atomically(TAKEN, out.getvalue())
    print(f"wrote {TAKEN.relative_to(ROOT)} ({len(out.getvalue()):,} bytes)")


if __name__ == "__main__":
    main()
