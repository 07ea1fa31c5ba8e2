"""Numerics: residual branches as operators: little is kept, less on request, and nothing about the function changes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepcait.backends import branches, products
from deepcait.backends.heads import talking_heads, talking_heads_backward
from deepcait.backends.products import linear, linear_backward
from deepcait.model import CaiT
from deepcait.runtime.flops import ProductCounter
from tests.model.wild import relative_error, some_images, timm_twin, tiny_config, wild_model

CONFIG = tiny_config(depth=3, drop_path_rate=0.4)


def step(model, images):
    """Logits and gradients of a training step with a fixed draw of stochastic depth."""
    torch.manual_seed(5)
    logits = model.train()(images)
    logits.square().sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def kept_bytes(model, images) -> int:
    """Bytes kept for the backward pass, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(images)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in storages.items() if place not in own)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stochastic_depth_and_gradients_are_those_of_the_equations(dtype):
    images = some_images(CONFIG, 16).to(dtype)
    plain, lean = wild_model(CONFIG).to(dtype), wild_model(CONFIG).to(dtype)
    plain.set_backend("reference")
    expected, expected_grads = step(plain, images)
    got, grads = step(lean, images)
    exact, near = (1e-12, 1e-9) if dtype == torch.float64 else (1e-5, 1e-3)
    assert relative_error(got, expected) < exact
    for name, grad in expected_grads.items():
        if not name.endswith((".proj_l.bias", ".k.bias", ".qkv.bias") if near > 1e-9 else (".proj_l.bias", ".k.bias")):
            assert (grads[name] - grad).norm() <= near * grad.norm(), name


@pytest.mark.parametrize("depth", [1, 3])
def test_operations_counted_of_a_step_are_those_of_the_plain_path_and_the_maps_once_more(depth):
    config = tiny_config(depth=depth)
    counted = []
    for lean in (True, False):
        model = wild_model(config).float()
        model.set_backend("lean" if lean else "reference")
        with ProductCounter() as counter:
            step(model, some_images(config, 2).float())
        counted.append(counter.flops)
    B, N, D, A = 2, config.num_patches, config.embed_dim, config.num_heads
    # The lean path keeps no map: each block computes its scores and mixes them twice again.
    assert counted[0] - counted[1] == depth * 2 * B * N * N * (D + 2 * A * A)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_operations_given_to_the_counter_are_those_of_the_products_inside(small, train):
    """Each of our operators is one to PyTorch's counter, which believes a formula; its lines are counted one by one.

    So are the shapes and types that a compiler is given.
    """

    def told_and_done(operator, *inputs):
        counted = []
        for run in (operator, operator.__wrapped__):
            with FlopCounterMode(display=False) as counter:
                outputs = run(*inputs)
            counted.append(counter.get_total_flops())
        printed, done = counted
        assert printed == done > 0, operator
        torch.library.opcheck(operator, inputs, test_utils=("test_schema", "test_faketensor"))
        return outputs

    block = wild_model(tiny_config(embed_dim=12, num_heads=3)).float().blocks[0]
    x, attn, mlp = torch.randn(2, 5, 12), block.attn, block.mlp
    for operator, backward, first, parameters in (
        (
            branches.attention_branch,
            branches.attention_branch_backward,
            block.norm1,
            (attn.qkv.weight, attn.qkv.bias)
            + (attn.proj_l.weight, attn.proj_l.bias, attn.proj_w.weight, attn.proj_w.bias)
            + (attn.proj.weight, attn.proj.bias, block.gamma_1),
        ),
        (
            branches.mlp_branch,
            branches.mlp_branch_backward,
            block.norm2,
            (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias, block.gamma_2),
        ),
    ):
        inputs = [p.detach() for p in (x, first.weight, first.bias, *parameters)]
        _, *kept = told_and_done(operator, *inputs, None, 1e-6, torch.float32, small)
        told_and_done(backward, torch.ones_like(x), *inputs, None, *kept, 1e-6, torch.float32, train)
    mixings = [p.detach() for p in (attn.proj_l.weight, attn.proj_w.weight, attn.proj_w.bias)]
    told_and_done(talking_heads, torch.randn(2, 5, 36), *mixings)
    told_and_done(talking_heads_backward, x, torch.randn(2, 5, 36), *mixings)


def test_small_memory_and_checkpointing_give_the_same_bits():
    images = some_images(CONFIG, 4).float()
    expected, expected_grads = step(wild_model(CONFIG).float(), images)
    for change in (CaiT.set_small_memory, CaiT.set_grad_checkpointing):
        model = wild_model(CONFIG).float()
        change(model)
        got, grads = step(model, images)
        assert torch.equal(got, expected)
        assert all(torch.equal(grads[name], grad) for name, grad in expected_grads.items())


