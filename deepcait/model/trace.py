"""Every block of a CaiT taken apart while it runs: main stream, both branches, and where the block looked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from deepcait.errors import ConfigError
from deepcait.model.block import ClassAttentionBlock, LayerScaleBlock
from deepcait.model.cait import CaiT


class BlockTrace(NamedTuple):
    """One block of either stage. Q is N in the patch stage and 1 in the class stage, J its keys: N and 1 + N.

    main: (B, Q, D), residual stream before the block.
    attention: (B, Q, D), what the attention adds to it, LayerScale applied, stochastic depth off.
    middle: (B, Q, D), main + attention, what the MLP's branch is added to.
    mlp: (B, Q, D), what the MLP adds, LayerScale applied.
    weights: (B, A, Q, J), attention after the softmax, before the second head mixing; rows sum to 1.
    mixed: (B, A, Q, J), after the second head mixing; None in the class stage, which mixes no heads.
    """

    main: Tensor
    attention: Tensor
    middle: Tensor
    mlp: Tensor
    weights: Tensor
    mixed: Tensor | None

    @property
    def out(self) -> Tensor:
        """Residual stream after the block, (B, Q, D)."""
        return self.middle + self.mlp


def trace_blocks(model: CaiT, images_BCHW: Tensor) -> Iterator[BlockTrace]:
    """Yield every block, the patch stage first, by the equations as they are written.

    The maps of one block are alive at a time, if the caller keeps none.

    Raises:
        ShapeError: images of another size or number of channels than the model's.
        ConfigError: another network than a CaiT as the paper has it.
    """
    if type(model) is not CaiT:
        raise ConfigError(
            f"expected a CaiT as the paper has it, got {type(model).__name__}.",
            remedy="Its blocks can't be taken apart; ask for class attention or its gradient alone.",
        )
    patches_BND = model._embed(images_BCHW)
    for block in cast("Iterable[LayerScaleBlock]", model.blocks):
        read_BND, weights_BANN, mixed_BANN = block.attn.attend(block.norm1(patches_BND))
        trace = _trace(block, patches_BND, read_BND, weights_BANN, mixed_BANN)
        yield trace
        patches_BND = trace.out
    cls_B1D = model._first_cls(images_BCHW)
    for block in cast("Iterable[ClassAttentionBlock]", model.blocks_token_only):
        tokens_BTD = block.norm1(torch.cat((cls_B1D, patches_BND), dim=1))
        read_B1D, weights_BA1T = block.attn.attend(tokens_BTD)
        trace = _trace(block, cls_B1D, read_B1D, weights_BA1T, None)
        yield trace
        cls_B1D = trace.out


def _trace(
    block: LayerScaleBlock | ClassAttentionBlock, main: Tensor, read: Tensor, weights: Tensor, mixed: Tensor | None
) -> BlockTrace:
    attention = block.gamma_1 * read
    middle = main + attention
    return BlockTrace(main, attention, middle, block.gamma_2 * block.mlp(block.norm2(middle)), weights, mixed)
