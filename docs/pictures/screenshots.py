"""Take the screenshots of the documentation: the report of a run, a page of explanations, and the service.

make screenshots

It runs `deepcait demo`, and opens what deepcait wrote in Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

HERE = Path(__file__).parent
PHOTOGRAPHS = HERE.parent.parent / "deepcait" / "assets" / "demo" / "test"
COMMAND = [sys.executable, "-m", "deepcait"]
VIEWPORT = {"width": 1100, "height": 760}


def main() -> None:
    """Write report.png, explanation.png and service.png beside this file."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed. On Debian and Ubuntu: apt-get install chromium.")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=VIEWPORT)
        maps = folder / "maps"
        _deepcait("demo", "--out", folder / "demo")
        _take(page, (folder / "demo" / "run" / "report.html").as_uri(), "report.png")
        images = [PHOTOGRAPHS / "horse" / "00013.png", PHOTOGRAPHS / "ship" / "00072.png"]
        _deepcait("explain", "builtin:nano", *images, "--out", maps)
        _take(page, (maps / "index.html").as_uri(), "explanation.png")
        _take_service(page)
        browser.close()


def _deepcait(*arguments: object) -> None:
    subprocess.run([*COMMAND, *map(str, arguments)], check=True)


def _take_service(page: Page) -> None:
    serve = [*COMMAND, "serve", "builtin:nano", "--port", "0", "--json"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            url = json.loads(service.stdout.readline())["url"]
            _take(page, url, "service.png", until="document.querySelectorAll('#top5 li').length > 0")
        finally:
            service.terminate()


def _take(page: Page, url: str, name: str, *, until: str = "true") -> None:
    """Open a page, and keep what a screen shows of it with at most 128 colours, which makes the file small."""
    page.goto(url)
    while not page.evaluate(until):
        page.wait_for_timeout(50)
    page.wait_for_timeout(500)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(128).save(HERE / name, optimize=True)
    print(name, f"{(HERE / name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
