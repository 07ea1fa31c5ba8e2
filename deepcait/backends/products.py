"""The products of a linear layer, forward and backward, by the fastest library on this processor.

On a CPU in float32, `torch.nn.functional.linear` calls the BLAS that PyTorch was built with (MKL), and a 1 x 1
convolution calls oneDNN: the same sums. MKL uses AVX512 on Intel's processors only, so on others with AVX512 oneDNN is
about twice as fast. Elsewhere MKL is faster, mostly in the gradients (results: docs/dev/log.md).
Other types and devices are not affected.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcait.runtime.environment import processor_vendor

# With one thread, PyTorch uses another library for convolutions of fewer images.
_LEAST_IMAGES, _MOST_IMAGES = 16, 64


def linear(rows: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return rows W' + b, (..., O), for contiguous rows (..., I); all of one dtype."""
    count = _images(rows)
    if not count:
        return F.linear(rows, weight_OI, bias_O)
    out = F.conv2d(_as_nhwc(rows, count), weight_OI[:, :, None, None], bias_O)
    return out.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], len(weight_OI))


def linear_backward(
    grad: Tensor, rows: Tensor, weight_OI: Tensor, *, wants_weight: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `linear` for rows, weight and bias; empty tensors for the last two if not needed.

    Args:
        grad: (..., O), contiguous. weight_OI: the weight passed to `linear`.
        rows: (..., I), contiguous; may be empty if the weight's gradient is not needed.
    """
    if not wants_weight and not rows.numel():
        rows = grad.new_empty(*grad.shape[:-1], weight_OI.shape[1])  # used for its shape only
    count = _images(rows)
    if count:
        given = (_as_nhwc(grad, count), _as_nhwc(rows, count), weight_OI[:, :, None, None])
        wants = [True, wants_weight, wants_weight]
        grad_rows, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            *given, [len(weight_OI)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wants
        )
        grad_rows = grad_rows.permute(0, 2, 3, 1).reshape(rows.shape)
        return (grad_rows, grad_weight.flatten(1), grad_bias) if wants_weight else (grad_rows, *_nothing(grad))
    grad_rows = grad @ weight_OI
    return grad_rows, *(weight_backward(grad, rows) if wants_weight else _nothing(grad))


def weight_backward(grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `linear` for weight and bias alone; arguments as in `linear_backward`."""
    count = _images(rows)
    if not count:
        flat = grad.flatten(0, -2)
        return flat.t() @ rows.flatten(0, -2), flat.sum(0)
    O, I = grad.shape[-1], rows.shape[-1]  # noqa: E741 - as in the shapes
    given = (_as_nhwc(grad, count), _as_nhwc(rows, count), grad.new_empty(O, I, 1, 1))
    _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        *given, [O], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, True]
    )
    return grad_weight.flatten(1), grad_bias


def _nothing(grad: Tensor) -> tuple[Tensor, Tensor]:
    return grad.new_empty(0), grad.new_empty(0)


def _images(rows: Tensor) -> int:
    """Into how many equal images the rows are split for a convolution; 0: use a linear layer."""
    if rows.dtype != torch.float32 or rows.device.type != "cpu" or not _has_fast_convolutions():
        return 0
    num_rows = rows.numel() // rows.shape[-1]
    counts = range(_LEAST_IMAGES, _MOST_IMAGES + 1) if num_rows else ()
    return next((count for count in counts if num_rows % count == 0), 0)


@functools.cache
def _has_fast_convolutions() -> bool:
    wide = torch.backends.mkldnn.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return wide and processor_vendor() != "GenuineIntel"


def _as_nhwc(rows: Tensor, count: int) -> Tensor:
    """Rows as the pixels of `count` images, channels last; no copy."""
    return rows.view(count, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)
