"""Talking-heads attention without gradients, computed in blocks of rows, in reused buffers.

A buffer of maps passes through product, mixing, softmax and mixing while it is in the cache. `fold.py` has folded the
q-scale into the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Maps of a block on a CPU; two such buffers exist at a time.
BLOCK_BYTES = 384 << 10


def attend_blocks(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> Tensor:
    """Return the attention output of every patch, heads concatenated, (B, N, D).

    Args:
        qkv_BND3: (B, N, 3 D), queries (scaled already), keys and values of all heads; contiguous.
        mix_l_AA, mix_w_AA: the mixing before the softmax and after it.
        bias_w_A: bias of the mixing after it.
    """
    B, N, _ = qkv_BND3.shape
    A = len(bias_w_A)
    q, k, v = qkv_BND3.unflatten(-1, (3, A, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    out_BNAE = qkv_BND3.new_empty(B, N, A, q.shape[-1])
    num_rows = _block_rows(q)
    first, second = qkv_BND3.new_empty(2, A * num_rows * N)
    bias_A1 = bias_w_A[:, None]
    for image in range(B):
        keys_AEN, values_ANE = k[image].transpose(1, 2), v[image]
        for row in range(0, N, num_rows):
            rows = slice(row, min(row + num_rows, N))
            count = rows.stop - row
            scores, mixed = (buffer[: A * count * N] for buffer in (first, second))
            torch.bmm(q[image, :, rows], keys_AEN, out=scores.view(A, count, N))
            torch.mm(mix_l_AA, scores.view(A, count * N), out=mixed.view(A, count * N))
            torch.softmax(mixed.view(A, count, N), -1, out=scores.view(A, count, N))
            torch.addmm(bias_A1, mix_w_AA, scores.view(A, count * N), out=mixed.view(A, count * N))
            torch.bmm(mixed.view(A, count, N), values_ANE, out=out_BNAE[image, rows].transpose(0, 1))
    return out_BNAE.flatten(2)


def _block_rows(q_BANE: Tensor) -> int:
    """Rows of a block, so that blocks are of equal size and their maps stay in the cache."""
    _, A, N, _ = q_BANE.shape
    most = max(1, BLOCK_BYTES // (A * N * q_BANE.element_size()))
    return -(-N // -(-N // min(N, most)))
