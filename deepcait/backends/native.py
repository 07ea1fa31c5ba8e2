"""Machine code of a training step, compiled by this machine's compiler at first use; optional.

Without a compiler, and for sizes that the code does not support, `heads.py` and `layers.py` compute the same in
PyTorch. DEEPCAIT_NATIVE=0 disables it. Everything here is contiguous float32 on the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from deepcait.backends.operators import operator
from deepcait.runtime.compiler import FLAGS, compile_library

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("heads.cpp", "layers.cpp"))
# The arithmetic of all machine code, also of the patch stage in `deepcait/inference`.
HEADERS = tuple(
    Path(__file__).with_name(name) for name in ("products.h", "tiles.h", "mixing.h", "arithmetic.h", "vectors.h")
)


def supports_heads(qkv_BND3: Tensor, num_heads: int) -> bool:
    """Whether the code is available and supports these sizes: at most 16 heads, of a width that is a multiple of 16.

    Without AVX512 the width is a multiple of 8. Mixings and softmax are in float32, and so are all products of float32.
    Products of bfloat16 are in bfloat16 on processors with AMX, with float32 sums, and in float32 on others.
    """
    if qkv_BND3.device.type != "cpu" or qkv_BND3.dtype not in (torch.float32, torch.bfloat16):
        return False
    code = library()
    return code is not None and code.heads_items(*_sizes(qkv_BND3, num_heads)) > 0


def supports_layer(x: Tensor, weight_OI: Tensor, dtype: torch.dtype) -> bool:
    """Whether the code is available, for products in float32 and widths that are multiples of 16 (of 8: see above)."""
    if x.device.type != "cpu" or not x.dtype == weight_OI.dtype == dtype == torch.float32 or not x.numel():
        return False
    if not weight_OI.is_contiguous():
        return False
    code = library()
    return code is not None and bool(code.layers_support(*weight_OI.shape))


@operator("deepcait::native_read_heads")
def read_heads(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> Tensor:
    """`heads.read_heads` as machine code. A result depends only on its image."""
    code, sizes, is_bf16 = _required(), _sizes(qkv_BND3, len(bias_w_A)), qkv_BND3.dtype == torch.bfloat16
    qkv, given = _floats(qkv_BND3), _mixing(qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)
    out_BND = qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)
    buffer = qkv.new_empty(code.heads_buffer(*sizes, is_bf16, False))
    _call(code.heads_read, (qkv, *given, out_BND, buffer), *sizes, is_bf16)
    return out_BND.to(qkv_BND3.dtype)


@operator("deepcait::native_read_heads_backward")
def read_heads_backward(
    grad_BND: Tensor, qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`heads.read_heads_backward` as machine code. Sums depend on the threads if these outnumber images."""
    code, A, sizes = _required(), len(bias_w_A), _sizes(qkv_BND3, len(bias_w_A))
    is_bf16 = qkv_BND3.dtype == torch.bfloat16
    qkv, given = _floats(qkv_BND3), _mixing(qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)
    grad_qkv, mixings = torch.empty_like(qkv), qkv.new_empty(code.heads_items(*sizes), 2 * A * A + A)
    buffer = qkv.new_empty(code.heads_buffer(*sizes, is_bf16, True))
    _call(code.heads_backward, (_floats(grad_BND), qkv, *given, grad_qkv, mixings, buffer), *sizes, is_bf16)
    grad_l, grad_w, grad_bias = mixings.sum(0).split((A * A, A * A, A))
    grad_l = (grad_l * _scale(qkv_BND3, A)).view(A, A).to(mix_l_AA.dtype)
    return grad_qkv.to(qkv_BND3.dtype), grad_l, grad_w.view(A, A).to(mix_w_AA.dtype), grad_bias.to(bias_w_A.dtype)


