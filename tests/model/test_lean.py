"""Numerics: the lean attention is the plain one, forward and backward, whatever the blocks; and it keeps no map."""

from __future__ import annotations

import pytest
import torch

from deepcait.backends import branches, heads
from tests.model.test_modes import SoftmaxDtypes
from tests.model.wild import ablated, relative_error, some_images, tiny_config, wild_model

CONFIG = tiny_config(depth=3)


def twins(dtype=torch.float64):
    """One model twice, with the plain attention and with the lean one."""
    plain, model = wild_model(CONFIG).to(dtype), wild_model(CONFIG).to(dtype)
    plain.set_backend("reference")
    assert model.describe_backend() == "lean (auto)"
    return plain, model


def logits_and_gradients(model, images):
    logits = model(images)
    logits.square().sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def blocks_of(monkeypatch, num_bytes):
    monkeypatch.setattr(heads, "BLOCK_BYTES", num_bytes)


@pytest.mark.parametrize("num_bytes", [1, 700, 5000, 1 << 20])
def test_lean_equals_plain_in_float64_for_any_block_size(monkeypatch, num_bytes):
    """One row at a time, some rows, some images, everything at once."""
    blocks_of(monkeypatch, num_bytes)
    plain, model = twins()
    images = some_images(CONFIG).double()
    expected, expected_grads = logits_and_gradients(plain, images)
    got, grads = logits_and_gradients(model, images)
    assert relative_error(got, expected) < 1e-12
    for name, grad in expected_grads.items():
        if name.endswith((".proj_l.bias", ".k.bias")):
            assert grads[name].abs().max() < 1e-9, name
        else:
            assert (grads[name] - grad).norm() <= 1e-9 * grad.norm(), name
    assert all(not grads[f"blocks.{i}.attn.proj_l.bias"].any() for i in range(CONFIG.depth))


def test_lean_equals_plain_in_float32():
    plain, model = twins(torch.float32)
    images = some_images(CONFIG).float()
    expected, expected_grads = logits_and_gradients(plain, images)
    got, grads = logits_and_gradients(model, images)
    assert relative_error(got, expected) < 1e-5
    for name, grad in expected_grads.items():
        if not name.endswith((".proj_l.bias", ".k.bias", ".qkv.bias")):
            assert (grads[name] - grad).norm() <= 1e-3 * grad.norm(), name


@pytest.mark.parametrize("broken", ["scale", "mix_l", "mix_w", "bias_w", "mix_l backward"])
def test_the_comparison_can_fail(monkeypatch, broken):
    plain, model = twins()
    images = some_images(CONFIG).double()
    split, mix = heads._split, heads._mix
    attention = model.blocks[0].attn
    if broken == "scale":
        monkeypatch.setattr(heads, "_split", lambda qkv, A: (2 * split(qkv, A)[0], *split(qkv, A)[1:]))
    elif broken == "bias_w":
        attention.proj_w.bias.data.zero_()
    elif broken == "mix_l backward":
        seen = []
        # Every fourth call of a block is the transposed first mixing of the backward pass.
        monkeypatch.setattr(
            heads, "_mix", lambda m, maps: (seen.append(1), mix(m.T if len(seen) % 7 == 0 else m, maps))[1]
        )
    else:
        which = attention.proj_l if broken == "mix_l" else attention.proj_w
        which.weight.data = which.weight.data.T.contiguous()
    expected, expected_grads = logits_and_gradients(plain, images)
    got, grads = logits_and_gradients(model, images)
    worst = max(relative_error(grads[n], g) for n, g in expected_grads.items() if "bias" not in n)
    assert max(relative_error(got, expected), worst) > 1e-3


def test_no_map_is_kept_for_the_backward_pass():
    model = wild_model(tiny_config(depth=1))
    num_patches = model.config.num_patches
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (shapes.append(tuple(t.shape)), t)[1], lambda t: t):
        model(some_images(model.config).to(model.pos_embed.dtype))
    assert not [shape for shape in shapes if shape[-2:] == (num_patches, num_patches)]
    model.set_backend("reference")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (shapes.append(tuple(t.shape)), t)[1], lambda t: t):
        model(some_images(model.config).to(model.pos_embed.dtype))
    assert [shape for shape in shapes if shape[-2:] == (num_patches, num_patches)]


def test_the_bias_that_the_softmax_cancels_has_a_gradient_of_zero():
    """Not a missing one, which would stop several processes; with other residual rules too."""
    for model in (wild_model(CONFIG), ablated(residual="rezero")):
        model(some_images(CONFIG)).sum().backward()
        for block in model.blocks:
            assert torch.equal(block.attn.proj_l.bias.grad, torch.zeros(3).double())


def test_the_operators_keep_the_rules_of_torch():
    """Schema, fake tensors, autograd registration and functionalisation, as torch itself checks them."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 6, 24, generator=generator, dtype=torch.float64, requires_grad=True)
    mixing = [torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    bias = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(heads.talking_heads, (qkv, *mixing, bias))
    assert torch.autograd.gradcheck(heads.talking_heads, (qkv, *mixing, bias))


def test_the_softmax_is_wide_in_half_precision():
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 9, 3 * 16, generator=generator).bfloat16()
    mix_l, mix_w = torch.randn(2, 2, 2, generator=generator).bfloat16()
    with SoftmaxDtypes() as softmax:  # of PyTorch's own operators, also where machine code takes bf16
        read = heads._read_in_blocks(qkv, mix_l, mix_w, torch.zeros(2).bfloat16())
    assert (softmax.seen, read.dtype) == ([torch.float32], torch.bfloat16)


def test_autocast_runs_the_lean_path_in_half_precision_and_stays_near(monkeypatch):
    model = wild_model(CONFIG).float()
    images = some_images(CONFIG).float()
    expected = model(images)
    seen = []
    read_heads = heads.read_heads
    monkeypatch.setattr(branches, "read_heads", lambda qkv, *mix: (seen.append(qkv.dtype), read_heads(qkv, *mix))[1])
    with torch.autocast("cpu", torch.bfloat16):
        got = model(images)
    assert set(seen) == {torch.bfloat16}
    assert relative_error(got.float(), expected) < 0.2
