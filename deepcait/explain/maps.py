"""Where a CaiT looked, as numbers: class attention, rollout through the talking heads, gradient-weighted attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from deepcait.errors import ConfigError
from deepcait.model import CaiT
from deepcait.model.block import ClassAttentionBlock
from deepcait.model.trace import trace_blocks

Mixing = Literal["before", "after"]
Residual = Literal["equal", "norms"]


def unwrap(model: nn.Module) -> CaiT:
    """Return the CaiT inside what torch.compile or DistributedDataParallel made of it.

    Raises:
        ConfigError: no CaiT.
    """
    core = getattr(model, "_orig_mod", model)
    core = getattr(core, "module", core)
    if not isinstance(core, CaiT):
        raise ConfigError(
            f"explain: expected a CaiT, got {type(core).__name__}.",
            remedy="Give a model with class attention; in place of a folded one, the model that it was folded from.",
        )
    return core


@torch.no_grad()
def class_attention(model: CaiT, images_BCHW: Tensor) -> Tensor:
    """Return where the class token looked: (B, class blocks, A, 1 + N), every row a softmax that sums to 1.

    Position 0 is the class token itself (the class key). The class stage mixes no heads, so this is what really
    multiplies the values.

    Source: Touvron et al. 2021, arXiv:2103.17239, Sec. 3.
    """
    return model.class_attention(images_BCHW)


@torch.no_grad()
def rollout(model: CaiT, images_BCHW: Tensor, *, mixing: Mixing = "after", residual: Residual = "equal") -> Tensor:
    """Return how far each input patch reaches the class token if attention alone moved it: (B, 1 + N), sum 1.

        R_0 = I;  R_l = (1 - w) R_(l-1) + w A_l R_(l-1)             patch stage, A_l an N x N map of block l
        c_0 = class;  c_l = (1 - w) c_(l-1) + w (a_l[0] c_(l-1) + a_l[1:] R)     class stage, a_l its mean row

    Position 0 is the share that never left the class token. It is a model of the flow, not the flow: MLPs, values
    and LayerScale are left out.

    Args:
        mixing: "after" takes |maps| after the second head mixing, which is what multiplies the values but may be
            negative and does not sum to 1: the mean over heads of the absolute values, rows divided by their sum.
            "before" takes the softmax itself, the mean over heads.
        residual: "equal" has w = 1/2, as in the source; "norms" has w = ||branch|| / (||main|| + ||branch||), mean
            over tokens: what LayerScale leaves of the branch.

    Source: attention rollout, Abnar and Zuidema 2020, arXiv:2005.00928.
    Deviation: that paper has one softmax a head and no second mixing; CaiT's class token enters late.

    Raises:
        ConfigError: an unknown mixing or residual.
    """
    _require("mixing", mixing, ("before", "after"))
    _require("residual", residual, ("equal", "norms"))
    B, N = len(images_BCHW), model.config.num_patches
    rolled_BNN = torch.eye(N, device=images_BCHW.device).expand(B, N, N)
    cls_BT = torch.zeros(B, 1 + N, device=images_BCHW.device)
    cls_BT[:, 0] = 1.0
    for block in trace_blocks(model, images_BCHW):
        w_B11 = _branch_share(block.main, block.attention, residual)
        if block.mixed is not None:
            maps_BANN = block.mixed.abs() if mixing == "after" else block.weights
            map_BNN = maps_BANN.mean(1).float()
            map_BNN = map_BNN / map_BNN.sum(-1, keepdim=True)
            rolled_BNN = (1 - w_B11) * rolled_BNN + w_B11 * (map_BNN @ rolled_BNN)
        else:
            row_BT = block.weights.mean(1)[:, 0].float()
            read_BN = (row_BT[:, None, 1:] @ rolled_BNN)[:, 0]
            read_BT = row_BT[:, :1] * cls_BT + torch.cat((torch.zeros_like(row_BT[:, :1]), read_BN), dim=1)
            cls_BT = (1 - w_B11[:, 0]) * cls_BT + w_B11[:, 0] * read_BT
    return cls_BT


def gradient_attention(model: CaiT, images_BCHW: Tensor, targets_B: Tensor) -> Tensor:
    """Return attention times the gradient of the target's logit by it: (B, class blocks, A, 1 + N), signed.

    Positive where more attention would raise the class, to first order. The class stage alone is differentiated:
    the patches are held fixed, as they are no function of the class attention.

    Args:
        targets_B: index of the class asked about, for each image.

    Source: gradient times attention, Chefer et al. 2021, arXiv:2103.15679 (there averaged over heads after
    clipping at 0, as `positive_mean` does).
    """
    with torch.no_grad():
        patches_BND = model.forward_intermediates(
            images_BCHW, indices=1, norm=False, stop_early=True, output_fmt="NLC", intermediates_only=True
        )[0]
        cls_B1D = model.cls_token.expand(len(images_BCHW), -1, -1)
    with torch.enable_grad():
        # A leaf of our own: the parameters may be frozen.
        cls_B1D = cls_B1D.clone().requires_grad_()
        rows = []
        for block in cast("Iterable[ClassAttentionBlock]", model.blocks_token_only):
            cls_B1D, weights_BA1T = block.attend(cls_B1D, cast("Tensor", patches_BND))
            rows.append(weights_BA1T)
        logits_BK = model.forward_head(model.norm(cls_B1D))
        # Images do not touch each other, so the gradient of the sum is every image's own.
        score = logits_BK.gather(1, targets_B[:, None].to(logits_BK.device)).sum()
        gradients = torch.autograd.grad(score, rows)
    weighted = [row.detach() * gradient for row, gradient in zip(rows, gradients, strict=True)]
    return torch.stack([row_BA1T[:, :, 0] for row_BA1T in weighted], dim=1)


def positive_mean(maps_BLAT: Tensor) -> Tensor:
    """Return the mean over blocks and heads of the positive parts, (B, T)."""
    return maps_BLAT.clamp(min=0).mean((1, 2))


def _branch_share(main_BQD: Tensor, branch_BQD: Tensor, residual: Residual) -> Tensor:
    """The weight w of a branch against the main stream, (B, 1, 1)."""
    if residual == "equal":
        return torch.full((len(main_BQD), 1, 1), 0.5, device=main_BQD.device)
    main_BQ, branch_BQ = (tokens.float().norm(dim=-1) for tokens in (main_BQD, branch_BQD))
    return (branch_BQ / (main_BQ + branch_BQ)).mean(1)[:, None, None]


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: expected {' or '.join(allowed)}, got {value!r}.", remedy="Choose one.")
