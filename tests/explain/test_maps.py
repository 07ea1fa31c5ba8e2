"""Class attention by hand, on every path, and what the command writes about it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deepcait
from deepcait.cli.main import main
from deepcait.explain import class_attention
from deepcait.explain.maps import rollout
from tests.processes.harness import tiny_model

DEMO = Path(deepcait.__file__).parent / "assets" / "demo" / "test"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_model().eval()


@pytest.fixture
def images_BCHW():  # noqa: N802
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("lean", [True, False])
def test_class_attention_is_the_softmax_of_queries_and_keys(model, images_BCHW, lean):
    model.set_lean_attention(lean)
    tokens_BND = model.forward_intermediates(
        images_BCHW, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
    )[0]
    cls_B1D = model.cls_token.expand(2, -1, -1)
    for number, block in enumerate(model.blocks_token_only):
        u_BTD = block.norm1(torch.cat((cls_B1D, tokens_BND), dim=1))
        A, E = block.attn.num_heads, u_BTD.shape[-1] // block.attn.num_heads
        q_BAE = block.attn.q(u_BTD[:, 0]).view(2, A, E)
        k_BTAE = block.attn.k(u_BTD).view(2, -1, A, E)
        by_hand = (torch.einsum("bae,btae->bat", q_BAE, k_BTAE) * E**-0.5).softmax(-1)
        torch.testing.assert_close(class_attention(model, images_BCHW)[:, number], by_hand, rtol=1e-5, atol=1e-6)
        cls_B1D = block(cls_B1D, tokens_BND)


def test_rows_sum_to_one(model, images_BCHW):
    assert torch.allclose(class_attention(model, images_BCHW).sum(-1), torch.ones(()), atol=1e-6)
    for mixing in ("before", "after"):
        for residual in ("equal", "norms"):
            rolled_BT = rollout(model, images_BCHW, mixing=mixing, residual=residual)
            assert torch.allclose(rolled_BT.sum(-1), torch.ones(()), atol=1e-5)


def test_the_command_writes_maps_page_and_numbers(tmp_path, capsys):
    picture = next(iter(sorted((DEMO / "ship").iterdir())))
    tall = tmp_path / "tall.png"
    Image.open(picture).resize((20, 44)).save(tall)
    out = tmp_path / "looks"
    assert main(["explain", "builtin:nano", str(picture), str(tall), "--out", str(out), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    arrays = [dict(np.load(path)) for path in out.rglob("*.npz")]
    assert len(arrays) == 2
    for array in arrays:
        np.testing.assert_allclose(array["class_attention_rows"].sum(-1), 1.0, atol=1e-5)


def test_mistakes_are_one_paragraph(tmp_path, capsys):
    picture = str(next(iter(sorted((DEMO / "ship").iterdir()))))
    assert main(["explain", "builtin:nano", picture, "--out", str(tmp_path / "a"), "--class", "shipp"]) == 2
    assert "Did you mean ship" in capsys.readouterr().err
    assert main(["explain", "builtin:nano", picture, "--out", str(tmp_path / "a"), "--method", "magic"]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
