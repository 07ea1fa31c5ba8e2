"""The reference: every block is computed by calling it. Other backends are exact or return the block too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# Patch tokens (B, N, D) in, patch tokens out.
BlockFunction = Callable[[Tensor], Tensor]


class Backend:
    """What computes the patch blocks of one model: here, the blocks themselves.

    Args:
        name: as it was given, such as "auto".
        small_memory: keep only the residual stream for the backward pass, if the backend can.
    """

    def __init__(self, name: str, *, small_memory: bool) -> None:
        self.name = name
        self.small_memory = small_memory

    def function_for(self, block: nn.Module, tokens: Tensor, blocks: Sequence[nn.Module]) -> BlockFunction:
        """Return what computes a block now: a function, or the block itself.

        Args:
            block: one block of the patch stage.
            tokens: what it is going to be called with, (B, N, D).
            blocks: all blocks of this stage, for the log.
        """
        return block

    def describe(self, blocks: Sequence[nn.Module], device: torch.device) -> str:
        """Return one line that says what computes these blocks on a device."""
        return "reference"
