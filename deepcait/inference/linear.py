"""A linear layer for inference: in operators that every engine has, or fused with the next operation.

PyTorch's linear layers call MKL, which uses only half the vector width on processors not made by Intel. oneDNN, also in
PyTorch, uses all of it, and fuses GELU or the residual.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FoldedLinear(nn.Module):
    """y = W x + b with constant W and b.

    Args:
        weight: (out, in). bias: (out).
        like: W and b are stored as copies with its dtype and device.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, like: Tensor) -> None:
        super().__init__()
        for name, tensor in (("weight", weight), ("bias", bias)):
            kept = tensor.detach().to(like.device, like.dtype)
            self.register_buffer(name, kept.clone(memory_format=torch.contiguous_format))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) for (..., in)."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU(W x + b), without gradients; x is contiguous."""
        if _suits_onednn(x):
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")
        hidden = self(x)
        return torch.ops.aten.gelu.out(hidden, out=hidden)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + W x + b, without gradients; both are contiguous."""
        if _suits_onednn(x):
            return torch.ops.mkldnn._linear_pointwise(x, residual, self.weight, self.bias, "add")
        return residual + self(x)

    def plain(self, x: Tensor) -> Tensor:
        """Return W x + b, without gradients; x is contiguous."""
        if _suits_onednn(x):
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return self(x)


def _suits_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and has_onednn()


@functools.cache
def has_onednn() -> bool:
    """Whether PyTorch was built with oneDNN, and oneDNN's results are correct."""
    if not torch.backends.mkldnn.is_available():
        return False
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    x, weight = draw(3, 8), draw(3, 8)
    bias, residual = draw(3), draw(3, 3)
    expected = F.linear(x, weight, bias)
    try:
        fused = torch.ops.mkldnn._linear_pointwise
        pairs = (
            (fused(x, weight, bias, "none", [], ""), expected),
            (fused(x, weight, bias, "gelu", [], "none"), F.gelu(expected)),
            (fused(x, residual, weight, bias, "add"), residual + expected),
        )
    except (AttributeError, RuntimeError):
        return False
    return all(torch.allclose(got, wanted, rtol=1e-5, atol=1e-5) for got, wanted in pairs)
