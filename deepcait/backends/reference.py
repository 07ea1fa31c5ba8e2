"""The reference: every block is computed by calling it. Other backends compute the same, or return the block too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# Patch tokens (B, N, D) in, patch tokens out.
BlockFunction = Callable[[Tensor], Tensor]


class Backend:
    """The backend of one model's patch blocks: here, the blocks themselves.

    Args:
        name: as given to `set_backend`, such as "auto".
        small_memory: save only the residual stream for the backward pass, if the backend supports it.
    """

    def __init__(self, name: str, *, small_memory: bool) -> None:
        self.name = name
        self.small_memory = small_memory

    def function_for(self, block: nn.Module, tokens: Tensor, blocks: Sequence[nn.Module]) -> BlockFunction:
        """Return a callable that computes a block: a function, or the block itself.

        Args:
            block: one block of the patch stage.
            tokens: its next input, (B, N, D).
            blocks: all blocks of this stage, for the log.
        """
        return block

    def describe(self, blocks: Sequence[nn.Module], device: torch.device) -> str:
        """Return one line: the backend of these blocks on a device."""
        return "reference"
