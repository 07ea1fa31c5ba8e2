"""The page in a real browser: a picture goes in, the answer is read, the map changes with every control."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

import deepcait
from deepcait.data import open_image
from tests.browser import DESK, PHONE, assert_no_serious_fault, marks, outlined, wait_for
from tests.serve.conftest import small_classifier, without_attention
from tests.serve.harness import DEMO, ROOT, live

PHOTOGRAPH = DEMO / "truck" / sorted(os.listdir(DEMO / "truck"))[1]

pytestmark = marks


@pytest.fixture(scope="module")
def nano():
    return deepcait.load("builtin:nano")


@pytest.fixture(scope="module")
def service(nano):
    with live(nano) as running:
        yield running


@pytest.fixture
def open_page(browser, service):
    """Opens the page at a size; at the end nothing must have gone wrong in it, and no other host been asked."""
    contexts, requests, faults = [], [], []

    def open_it(viewport, **options):
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
        page.goto(service.url)
        wait_for(page, "document.querySelectorAll('#top5 li').length > 0")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert faults == []
    assert requests
    assert {urlsplit(url).netloc for url in requests if not url.startswith("blob:")} == {f"127.0.0.1:{service.port}"}


def is_fault(message) -> bool:
    """An error on the console, but for what the browser says of a picture that was refused, as it shall be."""
    return message.type == "error" and "400 (Bad Request)" not in message.text


def wait_for_picture(page, name: str) -> None:
    """Wait until the picture of this name is answered and drawn."""
    wait_for(page, f"document.getElementById('canvas').ariaLabel.startsWith({name!r})")


def overlay(page) -> str:
    """The pixels of the picture with its map, as text."""
    return page.evaluate("document.getElementById('canvas').toDataURL()")


def top5(page) -> list[tuple[str, str]]:
    rows = page.query_selector_all("#top5 li")
    return [tuple(row.query_selector(f".{name}").inner_text() for name in ("label", "percent")) for row in rows]


def expected_top5(nano, path) -> list[tuple[str, str]]:
    """What `predict` says, in the page's form."""
    answers = nano.predict(open_image(path))[0]
    return [(one.label, f"{100 * one.probability:.{2 if one.probability < 0.1 else 1}f} %") for one in answers]


def set_slider(page, name: str, value: int) -> None:
    page.evaluate(
        "([name, value]) => { const slider = document.getElementById(name); slider.value = value;"
        " slider.dispatchEvent(new Event('input', { bubbles: true })); }",
        [name, value],
    )


def upload(page, path) -> None:
    page.set_input_files("#file", path)
    wait_for_picture(page, Path(path).name)


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["1280 px", "360 px"])
def test_a_photograph_is_uploaded_and_looked_into(open_page, nano, viewport):
    page = open_page(viewport)
    before = overlay(page)
    upload(page, PHOTOGRAPH)
    assert top5(page) == expected_top5(nano, PHOTOGRAPH)
    assert "(batch of 1)" in page.inner_text("#timing")
    pictures = [before, overlay(page)]
    for name, value in (("head", 1), ("head", 3), ("block", 1), ("block", 2), ("opacity", 90)):
        set_slider(page, name, value)
        pictures.append(overlay(page))
    assert "class block 2 of 2, head 3 of 4" in page.inner_text("#caption")
    page.click("text=Spotlight")
    pictures.append(overlay(page))
    page.click("#smooth")
    pictures.append(overlay(page))
    page.click('button[aria-label="Show class block 1 of 2, head 2 of 4"]')
    pictures.append(overlay(page))
    assert len(set(pictures)) == len(pictures)  # every control changed the pixels
    assert page.inner_text("#head-value") == "2 of 4"
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_no_opacity_is_the_picture_itself(open_page):
    """With opacity 0 the map is gone: what changes the pixels above is the map."""
    page = open_page(DESK)
    set_slider(page, "opacity", 0)
    plain = overlay(page)
    set_slider(page, "head", 2)
    assert overlay(page) == plain


