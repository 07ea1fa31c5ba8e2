"""Maps against a known answer: only one corner of the picture decides, and the maps have to say so."""

from __future__ import annotations

import pytest
import torch

from deepcait.explain import class_attention, gradient_attention, positive_mean
from deepcait.explain.attribution import integrated_gradients, occlusion, pool_to_grid
from deepcait.model import CaiT
from deepcait.model.trace import trace
from tests.explain.corner import CELLS, SIDE, corner_share, score, train_on_corners

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 5))])
def trained(request):
    return train_on_corners(request.param)


def test_class_attention_lies_in_the_corner(trained):
    model, images_BCHW, labels_B = trained
    with torch.no_grad():
        assert (model(images_BCHW).argmax(-1) == labels_B).all()
    # Of all the attention, the class token's own share included: nothing is rescaled.
    assert corner_share(class_attention(model, images_BCHW).mean((1, 2))[:, 1:]) > 0.5
    # Before training it lies everywhere: the model has learnt it, the code does not put it there.
    untrained = CaiT(model.config).eval()
    assert corner_share(class_attention(untrained, images_BCHW).mean((1, 2))[:, 1:]) < 0.1


def test_gradient_and_checks_agree(trained):
    """Every other map that asks about the class shows the corner, too."""
    model, images_BCHW, labels_B = trained
    weighted_BN = positive_mean(gradient_attention(model, trace(model, images_BCHW).patches, labels_B))[:, 1:]
    assert corner_share(weighted_BN, weighted_BN.sum(-1)) > 0.5
    for image_CHW, label in list(zip(images_BCHW, labels_B.tolist(), strict=True))[:4]:
        by_gradient = integrated_gradients(model, image_CHW, label)
        # The sum of the parts is the rise of the logit: captum's steps leave a few percent.
        assert by_gradient.gap < 0.15
        covered = occlusion(model, image_CHW, label)
        for values_yx in (by_gradient.values.clamp(min=0), covered.values):
            # A value for each square.
            assert int(pool_to_grid(values_yx, SIDE).argmax()) == CELLS * CELLS - 1


def test_deletion_by_the_map_beats_deletion_by_lot(trained):
    """Stated margin: the area under the class's probability is at least 0.05 smaller, insertion's 0.3 larger."""
    model, images_BCHW, labels_B = (tensors if callable(tensors) else tensors[:12] for tensors in trained)
    maps_BN = class_attention(model, images_BCHW).mean((1, 2))[:, 1:]
    areas = score(model, images_BCHW, labels_B, maps_BN)
    assert areas["deletion"] < areas["random_deletion"] - 0.05
    assert areas["insertion"] > areas["random_insertion"] + 0.3
    # A map that shows the corner last is worse than lots: the score can say no.
    wrong = score(model, images_BCHW, labels_B, -maps_BN)
    assert wrong["deletion"] > wrong["random_deletion"] + 0.05


def test_the_probability_falls_when_the_corner_is_covered(trained):
    """What the areas are made of: without the corner the model guesses, without all the rest it knows."""
    model, images_BCHW, labels_B = trained
    only_corner, no_corner = torch.zeros_like(images_BCHW), images_BCHW.clone()
    corner = (..., slice(-SIDE, None), slice(-SIDE, None))
    only_corner[corner], no_corner[corner] = images_BCHW[corner], 0
    with torch.no_grad():
        known, guessed = (
            model(pictures).softmax(-1).gather(1, labels_B[:, None]).mean().item()
            for pictures in (only_corner, no_corner)
        )
    assert known > 0.9
    assert guessed < 0.5  # chance: 0.25
