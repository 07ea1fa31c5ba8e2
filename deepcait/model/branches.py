"""The residual branches of a patch block as two operators that keep little for the backward pass.

    attention:  x + keep gamma_1 (W_o heads(W_qkv norm(x) + b_qkv) + b_o)
    MLP:        x + keep gamma_2 (W_2 gelu(W_1 norm(x) + b_1) + b_2)

Kept for the backward pass: x, and what a linear layer made: queries, keys, values and what the heads read; the
hidden layer before its GELU. Computed again: the norm, GELU, the attention maps. `small` keeps x alone. LayerScale
keeps nothing: with g the gradient of the branch's end and a what the last linear layer reads,

    d W = gamma (g' a),    d b = gamma sum(g),    d gamma = W . (g' a) + b sum(g)    channel by channel

`block.py` has the equations a line at a time; parity tests hold the two together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from deepcait.model.lean import heads_backward_flops, heads_flops, read_heads, read_heads_backward, unaided
from deepcait.model.products import linear, linear_backward

NORM_EPS = 1e-6


@torch.library.custom_op("deepcait::mlp_branch", mutates_args=())
def mlp_branch(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor,
    keep: Tensor | None, dtype: torch.dtype, small: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return x plus the MLP's branch, (B, N, D), and the hidden layer before its GELU, (B, N, hidden) or empty.

    Args:
        x: (B, N, D), the residual stream; the parameters follow in the order of the equation.
        keep: (B, 1, 1), factor of each image's branch (stochastic depth); None is 1.
        dtype: of the products.
        small: keep no hidden layer.
    """
    with unaided(x):
        tokens, _, _ = _normalise(x, norm_w, norm_b, dtype)
        hidden = linear(tokens, w1.to(dtype), b1.to(dtype))
        branch = linear(F.gelu(hidden), w2.to(dtype), b2.to(dtype))
        return _add(x, branch, gamma, keep), _nothing(hidden) if small else hidden


