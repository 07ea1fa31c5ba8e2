"""Talking-heads attention computed block by block, without saving or copying N x N maps.

A block is a few images, or a few rows of one image, of all heads: small enough to stay in the processor's cache
through both mixings and the softmax. The backward pass recomputes each block instead of saving its maps. The
heads are mixed by one small matrix product on the (A, rows * N) view, and the bias of the second mixing becomes a
sum over the values. `model/attention.py` has the equations; parity tests compare the two. On a CPU, machine code
computes the same if it can (`native.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from deepcait.backends import native
from deepcait.backends.operators import operator
from deepcait.errors import ConfigError

# Measured: maps of this size fit a core's second-level cache, together with the tensors used at the same time.
BLOCK_BYTES = 1 << 20
# Largest accepted difference between the machine code's results and PyTorch's in float32, in units of their standard
# deviation: rounding causes 2e-2 in bfloat16.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def read_heads(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> Tensor:
    """Return the attention output of every patch, heads concatenated, (B, N, D).

    Products with queries, keys and values are in their dtype; both mixings and the softmax in at least float32.

    Args:
        qkv_BND3: (B, N, 3 D), queries, keys and values of all heads, as returned by the layer `qkv`.
        mix_l_AA: weight of the mixing before the softmax; its bias has no effect.
        mix_w_AA: weight of the mixing after it.
        bias_w_A: bias of the mixing after it.
    """
    if native.supports_heads(qkv_BND3, len(bias_w_A)) and _native_agrees(qkv_BND3.dtype):
        return native.read_heads(qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)
    return _read_in_blocks(qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)


def _read_in_blocks(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> Tensor:
    q, k, v = _split(qkv_BND3, len(bias_w_A))
    mix_l, mix_w = mix_l_AA.to(_wide(q)), mix_w_AA.to(_wide(q))
    out_BNAE = torch.empty_like(qkv_BND3[..., : q.shape[1] * q.shape[3]]).unflatten(-1, (q.shape[1], -1))
    value_sums_BA1E = bias_w_A.to(q.dtype)[:, None, None] * v.sum(2, keepdim=True)
    for images, rows in _blocks(q):
        _, weights = _weights(q[images, :, rows], k[images], mix_l)
        read = _mix(mix_w, weights).to(q.dtype) @ v[images] + value_sums_BA1E[images]
        out_BNAE[images, rows] = read.transpose(1, 2)
    return out_BNAE.flatten(2)


def read_heads_backward(
    grad_BND: Tensor, qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `read_heads` for its four arguments, with the maps recomputed."""
    if native.supports_heads(qkv_BND3, len(bias_w_A)) and _native_agrees(qkv_BND3.dtype):
        return native.read_heads_backward(grad_BND, qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)
    return _backward_in_blocks(grad_BND, qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)


def _backward_in_blocks(
    grad_BND: Tensor, qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = _split(qkv_BND3, len(bias_w_A))
    wide = _wide(q)
    mix_l, mix_w = mix_l_AA.to(wide), mix_w_AA.to(wide)
    grad_BANE = grad_BND.to(q.dtype).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
    # In the layout of the layer `qkv`'s output; the three are views of it.
    grad_BN3AE = qkv_BND3.new_zeros(qkv_BND3.shape).unflatten(-1, (3, q.shape[1], -1))
    grad_q, grad_k, grad_v = grad_BN3AE.permute(2, 0, 3, 1, 4).unbind(0)
    scale = q.shape[-1] ** -0.5
    grad_l, grad_w = torch.zeros_like(mix_l), torch.zeros_like(mix_w)
    for images, rows in _blocks(q):
        q_rows, grad_rows = q[images, :, rows], grad_BANE[images, :, rows].contiguous()
        scores, weights = _weights(q_rows, k[images], mix_l)
        grad_v[images] += _mix(mix_w, weights).to(q.dtype).transpose(-2, -1) @ grad_rows
        grad_mixed = (grad_rows @ v[images].transpose(-2, -1)).to(wide)
        grad_w += _mixing_grad(grad_mixed, weights)
        grad_weights = _mix(mix_w.T, grad_mixed)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, wide)
        grad_l += _mixing_grad(grad_scores, scores)
        grad_scores = _mix(mix_l.T, grad_scores).to(q.dtype)
        grad_q[images, :, rows] = (grad_scores @ k[images]).mul_(scale)
        grad_k[images] += grad_scores.transpose(-2, -1) @ q_rows
    grad_sums_BA1E = grad_BANE.sum(2, keepdim=True)
    grad_v += bias_w_A.to(q.dtype)[:, None, None] * grad_sums_BA1E
    grad_bias = (grad_sums_BA1E * v.sum(2, keepdim=True)).sum((0, 2, 3))
    return grad_BN3AE.flatten(2), grad_l.to(mix_l_AA.dtype), grad_w.to(mix_w_AA.dtype), grad_bias.to(bias_w_A.dtype)


