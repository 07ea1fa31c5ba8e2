"""Class attention by hand, on every path, and what the command writes about it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import deepcait
from deepcait.cli.main import main
from deepcait.errors import ConfigError
from deepcait.explain import class_attention, gradient_attention, positive_mean
from deepcait.explain.maps import rollout
from deepcait.inference.fold import fold
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.attention import ClassAttention
from deepcait.model.networks import require_cait
from deepcait.model.trace import trace

DEMO = Path(deepcait.__file__).parent / "assets" / "demo" / "test"


HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def model_and_images(img_size=32, depth=2):
    """A small CaiT in which nothing is near its initial value, and two pictures."""
    torch.manual_seed(3)
    config = CaiTConfig(
        embed_dim=32, depth=depth, num_heads=4, img_size=img_size, patch_size=8, num_classes=5, layer_scale_init=1.0
    )
    model = CaiT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5, 0.5) if parameter.ndim == 1 else parameter.normal_(0.0, 0.3)
    return model, torch.randn(2, 3, *config.img_size, generator=torch.Generator().manual_seed(1))


def by_hand(model, images_BCHW):
    """softmax(q k' / sqrt(E)) of every class block and head, from the weights alone, (B, blocks, A, 1 + N)."""
    model.set_backend("reference")
    tokens_BND = model.forward_intermediates(
        images_BCHW, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
    )[0]
    cls_B1D = model.cls_token.expand(len(images_BCHW), -1, -1)
    rows = []
    for block in model.blocks_token_only:
        attn, norm = block.attn, block.norm1
        u_BTD = F.layer_norm(torch.cat((cls_B1D, tokens_BND), dim=1), norm.weight.shape, norm.weight, norm.bias, 1e-6)
        A, E = attn.num_heads, u_BTD.shape[-1] // attn.num_heads
        q_BAE = (u_BTD[:, 0] @ attn.q.weight.T + attn.q.bias).view(-1, A, E)
        k_BTAE = (u_BTD @ attn.k.weight.T + attn.k.bias).unflatten(-1, (A, E))
        rows.append((torch.einsum("bae,btae->bat", q_BAE, k_BTAE) / E**0.5).softmax(-1))
        cls_B1D = block(cls_B1D, tokens_BND)
    return torch.stack(rows, dim=1)


def compiled(backend):
    def attention(model, images_BCHW):
        torch.compiler.reset()
        return torch.compile(model.class_attention, fullgraph=True, backend=backend)(images_BCHW)

    return attention


def after_compiled_forward(model, images_BCHW):
    """What `explain` does with a model that torch.compile has wrapped."""
    torch.compiler.reset()
    wrapped = torch.compile(model, backend="aot_eager")
    wrapped(images_BCHW)
    return class_attention(require_cait(wrapped), images_BCHW)


def folded(model, images_BCHW):
    return fold(model).class_attention(images_BCHW)


PATHS = {
    "lean": lambda model, images_BCHW: class_attention(model, images_BCHW),
    "plain": lambda model, images_BCHW: (model.set_backend("reference"), class_attention(model, images_BCHW))[1],
    "folded": folded,
    "traced": compiled("aot_eager"),
    "wrapped by torch.compile": after_compiled_forward,
    "folded and traced": lambda model, images_BCHW: compiled("aot_eager")(fold(model), images_BCHW),
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("img_size", [32, (24, 48)], ids=["square", "24 x 48"])
@torch.no_grad()
def test_class_attention_is_the_softmax_of_queries_and_keys(path, img_size):
    model, images_BCHW = model_and_images(img_size)
    model.set_backend("lean")
    got_BLAT = path(model, images_BCHW)
    expected_BLAT = by_hand(model, images_BCHW)
    assert got_BLAT.shape == (2, 2, 4, 1 + model.config.num_patches)
    torch.testing.assert_close(got_BLAT, expected_BLAT, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got_BLAT.sum(-1), torch.ones(2, 2, 4), rtol=0, atol=1e-6)
    # Heads, blocks and images differ, so that an exchange would be noticed.
    assert all((expected_BLAT.roll(1, dim) - expected_BLAT).abs().max() > 0.01 for dim in range(3))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on this machine")
@torch.no_grad()
def test_class_attention_through_the_compiler():
    model, images_BCHW = model_and_images(32, depth=1)
    got_BLAT = compiled("inductor")(model, images_BCHW)
    torch.testing.assert_close(got_BLAT, by_hand(model, images_BCHW), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got_BLAT.sum(-1), torch.ones(2, 2, 4), rtol=0, atol=1e-6)


def rollout_by_hand(model, images_BCHW):
    """The same through float64 matrices with the class token as one row more, block by block."""
    B, N = len(images_BCHW), model.config.num_patches
    through = torch.eye(1 + N, dtype=torch.float64).repeat(B, 1, 1)
    tokens_BND = model._embed(images_BCHW)
    for block in model.blocks:
        step = torch.eye(1 + N, dtype=torch.float64).repeat(B, 1, 1)
        mean_BNN = block.attn.attend(block.norm1(tokens_BND))[2].abs().double().mean(1)
        mean_BNN = mean_BNN / mean_BNN.sum(-1, keepdim=True)
        step[:, 1:, 1:] = (mean_BNN + torch.eye(N, dtype=torch.float64)) / 2
        through = step @ through
        tokens_BND = block(tokens_BND)
    for rows_BAT in by_hand(model, images_BCHW).unbind(1):
        step = torch.eye(1 + N, dtype=torch.float64).repeat(B, 1, 1)
        step[:, 0] = rows_BAT.double().mean(1) / 2
        step[:, 0, 0] += 0.5
        through = step @ through
    return through[:, 0]


@torch.no_grad()
def test_rollout():
    model, images_BCHW = model_and_images((24, 48))
    rolled_BT = rollout(trace(model, images_BCHW))
    expected_BT = rollout_by_hand(model, images_BCHW)
    torch.testing.assert_close(rolled_BT, expected_BT.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(rolled_BT.sum(-1), torch.ones(2), rtol=0, atol=1e-5)


def test_a_folded_model_is_refused():
    model, _ = model_and_images()
    with pytest.raises(ConfigError, match="fold"):
        require_cait(fold(model))


def test_gradient_weighted_attention():
    """Against the change of the logit when one weight of one head is raised a little, everything else held."""
    model, images_BCHW = model_and_images()
    model = model.double()
    images_BCHW = images_BCHW[:1].double()
    attend, raised = ClassAttention.attend, {}

    def attend_raised(self, tokens_BTD):
        """The layer as it is, but for one weight."""
        out, weights = attend(self, tokens_BTD)
        if self is not raised.get("layer"):
            return out, weights
        weights = weights.clone()
        weights[0, raised["head"], 0, raised["key"]] += raised["by"]
        values = self._heads(self.v(tokens_BTD))
        return self.proj((weights @ values).transpose(1, 2).flatten(2)), weights

    got_LAT = gradient_attention(model, trace(model, images_BCHW).patches, torch.tensor([3]))[0]
    weights_LAT = class_attention(model, images_BCHW)[0]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(ClassAttention, "attend", attend_raised)
        for layer, head, key in ((0, 0, 0), (0, 3, 7), (1, 2, 0), (1, 1, 16)):
            logits = []
            for by in (-1e-4, 1e-4):
                raised.update(layer=model.blocks_token_only[layer].attn, head=head, key=key, by=by)
                logits.append(model(images_BCHW)[0, 3].item())
            slope = (logits[1] - logits[0]) / 2e-4
            assert got_LAT[layer, head, key].item() == pytest.approx(slope * weights_LAT[layer, head, key].item(), 1e-5)
    parts = positive_mean(torch.tensor([[[[1.0, -2.0]], [[3.0, 0.5]]]]))
    assert parts.tolist() == [[2.0, 0.25]]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_inside_the_callers_modes_leave_the_model_as_it_was(mode):
    model, images_BCHW = model_and_images()
    model.blocks_token_only[0].train()
    model.head.weight.requires_grad_(False)
    model.norm.weight.grad = torch.ones_like(model.norm.weight)

    def state():
        parameters = [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()]
        return parameters, [module.training for module in model.modules()]

    before, targets_B = state(), torch.tensor([0, 1])
    expected = gradient_attention(model, trace(model, images_BCHW).patches, targets_B)
    with mode():
        found = gradient_attention(model, trace(model, images_BCHW).patches, targets_B)
    torch.testing.assert_close(found, expected)
    assert state() == before
    assert not found.requires_grad


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