@torch.library.custom_op("deepcait::mlp_branch_backward", mutates_args=())
def mlp_branch_backward(
    grad: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    gamma: Tensor, keep: Tensor | None, hidden: Tensor, dtype: torch.dtype, train: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradient for x, then (if `train`) those for the seven parameters."""
    with unaided(x):
        tokens, mean, rstd = _normalise(x, norm_w, norm_b, dtype)
        if not hidden.numel():
            hidden = linear(tokens, w1.to(dtype), b1.to(dtype))
        grad_read, last = _last_layer_backward(grad, keep, F.gelu(hidden), w2, b2, gamma, train)
        grad_hidden = torch.ops.aten.gelu_backward.grad_input(grad_read, hidden, grad_input=grad_read)
        grad_tokens, grad_w1, grad_b1 = linear_backward(grad_hidden, tokens, w1.to(dtype), wants_weight=train)
        grad_x, norms = _normalise_backward(grad, grad_tokens, x, mean, rstd, norm_w, norm_b, train)
        return [grad_x, *norms, grad_w1.to(w1.dtype), grad_b1.to(b1.dtype), *last] if train else [grad_x]


@torch.library.custom_op("deepcait::attention_branch", mutates_args=())
def attention_branch(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, w_qkv: Tensor, b_qkv: Tensor, mix_l: Tensor, mix_w: Tensor,
    bias_w: Tensor, w_o: Tensor, b_o: Tensor, gamma: Tensor, keep: Tensor | None, dtype: torch.dtype, small: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return x plus the attention's branch, (B, N, D); qkv (B, N, 3 D) and what the heads read (B, N, D), or empty.

    Args:
        x: (B, N, D), the residual stream; the parameters follow in the order of the equation.
        mix_l, mix_w, bias_w: of the head mixings; see `read_heads`.
        keep: (B, 1, 1), factor of each image's branch (stochastic depth); None is 1.
        dtype: of the products.
        small: keep neither qkv nor read.
    """
    with unaided(x):
        tokens, _, _ = _normalise(x, norm_w, norm_b, dtype)
        qkv = linear(tokens, w_qkv.to(dtype), b_qkv.to(dtype))
        read = read_heads(qkv, mix_l, mix_w, bias_w)
        out = _add(x, linear(read, w_o.to(dtype), b_o.to(dtype)), gamma, keep)
        return (out, _nothing(qkv), _nothing(read)) if small else (out, qkv, read)


@torch.library.custom_op("deepcait::attention_branch_backward", mutates_args=())
def attention_branch_backward(
    grad: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, w_qkv: Tensor, b_qkv: Tensor, mix_l: Tensor,
    mix_w: Tensor, bias_w: Tensor, w_o: Tensor, b_o: Tensor, gamma: Tensor, keep: Tensor | None, qkv: Tensor,
    read: Tensor, dtype: torch.dtype, train: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradient for x, then (if `train`) those for the ten parameters."""
    with unaided(x):
        tokens, mean, rstd = _normalise(x, norm_w, norm_b, dtype)
        if not qkv.numel():
            qkv = linear(tokens, w_qkv.to(dtype), b_qkv.to(dtype))
            read = read_heads(qkv, mix_l, mix_w, bias_w) if train else tokens
        grad_read, last = _last_layer_backward(grad, keep, read, w_o, b_o, gamma, train)
        grad_qkv, *mixings = read_heads_backward(grad_read, qkv, mix_l, mix_w, bias_w)
        grad_tokens, grad_w, grad_b = linear_backward(grad_qkv, tokens, w_qkv.to(dtype), wants_weight=train)
        grad_x, norms = _normalise_backward(grad, grad_tokens, x, mean, rstd, norm_w, norm_b, train)
        if not train:
            return [grad_x]
        return [grad_x, *norms, grad_w.to(w_qkv.dtype), grad_b.to(b_qkv.dtype), *mixings, *last]


# -- the parts both share ---------------------------------------------------------------------------------------------


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised tokens in the dtype of the products, mean and reciprocal deviation of each."""
    tokens, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, NORM_EPS)
    return tokens.to(dtype), mean, rstd


def _normalise_backward(
    grad: Tensor, grad_tokens: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, train: bool
) -> tuple[Tensor, list[Tensor]]:
    """The stream's own gradient plus the branch's through the norm; the gradients of the norm's two parameters."""
    grad_x, *norms = torch.ops.aten.native_layer_norm_backward(
        grad_tokens.to(x.dtype), x, weight.shape, mean, rstd, weight, bias, [True, train, train]
    )
    return grad_x.add_(grad), norms


def _add(x: Tensor, branch: Tensor, gamma: Tensor, keep: Tensor | None) -> Tensor:
    scale = gamma if keep is None else gamma * keep
    return torch.addcmul(x, branch.to(x.dtype), scale.to(x.dtype))


def _last_layer_backward(
    grad: Tensor, keep: Tensor | None, read: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, train: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradient for what the last linear layer reads; for its weight, its bias and gamma.

    gamma is laid into the weight, a small matrix, rather than into the tokens.
    """
    grad = (grad if keep is None else grad * keep).to(read.dtype)
    scaled = (gamma[:, None] * weight).to(read.dtype)
    grad_read, outer, sums = linear_backward(grad, read, scaled, wants_weight=train)
    if not train:
        return grad_read, ()
    outer, sums = outer.to(weight.dtype), sums.to(weight.dtype)
    return grad_read, (gamma[:, None] * outer, gamma * sums, (weight * outer).sum(1) + bias * sums)


def _nothing(tensor: Tensor) -> Tensor:
    return tensor.new_empty(0)


# -- what PyTorch wants to know of an operator ------------------------------------------------------------------------


@mlp_branch.register_fake
def _(x, norm_w, norm_b, w1, b1, w2, b2, gamma, keep, dtype, small):
    hidden = x.new_empty(0 if small else (*x.shape[:-1], len(w1)), dtype=dtype)
    return torch.empty_like(x), hidden


@attention_branch.register_fake
def _(x, norm_w, norm_b, w_qkv, b_qkv, mix_l, mix_w, bias_w, w_o, b_o, gamma, keep, dtype, small):
    qkv = x.new_empty(0 if small else (*x.shape[:-1], len(w_qkv)), dtype=dtype)
    return torch.empty_like(x), qkv, x.new_empty(0 if small else x.shape, dtype=dtype)


@mlp_branch_backward.register_fake
def _(grad, x, *rest):
    *parameters, _keep, _hidden, _dtype, train = rest
    return [torch.empty_like(tensor) for tensor in ((x, *parameters) if train else (x,))]


@attention_branch_backward.register_fake
def _(grad, x, *rest):
    *parameters, _keep, _qkv, _read, _dtype, train = rest
    return [torch.empty_like(tensor) for tensor in ((x, *parameters) if train else (x,))]


def _save(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dtype, _small = inputs
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *kept)


def _backward_of(operator):
    def backward(ctx, grad: Tensor | None, *_: object) -> tuple:
        num_inputs = len(ctx.needs_input_grad)
        if grad is None:
            return (None,) * num_inputs
        train = any(ctx.needs_input_grad[1:])
        grads = operator(grad.contiguous(), *ctx.saved_tensors, ctx.dtype, train)
        return (*grads, *(None,) * (num_inputs - len(grads)))

    return backward


mlp_branch.register_autograd(_backward_of(mlp_branch_backward), setup_context=_save)
attention_branch.register_autograd(_backward_of(attention_branch_backward), setup_context=_save)


def _products(x_shape: list[int], *layers: list[int]) -> int:
    """Floating-point operations of linear layers over all tokens."""
    return sum(2 * x_shape[0] * x_shape[1] * layer[0] * layer[1] for layer in layers)


@register_flop_formula(torch.ops.deepcait.mlp_branch)
def _(x, norm_w, norm_b, w1, b1, w2, *_: object, **__: object) -> int:
    return _products(x, w1, w2)


@register_flop_formula(torch.ops.deepcait.mlp_branch_backward)
def _(grad, x, norm_w, norm_b, w1, b1, w2, *_: object, **__: object) -> int:
    return 2 * _products(x, w1, w2)


@register_flop_formula(torch.ops.deepcait.attention_branch)
def _(x, norm_w, norm_b, w_qkv, b_qkv, mix_l, mix_w, bias_w, w_o, *_: object, **__: object) -> int:
    return _products(x, w_qkv, w_o) + heads_flops(x[0], x[1], x[2], mix_l[0])


@register_flop_formula(torch.ops.deepcait.attention_branch_backward)
def _(grad, x, norm_w, norm_b, w_qkv, b_qkv, mix_l, mix_w, bias_w, w_o, *_: object, **__: object) -> int:
    return 2 * _products(x, w_qkv, w_o) + heads_backward_flops(x[0], x[1], x[2], mix_l[0])
