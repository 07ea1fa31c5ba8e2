"""Debian's Chromium through playwright, for every test that opens a page; and what axe says of it."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# It connects to nobody on its own account; the page is what is tested.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
PHONE, DESK = {"width": 360, "height": 780}, {"width": 1280, "height": 900}

marks = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"),
]


def wait_for(page, expression: str) -> None:
    """Wait until JavaScript says yes; asked from outside, for the page's policy lets nobody evaluate text in it."""
    for _ in range(3000):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"it did not become so: {expression}")


def assert_no_serious_fault(page) -> None:
    """What axe calls serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response
    assert len(found["passes"]) > 15
    assert [(one["id"], one["nodes"]) for one in found["violations"] if one["impact"] in ("serious", "critical")] == []


def outlined(page) -> bool:
    """Whether the element with the focus, or what stands for it, has a visible outline."""
    return page.evaluate(
        """() => [document.activeElement, document.activeElement.closest('label')].some((one) => one
        && getComputedStyle(one).outlineStyle !== 'none' && parseFloat(getComputedStyle(one).outlineWidth) >= 2)"""
    )
