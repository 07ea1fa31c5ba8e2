"""Same weights, same images: our logits, gradients and intermediates are timm's."""

from __future__ import annotations

import gc

import pytest
import timm
import torch

from deepcait.model import CaiT, variant_config
from tests.model.test_golden import TIMM_NAMES
from tests.model.wild import relative_error, some_images, timm_twin, tiny_config, wild_model, wild_state

SOAK = {"cait_m36_384", "cait_m48_448"}  # 1.1 and 1.4 GB of weights, minutes on one core


def pair_of(name: str) -> tuple[CaiT, torch.nn.Module]:
    """Ours and timm's with the same wild weights, never initialised: both adopt the tensors of one state dict."""
    config = variant_config(name)
    with torch.device("meta"):
        ours, theirs = CaiT(config), timm.create_model(name)
    ours.load_state_dict(wild_state(ours, seed=0), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.soak if n in SOAK else ()) for n in TIMM_NAMES])
def test_logits_equal_timms(name):
    ours, theirs = pair_of(name)
    images = some_images(ours.config, batch=1, dtype=torch.float32)
    with torch.no_grad():
        error = relative_error(ours(images), theirs(images))
    del ours, theirs
    gc.collect()
    assert error < 1e-5


def test_a_plain_load_works_in_both_directions():
    """Without `assign`: values are copied into tensors that are there already."""
    ours, theirs = CaiT(variant_config("cait_xxs24_224")), timm.create_model("cait_xxs24_224")
    for target, source in ((ours, theirs), (theirs, ours)):
        source.load_state_dict(wild_state(source, seed=len(list(source.children()))))
        target.load_state_dict(source.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


# -- gradients --------------------------------------------------------------------------------------------------------


def gradients(model: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    logits = model(images)
    logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).to(logits.dtype))
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def without_zeros(name: str, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Split a gradient into what counts, and what is zero by mathematics (autograd leaves rounding noise there)."""
    if name.endswith(("proj_l.bias", "attn.k.bias")):
        return None, gradient
    if name.endswith("qkv.bias"):
        q, k, v = gradient.chunk(3)
        return torch.cat((q, v)), k
    return gradient, None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)], ids=["fp32", "fp64"])
def test_gradient_of_every_parameter_equals_timms(dtype, tolerance):
    ours, theirs = (model.to(dtype) for model in pair_of("cait_xxs24_224"))
    for parameter in [*ours.parameters(), *theirs.parameters()]:
        parameter.data = parameter.data.clone().requires_grad_()  # two models, not one shared set
    images = some_images(ours.config, batch=2, dtype=dtype)
    got, expected = gradients(ours, images), gradients(theirs, images)
    assert len(got) == len(expected) == 476
    typical = torch.stack([g.norm() for g in expected.values()]).median()
    num_zero = 0
    for name, gradient in got.items():
        counts, zero = without_zeros(name, gradient)
        timm_counts, timm_zero = without_zeros(name, expected[name])
        if counts is not None:
            assert timm_counts.norm() > 0, name
            assert (counts - timm_counts).norm() <= tolerance * timm_counts.norm(), name
        if zero is not None:
            num_zero += 1
            assert max(zero.abs().max(), timm_zero.abs().max()) <= tolerance * typical, name
    assert num_zero == 2 * 24 + 2


# -- features ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins():
    ours = wild_model(tiny_config(depth=5, img_size=(24, 40)))
    return ours, timm_twin(ours), some_images(ours.config)


def test_forward_features_equal_timms(twins):
    ours, theirs, images = twins
    assert relative_error(ours.forward_features(images), theirs.forward_features(images)) < 1e-12
    tokens = theirs.forward_features(images)
    for pre_logits in (False, True):
        expected = theirs.forward_head(tokens, pre_logits=pre_logits)
        assert relative_error(ours.forward_head(tokens, pre_logits=pre_logits), expected) < 1e-12


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("indices", [None, 1, 3, 5, [0], [3, 1], [-1], [-2, 0], (4, 2)], ids=str)
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
def test_forward_intermediates_equal_timms(twins, norm, indices, output_fmt):
    ours, theirs, images = twins
    options = {"indices": indices, "norm": norm, "output_fmt": output_fmt}
    tokens, maps = ours.forward_intermediates(images, **options)
    timm_tokens, timm_maps = theirs.forward_intermediates(images, **options)
    assert relative_error(tokens, timm_tokens) < 1e-12
    assert len(maps) == len(timm_maps)
    for got, expected in zip(maps, timm_maps, strict=True):
        assert relative_error(got, expected) < 1e-12
    for stop_early in (False, True):
        alone = ours.forward_intermediates(images, stop_early=stop_early, intermediates_only=True, **options)
        assert len(alone) == len(maps)
        assert all(torch.equal(a, b) for a, b in zip(alone, maps, strict=True))


def test_forward_intermediates_are_normalised_by_default(twins):
    ours, theirs, images = twins
    _, maps = ours.forward_intermediates(images)
    _, expected = theirs.forward_intermediates(images, norm=True)
    assert len(maps) == 5
    assert maps[0].shape == (2, 24, 3, 5)
    assert relative_error(maps[2], expected[2]) < 1e-12
