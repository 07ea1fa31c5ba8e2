"""Registers functions as PyTorch operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def operator(name: str, changes: Sequence[str] = ()) -> Callable[[Callable], Any]:
    """Decorator: make a function on tensors an operator of PyTorch, on every device.

    `torch.library.custom_op` does the same, but its first call imports torch._dynamo, which takes longer than the
    result of a small model.

    Args:
        name: "deepcait::name".
        changes: names of the arguments that it changes.

    Returns:
        The operator, with the function as its `__wrapped__`. The function's annotations are its signature.
    """

    def register(function: Callable) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=changes)
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "default", function)
        namespace, _, own = name.partition("::")
        overload = getattr(getattr(torch.ops, namespace), own).default
        overload.__wrapped__ = function
        return overload

    return register
