"""Figures of the layers: every number by hand, every figure drawn, the table of results read or refused."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch

from deepcait.cli.main import main
from deepcait.errors import ConfigError
from deepcait.explain.figures import accuracy_plate, layer_plates, read_results
from deepcait.explain.layers import measure_layers, patch_distances
from tests.explain.test_maps import model_and_images

ROW = {"name": "a", "gmacs": 2.5, "params": 12e6, "top1": 0.784}


@pytest.fixture(scope="module")
def found():
    model, images_BCHW = model_and_images((24, 48))
    return model, images_BCHW, measure_layers(model, iter(images_BCHW))


@torch.no_grad()
def test_numbers_by_hand(found):
    """The patch stage through the blocks' own parts, all images at once."""
    model, images_BCHW, measures = found
    assert (measures.num_images, measures.depth) == (2, 2)
    tokens_BND = model.patch_embed(images_BCHW) + model.pos_embed
    y, x = np.divmod(np.arange(18), 6)
    distance_NN = np.hypot(y[:, None] - y, x[:, None] - x)
    np.testing.assert_allclose(patch_distances((3, 6)).numpy(), distance_NN, atol=1e-6)
    for index, block in enumerate(model.blocks):
        read_BND, weights_BANN, _ = block.attn.attend(block.norm1(tokens_BND))
        middle_BND = tokens_BND + block.gamma_1 * read_BND
        mlp_BND = block.gamma_2 * block.mlp(block.norm2(middle_BND))
        ratio = ((block.gamma_1 * read_BND).norm(dim=-1) / tokens_BND.norm(dim=-1)).mean()
        assert measures.attention_ratio[index] == pytest.approx(ratio.item(), rel=1e-4)
        ratio = (mlp_BND.norm(dim=-1) / middle_BND.norm(dim=-1)).mean()
        assert measures.mlp_ratio[index] == pytest.approx(ratio.item(), rel=1e-4)
        entropy_A = -(weights_BANN * weights_BANN.clamp_min(1e-30).log()).sum(-1).mean((0, 2))
        np.testing.assert_allclose(measures.entropy[index], entropy_A, rtol=1e-4, atol=1e-6)
        distance_A = (weights_BANN.numpy() * distance_NN).sum(-1).mean((0, 2))
        np.testing.assert_allclose(measures.distance[index], distance_A, rtol=1e-4)
        gammas = torch.stack((block.gamma_1, block.gamma_2)).abs()
        np.testing.assert_allclose(measures.gammas[index], gammas, rtol=1e-6)
        np.testing.assert_allclose(measures.mixing[index], block.attn.proj_l.weight, rtol=1e-6)
        np.testing.assert_allclose(measures.mixing_after[index], block.attn.proj_w.weight, rtol=1e-6)
        tokens_BND = middle_BND + mlp_BND
    assert measures.attention_ratio.shape == (4,)
    assert measures.entropy.shape == (4, 4)
    assert measures.distance.shape == (2, 4)


def test_even_attention_is_even():
    """With no keys every patch looks everywhere alike: entropy ln N, the mean distance."""
    model, images_BCHW = model_and_images()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
    measures = measure_layers(model, iter(images_BCHW))
    np.testing.assert_allclose(measures.entropy[:2], math.log(16), rtol=1e-5)
    np.testing.assert_allclose(measures.distance, measures.uniform_distance, rtol=1e-5)
    assert measures.uniform_entropy == pytest.approx(math.log(16))


def test_no_picture_is_refused():
    with pytest.raises(ConfigError, match="no image was measured"):
        measure_layers(model_and_images()[0], iter([]))


def test_figures_are_drawn(found):
    plates = [*layer_plates(found[2]), accuracy_plate(read_results(None), published=True)]
    titles = [plate.title for plate in plates]
    assert titles == [
        "Strength of the branches",
        "LayerScale by depth",
        "Talking heads",
        "Attention entropy and distance",
        "Accuracy against cost",
    ]
    for plate in plates:
        pixels = np.asarray(plate.image)
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        # Nothing is cut: a white margin all around.
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all((edge == 255).all() for edge in edges), plate.title
    words = {plate.title: plate.caption for plate in plates}
    assert "mean over 2 images and all tokens" in words["Strength of the branches"]
    assert "before the second head mixing" in words["Attention entropy and distance"]
    assert "not measured here" in words["Accuracy against cost"]


def test_a_table_of_results(tmp_path):
    for text, name in (
        (json.dumps([ROW, ROW | {"top1": None}]), "t.json"),
        ("name,gmacs,params,top1,x\na,2.5,12e6,0.784,1\nb,2,3,,\n", "t.csv"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_results(tmp_path / name) == [ROW]
    assert "Values from the given table" in accuracy_plate([ROW], published=False).caption
    assert {row["name"] for row in read_results(None)} >= {"cait_s24_224", "cait_m48_448"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '[{"name": "a"}]', "[1, 2]", "\x00\xff"])
def test_another_table_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="name, gmacs, params and top1"):
        read_results(tmp_path / "t.json")


@pytest.mark.parametrize(
    "wrong", [{"top1": 78.4}, {"top1": -0.1}, {"top1": "nan"}, {"gmacs": 0}, {"gmacs": "inf"}, {"params": -1}]
)
def test_numbers_that_cannot_be_are_refused(tmp_path, wrong):
    """Percent in place of a fraction would be drawn as 7840 %."""
    (tmp_path / "t.json").write_text(json.dumps([ROW, ROW | wrong]), encoding="utf-8")
    with pytest.raises(ConfigError, match="'a' has gmacs"):
        read_results(tmp_path / "t.json")


def test_names_are_no_formulas():
    """What matplotlib would read as mathematics is drawn as it stands."""
    plain, formula = (accuracy_plate([ROW | {"name": name}], published=False) for name in ("a", "$\\frac{$"))
    assert np.asarray(plain.image).tobytes() != np.asarray(formula.image).tobytes()


@pytest.mark.parametrize(("option", "word"), [("--figures", "matplotlib"), ("--method=occlusion", "captum")])
def test_without_the_extra_one_line_says_how(tmp_path, capsys, monkeypatch, option, word):
    from tests.processes.harness import DEMO

    for name in [name for name in sys.modules if name.partition(".")[0] == word]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, word, None)
    picture = min((DEMO / "test" / "ship").iterdir())
    command = ["explain", "builtin:nano", str(picture), "--out", str(tmp_path / "o"), "--steps", "0", option, "--json"]
    assert main(command) == 2
    printed = json.loads(capsys.readouterr().out)
    assert word in printed["error"]
    assert printed["remedy"] == 'Install it: pip install "deepcait[explain]"'
