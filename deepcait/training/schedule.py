"""The learning rate as a pure function of the step: resuming needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepcait.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then half a cosine down to `min_lr`. The defaults are the paper's."""

    warmup_epochs: float = 5.0
    """Number of warm-up epochs; may be a fraction."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of warm-up."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every step.

        warm-up:  warmup_lr + (peak - warmup_lr) * t / warmup        t = step / steps_per_epoch, in epochs
        after:    min_lr + (peak - min_lr) * (1 + cos(pi t / epochs)) / 2

    The cosine counts from the start of training, not from the end of warm-up: timm's rule, which the paper's
    code uses, taken at fractions of an epoch instead of once an epoch.

    Deviation: the released code advances its scheduler after each epoch, so its epochs 0 and 1 both run at
    `warmup_lr` and every later one per epoch late (deit issue 145). We do not repeat that.

    Args:
        schedule: warm-up and end.
        peak: learning rate for the whole global batch, after scaling.
        epochs: of the whole run.
        steps_per_epoch: optimizer steps an epoch.

    Raises:
        ConfigError: `min_lr` above the peak.
    """

    schedule: Schedule
    peak: float
    epochs: float
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if self.schedule.min_lr > self.peak:
            raise ConfigError(
                f"schedule.min_lr: expected at most the learning rate {self.peak:g} (after scaling with the batch), "
                f"got {self.schedule.min_lr:g}.",
                remedy="The rate would rise during training; lower schedule.min_lr or raise optimizer.lr.",
            )

    def __call__(self, step: int) -> float:
        """Return the learning rate of the step with this number, counted from 0."""
        s = self.schedule
        t = step / self.steps_per_epoch
        if t < s.warmup_epochs:
            return s.warmup_lr + (self.peak - s.warmup_lr) * t / s.warmup_epochs
        return s.min_lr + (self.peak - s.min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(t / self.epochs, 1.0)))
