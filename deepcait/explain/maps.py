"""Where a CaiT attends, as numbers: class attention, rollout through the talking heads, gradient-weighted attention."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcait.errors import ConfigError
from deepcait.model import CaiT
from deepcait.model.trace import Trace, watch_attention


@torch.no_grad()
def class_attention(model: CaiT, images_BCHW: Tensor) -> Tensor:
    """Return what the class token attends to: (B, class blocks, A, 1 + N), every row a softmax that sums to 1.

    Position 0 is the class token itself (the class key). The class stage mixes no heads, so this is what really
    multiplies the values.

    Source: Touvron et al. 2021, arXiv:2103.17239, Sec. 3.
    """
    return model.class_attention(images_BCHW)


@torch.no_grad()
def rollout(traced: Trace) -> Tensor:
    """Return how far each input patch reaches the class token if attention alone moved it: (B, 1 + N), sum 1.

        R_0 = I;  R_l = (R_(l-1) + A_l R_(l-1)) / 2                         patch stage, A_l a map of block l
        c_0 = class;  c_l = (c_(l-1) + a_l[0] c_(l-1) + a_l[1:] R) / 2      class stage, a_l its mean row

    A_l is the mean over heads of the absolute weights after the second head mixing, rows divided by their sum: what
    multiplies the values, but may be negative and does not sum to 1. Position 0 of the result is the share that never
    left the class token. It is a model of the flow, not the flow: MLPs, values and LayerScale are left out.

    Source: attention rollout, Abnar and Zuidema 2020, arXiv:2005.00928.
    Deviation: that paper has one softmax a head and no second mixing; CaiT's class token enters late.

    Raises:
        ConfigError: a network whose patch blocks are not all talking heads.
    """
    if traced.patch_attention is None:
        raise ConfigError(
            "rollout needs patch blocks with talking-heads attention, and this network has others.",
            remedy="Ask for class-attention or gradient.",
        )
    B, N, _ = traced.patches.shape
    rolled_BNN = torch.eye(N, device=traced.patches.device).expand(B, N, N)
    for map_BNN in traced.patch_attention.unbind(1):
        map_BNN = map_BNN / map_BNN.sum(-1, keepdim=True)
        rolled_BNN = 0.5 * rolled_BNN + 0.5 * (map_BNN @ rolled_BNN)
    cls_BT = torch.zeros(B, 1 + N, device=traced.patches.device)
    cls_BT[:, 0] = 1.0
    for row_BT in traced.class_attention.mean(2).float().unbind(1):
        read_BN = (row_BT[:, None, 1:] @ rolled_BNN)[:, 0]
        read_BT = row_BT[:, :1] * cls_BT + torch.cat((torch.zeros_like(row_BT[:, :1]), read_BN), dim=1)
        cls_BT = 0.5 * cls_BT + 0.5 * read_BT
    return cls_BT


def gradient_attention(model: CaiT, patches_BND: Tensor, targets_B: Tensor) -> Tensor:
    """Return attention times the gradient of the target's logit by it: (B, class blocks, A, 1 + N), signed.

    Positive where more attention would raise the class, to first order. Only the class stage runs and is
    differentiated: the patches are held fixed, as they are no function of the class attention.

    Args:
        patches_BND: patch tokens after the patch stage, `Trace.patches`.
        targets_B: index of the class asked about, for each image.

    Source: gradient times attention, Chefer et al. 2021, arXiv:2103.15679 (there averaged over heads after
    clipping at 0, as `positive_mean` does).
    """
    rows: list[Tensor] = []
    with torch.enable_grad(), watch_attention(model, lambda attention, weights, mixed: rows.append(weights)):
        # A leaf of our own: the parameters may be frozen.
        cls_B1D = model.cls_token.expand(len(patches_BND), -1, -1).detach().clone().requires_grad_()
        for block in model.blocks_token_only:
            cls_B1D = block(cls_B1D, patches_BND.detach())
        logits_BK = model.forward_head(model.norm(cls_B1D))
        # Images do not touch each other, so the gradient of the sum is every image's own.
        score = logits_BK.gather(1, targets_B[:, None].to(logits_BK.device)).sum()
        gradients = torch.autograd.grad(score, rows)
    weighted = [row.detach() * gradient for row, gradient in zip(rows, gradients, strict=True)]
    return torch.stack([row_BA1T[:, :, 0] for row_BA1T in weighted], dim=1)


def positive_mean(maps_BLAT: Tensor) -> Tensor:
    """Return the mean over blocks and heads of the positive parts, (B, T)."""
    return maps_BLAT.clamp(min=0).mean((1, 2))