@functools.cache
def _native_agrees(dtype: torch.dtype) -> bool:
    """Whether the machine code's results equal PyTorch's, since compilers may have bugs."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    B, N, A, E = 2, 37, 4, 48
    grad, qkv = draw(B, N, A * E).to(dtype), draw(B, N, 3 * A * E).to(dtype)
    mixing = draw(A, A), draw(A, A), draw(A)
    found = (native.read_heads(qkv, *mixing), *native.read_heads_backward(grad, qkv, *mixing))
    exact = qkv.float(), *mixing
    expected = (_read_in_blocks(*exact), *_backward_in_blocks(grad.float(), *exact))
    return all(
        bool((one.float() - other).abs().max() <= _TOLERANCES[dtype] * other.std())
        for one, other in zip(found, expected, strict=True)
    )


@operator("deepcait::talking_heads")
def talking_heads(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> Tensor:
    """`read_heads` as an operator of PyTorch."""
    with autocast_disabled(qkv_BND3):
        return read_heads(qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)


@operator("deepcait::talking_heads_backward")
def talking_heads_backward(
    grad_BND: Tensor, qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`read_heads_backward` as an operator of PyTorch."""
    with autocast_disabled(qkv_BND3):
        return read_heads_backward(grad_BND, qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)


def autocast_disabled(tensor: Tensor) -> torch.autocast:
    """Autocast off: inside an operator, types are explicit."""
    return torch.autocast(tensor.device.type, enabled=False)


@torch.library.register_fake("deepcait::talking_heads")
def _(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> Tensor:
    return qkv_BND3.new_empty(*qkv_BND3.shape[:-1], qkv_BND3.shape[-1] // 3)


@torch.library.register_fake("deepcait::talking_heads_backward")
def _(grad_BND: Tensor, qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor):
    return tuple(torch.empty_like(tensor) for tensor in (qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A))


@register_flop_formula(torch.ops.deepcait.talking_heads)
def _(qkv_shape: list[int], mix_shape: list[int], *_: object, **__: object) -> int:
    """Two products with the heads' width and two mixings: counted like the reference."""
    (B, N, width), A = qkv_shape, mix_shape[0]
    return 2 * B * N * N * (2 * width // 3 + 2 * A * A)


@register_flop_formula(torch.ops.deepcait.talking_heads_backward)
def _(_grad_shape: list[int], qkv_shape: list[int], mix_shape: list[int], *_: object, **__: object) -> int:
    """The maps again (one product, two mixings), then four products and four mixings."""
    (B, N, width), A = qkv_shape, mix_shape[0]
    return 2 * B * N * N * (5 * width // 3 + 6 * A * A)


def _save(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_BND: Tensor) -> tuple[Tensor, ...]:
    return talking_heads_backward(grad_BND, *ctx.saved_tensors)


def refuse_second_derivative(_ctx, *_grads: Tensor) -> NoReturn:
    """The derivative of a backward operator, which is not implemented.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "The lean backend has first derivatives only; second derivatives were requested.",
        remedy="Call model.set_backend('reference') before the forward pass.",
    )


torch.library.register_autograd("deepcait::talking_heads", _backward, setup_context=_save)
torch.library.register_autograd("deepcait::talking_heads_backward", refuse_second_derivative)


def _split(qkv_BND3: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values, each (B, A, N, E) and contiguous."""
    q, k, v = qkv_BND3.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
    return q.mul_(q.shape[-1] ** -0.5), k, v


def _blocks(q_BANE: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of rows whose maps fit the cache; on an accelerator there is one block."""
    B, A, N, _ = q_BANE.shape
    row_bytes = A * N * _wide(q_BANE).itemsize
    room = max(1, BLOCK_BYTES // row_bytes) if q_BANE.device.type == "cpu" else B * N
    num_images, num_rows = max(1, room // N), min(N, room)
    # Blocks of equal size: a small last block would have the same overhead as a full one.
    num_rows = -(-N // -(-N // num_rows))
    for image in range(0, B, num_images):
        for row in range(0, N, num_rows):
            yield slice(image, image + num_images), slice(row, row + num_rows)


def _weights(q_bARE: Tensor, k_bANE: Tensor, mix_l: Tensor) -> tuple[Tensor, Tensor]:
    """Scores before mixing, and weights after mixing and softmax, (images, A, rows, N), in at least float32."""
    scores = (q_bARE @ k_bANE.transpose(-2, -1)).to(mix_l.dtype)
    return scores, _mix(mix_l, scores).softmax(-1)


def _mix(mix_AA: Tensor, maps_bARN: Tensor) -> Tensor:
    # bmm, not matmul: matmul of a matrix and a batch would copy the maps.
    return torch.bmm(mix_AA.expand(len(maps_bARN), -1, -1), maps_bARN.flatten(2)).view_as(maps_bARN)


def _mixing_grad(grad_bARN: Tensor, maps_bARN: Tensor) -> Tensor:
    """Gradient of a mixing matrix, (A, A), summed over the block."""
    return torch.bmm(grad_bARN.flatten(2), maps_bARN.flatten(2).transpose(1, 2)).sum(0)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
