"""What a step costs is foretold without computing: the same bytes and products as when it is really taken."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from deepcait.bench.work import Work
from deepcait.model import CaiT, CaiTConfig
from deepcait.runtime.device import autocast
from deepcait.runtime.flops import ProductCounter
from deepcait.training.compute import expected_backend, note_of, set_compute
from deepcait.training.footprint import CHOICES, kept_bytes, training_bytes, training_flops
from deepcait.training.settings import Compute

CONFIG = CaiTConfig(embed_dim=32, depth=3, num_heads=2, img_size=32, patch_size=8, num_classes=5, drop_path_rate=0.2)
COMPUTES = [*CHOICES.values(), Compute(backend="reference"), Compute(precision="bf16"), Compute(precision="fp16")]


def real(compute):
    model = CaiT(CONFIG).train()
    set_compute(model, compute)
    return model, torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize("compute", COMPUTES, ids=str)
def test_bytes_kept(compute):
    model, images = real(compute)
    with autocast(compute.precision):
        assert training_bytes(CONFIG, compute, 4) == kept_bytes(model, lambda: model(images))


def test_bytes_kept_are_linear_in_the_batch_and_ordered():
    one, two, nine = (training_bytes(CONFIG, Compute(), batch) for batch in (1, 2, 9))
    assert nine == one + 8 * (two - one)
    normal, small, checkpointing = (training_bytes(CONFIG, compute, 4) for compute in CHOICES.values())
    assert checkpointing < small < normal < training_bytes(CONFIG, Compute(backend="reference"), 4)


@pytest.mark.parametrize("compute", COMPUTES[:4], ids=str)
def test_products_with_what_is_computed_again(compute):
    """The formulas of our operators against the operators of PyTorch inside them."""
    model, images = real(compute)
    with Work() as work:
        model(images).sum().backward()
    assert training_flops(CONFIG, compute, 4) == work.flops


def test_products_of_a_model_whose_weights_are_frozen():
    model, images = real(Compute())
    model.requires_grad_(False)
    model.pos_embed.requires_grad_()
    with Work() as work:
        model(images).sum().backward()
    with torch.device("meta"):
        frozen = CaiT(CONFIG).train().requires_grad_(False)
        frozen.pos_embed.requires_grad_()
        images = torch.empty(4, 3, 32, 32)
    with ProductCounter() as counter:
        frozen(images).sum().backward()
    assert counter.flops == work.flops < training_flops(CONFIG, Compute(), 4)


def test_a_shared_storage_counts_once_and_weights_do_not():
    weight = torch.nn.Parameter(torch.ones(8))
    holder = torch.nn.Module()
    holder.weight = weight
    x = torch.randn(8, requires_grad=True)
    assert kept_bytes(holder, lambda: (x * weight).sum()) == 32
    assert kept_bytes(holder, lambda: ((x * weight) * x[:4].repeat(2)).sum()) == 3 * 32
    assert dataclasses.replace(Compute(), memory="small") in CHOICES.values()


@pytest.mark.parametrize(
    ("device", "has_gpu", "backend"),
    [
        ("auto", False, "lean"),
        ("auto", True, "reference"),
        ("cpu", True, "lean"),
        ("cuda:1", False, "reference"),
        ("mps", False, "reference"),
    ],
)
def test_the_backend_that_auto_is_going_to_take(monkeypatch, device, has_gpu, backend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    compute = expected_backend(Compute(device=device))
    assert compute.backend == backend
    assert CaiT(CONFIG).describe_backend(device.replace("auto", "cuda" if has_gpu else "cpu")) == f"{backend} (auto)"
    assert expected_backend(Compute(device=device, backend="reference")).backend == "reference"
    assert ("changes nothing" in note_of(CONFIG, Compute(device=device, memory="small"))) == (backend == "reference")
