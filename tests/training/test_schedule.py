"""Learning rates: the closed form for every recipe, and timm's scheduler at whole epochs."""

from __future__ import annotations

import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from deepcait.errors import ConfigError
from deepcait.training.recipe import load_recipe, recipe_names
from deepcait.training.schedule import LearningRate, Schedule

STEPS_PER_EPOCH = 7


def rates(name: str) -> tuple[LearningRate, object]:
    recipe = load_recipe(name)
    return LearningRate(recipe.schedule, recipe.peak_lr, recipe.epochs, STEPS_PER_EPOCH), recipe


@pytest.mark.parametrize("name", recipe_names())
def test_the_closed_form_at_every_step(name):
    lr, recipe = rates(name)
    peak = recipe.optimizer.lr * (
        recipe.global_batch_size / recipe.optimizer.lr_batch if recipe.optimizer.lr_batch else 1
    )
    s = recipe.schedule
    for step in range(recipe.epochs * STEPS_PER_EPOCH + 1):
        epoch = step / STEPS_PER_EPOCH
        if epoch < s.warmup_epochs:
            wanted = s.warmup_lr * (1 - epoch / s.warmup_epochs) + peak * epoch / s.warmup_epochs
        elif s.kind == "cosine":
            wanted = s.min_lr + (peak - s.min_lr) * math.cos(math.pi / 2 * epoch / recipe.epochs) ** 2
        else:
            assert s.kind == "warmup_stable_decay"
            wanted = s.min_lr + (peak - s.min_lr) * min(1, (recipe.epochs - epoch) / s.decay_epochs)
        assert lr(step) == pytest.approx(wanted, rel=1e-9, abs=1e-15), step
        assert 0 < lr(step) <= peak * (1 + 1e-12)
    assert lr(recipe.epochs * STEPS_PER_EPOCH) == pytest.approx(s.min_lr)
    assert lr(0) == pytest.approx(s.warmup_lr if s.warmup_epochs else peak)


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - {"nano_32"}))
def test_equals_timm_at_whole_epochs(name):
    """The recipe left out has no cosine."""
    lr, recipe = rates(name)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.peak_lr)
    peer = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs,
        lr_min=recipe.schedule.min_lr,
        warmup_t=recipe.schedule.warmup_epochs,
        warmup_lr_init=recipe.schedule.warmup_lr,
        warmup_prefix=False,
        t_in_epochs=True,
    )
    for epoch in range(recipe.epochs):
        peer.step(epoch)
        assert lr(epoch * STEPS_PER_EPOCH) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch


def test_the_paper_in_numbers():
    lr, recipe = rates("pretrain")
    assert recipe.peak_lr == pytest.approx(1e-3)
    assert lr(0) == pytest.approx(1e-6)
    assert lr(200 * STEPS_PER_EPOCH) == pytest.approx((1e-3 + 1e-5) / 2)


def test_a_fraction_of_an_epoch_of_warm_up():
    lr = LearningRate(Schedule(warmup_epochs=0.5, warmup_lr=0.0, min_lr=0.0), 1.0, 2, 8)
    assert [lr(step) for step in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert lr(4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert lr(1000) == 0.0


def test_a_rate_that_would_rise_is_refused():
    with pytest.raises(ConfigError, match="schedule.min_lr") as caught:
        LearningRate(Schedule(min_lr=1e-2), 1e-3, 10, 5)
    assert "min_lr" in caught.value.remedy
    LearningRate(Schedule(min_lr=1e-3), 1e-3, 10, 5)
