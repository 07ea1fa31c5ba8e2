"""Convert tensors to other shapes such that the model starts as the same function."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.weights.layouts import StateDict

# LayerScale of a block added to trained ones: its branch is almost zero, but can be trained.
NEW_BLOCK_GAMMA = 1e-6

Means = Sequence[float]


def resize_patches(kernel_DCPP: Tensor, patch_size: int) -> Tensor:
    """Resample the kernel of the patch projection to another patch side.

    A small patch that is enlarged bilinearly gives exactly the same token through the large kernel as through the small
    one, in both directions: with U the enlargement, the small kernel is U^T w, and the large one is the smallest that
    solves U^T w' = w.

    Args:
        kernel_DCPP: of the patch projection.
        patch_size: new patch side.

    Returns:
        kernel_DCQQ in the same dtype, Q the new side.
    """
    old = kernel_DCPP.shape[-1]
    if old == patch_size:
        return kernel_DCPP
    wide = kernel_DCPP.double()
    small, large = min(old, patch_size), max(old, patch_size)
    enlarge_LS = _enlargement(small, large)
    side_QP = enlarge_LS.T if patch_size < old else torch.linalg.pinv(enlarge_LS).T
    # Bilinear enlargement acts on rows and columns separately, so its inverse does too.
    return torch.einsum("qp,dcpr,sr->dcqs", side_QP, wide, side_QP).to(kernel_DCPP.dtype)


def _enlargement(small: int, large: int) -> Tensor:
    """The matrix (large, small) that enlarges a row of pixels bilinearly."""
    rows = torch.eye(small, dtype=torch.float64)[:, None]
    return F.interpolate(rows, size=large, mode="linear", align_corners=False)[:, 0].T


def change_channels(
    kernel_DCPP: Tensor,
    bias_D: Tensor,
    in_chans: int,
    *,
    old_norm: tuple[Means, Means] | None = None,
    new_norm: tuple[Means, Means] | None = None,
) -> tuple[Tensor, Tensor]:
    """Convert the patch projection to another number of channels.

    To one channel: the channels' kernels are added, so a grey image gives the same result as three equal channels. From
    one channel: the kernel is divided evenly, with the same property. More channels: new ones start at 0, so they have
    no effect at first. Fewer (but more than one): the first ones are kept.

    Args:
        kernel_DCPP, bias_D: of the patch projection.
        in_chans: new number of channels.
        old_norm, new_norm: means and standard deviations, by channel, with which pixels are normalised before and
            after. With both given, the equality for one channel holds for pixels; else for normalised values.

    Returns:
        kernel and bias.
    """
    old = kernel_DCPP.shape[1]
    if old == in_chans:
        return kernel_DCPP, bias_D
    if in_chans == 1:
        wide, bias = kernel_DCPP.double(), bias_D.double()
        if old_norm is not None and new_norm is not None:
            means, stds = (torch.tensor(tuple(values), dtype=torch.float64)[:, None, None] for values in old_norm)
            mean, std = new_norm[0][0], new_norm[1][0]
            # x_c = (g - m_c) / s_c for a grey value g = x * s + m.
            bias = bias + (wide * ((mean - means) / stds)).sum((1, 2, 3))
            wide = wide * (std / stds)
        return wide.sum(1, keepdim=True).to(kernel_DCPP.dtype), bias.to(bias_D.dtype)
    if old == 1:
        return kernel_DCPP.repeat(1, in_chans, 1, 1) / in_chans, bias_D
    if in_chans < old:
        return kernel_DCPP[:, :in_chans].contiguous(), bias_D
    zeros = kernel_DCPP.new_zeros(kernel_DCPP.shape[0], in_chans - old, *kernel_DCPP.shape[2:])
    return torch.cat((kernel_DCPP, zeros), dim=1), bias_D


def norm_of(values: Means, in_chans: int) -> tuple[float, ...]:
    """Return means (or deviations) for another number of channels; new channels get the average."""
    values = tuple(values)
    average = sum(values) / len(values)
    if in_chans == 1:
        return (average,)
    if len(values) == 1:
        return values * in_chans
    return (values + (average,) * in_chans)[:in_chans]


def new_blocks(
    state_dict: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], gamma: float = NEW_BLOCK_GAMMA
) -> StateDict:
    """Return tensors for additional blocks: newly initialised, LayerScale almost 0.

    Such a block is almost the identity, so the deeper model starts as the shallow one.

    Args:
        state_dict: the stored tensors. shapes: of the new model.
        gamma: of the new blocks' LayerScale.
    """
    fresh: StateDict = {}
    if not ("blocks.0.gamma_1" in state_dict and state_dict["blocks.0.gamma_1"].is_floating_point()):
        return fresh  # errors are reported with the other tensors that do not fit
    for stage in ("blocks", "blocks_token_only"):
        stored = {int(key.split(".")[1]) for key in state_dict if re.match(rf"{stage}\.\d+\.", key)}
        for key, shape in shapes.items():
            if stored and re.match(rf"{stage}\.\d+\.", key) and int(key.split(".")[1]) > max(stored):
                fresh[key] = _draw(key, shape, state_dict, gamma)
    return fresh


def _draw(key: str, shape: tuple[int, ...], state_dict: Mapping[str, Tensor], gamma: float) -> Tensor:
    like = state_dict["blocks.0.gamma_1"]
    tensor = torch.empty(shape, dtype=like.dtype, device=like.device)
    name = key.split(".", 2)[2]
    if name.startswith("gamma_"):
        return tensor.fill_(gamma)
    if name.startswith("norm"):
        return tensor.fill_(1.0 if name.endswith("weight") else 0.0)
    return tensor.zero_() if name.endswith("bias") else nn.init.trunc_normal_(tensor, std=0.02)
