"""A model's layers in numbers: how strong each branch is, what LayerScale learnt, how far and how evenly it looks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from deepcait.errors import ConfigError
from deepcait.explain.maps import unwrap
from deepcait.model import CaiT
from deepcait.model.block import ClassAttentionBlock, LayerScaleBlock
from deepcait.model.trace import trace_blocks


@dataclass(frozen=True, kw_only=True)
class LayerMeasures:
    """Figures of every block; M is the patch blocks followed by the class blocks, L the patch blocks alone.

    attention_ratio, mlp_ratio: (M,), mean over images and tokens of ||branch|| / ||main|| (2-norms over the width), the
        branch after LayerScale; in the class stage the only token is the class token.
    gammas: (M, 2, D), |LayerScale|, of attention and MLP.
    mixing, mixing_after: (L, A, A), weights of the two head mixings, before and after the softmax; rows are outputs.
    entropy: (M, A), of the softmax rows in nats, mean over images and queries; before the second mixing.
    distance: (L, A), mean over images and queries of the attention-weighted distance between patches, in patches.
    uniform_entropy, uniform_distance: what even attention over all patches would give.
    num_images: how many were averaged over.
    """

    attention_ratio: np.ndarray
    mlp_ratio: np.ndarray
    gammas: np.ndarray
    mixing: np.ndarray
    mixing_after: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    uniform_entropy: float
    uniform_distance: float
    num_images: int

    @property
    def depth(self) -> int:
        """L, the patch blocks."""
        return len(self.mixing)

    def to_dict(self) -> dict[str, Any]:
        """Return every number but the single gammas, for JSON."""
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
            if name != "gammas"
        }
        return plain | {"gammas_mean": self.gammas.mean(-1).tolist()}


@torch.no_grad()
def measure_layers(model: CaiT, images: Iterable[Tensor]) -> LayerMeasures:
    """Measure every block over some images, one after another.

    Args:
        model: in evaluation mode.
        images: each (C, H, W), preprocessed, on the model's device.

    Raises:
        ConfigError: no image, or another network than a CaiT as the paper has it.
    """
    model = unwrap(model)
    distance_NN = patch_distances(model.config.grid).to(model.pos_embed.device)
    sums: list[list[Tensor]] = []
    num_images = 0
    for image_CHW in images:
        num_images += 1
        for index, block in enumerate(trace_blocks(model, image_CHW[None])):
            row = [
                _ratio(block.attention, block.main),
                _ratio(block.mlp, block.middle),
                entropy(block.weights),
            ]
            if block.mixed is not None:
                row.append((block.weights.double() * distance_NN).sum(-1).mean((0, 2)))
            if num_images == 1:
                sums.append(row)
            else:
                sums[index] = [old + new for old, new in zip(sums[index], row, strict=True)]
    if not num_images:
        raise ConfigError("figures: expected an image, got none.", remedy="Give one or more.")
    blocks = cast("list[LayerScaleBlock]", list(model.blocks))
    both = [*blocks, *cast("list[ClassAttentionBlock]", list(model.blocks_token_only))]
    return LayerMeasures(
        attention_ratio=_mean([row[0] for row in sums], num_images),
        mlp_ratio=_mean([row[1] for row in sums], num_images),
        gammas=_mean([torch.stack((block.gamma_1, block.gamma_2)).abs() for block in both], 1),
        mixing=_mean([block.attn.proj_l.weight for block in blocks], 1),
        mixing_after=_mean([block.attn.proj_w.weight for block in blocks], 1),
        entropy=_mean([row[2] for row in sums], num_images),
        distance=_mean([row[3] for row in sums if len(row) == 4], num_images),
        uniform_entropy=float(np.log(model.config.num_patches)),
        uniform_distance=float(distance_NN.mean()),
        num_images=num_images,
    )


def patch_distances(grid: tuple[int, int]) -> Tensor:
    """Return the distance between the centres of every two patches, in patches, (N, N)."""
    places_N2 = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid)).view(-1, 2)
    return torch.cdist(places_N2, places_N2)


def entropy(weights_BAQJ: Tensor) -> Tensor:
    """Return the entropy of attention rows in nats, mean over images and queries, (A,)."""
    return torch.special.entr(weights_BAQJ.double()).sum(-1).mean((0, 2))


def _ratio(branch_BQD: Tensor, main_BQD: Tensor) -> Tensor:
    return (branch_BQD.double().norm(dim=-1) / main_BQD.double().norm(dim=-1)).mean()


def _mean(rows: list[Tensor], count: int) -> np.ndarray:
    return (torch.stack(rows).detach().double() / count).cpu().numpy()
