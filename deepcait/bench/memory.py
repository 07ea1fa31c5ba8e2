"""Memory of a forward pass: activations counted in PyTorch, resident memory measured by the system."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all live storages that operators create; `peak` is the maximum.

    Storages that existed before (weights, images) and temporary memory inside an operator are not counted. Buffers that
    deepcait's kernels allocate through PyTorch are counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count the new storages of its result."""
        out = func(*args, **(kwargs or {}))
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if self._counts(leaf)}
        for leaf in tree_leaves(out):
            if self._counts(leaf) and leaf.untyped_storage()._cdata not in before:
                self._add(leaf.untyped_storage())
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and PyTorch's guard would import torch._dynamo, which takes seconds.
        return False

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
    """Return the peak activation memory of a forward pass without gradients in bytes, without weights."""
    with torch.no_grad():
        model(images_BCHW)  # what a model prepares once is not an activation
        with LiveBytes() as counter:
            model(images_BCHW)
    return counter.peak


def first_call_bytes(call: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """Return a call's result, and by how many bytes the process grew at its peak (0 if unknown).

    Engines keep their memory, so only the first call of a size shows it. On a GPU: the peak of its memory above what
    was allocated before.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return call(), torch.cuda.max_memory_allocated(device) - before
    _give_back()
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
    except OSError:
        return call(), 0
    result = call()
    return result, max(0, _resident("VmHWM") - before)


def _give_back() -> None:
    """Return freed memory to the system, since an earlier call's memory would hide what this one needs."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)
