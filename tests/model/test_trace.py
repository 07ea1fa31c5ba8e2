"""One forward pass gives logits, features and the attention of both stages, and what users attach takes part in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepcait.errors import ConfigError
from deepcait.model.ablation import AblatedCaiT
from deepcait.model.alternatives import AblationConfig
from deepcait.model.trace import trace
from deepcait.model.wrappers import unwrap
from tests.explain.test_maps import by_hand, model_and_images


@torch.no_grad()
def test_a_trace_holds_what_separate_passes_give():
    model, images_BCHW = model_and_images((24, 48))
    traced = trace(model, images_BCHW)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(traced.logits, model(images_BCHW), **close)
    features_BD = model.forward_head(model.forward_features(images_BCHW), pre_logits=True)
    torch.testing.assert_close(traced.features, features_BD, **close)
    torch.testing.assert_close(traced.class_attention, by_hand(model, images_BCHW), **close)
    tokens_BND = model._embed(images_BCHW)
    for index, block in enumerate(model.blocks):
        mixed_BANN = block.attn.attend(block.norm1(tokens_BND))[2]
        torch.testing.assert_close(traced.patch_attention[:, index], mixed_BANN.abs().mean(1), **close)
        tokens_BND = block(tokens_BND)
    torch.testing.assert_close(traced.patches, tokens_BND, **close)


@torch.no_grad()
def test_every_module_runs_once_and_nothing_stays_behind():
    model, images_BCHW = model_and_images()
    calls = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) and name not in ("", "head", "norm"):
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    before = [set(vars(module)) for module in model.modules()]
    model.set_backend("lean")
    trace(model, images_BCHW)
    assert len(calls) > 40
    assert set(calls.values()) == {1}
    assert model.backend == "lean"
    assert [set(vars(module)) for module in model.modules()] == before


@torch.no_grad()
def test_a_replaced_part_takes_effect():
    model, images_BCHW = model_and_images()
    plain = trace(model, images_BCHW)
    model.blocks[1].attn.register_forward_hook(lambda module, args, out: 2 * out)
    model.blocks_token_only[0].norm1 = nn.Identity()
    changed = trace(model, images_BCHW)
    torch.testing.assert_close(changed.logits, model(images_BCHW), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(changed.patch_attention, plain.patch_attention)
    assert (changed.class_attention - plain.class_attention).abs().max() > 0.01


@torch.no_grad()
def test_attention_that_gives_no_weights_is_named():
    class Silent(nn.Module):
        def forward(self, tokens_BTD):
            return tokens_BTD[:, :1]

    model, images_BCHW = model_and_images()
    model.blocks[0].attn = nn.Identity()
    assert trace(model, images_BCHW).patch_attention is None
    model.blocks_token_only[1].attn = Silent()
    with pytest.raises(ConfigError, match="Only 1 of 2 class blocks"):
        trace(model, images_BCHW)


@torch.no_grad()
def test_an_alternative_network_gives_what_it_has():
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 3}
    images_BCHW = torch.randn(2, 3, 32, 32)
    model = AblatedCaiT(AblationConfig(**sizes, talking_heads="none")).eval()
    traced = trace(model, images_BCHW)
    assert traced.patch_attention is None
    torch.testing.assert_close(traced.logits, model(images_BCHW), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="class stage"):
        trace(AblatedCaiT(AblationConfig(**sizes, class_token="average")).eval(), images_BCHW)


def test_unwrap_finds_the_network_in_any_nesting():
    net = nn.Linear(2, 2)
    assert unwrap(net) is net
    assert unwrap(torch.compile(nn.DataParallel(torch.optim.swa_utils.AveragedModel(net)))) is not net
    assert isinstance(unwrap(torch.compile(nn.DataParallel(torch.optim.swa_utils.AveragedModel(net)))), nn.Linear)
    assert unwrap(nn.DataParallel(torch.compile(net))) is net
