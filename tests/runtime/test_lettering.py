"""Class names of any script and length in plots: no boxes, no warnings of libraries, room for what is drawn."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcait.evaluation.plots import write_plots
from deepcait.evaluation.records import Records
from deepcait.explain import drawing
from deepcait.runtime import lettering
from deepcait.runtime.lettering import fit_font, name_ticks, shorten, write_text

NAMES = ["猫", "café", "🐶 dog", "x" * 200, "a$\\frac$b", "Жук", "_under", "pos/neg", "<b>", "a\tb", "\udce9"]


@pytest.fixture
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine whose only font is the one that is preferred."""
    monkeypatch.setattr(lettering, "_font_files", list)


def test_names_are_shortened_in_the_middle():
    assert shorten("cat") == "cat"
    assert shorten("x" * 20 + "y" * 20, 9) == "xxxx…yyyy"
    assert len(shorten("ab" * 100)) == 32


def test_characters_that_no_font_has_are_written_as_numbers(no_fonts):
    assert fit_font("cat 1") == (None, "cat 1")
    assert fit_font("猫 cat") == (None, "\\u732b cat")
    assert fit_font("🐶") == (None, "\\U0001f436")
    assert fit_font("a\tb\udce9") == (None, "a\\u0009b\\udce9")


def test_another_font_is_taken_that_has_them():
    matplotlib = pytest.importorskip("matplotlib")
    own = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf")
    path, text = fit_font("Жук")
    assert (Path(path or "").name, text) == ("DejaVuSans.ttf", "Жук")
    assert fit_font("Жук", own) == (own, "Жук")
    # Not the font whose glyphs are boxes.
    assert "LastResort" not in str(fit_font("\U00012000")[0])


def test_ticks_and_titles_of_matplotlib(strict, no_fonts, tmp_path):
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    figure = figure_class(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(NAMES)), range(len(NAMES)))
    name_ticks(axes.yaxis, NAMES)
    write_text(axes.set_title(""), "runs/猫 $5$")
    figure.savefig(tmp_path / "a.png")
    figure.savefig(tmp_path / "a.svg")
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[:3] == ["\\u732b", "café", "\\U0001f436 dog"]
    assert len(set(shown)) == len(NAMES)
    assert max(map(len, shown)) == 32
    assert axes.get_title() == "runs/\\u732b $5$"
    assert axes.get_position().width > 0.5


def test_plots_of_an_evaluation(strict, tmp_path):
    pytest.importorskip("matplotlib")
    num = len(NAMES)
    labels = torch.arange(num).repeat(2)
    records = Records(
        names=[f"{number}.png" for number in range(2 * num)],
        positions_N=torch.arange(2 * num),
        labels_NL=labels[:, None],
        ranks_N=torch.zeros(2 * num, dtype=torch.long),
        losses_N=torch.zeros(2 * num, dtype=torch.float64),
        answers_NT=torch.stack([labels, (labels + 1) % num], dim=1),
        probabilities_NT=torch.tensor([[0.8, 0.1]], dtype=torch.float64).repeat(2 * num, 1),
        num_classes=num,
        num_possible=num,
        classes=NAMES,
    )
    files = write_plots(tmp_path, records, "runs/猫")
    assert len(files) == 9
    assert json.loads((tmp_path / "per_class.json").read_text(encoding="utf-8"))[0]["class"] == "猫"


def test_captions_of_maps(strict):
    frame, values = Image.new("RGB", (32, 32)), np.ones((4, 4))
    plain = drawing.side_by_side(frame, values, "the class ?")
    for name in NAMES:
        assert drawing.side_by_side(frame, values, f'the class "{name}"').width == plain.width