def test_frozen_blocks_give_the_same_gradient_of_the_image_with_small_memory():
    found = []
    for small in (False, True):
        model = wild_model(CONFIG).float().eval().requires_grad_(False)
        model.set_small_memory(small)
        images = some_images(CONFIG, 4).float().requires_grad_()
        model(images).square().sum().backward()
        found.append(images.grad)
    assert torch.equal(*found)
    assert found[0].abs().max() > 0


def test_bytes_kept_are_at_most_half_of_timms_and_a_tenth_with_checkpointing():
    config = tiny_config(depth=6, embed_dim=64, num_heads=4, img_size=(64, 64), patch_size=8)
    model = wild_model(config).float().train()
    images = some_images(config, 4).float()
    theirs = kept_bytes(timm_twin(model).train(), images)
    normal = kept_bytes(model, images)
    model.set_small_memory()
    small = kept_bytes(model, images)
    model.set_grad_checkpointing()
    assert small < normal <= 0.5 * theirs
    assert kept_bytes(model, images) <= 0.1 * theirs


def test_autocast_keeps_the_residual_stream_in_float32():
    model, images = wild_model(CONFIG).float().eval(), some_images(CONFIG, 4).float()
    plain = wild_model(CONFIG).float().eval()
    plain.set_backend("reference")
    with torch.autocast("cpu", torch.bfloat16):
        assert model._run_patch_block(model.blocks[0], model._embed(images)).dtype == torch.float32
        assert relative_error(model(images).float(), plain(images).float()) < 0.1
    assert relative_error(model(images), plain(images)) < 1e-5


def test_frozen_weights_get_no_gradients_and_images_do():
    model, images = wild_model(CONFIG).eval(), some_images(CONFIG, 2).requires_grad_()
    expected = torch.autograd.grad(model(images).square().sum(), images)[0]
    model.requires_grad_(False)
    got = torch.autograd.grad(model(images).square().sum(), images)[0]
    assert relative_error(got, expected) < 1e-6
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("how", ["small", "checkpointing", "bf16"])
def test_no_graph_break_in_training(how):
    torch.compiler.reset()
    config = tiny_config(depth=1, cls_depth=1, drop_path_rate=0.3)
    model, images = wild_model(config).float().train(), some_images(config, 4).float()
    model.set_small_memory(how == "small")
    model.set_grad_checkpointing(how == "checkpointing")
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "bf16"):
        expected, expected_grads = step(model, images)
        model.zero_grad()
        got, grads = step(torch.compile(model, backend="aot_eager", fullgraph=True), images)
    assert relative_error(got.float(), expected.float()) < 1e-6
    for name, grad in expected_grads.items():
        grad, found = grad, grads[f"_orig_mod.{name}"]
        assert (found - grad).norm() <= 1e-5 * max(grad.norm(), 1e-3), name


def test_no_graph_break():
    model, images = wild_model(CONFIG).eval(), some_images(CONFIG, 2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, got = model(images), compiled(images)
    assert relative_error(got, expected) < 1e-6
    got.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected.square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith((".proj_l.bias", ".k.bias", ".qkv.bias")):
            assert (grads[name] - parameter.grad).norm() <= 1e-4 * parameter.grad.norm(), name


@pytest.mark.parametrize("rows", [(48, 6), (7, 5), (2, 3, 16), (1, 8)])
@pytest.mark.parametrize("convolutions", [True, False])
def test_products_are_those_of_a_linear_layer(rows, convolutions, monkeypatch):
    """By both libraries, whichever the processor takes."""
    monkeypatch.setattr(products, "_has_fast_convolutions", lambda: convolutions)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*rows, 12), torch.randn(20, 12), torch.randn(20)
    given = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.nn.functional.linear(*given)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    assert relative_error(linear(x, weight, bias).double(), expected) < 1e-6
    for got, tensor in zip(linear_backward(grad.float(), x, weight), given, strict=True):
        # Up to 288 products in a sum, in an order that is each processor's own.
        assert relative_error(got.double(), tensor.grad) < 5e-6


def test_a_wrong_factor_of_stochastic_depth_is_seen(monkeypatch):
    images = some_images(CONFIG, 16).double()
    expected, _ = step(wild_model(CONFIG).double(), images)
    real = branches.linear_add
    monkeypatch.setattr(branches, "linear_add", lambda *given, **kind: real(*given[:5], None, **kind))
    got, _ = step(wild_model(CONFIG).double(), images)
    assert relative_error(got, expected) > 1e-3
