"""Memory of a forward pass: activations counted exactly in PyTorch."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make and that are alive at once; `peak` is the most.

    What exists before (weights, images) is not counted, nor is what an operator uses inside itself. Buffers that a
    kernel of ours asks PyTorch for are made by operators, and count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, count what is new in its result."""
        out = func(*args, **(kwargs or {}))
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if self._counts(leaf)}
        for leaf in tree_leaves(out):
            if self._counts(leaf) and leaf.untyped_storage()._cdata not in before:
                self._add(leaf.untyped_storage())
        return out

    @staticmethod
    def _counts(leaf: object) -> bool:
        return isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.device.type != "meta"

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = num_bytes
        self.now += num_bytes
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, num_bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def live_bytes(model: nn.Module, images_BCHW: Tensor) -> int:
    """Return the most bytes of activations alive at once in a forward pass without gradients; weights excluded."""
    with torch.no_grad():
        model(images_BCHW)  # what a model prepares once is no activation
        with LiveBytes() as counter:
            model(images_BCHW)
    return counter.peak
