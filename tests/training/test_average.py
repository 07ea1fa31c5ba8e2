"""The average of the weights: its closed form, with and without warm-up."""

from __future__ import annotations

import copy

import pytest
import torch

from deepcait.training.average import WeightAverage, average_decay
from deepcait.training.settings import Average
from tests.training.tiny import tiny_model


def walk(model, steps: int) -> list[dict[str, torch.Tensor]]:
    """Weights after each of some steps."""
    path = []
    for step in range(steps):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        path.append(copy.deepcopy(model.state_dict()))
    return path


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_closed_form(warmup, decay):
    model = tiny_model()
    average = WeightAverage(model, Average(decay=decay, warmup=warmup))
    path = walk(model, 12)
    for weights in path:
        model.load_state_dict(weights)
        average.update_parameters(model)
    # After n steps: sum of w_i (1 - d_i) d_{i+1} ... d_n, the first step taken whole.
    decays = [min(decay, (1 + n) / (10 + n)) if warmup else decay for n in range(12)]
    for name, value in average.module.state_dict().items():
        wanted = torch.zeros_like(value)
        for i, weights in enumerate(path):
            share = 1.0 if i == 0 else 1 - decays[i]
            for later in decays[i + 1 :]:
                share *= later
            wanted += share * weights[name]
        assert torch.allclose(value, wanted, atol=1e-12), name


def test_decay_while_warming_up():
    average = Average(decay=0.99996, warmup=True)
    assert average_decay(0, average) == 0.1
    assert average_decay(90, average) == 0.91
    assert average_decay(10**7, average) == 0.99996
    assert average_decay(0, Average(decay=0.99996, warmup=False)) == 0.99996


def test_stands_apart_from_the_model():
    model = tiny_model()
    model.train()
    average = WeightAverage(model, Average(decay=0.5))
    model.train()
    assert not average.module.training
    assert not any(p.requires_grad for p in average.parameters())
    before = copy.deepcopy(average.module.state_dict())
    walk(model, 1)
    assert all(torch.equal(v, before[k]) for k, v in average.module.state_dict().items())


def test_survives_a_trip():
    model = tiny_model()
    average, resumed = (WeightAverage(model, Average(decay=0.9)) for _ in range(2))
    for step, weights in enumerate(walk(model, 6)):
        model.load_state_dict(weights)
        average.update_parameters(model)
        if step == 3:
            resumed.load_state_dict(copy.deepcopy(average.state_dict()))
        if step > 3:
            resumed.update_parameters(model)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in average.state_dict().items())
