"""The events that a training passes to its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from deepcait.runtime.signals import StopRequest


@dataclass(frozen=True, kw_only=True)
class Event:
    """A moment of a training, as plain data.

    kind: "step" after each optimizer step; "evaluation" after each validation; "checkpoint" after each checkpoint;
        "end" once, when the training has finished.
    step: optimizer steps done. epoch: the same in epochs.
    values: of a step `loss`, `accuracy`, `grad_norm`, `lr`, `updated` (with mixed images, `accuracy` is the mean
        probability that the targets give to the predicted classes); of an evaluation its row of metrics.jsonl; else
        empty.
    folder: of the run.
    """

    kind: Literal["step", "evaluation", "checkpoint", "end"]
    step: int
    epoch: float
    folder: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    request: StopRequest = field(repr=False, compare=False)

    def stop(self) -> None:
        """Ask the training to stop: it finishes the next step, saves itself, and can be resumed."""
        self.request.asked = True


Callback: TypeAlias = Callable[[Event], None]
