"""Whatever a user did to a layer is folded, or refused by the name of the layer; it is never dropped."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from deepcait.errors import ConfigError
from deepcait.inference import build_engine
from deepcait.inference.fold import fold
from tests.inference.tiny import scrambled

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}


class Adapter(nn.Module):
    """A linear layer with something added, whose weight and bias can still be read."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.added = nn.Linear(base.in_features, base.out_features)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + self.added(x)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def replaced(path: str, make):
    """A change that replaces one module by what `make` makes of it."""

    def change(model):
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, make(model.get_submodule(path)))

    return change


def with_forward(path: str):
    def change(model):
        module = model.get_submodule(path)
        forward = module.forward
        module.forward = lambda *inputs: 2 * forward(*inputs)

    return change


CHANGES = {
    "blocks.0.attn.qkv is Adapter": replaced("blocks.0.attn.qkv", Adapter),
    "blocks_token_only.1.attn.q is Adapter": replaced("blocks_token_only.1.attn.q", Adapter),
    "head is Adapter": replaced("head", Adapter),
    "norm is Identity": replaced("norm", lambda _: nn.Identity()),
    "blocks.1.mlp.act is ReLU": replaced("blocks.1.mlp.act", lambda _: nn.ReLU()),
    "blocks.1.mlp.act approximates": replaced("blocks.1.mlp.act", lambda _: nn.GELU(approximate="tanh")),
    "blocks_token_only.0.norm2 has eps=0.1": replaced("blocks_token_only.0.norm2", lambda _: nn.LayerNorm(32, eps=0.1)),
    "blocks.1.mlp is Identity": replaced("blocks.1.mlp", lambda _: nn.Identity()),
    "blocks.1 is Identity": replaced("blocks.1", lambda _: nn.Identity()),
    "head has no bias": replaced("head", lambda _: nn.Linear(32, 5, bias=False)),
    "blocks.0.mlp.fc1 has hooks": lambda m: m.blocks[0].mlp.fc1.register_forward_hook(lambda _m, _i, out: 2 * out),
    "it has hooks": lambda m: m.register_forward_pre_hook(lambda _m, inputs: (2 * inputs[0],)),
    "blocks.0.attn has another forward": with_forward("blocks.0.attn"),
    "blocks_token_only.1.attn has another attend": lambda m: setattr(
        m.blocks_token_only[1].attn, "attend", m.blocks_token_only[0].attn.attend
    ),
    "it has another forward": with_forward(""),
    "blocks.0.attn.qkv is ParametrizedLinear": lambda m: parametrize.register_parametrization(
        m.blocks[0].attn.qkv, "weight", Doubled()
    ),
    "blocks.1.mlp.fc2 has hooks": lambda m: prune.random_unstructured(m.blocks[1].mlp.fc2, "weight", 0.5),
    "patch_embed.proj has another stride": lambda m: setattr(m.patch_embed.proj, "padding", (1, 1)),
    "blocks.0.attn has 1 heads": lambda m: setattr(m.blocks[0].attn, "num_heads", 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_part_is_refused_by_its_name(change):
    model = scrambled(**SIZES)
    CHANGES[change](model)
    with pytest.raises(ConfigError) as caught:
        fold(model)
    assert f"modified: {change}" in str(caught.value)
    with pytest.raises(ConfigError):
        build_engine("eager", model)


@torch.no_grad()
@pytest.mark.parametrize("head", [nn.Identity(), nn.Linear(32, 3)], ids=["identity", "other classes"])
def test_a_replaced_head_is_folded(head):
    model = scrambled(**SIZES)
    model.head = head
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    for run in (fold(model), build_engine("eager", model)):
        torch.testing.assert_close(run(images), expected, rtol=1e-4, atol=1e-5)
    assert fold(model).config.num_classes == fold(model).num_classes == (0 if isinstance(head, nn.Identity) else 3)


@torch.no_grad()
def test_what_was_merged_or_removed_is_folded():
    model = scrambled(**SIZES)
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    parametrize.register_parametrization(model.blocks[0].attn.qkv, "weight", Doubled())
    prune.random_unstructured(model.blocks[1].mlp.fc2, "weight", 0.5)
    handle.remove()
    parametrize.remove_parametrizations(model.blocks[0].attn.qkv, "weight")
    prune.remove(model.blocks[1].mlp.fc2, "weight")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fold(model)(images), model(images), rtol=1e-4, atol=1e-5)
