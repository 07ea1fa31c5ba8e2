"""Non-finite losses, gradients and weights: such steps are skipped and counted, and too many end the run."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from deepcait.data.order import Order
from deepcait.data.source import Source
from deepcait.errors import DivergedError
from deepcait.training.checkpoint import Progress, newest_checkpoint
from deepcait.training.step import StepResult


class Guard:
    """Ends a run that has diverged, on every process at the same step.

    Args:
        folder: of the run; the last good checkpoint is named.
        max_skipped_steps: steps in a row that may be skipped.
        scales_gradients: fp16's scaler is at work.
    """

    def __init__(self, folder: Path, max_skipped_steps: int, *, scales_gradients: bool) -> None:
        self.folder = folder
        self.max_skipped_steps = max_skipped_steps
        self.scales_gradients = scales_gradients

    def count(self, progress: Progress, result: StepResult, source: Source, order: Order) -> None:
        """Count the step `progress.step` if it was skipped.

        Raises:
            DivergedError: too many in a row; the message names the images of the batch.
        """
        # The fp16 scaler finds its scale by overflowing now and then: a finite loss is not an alarm there.
        searching = self.scales_gradients and math.isfinite(result.loss)
        progress.skipped_steps = 0 if result.updated or searching else progress.skipped_steps + 1
        progress.skipped_total += not result.updated
        if progress.skipped_steps <= self.max_skipped_steps:
            return
        slots = [slot for replica in range(order.replicas) for slot in order.slots(progress.step, replica)]
        names = [source.names[slot.index] for slot in slots]
        raise self._diverged(
            f"step {progress.step + 1}: expected a finite loss and gradient, got loss {result.loss} and gradient norm "
            f"{result.grad_norm}, for {progress.skipped_steps} steps in a row.",
            f" Images of the batch: {', '.join(names[:16])}{' ...' if len(names) > 16 else ''}.",
        )

    def require_finite_weights(self, model: nn.Module, step: int) -> None:
        """Raise DivergedError before non-finite weights are evaluated, or saved over good ones."""
        state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        # One number for all, since a GPU's host would wait for each.
        if math.isfinite(nn.utils.get_total_norm(state.values(), torch.inf)):
            return
        broken = [name for name, value in state.items() if not value.isfinite().all()]
        if broken:
            problem = f"step {step}: the weights are not finite after the update, in {broken[0]}"
            raise self._diverged(f"{problem}{f' and {len(broken) - 1} more' if len(broken) > 1 else ''}.")

    def _diverged(self, problem: str, more: str = "") -> DivergedError:
        path, _ = newest_checkpoint(self.folder / "checkpoints")
        return DivergedError(
            f"{problem} The last good checkpoint is {path.name if path else 'none yet'}.{more}",
            remedy="Start another run (--out) with a lower optimizer.lr, optimizer.clip_norm=1, or without fp16; "
            "--model with this run's folder begins with its best weights, if there are any. More in "
            "`deepcait help non-finite-loss`.",
        )
