"""Count the work of a step exactly: the operators that run, and the bytes of their inputs and outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from deepcait.backends import branches, heads

_WHOLE = (
    heads.talking_heads,
    heads.talking_heads_backward,
    branches.mlp_branch,
    branches.mlp_branch_backward,
    branches.attention_branch,
    branches.attention_branch_backward,
)
# Views under another name, and allocations that are not written to.
_NO_WORK = ("_unsafe_view", "empty", "new_empty")


class Work(TorchDispatchMode):
    """Count the operators that run inside this context: forward, backward or optimizer.

    operators: those that compute or copy, not views and allocations. moved_bytes: bytes of their input and output
    tensors, each at most as large as its memory. flops: of matrix products and convolutions.

    deepcait's own operators are counted as the PyTorch operators inside them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.moved_bytes = self.flops = 0
        self._inside = {whole: whole.__wrapped__ for whole in _WHOLE}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        if func in self._inside:
            with self:
                return self._inside[func](*args, **kwargs)
        with self:  # an operator that only calls others is counted as those
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        if not func.is_view and not func.__name__.startswith(_NO_WORK):
            given = {argument.name for argument in func._schema.arguments if argument.is_out}
            read = (args, {name: value for name, value in kwargs.items() if name not in given})
            self.operators += 1
            self.moved_bytes += sum(_bytes(leaf) for leaf in tree_leaves((read, out)) if isinstance(leaf, Tensor))
            count = flop_registry.get(func._overloadpacket)
            self.flops += count(*args, **kwargs, out_val=out) if count else 0
        return out


def _bytes(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:
        return 0
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
