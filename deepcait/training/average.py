"""The moving average of the weights, in torch's own AveragedModel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deepcait.training.settings import Average


def average_decay(num_averaged: int, average: Average) -> float:
    """Return the decay after this many averaged steps: min(decay, (1 + n) / (10 + n)) while warming up."""
    if not average.warmup:
        return average.decay
    return min(average.decay, (1 + num_averaged) / (10 + num_averaged))


class WeightAverage(AveragedModel):
    """average = decay * average + (1 - decay) * weights, after every step.

    Args:
        model: whose weights are averaged; a copy is made.
        average: decay and warm-up.
    """

    def __init__(self, model: nn.Module, average: Average) -> None:
        super().__init__(model, multi_avg_fn=self._update, use_buffers=True)
        self.average = average
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def _update(
        self,
        averaged: tuple[Tensor, ...] | list[Tensor],
        current: tuple[Tensor, ...] | list[Tensor],
        num_averaged: Tensor | int,
    ) -> None:
        # AveragedModel copies the first time, so this call is the one after `num_averaged` steps.
        torch._foreach_lerp_(averaged, current, 1.0 - average_decay(int(num_averaged), self.average))
