"""What values show in a notebook: HTML and images, every text escaped, one bar for long work."""

from __future__ import annotations

import base64
import io
import re
import sys
import types
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

import deepcait
from deepcait import display
from deepcait.api import Rows
from deepcait.data import Preprocessing
from deepcait.evaluation import Metrics
from deepcait.runtime import messages
from deepcait.training.step import StepResult
from deepcait.training.watch import Watch

EVIL = '<script>alert("x")</script>&'
VOID = {"img", "progress"}


class Reader(HTMLParser):
    """Texts and tags of a piece of HTML; every tag must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.images = [], [], "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data + " "


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


@pytest.fixture(scope="module")
def evil() -> deepcait.Classifier:
    torch.manual_seed(0)
    model = deepcait.create_model("cait_nano_32", num_classes=3)
    torch.nn.init.normal_(model.head.weight)
    classes = [EVIL, "cat & dog", "owl"]
    return deepcait.Classifier(model, classes=classes, preprocessing=Preprocessing((32, 32)), device="cpu", spec=EVIL)


def photograph(size: tuple[int, int]) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def test_a_classifier(evil):
    read = Reader(evil._repr_html_())
    assert EVIL in read.words
    assert "cat & dog" in read.words
    assert "32 x 32 px" in read.words
    assert "script" not in read.tags


def test_predictions_are_lists_that_show_themselves(evil):
    found = evil.predict([photograph((40, 50))] * 25, topk=3)
    assert isinstance(found, list)
    assert found == [list(row) for row in found]
    for shown in (found, found[0]):
        read = Reader(shown._repr_html_())
        assert EVIL in read.words
        assert "script" not in read.tags
        assert f"{100 * found[0][0].probability:.1f} %" in read.words
    assert "and 5 more images" in Reader(found._repr_html_()).words
    assert Reader(evil.predict([])._repr_html_()).tags == ["div"]


def test_metrics_and_rows():
    read = Reader(Metrics(8, 5, 7, float("nan"), num_skipped=2, warnings=(EVIL,))._repr_html_())
    for words in ("62.50 % (5 correct)", "87.50 %", "not finite", "left out", EVIL):
        assert words in read.words
    rows = Rows([{"kind": "train", "step": 1, "loss": 0.123456}, {"kind": EVIL, "step": 2, "top1": None}] * 15)
    read = Reader(rows._repr_html_())
    assert "0.1235" in read.words
    assert "the last 20 of 30 rows" in read.words
    assert "script" not in read.tags


@pytest.mark.parametrize("size", [(300, 400), (640, 240), (32, 32), (3000, 300)])
def test_maps_lie_over_the_whole_image_at_its_own_resolution(evil, size):
    image = photograph(size)
    explanation = evil.explain(image, methods="rollout")
    enlarged = (224, 224) if size == (32, 32) else size
    for made in explanation.maps.values():
        shown = made.overlay()
        assert shown.size == enlarged
        # Coloured where the model sees the image, grey elsewhere.
        left, top, right, bottom = evil.preprocessing.seen_box(*size)
        colours = torch.from_numpy(__import__("numpy").array(shown.convert("RGB"))).int()
        is_grey = (colours.amax(-1) - colours.amin(-1)) == 0
        factor = enlarged[0] / size[0]
        inside = is_grey[round(top * factor) : round(bottom * factor), round(left * factor) : round(right * factor)]
        assert inside.float().mean() < 0.2
        assert is_grey.float().mean() >= 0.8 * (1 - inside.numel() / is_grey.numel())
    read = Reader(explanation._repr_html_())
    assert len(read.images) == 3
    longest = max(enlarged)
    assert {opened(url).size for url in read.images} == {enlarged} if longest <= 640 else True
    # A notebook stores reduced images.
    stored = Image.open(io.BytesIO(next(iter(explanation.maps.values()))._repr_png_()))
    assert max(stored.size) == max(opened(read.images[0]).size) == min(longest, 640)
    assert EVIL in read.words
    assert "script" not in read.tags


class Kernel:
    """An IPython kernel as far as a bar needs it; keeps what is shown."""

    def __init__(self, monkeypatch) -> None:
        self.outputs: list[str] = []
        shell = types.SimpleNamespace(kernel=self)
        made = types.ModuleType("IPython")
        made.get_ipython = lambda: shell
        shown = types.ModuleType("IPython.display")
        shown.HTML = str
        shown.display = self.display
        monkeypatch.setitem(sys.modules, "IPython", made)
        monkeypatch.setitem(sys.modules, "IPython.display", shown)

    def display(self, html: str, display_id: bool) -> types.SimpleNamespace:
        assert display_id
        self.outputs.append(html)
        place = len(self.outputs) - 1
        return types.SimpleNamespace(update=lambda html: self.outputs.__setitem__(place, html))


def test_training_shows_one_bar_in_a_notebook(monkeypatch, capsys):
    kernel = Kernel(monkeypatch)
    watch = Watch(9, 8)
    for step in range(1, 10):
        watch.step(step, StepResult(loss=1.25, correct=0.375, grad_norm=1.0, updated=True, stop=False), 5e-4, 0.375)
    watch.evaluated(1, {"top1": 0.5, "loss": 1.0, "weights": "raw"}, True)
    watch.step(9, StepResult(loss=1.25, correct=0.375, grad_norm=1.0, updated=True, stop=False), 5e-4, 0.375)
    watch.close()
    (html,) = kernel.outputs
    assert "9 of 9" in Reader(html).words
    assert "loss 1.250" in html
    assert "validation top-1 50.00 %" in html
    assert capsys.readouterr() == ("", "")


def test_evaluation_shows_a_bar_in_a_notebook_that_goes(monkeypatch, evil):
    kernel = Kernel(monkeypatch)
    images = [(photograph((40, 40)), 0)] * 4
    deepcait.evaluate(evil, images, batch_size=2)
    assert kernel.outputs == [""]


def test_outside_a_notebook_there_is_none(monkeypatch, capsys):
    assert not messages.in_notebook()
    made = types.ModuleType("IPython")
    made.get_ipython = lambda: types.SimpleNamespace()  # a terminal
    monkeypatch.setitem(sys.modules, "IPython", made)
    assert not messages.in_notebook()
    assert not messages.draws_bars()
    with messages.shown(), messages.progress("work") as update:  # piped: lines
        monkeypatch.setattr(messages, "_PLAIN_LINE_EVERY_S", 0.0)
        update(1, 2)
    assert capsys.readouterr().err == "work: 1 of 2\n"


def test_pieces_are_escaped():
    read = Reader(display.progress(3, 10, EVIL, "") + display.figure(b"", (3, 3), EVIL, EVIL) + display.text(EVIL))
    assert read.words.count(EVIL) == 4 - 0
    assert set(read.tags) == {"div", "progress", "figure", "img", "figcaption", "b"}
    assert re.search(r'max="10" value="3"', display.progress(3, 10, "", ""))
