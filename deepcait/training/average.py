"""The moving average of the weights, in torch's own AveragedModel."""

from __future__ import annotations

import torch
from torch import nn
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
        super().__init__(model, use_buffers=True)
        self.average = average
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average the weights of a step in; the first ones are copied.

        AveragedModel's own method copies the number of steps to a GPU and back, for which the host waits.
        """
        averaged, current = ([*net.parameters(), *net.buffers()] for net in (self.module, model))
        num_averaged = int(self.n_averaged)  # a buffer on the CPU
        if num_averaged:
            torch._foreach_lerp_(averaged, current, 1.0 - average_decay(num_averaged, self.average))
        else:
            for own, value in zip(averaged, current, strict=True):
                own.copy_(value)
        self.n_averaged += 1
