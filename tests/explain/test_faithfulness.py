"""Deletion and insertion against functions whose curves are known, and captum's checks against linear networks."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from deepcait.errors import ConfigError
from deepcait.explain import measure_faithfulness
from deepcait.explain.attribution import integrated_gradients, occlusion, pool_to_grid
from deepcait.explain.faithfulness import area, areas_by_chance
from deepcait.model import CaiTConfig

GRID = (2, 4)
WEIGHTS_yx = torch.tensor([[0.4, 0.0, 0.1, 0.0], [0.0, 0.3, 0.0, 0.2]])


def share_seen(images_BCHW):
    """A "probability": the summed weights of the patches (of 2 x 2 pixels) that are not covered."""
    return (images_BCHW[:, 0, ::2, ::2] * WEIGHTS_yx).sum((1, 2))


@pytest.fixture
def image_CHW():  # noqa: N802
    return torch.ones(3, 4, 8)


def test_curves_by_hand(image_CHW):
    found = measure_faithfulness(share_seen, image_CHW, WEIGHTS_yx, steps=8)
    expected = [1.0, 0.6, 0.3, 0.1, 0, 0, 0, 0, 0]
    assert found.deletion_curve == pytest.approx(expected, abs=1e-6)
    assert found.insertion_curve == pytest.approx([1 - value for value in expected], abs=1e-6)
    assert found.deletion == pytest.approx((0.5 + 0.6 + 0.3 + 0.1) / 8)
    assert found.insertion == pytest.approx(1 - found.deletion)
    # Of an order drawn by lot the curve is a straight line on average.
    many = areas_by_chance(share_seen, image_CHW, GRID, steps=8, num_random=400)
    assert many == pytest.approx((0.5, 0.5), abs=0.02)
    # The best order there is, and the worst.
    worst = measure_faithfulness(share_seen, image_CHW, -WEIGHTS_yx, steps=8)
    assert found.deletion < found.random_deletion < worst.deletion
    assert found.insertion > found.random_insertion > worst.insertion


def test_lots_once_are_lots_for_all(image_CHW):
    by_chance = areas_by_chance(share_seen, image_CHW, GRID, steps=4)
    alone = measure_faithfulness(share_seen, image_CHW, WEIGHTS_yx, steps=4)
    assert (alone.random_deletion, alone.random_insertion) == by_chance
    assert measure_faithfulness(share_seen, image_CHW, WEIGHTS_yx, steps=4, by_chance=by_chance) == alone
    assert by_chance != areas_by_chance(share_seen, image_CHW, GRID, steps=4, seed=1)


def test_more_steps_than_patches(image_CHW):
    found = measure_faithfulness(share_seen, image_CHW, WEIGHTS_yx, steps=100)
    assert len(found.deletion_curve) == 9
    assert area(torch.tensor([1.0, 0.0, 0.0]), 8) == pytest.approx(0.25)


def test_steps_that_do_not_divide_the_patches(image_CHW):
    """Three steps over eight patches: after 3, 5 and 8, and each trapezoid is as wide as its share."""
    found = measure_faithfulness(share_seen, image_CHW, WEIGHTS_yx, steps=3)
    assert found.deletion_curve == pytest.approx([1.0, 0.1, 0, 0], abs=1e-6)
    assert found.deletion == pytest.approx((3 * 1.1 + 2 * 0.1) / 2 / 8)
    assert found.insertion == pytest.approx(1 - found.deletion)
    # Where all patches count alike every order has the same curve, that of lots too.
    even = torch.full(GRID, 1 / 8)
    squared = lambda images: (images[:, 0, ::2, ::2] * even).sum((1, 2)) ** 2  # noqa: E731
    by_chance = areas_by_chance(squared, image_CHW, GRID, steps=3)
    squares = [1.0, (5 / 8) ** 2, (3 / 8) ** 2, 0.0]
    hand = sum(w * (a + b) / 2 for w, (a, b) in zip((3 / 8, 2 / 8, 3 / 8), pairwise(squares), strict=True))
    assert by_chance == pytest.approx((hand, hand))


def test_ties_keep_reading_order(image_CHW):
    found = measure_faithfulness(share_seen, image_CHW, torch.zeros(GRID), steps=8)
    assert found.deletion_curve == pytest.approx([1, 0.6, 0.6, 0.5, 0.5, 0.5, 0.2, 0.2, 0], abs=1e-6)


def test_it_says_no(image_CHW):
    for wrong in ({"steps": 0}, {"num_random": 0}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            measure_faithfulness(share_seen, image_CHW, WEIGHTS_yx, **wrong)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        measure_faithfulness(share_seen, image_CHW, torch.full(GRID, torch.nan))


class Linear(nn.Module):
    """Logits that are linear in the pixels: both checks have an exact answer."""

    def __init__(self) -> None:
        super().__init__()
        self.config = CaiTConfig(embed_dim=32, depth=1, num_heads=1, img_size=(8, 16), patch_size=4, num_classes=2)
        self.register_buffer("weight", torch.randn(2, 3, 8, 16))

    def forward(self, images_BCHW):
        return torch.einsum("bchw,kchw->bk", images_BCHW, self.weight)


@pytest.mark.parametrize("target", [0, 1])
def test_checks_of_a_linear_network(target):
    model, image_CHW = Linear(), torch.randn(3, 8, 16)
    exact_HW = (model.weight[target] * image_CHW).sum(0)
    by_gradient = integrated_gradients(model, image_CHW, target)
    torch.testing.assert_close(by_gradient.values, exact_HW, rtol=1e-4, atol=1e-5)
    assert by_gradient.gap < 1e-4
    covered = occlusion(model, image_CHW, target)
    per_patch = exact_HW.view(2, 4, 4, 4).sum((1, 3))
    torch.testing.assert_close(pool_to_grid(covered.values, 4), per_patch, rtol=1e-4, atol=1e-5)
    assert covered.gap is None
    # Every pixel of a patch has the patch's value.
    assert torch.equal(covered.values[:4, :4], covered.values[0, 0].expand(4, 4))


@pytest.mark.parametrize("check", [integrated_gradients, occlusion])
def test_without_captum(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match="captum") as caught:
        check(Linear(), torch.randn(3, 8, 16), 0)
    assert caught.value.remedy == 'Install it: pip install "deepcait[explain]"'
