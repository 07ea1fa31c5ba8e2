"""Gallery, report and comparison in a real browser, from disk, with the network off.

DEEPCAIT_RUN names a run folder whose report is opened in place of the small one's.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from deepcait.cli.main import main
from tests.browser import DESK, PHONE, assert_no_serious_fault, marks, outlined, wait_for
from tests.processes.harness import DEMO

pytestmark = [*marks, pytest.mark.xdist_group("report")]
PAGES = ("report", "comparison", "gallery")


@pytest.fixture(scope="module")
def pages(run, other_run, tmp_path_factory):
    """Where each page lies."""
    folder = tmp_path_factory.mktemp("pages")
    report = Path(os.environ["DEEPCAIT_RUN"]) / "report.html" if "DEEPCAIT_RUN" in os.environ else run / "report.html"
    comparison = folder / "comparison.html"
    assert main(["report", str(run), str(other_run), "--out", str(comparison)]) == 0
    pictures = [min((DEMO / "test" / name).iterdir()) for name in ("ship", "frog")]
    tall = folder / "tall & <narrow>.png"
    Image.open(pictures[0]).convert("RGB").resize((48, 120)).save(tall)
    command = ["explain", str(run), *map(str, pictures), str(tall), "--out", str(folder / "looks")]
    assert main([*command, "--method", "all", "--figures", "--steps", "4"]) == 0
    return {"report": report, "comparison": comparison, "gallery": folder / "looks" / "index.html"}


@pytest.fixture
def open_page(browser):
    """Opens a file with the network off; at the end nothing but that file has been asked for."""
    contexts, asked, opened, faults = [], [], [], []

    def open_it(path: Path, viewport, **options):
        context = browser.new_context(viewport=viewport, offline=True, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        opened.append(path.resolve().as_uri())
        page.goto(opened[-1])
        page.wait_for_load_state("load")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert faults == []
    assert opened
    assert [url for url in asked if not url.startswith("data:image/")] == opened


def overflowing(page) -> list[str]:
    """Whatever stands out of the window to the right, but for what scrolls in a region of its own."""
    return page.evaluate(
        """() => [...document.querySelectorAll('body *')]
        .filter((one) => !one.parentElement.closest('.scroll, pre, svg'))
        .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
        .map((one) => one.outerHTML.slice(0, 120))"""
    )


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["1280 px", "360 px"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_legible_and_accessible(open_page, pages, name, viewport, scheme):
    page = open_page(pages[name], viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert overflowing(page) == []
    # Every picture is drawn.
    assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    drawn = page.evaluate("document.images.length + document.querySelectorAll('svg.chart').length")
    assert drawn == 5 if name == "comparison" else drawn > 8
    assert_no_serious_fault(page)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert_no_serious_fault(page)


def test_a_long_name_does_not_widen_the_page(open_page, pages):
    """A class name of 200 letters without a blank, in a sentence and below a picture."""
    page = open_page(pages["gallery"], PHONE)
    page.evaluate("""() => [...document.querySelectorAll('article p.soft, figcaption')]
        .forEach((one) => one.append('x'.repeat(200)))""")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("name", PAGES)
def test_by_keyboard_only(open_page, pages, name):
    """The tabulator reaches links, what opens and what scrolls, each with an outline; the keys work on them."""
    page = open_page(pages[name], PHONE)
    wanted = page.evaluate("document.querySelectorAll('a[href], summary, [tabindex]').length")
    reached = opened = scrolled = 0
    for _ in range(wanted + 30):  # summaries that open bring more
        page.keyboard.press("Tab")
        what = page.evaluate("document.activeElement.tagName")
        if what == "BODY":
            break
        assert outlined(page), page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        reached += 1
        if what == "A":
            target = page.evaluate("document.activeElement.getAttribute('href')")
            page.keyboard.press("Enter")
            assert page.evaluate("location.hash") == target
            assert page.evaluate("(id) => document.querySelector(id).getBoundingClientRect().top < innerHeight", target)
            page.evaluate("(href) => document.querySelector(`nav a[href='${href}']`).focus()", target)
        elif what == "SUMMARY":
            before = page.evaluate("document.activeElement.parentElement.open")
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.parentElement.open") != before
            page.keyboard.press("Enter") if before else None
            opened += 1
        elif page.evaluate("document.activeElement.scrollWidth > document.activeElement.clientWidth + 4"):
            page.keyboard.press("ArrowRight")
            wait_for(page, "document.activeElement.scrollLeft > 0")
            scrolled += 1
    assert reached >= wanted
    assert opened or name == "comparison"
    assert scrolled


def test_the_network_is_off(browser, pages):
    """The fixture's check can say no: what a page asks for is noticed; and its own policy refuses it."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked = []
    page.goto(pages["report"].resolve().as_uri())
    page.on("request", lambda request: asked.append(request.url))
    page.goto("data:text/html,<img src='http://127.0.0.1:9/x.png'>")
    assert "http://127.0.0.1:9/x.png" in asked
    page.goto(pages["report"].resolve().as_uri())
    refused = page.evaluate(
        """() => new Promise((done) => { document.addEventListener('securitypolicyviolation',
        (event) => done(event.effectiveDirective)); const one = new Image(); one.src = 'http://127.0.0.1:9/y.png';
        document.body.append(one); })"""
    )
    assert refused == "img-src"
    context.close()


def test_axe_can_say_no(open_page, pages):
    page = open_page(pages["gallery"], DESK)
    page.evaluate("() => { document.querySelector('p.lead').style.color = '#bbb'; document.images[0].alt = ''; }")
    page.evaluate("() => document.images[1].removeAttribute('alt')")
    with pytest.raises(AssertionError):
        assert_no_serious_fault(page)
