"""Muon's update on a processor without bf16 instructions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from deepcait.runtime.device import has_bf16

_PRODUCTS = (torch.addmm, torch.baddbmm)


class ProductsInFp32(TorchFunctionMode):
    """Computes `torch.addmm` and `torch.baddbmm` of bf16 matrices on a CPU in fp32, rounded to bf16 at the end.

    PyTorch also adds up in fp32 and rounds at the end, but without the instructions its product takes 10 to
    16 times as long (docs/dev/log.md).
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Compute one function of PyTorch."""
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16 or args[0].device.type != "cpu":
            return func(*args, **kwargs)
        factors = {name: value for name, value in kwargs.items() if name != "out"}
        product = func(*(matrix.float() for matrix in args), **factors)
        return kwargs["out"].copy_(product) if "out" in kwargs else product.bfloat16()


def with_fast_products(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return one of timm's optimizers; a Muon whose products this processor can't compute in bf16 takes fp32 for them.

    Muon's Newton-Schulz iteration is in bf16 on every device.
    """
    from timm.optim import Muon

    if isinstance(optimizer, Muon) and not has_bf16(torch.device("cpu")):
        step = optimizer.step

        @functools.wraps(step)
        def fast_step(*args: Any, **kwargs: Any) -> Any:
            with ProductsInFp32():
                return step(*args, **kwargs)

        optimizer.step = fast_step  # pyrefly: ignore
    return optimizer
