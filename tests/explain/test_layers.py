"""The paper's figures in numbers: strength of the branches by hand, accuracy against cost from the table."""

from __future__ import annotations

import pytest
import torch

from deepcait.explain.figures import accuracy_plate, branch_ratio, read_results
from deepcait.explain.layers import LayerMeter, entropy, measure_layers, patch_distances
from deepcait.weights.published import REEVALUATED
from tests.processes.harness import tiny_model


def test_the_strength_of_a_branch_is_what_it_adds_over_what_was_there():
    torch.manual_seed(0)
    model = tiny_model().eval()
    images_BCHW = torch.randn(3, 3, 32, 32)
    measures = measure_layers(model, images_BCHW)
    with torch.no_grad():
        main = [model._embed(images_BCHW)]
        for block in model.blocks:
            middle = main[-1] + block.gamma_1 * block.attn(block.norm1(main[-1]))
            main += [middle, block(main[-1])]
    by_hand = [
        ((after - x).norm(dim=-1) / x.norm(dim=-1)).mean().item() for x, after in zip(main, main[1:], strict=False)
    ]
    depth = measures.depth
    assert measures.attention_ratio[:depth].tolist() == pytest.approx(by_hand[::2], rel=1e-4)
    assert measures.mlp_ratio[:depth].tolist() == pytest.approx(by_hand[1::2], rel=1e-4)
    assert branch_ratio(measures).image.size[0] > 100


def test_measures_hold_no_activations_of_a_caller_that_differentiates():
    model = tiny_model().eval()
    meter = LayerMeter(model)
    with meter.attached():
        model(torch.randn(1, 3, 32, 32))
    assert not any(value.requires_grad for sums in meter._sums for value in sums.values())
    assert not meter._main.requires_grad
    assert meter.result().num_images == 1


def test_a_branch_that_adds_nothing_has_no_strength():
    model = tiny_model().eval()
    with torch.no_grad():
        for block in [*model.blocks, *model.blocks_token_only]:
            block.gamma_1.zero_()
            block.gamma_2.zero_()
    measures = measure_layers(model, torch.randn(1, 3, 32, 32))
    assert not measures.attention_ratio.any()
    assert not measures.mlp_ratio.any()


def test_even_attention_has_the_entropy_and_distance_that_are_drawn_beside_it():
    num_patches = 6
    even_BAQJ = torch.full((1, 1, num_patches, num_patches), 1 / num_patches)
    assert entropy(even_BAQJ).item() == pytest.approx(torch.tensor(float(num_patches)).log().item())
    distance_NN = patch_distances((2, 3))
    assert distance_NN[0].tolist() == pytest.approx([0, 1, 2, 1, 2**0.5, 5**0.5])


def test_accuracy_against_cost_draws_every_published_model():
    rows = read_results(None)
    assert {row["name"] for row in rows} >= set(REEVALUATED)
    assert f"{len(rows)} models. Published values, not measured here." in accuracy_plate(rows, published=True).caption
