"""The residual branches of a patch block as two operators that save few activations for the backward pass.

    attention:  x + keep gamma_1 (W_o heads(W_qkv norm(x) + b_qkv) + b_o)
    MLP:        x + keep gamma_2 (W_2 gelu(W_1 norm(x) + b_1) + b_2)

Saved for the backward pass: x, the norm's statistics, and the outputs of linear layers (queries, keys, values, the
attention output; the hidden layer before its GELU). Recomputed: normalised tokens, GELU, attention maps. With `small`,
only x and the statistics are saved. LayerScale saves nothing: its gradient follows from the weight's (`layers.py`).
`model/block.py` has the equations; parity tests compare the two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from deepcait.backends.heads import autocast_disabled, read_heads, read_heads_backward, refuse_second_derivative
from deepcait.backends.layers import linear_add, linear_add_backward, norm_linear, norm_linear_backward
from deepcait.backends.operators import operator

# How many parameters follow x in the arguments of each branch.
_MLP_PARAMETERS, _ATTENTION_PARAMETERS = 7, 11
# Positions of the saved tensors in the backward operators' arguments, for their FLOP formulas.
_MLP_REST, _ATTENTION_REST = 7, 9


@operator("deepcait::mlp_branch")
def mlp_branch(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor,
    keep: Tensor | None, eps: float, dtype: torch.dtype, small: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return x plus the MLP's branch, (B, N, D), then the saved tensors: mean, rstd, hidden.

    Args:
        x: (B, N, D), the residual stream; the parameters follow in the order of the equation.
        keep: (B, 1, 1), factor of each image's branch (stochastic depth); None is 1.
        eps: of the norm.
        dtype: of the products.
        small: do not save the hidden layer.
    """
    with autocast_disabled(x):
        hidden, mean, rstd = norm_linear(x, norm_w, norm_b, w1, b1, eps, dtype)
        out = linear_add(x, hidden, w2, b2, gamma, keep, has_gelu=True)
        return out, mean, rstd, _nothing(hidden) if small else hidden


