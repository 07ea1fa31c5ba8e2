"""Mixing: timm's Mixup on seeds of ours, one lambda a replica, smoothing folded into the targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target

from deepcait.data.mixing import Mix, Mixer, smooth_targets
from deepcait.data.seeding import derive_seed, seed_everything
from deepcait.errors import ConfigError

K = 7
LABELS = torch.tensor([0, 3, 6, 6, 2, 1])


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(6, 3, 12, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


def timm_mixup(mix: Mix) -> Mixup:
    return Mixup(
        mixup_alpha=mix.mixup,
        cutmix_alpha=mix.cutmix,
        prob=mix.probability,
        switch_prob=mix.switch,
        mode="batch",
        label_smoothing=mix.label_smoothing,
        num_classes=K,
    )


@pytest.mark.parametrize(
    "mix",
    [Mix(), Mix(cutmix=0.0), Mix(mixup=0.0), Mix(probability=0.5, switch=0.3, mixup=0.2, label_smoothing=0.0)],
    ids=["paper", "mixup", "cutmix", "half"],
)
def test_equals_timm(mix):
    mixer, peer = Mixer(mix, K, 6), timm_mixup(mix)
    outcomes = set()
    for number in range(40):
        seed = derive_seed("replica", 0, number, 1)
        got, targets = mixer(images(), LABELS, seed)
        np.random.seed(seed & 0xFFFFFFFF)
        wanted, wanted_targets = peer(images(), LABELS)
        assert torch.equal(got, wanted)
        assert torch.equal(targets, wanted_targets)
        outcomes.add(round(float(targets[0, 0]), 5))
    assert len(outcomes) > 15


@pytest.mark.parametrize("mix", [Mix(cutmix=0.0), Mix(mixup=0.0)], ids=["mixup", "cutmix"])
def test_the_partner_is_the_mirrored_image_and_the_target_says_how_much(mix):
    labels = torch.arange(6)
    for seed in range(20):
        got, targets = Mixer(mix, K, 6)(images(torch.float64), labels, seed)
        assert torch.allclose(targets.sum(1), torch.ones(6))
        lam = (targets[0, 0] - 0.1 / K) / 0.9
        assert torch.allclose((targets[0, 5] - 0.1 / K) / 0.9, 1 - lam, atol=1e-6)
        own, other = images(torch.float64), images(torch.float64).flip(0)
        if mix.cutmix:
            kept = (got == own).all(1).double().mean((1, 2))
            assert torch.allclose(kept, lam.double().expand(6), atol=1e-6)  # the true area of the box
            assert ((got == own) | (got == other)).all()
        else:
            assert torch.allclose(got, lam.double() * own + (1 - lam.double()) * other, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_smoothing_equals_timm(smoothing):
    wanted = mixup_target(LABELS, K, lam=1.0, smoothing=smoothing)
    assert torch.equal(smooth_targets(LABELS, K, smoothing), wanted)
    assert torch.allclose(wanted.sum(1), torch.ones(6))
    off = Mixer(Mix(mixup=0, cutmix=0, label_smoothing=smoothing), K, 5)  # nothing to pair: odd is fine
    before = images()[:5]
    after, targets = off(before, LABELS[:5], 3)
    assert after is before
    assert torch.equal(targets, wanted[:5])


def test_an_odd_batch_cannot_be_paired():
    with pytest.raises(ConfigError, match="even number of images per replica, got 5") as caught:
        Mixer(Mix(), K, 5)
    assert "global_batch_size" in caught.value.remedy
    Mixer(Mix(probability=0.0), K, 5)


def test_a_pure_function_of_the_seed():
    mixer = Mixer(Mix(), K, 6)
    first = mixer(images(), LABELS, 11)
    others = [mixer(images(), LABELS, seed) for seed in range(5)]
    seed_everything(123)
    again = Mixer(Mix(), K, 6)(images(), LABELS, 11)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(first[0], other[0]) for other in others)


@pytest.mark.parametrize("mix", [Mix(), Mix(mixup=0, cutmix=0)], ids=["mixed", "plain"])
def test_leaves_the_generators_seeded_for_what_follows(mix):
    draws = []
    for before in (1, 2):
        seed_everything(before)
        Mixer(mix, K, 6)(images(), LABELS, 5)
        draws.append((torch.rand(3).tolist(), np.random.rand(2).tolist()))
    assert draws[0] == draws[1]
