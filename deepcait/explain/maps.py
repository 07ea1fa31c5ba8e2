"""Attention maps of a CaiT: class attention, rollout through the talking heads, gradient-weighted attention."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcait.errors import ConfigError
from deepcait.model import CaiT
from deepcait.model.trace import Trace, trace_class_stage
from deepcait.model.watch import stack_rows
from deepcait.runtime.state import undisturbed


@undisturbed()
@torch.no_grad()
def class_attention(model: CaiT, images_BCHW: Tensor) -> Tensor:
    """Return the class attention: (B, class blocks, A, 1 + N), every row a softmax that sums to 1.

    Position 0 is the class token itself. The class stage mixes no heads, so these weights multiply the values.

    Source: Touvron et al. 2021, arXiv:2103.17239, Sec. 3.
    """
    return model.class_attention(images_BCHW)


@torch.no_grad()
def rollout(traced: Trace) -> Tensor:
    """Return attention rollout: the contribution of each input patch to the class token, (B, 1 + N), sum 1.

        R_0 = I;  R_l = (R_(l-1) + A_l R_(l-1)) / 2                         patch stage, A_l a map of block l
        c_0 = class;  c_l = (c_(l-1) + a_l[0] c_(l-1) + a_l[1:] R) / 2      class stage, a_l its mean row

    A_l is the mean over heads of the absolute weights after the second head mixing, rows divided by their sum: these
    weights multiply the values, but may be negative and do not sum to 1. Position 0 of the result is the share of the
    class token itself. Rollout is an approximation: MLPs, values and LayerScale are ignored.

    Source: attention rollout, Abnar and Zuidema 2020, arXiv:2005.00928.
    Deviation: that paper has one softmax per head and no second mixing, and its class token is an input.

    Raises:
        ConfigError: not all patch blocks have talking heads.
    """
    if traced.patch_attention is None:
        raise ConfigError(
            "rollout needs talking-heads attention in all patch blocks, which this network does not have.",
            remedy="Use the method class-attention or gradient.",
        )
    B, N, _ = traced.patches.shape
    rolled_BNN = torch.eye(N, device=traced.patches.device, dtype=torch.float32).expand(B, N, N)
    for map_BNN in traced.patch_attention.unbind(1):
        map_BNN = map_BNN / map_BNN.sum(-1, keepdim=True)
        rolled_BNN = 0.5 * rolled_BNN + 0.5 * (map_BNN @ rolled_BNN)
    cls_BT = torch.zeros(B, 1 + N, device=traced.patches.device, dtype=torch.float32)
    cls_BT[:, 0] = 1.0
    for row_BT in traced.class_attention.mean(2).float().unbind(1):
        read_BN = (row_BT[:, None, 1:] @ rolled_BNN)[:, 0]
        read_BT = row_BT[:, :1] * cls_BT + torch.cat((torch.zeros_like(row_BT[:, :1]), read_BN), dim=1)
        cls_BT = 0.5 * cls_BT + 0.5 * read_BT
    return cls_BT


@undisturbed()
def gradient_attention(model: CaiT, patches_BND: Tensor, targets_B: Tensor) -> Tensor:
    """Return attention times the gradient of the target's logit by it: (B, class blocks, A, 1 + N), signed.

    Positive if more attention would increase the class's logit, to first order. Only the class stage is run and
    differentiated; the patches are constants, since they do not depend on the class attention. The caller may be inside
    `torch.no_grad` or `torch.inference_mode`. The modes, the parameters and their `.grad` stay as they are.

    Args:
        patches_BND: patch tokens after the patch stage, `Trace.patches`.
        targets_B: index of the target class of each image.

    Source: gradient times attention, Chefer et al. 2021, arXiv:2103.15679 (there averaged over heads after
    clipping at 0, as `positive_mean` does).
    """
    return weigh_by_gradient(trace_class_stage(model, patches_BND, differentiable=True), targets_B)


def weigh_by_gradient(traced: Trace, targets_B: Tensor) -> Tensor:
    """Return what `gradient_attention` returns, of a differentiable trace."""
    logits_BK, rows = traced.logits, traced.rows
    # Images are independent, so the gradient of the sum has each image's own gradient.
    with torch.enable_grad():
        score = logits_BK.gather(1, targets_B[:, None].to(logits_BK.device)).sum()
    gradients = torch.autograd.grad(score, rows)
    return stack_rows(row.detach() * gradient for row, gradient in zip(rows, gradients, strict=True))


def positive_mean(maps_BLAT: Tensor) -> Tensor:
    """Return the mean over blocks and heads of the positive parts, (B, T)."""
    return maps_BLAT.clamp(min=0).mean((1, 2))
