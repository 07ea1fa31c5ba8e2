"""The learning rate as a pure function of the step: resuming needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepcait.errors import ConfigError

KINDS = ("cosine", "constant", "warmup_stable_decay")
# Kinds whose rate, up to some step, does not depend on the number of epochs: such a run can be prolonged.
CAN_BE_LONGER = ("constant", "warmup_stable_decay")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then the rate of `kind`. The defaults are the paper's."""

    kind: str = "cosine"
    """Learning rate after warm-up. cosine: half a cosine down to min_lr. constant: the peak. warmup_stable_decay: the
    peak, then linear down to min_lr. A run with one of the last two can be prolonged: --resume --set epochs=N."""
    warmup_epochs: float = 5.0
    """Number of warm-up epochs; may be a fraction."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of warm-up."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine or of the decay."""
    decay_epochs: float = 1.0
    """Number of epochs of the decay at the end, for warmup_stable_decay; may be a fraction."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            problem = f"schedule.kind: expected {' or '.join(KINDS)}, got {self.kind!r}."
            raise ConfigError(problem, remedy="Choose one.")
        if not self.decay_epochs >= 0:
            problem = f"schedule.decay_epochs: expected 0 or more, got {self.decay_epochs}."
            raise ConfigError(problem, remedy="0 means no decay, as in schedule.kind=constant.")


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every step.

        warm-up:             warmup_lr + (peak - warmup_lr) * t / warmup        t = step / steps_per_epoch, in epochs
        cosine:              min_lr + (peak - min_lr) * (1 + cos(pi t / epochs)) / 2
        constant:            peak
        warmup_stable_decay: peak, then min_lr + (peak - min_lr) * (epochs - t) / decay

    The cosine counts from the start of training, not from the end of warm-up: timm's rule, which the paper's
    code uses, taken at fractions of an epoch instead of once per epoch.

    Deviation: the released code advances its scheduler after each epoch, so its epochs 0 and 1 both run at
    `warmup_lr` and every later one per epoch late (deit issue 145). We do not repeat that.

    Args:
        schedule: kind, warm-up and end.
        peak: learning rate for the whole global batch, after scaling.
        epochs: of the whole run.
        steps_per_epoch: optimizer steps per epoch.

    Raises:
        ConfigError: `min_lr` above the peak; warm-up and decay longer than the run.
    """

    schedule: Schedule
    peak: float
    epochs: float
    steps_per_epoch: int

    def __post_init__(self) -> None:
        s = self.schedule
        if s.kind != "constant" and s.min_lr > self.peak:
            raise ConfigError(
                f"schedule.min_lr: expected at most the learning rate {self.peak:g} (after scaling with the batch), "
                f"got {s.min_lr:g}.",
                remedy="The rate would rise during training; lower schedule.min_lr or raise optimizer.lr.",
            )
        if s.kind == "warmup_stable_decay" and s.warmup_epochs + s.decay_epochs > self.epochs:
            raise ConfigError(
                f"schedule: warm-up and decay take {s.warmup_epochs:g} + {s.decay_epochs:g} epochs, more than the "
                f"{self.epochs:g} of the run.",
                remedy="Lower schedule.warmup_epochs or schedule.decay_epochs, or raise epochs.",
            )

    @property
    def decay_start(self) -> int:
        """Steps after which the rate depends on the number of epochs: where a longer run continues."""
        if self.schedule.kind == "cosine":
            return 0
        decay = self.schedule.decay_epochs if self.schedule.kind == "warmup_stable_decay" else 0.0
        return math.floor((self.epochs - decay) * self.steps_per_epoch + 1e-9)

    def __call__(self, step: int) -> float:
        """Return the learning rate of the step with this number, counted from 0."""
        s = self.schedule
        t = step / self.steps_per_epoch
        if t < s.warmup_epochs:
            return s.warmup_lr + (self.peak - s.warmup_lr) * t / s.warmup_epochs
        if s.kind == "cosine":
            return s.min_lr + (self.peak - s.min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(t / self.epochs, 1.0)))
        first, last = self.decay_start, self.epochs * self.steps_per_epoch
        if s.kind == "constant" or step <= first:
            return self.peak
        return s.min_lr + (self.peak - s.min_lr) * max(0.0, (last - step) / (last - first))