def test_the_map_is_that_of_the_service(open_page, nano):
    """The brightest patch of the drawn map, without smoothing at full opacity, is the highest weight."""
    page = open_page(DESK)
    upload(page, PHOTOGRAPH)
    page.click("#smooth")
    for name, value in (("opacity", 100), ("block", 1), ("head", 1)):
        set_slider(page, name, value)
    colours = page.evaluate(
        """() => { const canvas = document.getElementById('canvas'), context = canvas.getContext('2d');
        const side = canvas.width / 8, read = (i) => context.getImageData(
            (i % 8 + 0.5) * side, (Math.floor(i / 8) + 0.5) * side, 1, 1).data;
        return [...Array(64).keys()].map((i) => [...read(i)].slice(0, 3)); }"""
    )
    image = nano.preprocessing(open_image(PHOTOGRAPH))
    weights_N = nano.model.class_attention(image[None])[0, 0, 0, 1:]
    assert colours[int(weights_N.argmax())] == [253, 231, 37]  # viridis' two ends
    assert colours[int(weights_N.argmin())] == [68, 1, 84]
    # Brightness grows with the weight.
    by_weight = [sum(colours[i][k] * (0.21, 0.72, 0.07)[k] for k in range(3)) for i in weights_N.argsort().tolist()]
    assert all(later >= earlier - 1.5 for earlier, later in zip(by_weight, by_weight[1:], strict=False))


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["1280 px", "360 px"])
def test_by_keyboard_only(open_page, nano, viewport):
    page = open_page(viewport)
    choosers = []
    page.on(
        "filechooser", lambda chooser: choosers.append(chooser)
    )  # long before the key: the browser is told without waiting for it
    pictures = [overlay(page)]
    where = "document.activeElement.id || document.activeElement.dataset.path || document.activeElement.name || ''"

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(where) == name:
                assert outlined(page)
                return
        raise AssertionError(f"{name} is not reached with the tabulator")

    tab_to("file")
    page.keyboard.press("Enter")
    for _ in range(3000):
        if choosers:
            break
        page.wait_for_timeout(20)
    choosers[0].set_files(PHOTOGRAPH)
    wait_for_picture(page, "000")
    assert top5(page) == expected_top5(nano, PHOTOGRAPH)
    pictures.append(overlay(page))
    tab_to("static/samples/frog.png")
    page.keyboard.press("Enter")
    wait_for_picture(page, "frog")
    frog = DEMO / "frog" / min(os.listdir(DEMO / "frog"))
    assert top5(page) == expected_top5(nano, frog)
    assert page.inner_text("#live").startswith(f"Prediction: {expected_top5(nano, frog)[0][0]}")
    pictures.append(overlay(page))
    tab_to("frame")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#reading").startswith("Patch in row 5, column 6:")
    pictures.append(overlay(page))
    for name, key, value in (("block", "ArrowRight", "1 of 2"), ("head", "End", "4 of 4"), ("opacity", "Home", "0 %")):
        tab_to(name)
        page.keyboard.press(key)
        assert page.inner_text(f"#{name}-value") == value
        pictures.append(overlay(page))
    page.keyboard.press("End")
    tab_to("look")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("input[value=spotlight]")
    pictures.append(overlay(page))
    tab_to("sweep")
    page.keyboard.press("Space")
    wait_for(page, "document.getElementById('block-value').textContent === '2 of 2'")
    page.keyboard.press("Space")
    assert page.get_attribute("#sweep", "aria-pressed") == "false"
    assert len(set(pictures)) == len(pictures)


def test_accessible(open_page):
    for viewport, scheme in ((DESK, "light"), (PHONE, "light"), (DESK, "dark"), (PHONE, "dark")):
        page = open_page(viewport, color_scheme=scheme)
        assert_no_serious_fault(page)
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.wait_for_selector("#error:not([hidden])")
    assert_no_serious_fault(page)


def test_axe_can_say_no(open_page):
    page = open_page(DESK)
    page.evaluate("() => { document.getElementById('top5').style.color = '#ddd'; document.title = ''; }")
    with pytest.raises(AssertionError):
        assert_no_serious_fault(page)


def test_errors_are_shown_and_gone_again(open_page, service, nano, tmp_path):
    page = open_page(DESK)
    name = "<img src=x onerror=alert(1)>.png"
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": b"no picture"})
    page.wait_for_selector("#error:not([hidden])")
    assert name in page.inner_text("#error")  # as text
    assert page.query_selector("#error img") is None
    upload(page, PHOTOGRAPH)
    assert page.is_hidden("#error")


def test_a_service_that_is_busy_or_gone_is_reported(browser, service):
    """When the page begins, and when a photograph of the page is fetched."""
    page = browser.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    busy = '{"error": "Too many wait.", "remedy": "Try again."}'
    page.route("**/model", lambda route: route.fulfill(status=503, content_type="application/json", body=busy))
    page.goto(service.url)
    wait_for(page, "document.getElementById('error').innerText.includes('Too many wait.')")
    page.unroute("**/model")
    page.goto(service.url)
    wait_for(page, "document.querySelectorAll('#top5 li').length > 0")
    for failing in (lambda route: route.fulfill(status=503, body=""), lambda route: route.abort()):
        page.route("**/*.png", failing)
        page.evaluate("document.getElementById('error').hidden = true")
        page.click("#samples button >> nth=1")
        wait_for(page, "document.getElementById('error').innerText.includes('does not respond')")
        wait_for(page, "!document.getElementById('error').hidden")
        page.unroute("**/*.png")
    page.close()
    assert faults == []


