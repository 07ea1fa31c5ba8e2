"""The linear layers of a residual branch with what surrounds them: the norm before, GELU, LayerScale and the sum after.

On a CPU, in float32, machine code computes them if it can (`native.py`). It multiplies the norm's weight
and LayerScale into the weights, and their gradients follow from the weight's:

    W = V diag(w), b = c + V v:    dV = dW diag(w) + db v',    dw = sum over outputs of V * dW,    dv = V' db
    W = diag(gamma) V:             dV = diag(gamma) dW,        dgamma = sum over inputs of V * dW + c * db

where dW, in the second line before the multiplication by gamma, is g' a of the output's gradient g and the input a.
Without machine code, LayerScale's gradients are computed in the same way, and the norm's by PyTorch.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcait.backends import native
from deepcait.backends.products import linear, linear_backward, weight_backward

# Largest accepted difference between the machine code's results and PyTorch's, in units of their standard deviation.
_TOLERANCE = 1e-4


def norm_linear(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a linear layer of normalised tokens, (..., O), in `dtype`, and the norm's statistics, mean and rstd.

    Args:
        x: (..., D), contiguous.
        norm_w, norm_b: (D), of the norm. weight, bias: (O, D) and (O), of the layer.
        eps: of the norm.
        dtype: of the product.
    """
    if _is_native(x, weight, dtype):
        return native.norm_linear(x, weight, norm_w, torch.addmv(bias, weight, norm_b), eps)
    tokens, mean, rstd = torch.native_layer_norm(x, norm_w.shape, norm_w, norm_b, eps)
    return linear(tokens.to(dtype), weight.to(dtype), bias.to(dtype)), mean, rstd


def norm_linear_backward(
    grad: Tensor, grad_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, norm_w: Tensor, norm_b: Tensor,
    weight: Tensor, eps: float, train: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """Return the gradient of the residual stream, then (if `train`) those for norm_w, norm_b, weight and bias.

    Args:
        grad: like x, the gradient that passes by the layer. grad_out: of the output of `norm_linear`, contiguous.
        mean, rstd: the statistics that `norm_linear` returned.
        train: whether the parameters need gradients.
    """
    dtype = grad_out.dtype
    if _is_native(x, weight, dtype):
        grad_x, normal = native.norm_linear_backward(grad, grad_out, weight, norm_w, x, mean, rstd)
        if not train:
            return grad_x, ()
        outer, grad_bias = weight_backward(grad_out, normal)
        outer = outer.contiguous()
        norm_grads = native.norm_gradients(outer, grad_bias, weight, norm_w, norm_b)
        return grad_x, (*norm_grads, outer, grad_bias)
    # Recomputed with its statistics: one pass over memory, where the saved statistics would need three.
    tokens = torch.native_layer_norm(x, norm_w.shape, norm_w, norm_b, eps)[0] if train else x.new_empty(0)
    grad_tokens, *grads = linear_backward(grad_out, tokens.to(dtype), weight.to(dtype), wants_weight=train)
    grad_x, *norm_grads = torch.ops.aten.native_layer_norm_backward(
        grad_tokens.to(x.dtype), x, norm_w.shape, mean, rstd, norm_w, norm_b, [True, train, train]
    )
    grads = [*norm_grads, *(one.to(weight.dtype) for one in grads)] if train else []
    return grad_x.add_(grad), tuple(grads)


def linear_add(
    x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, keep: Tensor | None, *, has_gelu: bool
) -> Tensor:
    """Return x + keep gamma (rows W' + b), (B, N, D), for rows (B, N, I), or the same of their GELU.

    The product is in the dtype of the rows. keep is (B, 1, 1), or None, which is 1.
    """
    dtype = rows.dtype
    if _is_native(x, weight, dtype):
        return native.linear_add(x, rows, weight, gamma, gamma * bias, keep, has_gelu)
    branch = linear(F.gelu(rows) if has_gelu else rows, weight.to(dtype), bias.to(dtype))
    scale = gamma if keep is None else gamma * keep
    return torch.addcmul(x, branch.to(x.dtype), scale.to(x.dtype))


def linear_add_backward(
    grad: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, keep: Tensor | None, dtype: torch.dtype,
    *, has_gelu: bool, train: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """Return the gradient of `linear_add` for the rows, then (if `train`) those for weight, bias and gamma.

    The rows may be empty if neither GELU nor a parameter needs them. gamma multiplies the weight, a matrix, rather
    than the tokens.
    """
    grad_branch = grad if keep is None else grad * keep
    if _is_native(grad, weight, dtype):
        grad_rows, read = native.linear_add_backward(grad, weight, gamma, keep, rows if has_gelu else None)
        if not train:
            return grad_rows, ()
        outer, sums = weight_backward(grad_branch, read if has_gelu else rows)
        outer = outer.contiguous()
        along = native.scale_gradients(outer, weight, gamma)
        return grad_rows, (outer, gamma * sums, along + bias * sums)
    read = F.gelu(rows) if has_gelu else rows
    given = grad_branch.to(dtype), read, (gamma[:, None] * weight).to(dtype)
    grad_rows, outer, sums = linear_backward(*given, wants_weight=train)
    if has_gelu:
        grad_rows = torch.ops.aten.gelu_backward.grad_input(grad_rows, rows, grad_input=grad_rows)
    if not train:
        return grad_rows, ()
    outer, sums = outer.to(weight.dtype), sums.to(weight.dtype)
    grad_gamma = (weight * outer).sum(1) + bias * sums
    return grad_rows, (outer.mul_(gamma[:, None]), gamma * sums, grad_gamma)


def _is_native(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    return native.supports_layer(x, weight, dtype) and _native_agrees()


@functools.cache
def _native_agrees() -> bool:
    """Whether the machine code's results equal PyTorch's, since compilers may have bugs."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    B, N, D, H, eps = 3, 41, 64, 144, 1e-6
    x, grad, rows, keep = draw(B, N, D), draw(B, N, D), draw(B, N, H), draw(B, 1, 1)
    first, last, bias, bias_last = draw(H, D), draw(D, H), draw(H), draw(D)
    scale, gamma = draw(D), draw(D)
    out, mean, rstd = native.norm_linear(x, first, scale, bias, eps)
    grad_x, _ = native.norm_linear_backward(grad, rows, first, scale, x, mean, rstd)
    found = [out, grad_x, native.linear_add(x, rows, last, gamma, bias_last, keep, True)]
    found += native.linear_add_backward(grad, last, gamma, keep, rows)
    outer = draw(H, D)
    of_norm, of_scale = outer.clone(), outer.clone()
    found += [*native.norm_gradients(of_norm, bias, first, scale, gamma), of_norm]
    found += [native.scale_gradients(of_scale, first, bias), of_scale]
    of_weights = [(first * outer).sum(0), bias @ first, outer * scale + bias[:, None] * gamma]
    of_weights += [(first * outer).sum(1), outer * bias[:, None]]
    first, last = first * scale, last * gamma[:, None]
    normal, *statistics = torch.native_layer_norm(x, (D,), None, None, eps)
    through_norm = torch.ops.aten.native_layer_norm_backward(
        rows @ first, x, (D,), *statistics, None, None, [True, False, False]
    )[0]
    read, grad_read = F.gelu(rows), grad * keep @ last
    expected = [normal @ first.t() + bias, grad + through_norm, x + keep * (read @ last.t() + bias_last)]
    expected += [torch.ops.aten.gelu_backward(grad_read, rows), read, *of_weights]
    pairs = zip(found, expected, strict=True)
    return all(bool((one - other).abs().max() <= _TOLERANCE * other.std()) for one, other in pairs)