@operator("deepcait::native_norm_linear")
def norm_linear(
    x: Tensor, weight_OI: Tensor, scale_I: Tensor, bias_O: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scale norm(x)) W' + bias, and of each row of x (..., I) the mean and 1 / standard deviation, (..., 1)."""
    (O, I), threads = weight_OI.shape, torch.get_num_threads()  # noqa: E741 - as in the shapes
    out = x.new_empty(*x.shape[:-1], O)
    mean, rstd = (x.new_empty(*x.shape[:-1], 1) for _ in range(2))
    tensors = (x, weight_OI, scale_I.contiguous(), bias_O, out, mean, rstd, _buffer(weight_OI))
    _call(_required().layers_norm_linear, tensors, mean.numel(), I, O, eps, threads)
    return out, mean, rstd


@operator("deepcait::native_norm_linear_backward")
def norm_linear_backward(
    grad: Tensor, grad_out: Tensor, weight_OI: Tensor, scale_I: Tensor, x: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Return grad plus the gradient of `norm_linear` for x, from that of its output; and norm(x)."""
    (O, I), threads = weight_OI.shape, torch.get_num_threads()  # noqa: E741
    grad_x, normal = torch.empty_like(x), torch.empty_like(x)
    tensors = (grad, grad_out, weight_OI, scale_I.contiguous(), x, mean, rstd, grad_x, normal, _buffer(weight_OI))
    _call(_required().layers_norm_linear_backward, tensors, mean.numel(), O, I, threads)
    return grad_x, normal


@operator("deepcait::native_linear_add")
def linear_add(
    x: Tensor, rows: Tensor, weight_OI: Tensor, scale_O: Tensor, bias_O: Tensor, keep: Tensor | None, has_gelu: bool
) -> Tensor:
    """Return x + keep (scale (rows W') + bias), (B, N, O), or the same of gelu(rows).

    keep is (B, 1, 1), or None, which is 1.
    """
    (O, I), out = weight_OI.shape, torch.empty_like(x)  # noqa: E741
    tensors = (x, rows, weight_OI, scale_O.contiguous(), bias_O, keep, out, _buffer(weight_OI))
    sizes = x.numel() // O, x.shape[-2], I, O
    _call(_required().layers_linear_add, tensors, *sizes, has_gelu, torch.get_num_threads())
    return out


@operator("deepcait::native_linear_add_backward")
def linear_add_backward(
    grad: Tensor, weight_OI: Tensor, scale_O: Tensor, keep: Tensor | None, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return keep (scale grad) W; or, given a hidden layer, the gradient for it (through GELU) and gelu(hidden)."""
    O, I = weight_OI.shape  # noqa: E741
    grad_rows = grad.new_empty(*grad.shape[:-1], I)
    read = grad.new_empty(0) if hidden is None else torch.empty_like(hidden)
    tensors = (grad, weight_OI, scale_O.contiguous(), keep, hidden, grad_rows, read, _buffer(weight_OI))
    sizes = grad.numel() // O, grad.shape[-2], O, I
    _call(_required().layers_linear_add_backward, tensors, *sizes, torch.get_num_threads())
    return grad_rows, read


@operator("deepcait::native_norm_gradients", changes=("outer_OI",))
def norm_gradients(
    outer_OI: Tensor, grad_bias_O: Tensor, weight_OI: Tensor, scale_I: Tensor, shift_I: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of scale and shift, of a layer with the weight W = V diag(scale) and the bias b + V shift.

    outer_OI, the gradient of W, becomes that of V, which is weight_OI.
    """
    grads = torch.empty_like(scale_I), torch.empty_like(shift_I)
    tensors = (outer_OI, grad_bias_O, weight_OI, scale_I.contiguous(), shift_I.contiguous(), *grads)
    _call(_required().layers_norm_gradients, tensors, *weight_OI.t().shape, torch.get_num_threads())
    return grads


@operator("deepcait::native_scale_gradients", changes=("outer_OI",))
def scale_gradients(outer_OI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """Return the sums over I of outer_OI times weight_OI; then outer_OI is multiplied by scale_O."""
    sums_O = torch.empty_like(scale_O, memory_format=torch.contiguous_format)
    tensors = (outer_OI, weight_OI, scale_O.contiguous(), sums_O)
    _call(_required().layers_scale_gradients, tensors, *weight_OI.t().shape, torch.get_num_threads())
    return sums_O


@register_flop_formula(torch.ops.deepcait.native_norm_linear)
def _(x_shape: list[int], weight_shape: list[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x_shape) * weight_shape[0]


@register_flop_formula(torch.ops.deepcait.native_norm_linear_backward)
def _(x_shape: list[int], _grad_shape: list[int], weight_shape: list[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x_shape) * weight_shape[0]


@register_flop_formula(torch.ops.deepcait.native_linear_add)
def _(x_shape: list[int], _rows_shape: list[int], weight_shape: list[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x_shape) * weight_shape[1]


@register_flop_formula(torch.ops.deepcait.native_linear_add_backward)
def _(grad_shape: list[int], weight_shape: list[int], *_: object, **__: object) -> int:
    return 2 * math.prod(grad_shape) * weight_shape[1]


@register_flop_formula(torch.ops.deepcait.native_read_heads)
def _(qkv_shape: list[int], mix_shape: list[int], *_: object, **__: object) -> int:
    (B, N, width), A = qkv_shape, mix_shape[0]
    return 2 * B * N * N * (2 * width // 3 + 2 * A * A)


@register_flop_formula(torch.ops.deepcait.native_read_heads_backward)
def _(_grad_shape: list[int], qkv_shape: list[int], mix_shape: list[int], *_: object, **__: object) -> int:
    (B, N, width), A = qkv_shape, mix_shape[0]
    return 2 * B * N * N * (5 * width // 3 + 6 * A * A)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the machine code; None if it is not available."""
    if os.environ.get("DEEPCAIT_NATIVE", "1") == "0":
        return None
    try:
        return _declared(ctypes.CDLL(str(compiled())))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def compiled() -> Path:
    """Return the shared library; see `compile_library` for what is raised."""
    return compile_library("training_step", _SOURCES, HEADERS, FLAGS)


def _declared(code: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    for function, arguments, result in (
        (code.heads_items, [size] * 5, size),
        (code.heads_buffer, [size] * 7, size),
        (code.heads_read, [pointer] * 6 + [size] * 6, None),
        (code.heads_backward, [pointer] * 8 + [size] * 6, None),
        (code.layers_support, [size] * 2, size),
        (code.layers_buffer, [size] * 3, size),
        (code.layers_norm_linear, [pointer] * 8 + [size] * 3 + [real, size], None),
        (code.layers_norm_linear_backward, [pointer] * 10 + [size] * 4, None),
        (code.layers_linear_add, [pointer] * 8 + [size] * 6, None),
        (code.layers_linear_add_backward, [pointer] * 8 + [size] * 5, None),
        (code.layers_norm_gradients, [pointer] * 7 + [size] * 3, None),
        (code.layers_scale_gradients, [pointer] * 4 + [size] * 3, None),
    ):
        function.argtypes, function.restype = arguments, result
    return code


def _required() -> ctypes.CDLL:
    code = library()
    if code is None:
        raise RuntimeError("backends: the machine code is not available")
    return code


def _sizes(qkv_BND3: Tensor, A: int) -> tuple[int, int, int, int, int]:
    B, N, width = qkv_BND3.shape
    return B, N, A, width // (3 * A), torch.get_num_threads()


def _scale(qkv_BND3: Tensor, A: int) -> float:
    return (qkv_BND3.shape[-1] // (3 * A)) ** -0.5


def _mixing(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both mixings and the bias; the scale of the scores is part of the first."""
    return _floats(mix_l_AA) * _scale(qkv_BND3, len(bias_w_A)), _floats(mix_w_AA), _floats(bias_w_A)


def _floats(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


def _buffer(weight: Tensor) -> Tensor:
    return weight.new_empty(_required().layers_buffer(*weight.shape, torch.get_num_threads()))


def _call(function: Callable[..., None], tensors: Sequence[Tensor | None], *numbers: float) -> None:
    function(*(None if tensor is None else tensor.data_ptr() for tensor in tensors), *numbers)