@pytest.mark.parametrize("attention", [True, False], ids=["other classes", "no class attention"])
def test_another_model(browser, attention, tmp_path):
    """No sample images of other classes; without class attention, predictions alone."""
    classifier = small_classifier() if attention else without_attention()
    with live(classifier) as running:
        page = browser.new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(running.url)
        wait_for(page, "document.getElementById('model').innerText.includes('3 classes')")
        assert page.query_selector_all("#samples button") == []
        assert page.is_hidden("#samples-title")
        page.set_input_files("#file", PHOTOGRAPH)
        wait_for(page, "document.querySelectorAll('#top5 li').length == 3")
        assert top5(page) == expected_top5(classifier, PHOTOGRAPH)
        for selector in ("figure", ".controls", ".all"):
            assert page.is_visible(selector) == attention
        assert page.is_visible("#none") != attention
        assert_no_serious_fault(page)
        page.close()
    assert faults == []


def test_a_photograph_that_comes_late_is_not_shown_over_a_later_choice(open_page):
    page = open_page(DESK)
    held = []
    page.route("**/*.png", lambda route: held.append(route))
    page.click("#samples button >> nth=1")
    page.set_input_files("input[type=file]", PHOTOGRAPH)
    wait_for_picture(page, PHOTOGRAPH.name)
    for route in held:
        route.continue_()
    page.unroute("**/*.png")
    page.wait_for_timeout(500)
    assert held
    assert page.evaluate("document.getElementById('canvas').ariaLabel").startswith(PHOTOGRAPH.name)


def test_an_image_given_before_the_model_is_described_waits_for_it(browser, service, nano):
    """It is not lost, no error is shown, and the first sample does not replace it."""
    page, held, faults = browser.new_page(), [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.route("**/model", lambda route: held.append(route))
    page.goto(service.url)
    page.set_input_files("#file", PHOTOGRAPH)
    page.click("#sweep", force=True)
    page.click("#sweep", force=True)
    page.wait_for_timeout(300)
    assert page.is_hidden("#error")
    held[0].continue_()
    wait_for_picture(page, PHOTOGRAPH.name)
    page.wait_for_timeout(300)
    assert top5(page) == expected_top5(nano, PHOTOGRAPH)
    page.close()
    assert faults == []


def test_drop_paste_and_a_long_picture(open_page, nano, tmp_path):
    """Dropped and pasted pictures; one that is not square shows what the model sees of it."""
    wide = tmp_path / "wide.png"
    Image.open(PHOTOGRAPH).convert("RGB").resize((90, 40)).save(wide)
    page = open_page(PHONE)
    page.evaluate(
        """async ([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: 'image/png' }));
        document.dispatchEvent(kind === 'drop' ? new DragEvent('drop', { dataTransfer: data, bubbles: true })
            : new ClipboardEvent('paste', { clipboardData: data, bubbles: true })); }""",
        ["drop", list(wide.read_bytes())],
    )
    wait_for_picture(page, "drop.png")
    assert top5(page) == expected_top5(nano, wide)
    size = page.evaluate("[document.getElementById('canvas').width, document.getElementById('canvas').height]")
    assert abs(size[0] / size[1] - 90 / 40) < 0.01
    page.evaluate(
        """(bytes) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'paste.png', { type: 'image/png' }));
        document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true })); }""",
        list(PHOTOGRAPH.read_bytes()),
    )
    wait_for_picture(page, "paste.png")
    assert top5(page) == expected_top5(nano, PHOTOGRAPH)


def test_nothing_from_elsewhere_would_load(browser, service):
    """The policy is enforced: an inline style, a picture of another origin and text as HTML are all refused."""
    page = browser.new_page()
    page.goto(service.url)
    ran = page.evaluate(
        """() => {
        const seen = [];
        document.addEventListener('securitypolicyviolation', (event) => seen.push(event.effectiveDirective));
        const style = document.createElement('style');
        style.textContent = 'body { color: red }';
        document.head.append(style);
        const image = new Image();
        image.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw=';
        document.body.append(image);
        try { document.body.innerHTML = '<p>x</p>'; seen.push('innerHTML worked'); } catch { seen.push('no HTML'); }
        return new Promise((done) => setTimeout(() => done(seen), 300)); }"""
    )
    page.close()
    assert {directive.partition("-elem")[0] for directive in ran} >= {"no HTML", "style-src", "img-src"}


def test_the_page_travels_in_the_package():
    kinds = {path.suffix for path in (ROOT / "deepcait" / "serve" / "page").iterdir()}
    assert kinds == {".html", ".css", ".js", ".svg"}
