"""Count the arithmetic of what runs: floating-point operations of matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class ProductCounter(TorchDispatchMode):
    """Counts the floating-point operations of the operators that run inside it.

    The formulas are those of PyTorch, and those that deepcait registers for its own operators.

    PyTorch's own `FlopCounterMode` registers hooks on all modules, so that the backend reference computes every block;
    without gradients it fails in class attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        self.flops += count(*args, **kwargs, out_val=out) if count else 0
        return out


def forward_flops(forward: Callable[[Tensor], Any], images_BCHW: Tensor) -> int:
    """Return the floating-point operations of a forward pass, really computed."""
    with ProductCounter() as counter:
        forward(images_BCHW)
    return counter.flops
