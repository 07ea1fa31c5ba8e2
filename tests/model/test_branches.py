"""Numerics and memory of the training branches: the block's own equations, with little kept."""

from __future__ import annotations

import pytest
import timm
import torch

from deepcait.model import CaiT, variant_config
from tests.model.test_lean import logits_and_gradients
from tests.model.wild import relative_error, some_images, tiny_config, wild_model

CONFIG = tiny_config(depth=2)


def saved_bytes(model, images):
    """Bytes kept for the backward pass, each storage once, parameters excluded."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    seen = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(num_bytes for num_bytes, _ in seen.values())


@pytest.mark.parametrize("changed", ["small", "compiled", "checkpointed", "hooked"])
def test_the_same_gradients_however_they_are_computed(changed):
    model, images = wild_model(CONFIG), some_images(CONFIG).double()
    expected, expected_grads = logits_and_gradients(model, images)
    twin = wild_model(CONFIG)
    heard = []
    if changed == "checkpointed":
        twin.set_grad_checkpointing(True)
    for block in twin.blocks:
        block.small = changed == "small"
        if changed == "hooked":
            block.mlp.fc1.register_forward_hook(lambda *_: heard.append(1))
    run = torch.compile(twin, backend="aot_eager", fullgraph=True) if changed == "compiled" else twin
    logits = run(images)
    logits.square().sum().backward()
    assert relative_error(logits.detach(), expected) < 1e-12
    for name, parameter in twin.named_parameters():
        if not name.endswith((".proj_l.bias", ".k.bias")):
            grad = expected_grads[name]
            assert (parameter.grad - grad).norm() <= 1e-9 * grad.norm(), name
    assert len(heard) == (CONFIG.depth if changed == "hooked" else 0)


def test_bytes_kept_against_timm():
    images = torch.randn(2, 3, 224, 224)
    theirs = saved_bytes(timm.create_model("cait_xxs24_224").train(), images)
    model = CaiT(variant_config("cait_xxs24_224")).train()
    assert saved_bytes(model, images) <= 0.32 * theirs
    for block in model.blocks:
        block.small = True
    assert saved_bytes(model, images) <= 0.08 * theirs
    model.set_grad_checkpointing(True)
    assert saved_bytes(model, images) <= 0.1 * theirs