@operator("deepcait::mlp_branch_backward")
def mlp_branch_backward(
    grad: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    gamma: Tensor, keep: Tensor | None, mean: Tensor, rstd: Tensor, hidden: Tensor, eps: float, dtype: torch.dtype,
    train: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradient for x, then (if `train`) those for the seven parameters."""
    with autocast_disabled(x):
        if not hidden.numel():
            hidden, *_ = norm_linear(x, norm_w, norm_b, w1, b1, eps, dtype)
        given = hidden, w2, b2, gamma, keep, dtype
        grad_hidden, last = linear_add_backward(grad, *given, has_gelu=True, train=train)
        given = x, mean, rstd, norm_w, norm_b, w1
        grad_x, first = norm_linear_backward(grad, grad_hidden, *given, eps, train)
        return [grad_x, *first, *last]


@operator("deepcait::attention_branch")
def attention_branch(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, w_qkv: Tensor, b_qkv: Tensor, mix_l: Tensor, bias_l: Tensor,
    mix_w: Tensor, bias_w: Tensor, w_o: Tensor, b_o: Tensor, gamma: Tensor, keep: Tensor | None, eps: float,
    dtype: torch.dtype, small: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return x plus the attention's branch, (B, N, D), then the saved tensors: mean, rstd, qkv, read.

    Args:
        x: (B, N, D), the residual stream; the parameters follow in the order of the equation.
        mix_l, bias_l, mix_w, bias_w: of the head mixings; see `read_heads`. The softmax cancels `bias_l`: it is an
            argument so that it gets a gradient, of zeros.
        keep: (B, 1, 1), factor of each image's branch (stochastic depth); None is 1.
        eps: of the norm.
        dtype: of the products.
        small: save neither qkv nor read.
    """
    with autocast_disabled(x):
        qkv, mean, rstd = norm_linear(x, norm_w, norm_b, w_qkv, b_qkv, eps, dtype)
        read = read_heads(qkv, mix_l, mix_w, bias_w)
        out = linear_add(x, read, w_o, b_o, gamma, keep, has_gelu=False)
        kept = (_nothing(qkv), _nothing(read)) if small else (qkv, read)
        return out, mean, rstd, *kept


@operator("deepcait::attention_branch_backward")
def attention_branch_backward(
    grad: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, w_qkv: Tensor, b_qkv: Tensor, mix_l: Tensor,
    bias_l: Tensor, mix_w: Tensor, bias_w: Tensor, w_o: Tensor, b_o: Tensor, gamma: Tensor, keep: Tensor | None,
    mean: Tensor, rstd: Tensor, qkv: Tensor, read: Tensor, eps: float, dtype: torch.dtype, train: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradient for x, then (if `train`) those for the eleven parameters."""
    with autocast_disabled(x):
        if not qkv.numel():
            qkv, *_ = norm_linear(x, norm_w, norm_b, w_qkv, b_qkv, eps, dtype)
            read = read_heads(qkv, mix_l, mix_w, bias_w) if train else read
        given = read, w_o, b_o, gamma, keep, dtype
        grad_read, last = linear_add_backward(grad, *given, has_gelu=False, train=train)
        grad_qkv, grad_l, *second_mixing = read_heads_backward(grad_read, qkv, mix_l, mix_w, bias_w)
        given = x, mean, rstd, norm_w, norm_b, w_qkv
        grad_x, first = norm_linear_backward(grad, grad_qkv, *given, eps, train)
        return [grad_x, *first, grad_l, torch.zeros_like(bias_l), *second_mixing, *last] if train else [grad_x]


def _nothing(tensor: Tensor) -> Tensor:
    return tensor.new_empty(0)


@torch.library.register_fake("deepcait::mlp_branch")
def _(x, norm_w, norm_b, w1, b1, w2, b2, gamma, keep, eps, dtype, small):
    rows = x.shape[:-1]
    hidden = x.new_empty(0 if small else (*rows, len(b1)), dtype=dtype)
    return torch.empty_like(x), *_fake_statistics(x), hidden


@torch.library.register_fake("deepcait::attention_branch")
def _(x, norm_w, norm_b, w_qkv, b_qkv, mix_l, bias_l, mix_w, bias_w, w_o, b_o, gamma, keep, eps, dtype, small):
    rows = x.shape[:-1]
    qkv = x.new_empty(0 if small else (*rows, len(b_qkv)), dtype=dtype)
    read = x.new_empty(0 if small else (*rows, len(b_qkv) // 3), dtype=dtype)
    return torch.empty_like(x), *_fake_statistics(x), qkv, read


@torch.library.register_fake("deepcait::mlp_branch_backward")
def _(grad, x, *rest):
    parameters, train = rest[:_MLP_PARAMETERS], rest[-1]
    return [torch.empty_like(x), *(torch.empty_like(p) for p in parameters)] if train else [torch.empty_like(x)]


@torch.library.register_fake("deepcait::attention_branch_backward")
def _(grad, x, *rest):
    parameters, train = rest[:_ATTENTION_PARAMETERS], rest[-1]
    return [torch.empty_like(x), *(torch.empty_like(p) for p in parameters)] if train else [torch.empty_like(x)]


def _fake_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32) if x.device.type != "cpu" else x.dtype
    return x.new_empty(*x.shape[:-1], 1, dtype=dtype), x.new_empty(*x.shape[:-1], 1, dtype=dtype)


def _save(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.dtype, _ = inputs
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # else PyTorch fills tensors with zeros for what is not differentiable
    ctx.save_for_backward(*tensors, *kept)
    # Frozen weights need no gradients: their products are left out.
    ctx.train = any(ctx.needs_input_grad[1:-3])


def _backward_of(operator, num_parameters: int):
    def backward(ctx, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = operator(grad.contiguous(), *ctx.saved_tensors, ctx.eps, ctx.dtype, ctx.train)
        of_parameters = grads[1:] if ctx.train else [None] * num_parameters
        return grads[0], *of_parameters, None, None, None, None  # none for keep, eps, dtype, small

    return backward


torch.library.register_autograd(
    "deepcait::mlp_branch", _backward_of(mlp_branch_backward, _MLP_PARAMETERS), setup_context=_save
)
torch.library.register_autograd(
    "deepcait::attention_branch", _backward_of(attention_branch_backward, _ATTENTION_PARAMETERS), setup_context=_save
)
torch.library.register_autograd("deepcait::mlp_branch_backward", refuse_second_derivative)
torch.library.register_autograd("deepcait::attention_branch_backward", refuse_second_derivative)


@register_flop_formula(torch.ops.deepcait.mlp_branch)
def _(x_shape: list[int], norm_w: object, norm_b: object, w1_shape: list[int], *_: object, **__: object) -> int:
    """Two products of the width and the hidden width."""
    (B, N, D), hidden = x_shape, w1_shape[0]
    return 2 * B * N * 2 * D * hidden


@register_flop_formula(torch.ops.deepcait.mlp_branch_backward)
def _(
    grad: object, x_shape: list[int], norm_w: object, norm_b: object, w1_shape: list[int], *rest, **__: object
) -> int:
    """Each product for its input and, in training, for its weight; the first once more if it was not saved."""
    (B, N, D), hidden = x_shape, w1_shape[0]
    again, train = 0 in rest[_MLP_REST], rest[_MLP_REST + 3]
    return 2 * B * N * D * hidden * (2 + 2 * train + again)


@register_flop_formula(torch.ops.deepcait.attention_branch)
def _(x_shape: list[int], nw: object, nb: object, qkv: object, bq: object, mix: list[int], *_, **__) -> int:
    """Four products of the width, two with the heads' width, two mixings, counted like the reference."""
    (B, N, D), A = x_shape, mix[0]
    return 2 * B * N * (4 * D * D + N * (2 * D + 2 * A * A))


@register_flop_formula(torch.ops.deepcait.attention_branch_backward)
def _(
    grad: object, x_shape: list[int], nw: object, nb: object, qkv: object, bq: object, mix: list[int], *rest, **__
) -> int:
    """The maps once more (one product, two mixings), then every product and mixing twice; more or fewer as above."""
    (B, N, D), A = x_shape, mix[0]
    again, train = 0 in rest[_ATTENTION_REST], rest[_ATTENTION_REST + 4]
    linear = 4 * D * D * (1 + train) + 3 * D * D * again
    maps = N * (5 * D + 6 * A * A) + again * train * N * (2 * D + 2 * A * A)
    return 2 * B * N * (linear + maps)
