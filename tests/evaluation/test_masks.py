"""Class masks: their file, however an editor wrote it, the classes they let through, and what an answer then is."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from deepcait.data import Preprocessing
from deepcait.errors import ConfigError
from deepcait.evaluation import evaluate, read_mask
from deepcait.evaluation.masks import build_mask


@pytest.mark.parametrize(
    "content", [b"cat\ndog\n", b"\xef\xbb\xbfcat\r\ndog\r\n", b"\n  cat  \n\n dog"], ids=["plain", "windows", "blanks"]
)
def test_one_class_a_line(tmp_path, content):
    path = tmp_path / "mask.txt"
    path.write_bytes(content)
    assert read_mask(str(path)) == ["cat", "dog"]
    assert read_mask("data") == "data"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\x89PNG\r\n\xff"], ids=["empty", "blank", "an image"])
def test_what_is_no_mask(tmp_path, content):
    path = tmp_path / "mask.txt"
    path.write_bytes(content)
    for place in (path, tmp_path, tmp_path / "gone"):
        with pytest.raises(ConfigError, match="one class per line, got"):
            read_mask(str(place))


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        (None, None),
        ("data", [True, False, True, False]),
        (["cat", "dog", "owl"], [True, True, True, False]),
        ([2, 0, 3], [True, False, True, True]),
        (["owl", "0"], [True, False, True, False]),
    ],
)
def test_the_classes_that_may_be_answered(wanted, allowed):
    mask = build_mask(wanted, [0, 2], ["cat", "dog", "owl", "yak"], 4)
    assert (mask if mask is None else mask.tolist()) == allowed


def test_a_mask_that_does_not_fit():
    names = ["cat", "dog", "owl"]
    with pytest.raises(ConfigError, match=r"classes elk, fly, gnu, hen, ibex and 1 more"):
        build_mask(["cat", "elk", "fly", "gnu", "hen", "ibex", "jay"], [0], names, 3)
    for classes, reported in ((names, "dog"), (None, "1")):
        with pytest.raises(ConfigError, match=f"{reported}, a class of the data, is not in the mask[.]"):
            build_mask(["0"], [0, 1, 2], classes, 3)
    with pytest.raises(ConfigError, match="expected 'data' or a list of classes, got 'cat'"):
        build_mask("cat", [0], names, 3)


def test_an_answer_outside_of_the_mask_does_not_count(tmp_path):
    """The model takes the two dark images for class 0, the light ones for class 3; the data has 1 and 2."""
    for label, greys in {"1": (10, 20), "2": (240, 250)}.items():
        (tmp_path / label).mkdir()
        for grey in greys:
            Image.new("RGB", (4, 4), (grey,) * 3).save(tmp_path / label / f"{grey}.png")

    class Model(torch.nn.Module):
        def forward(self, images_BCHW):
            light_B1 = images_BCHW.mean((1, 2, 3))[:, None] - 0.5
            return light_B1 * torch.tensor([-3.0, -1.0, 1.0, 3.0])

    how = {"preprocessing": Preprocessing((4, 4), mean=(0, 0, 0), std=(1, 1, 1))}
    assert evaluate(Model(), tmp_path, **how).correct1 == 0
    assert evaluate(Model(), tmp_path, class_mask="data", **how).correct1 == 4
