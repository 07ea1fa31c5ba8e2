"""A forward pass that also returns features and the attention of both stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.model.cait import CaiT
from deepcait.model.watch import watch_attention, watch_class_stage


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The results of one forward pass.

    logits: (B, K); features (B, D) if `num_classes` is 0.
    features: (B, D), the class token, which is the head's input.
    patches: (B, N, D), patch tokens after the patch stage, before the final norm.
    class_attention: (B, class blocks, A, 1 + N), softmax rows that sum to 1; position 0 is the class token itself.
    patch_attention: (B, patch blocks, N, N), mean over heads of the absolute weights after the second head mixing; None
        unless all patch blocks have talking heads.
    """

    logits: Tensor
    features: Tensor
    patches: Tensor
    class_attention: Tensor
    patch_attention: Tensor | None


def trace(model: CaiT, images_BCHW: Tensor) -> Trace:
    """Run the model once and return logits, features and attention.

    Every module is called, so hooks, adapters and replaced parts take effect. Of the attention maps of a patch block
    only the mean over heads is stored.

    Args:
        model: in evaluation mode.
        images_BCHW: preprocessed, on the model's device.

    Raises:
        ShapeError: the images' size or number of channels is not the model's.
        ConfigError: the network has no class stage, or an attention layer of it was replaced by one that reports no
            weights.
    """
    maps: list[Tensor] = []

    def keep(attention: nn.Module, weights: Tensor, mixed: Tensor | None) -> None:
        if mixed is not None:
            maps.append(mixed.abs().mean(1).float())

    with watch_attention(keep):
        form: dict[str, Any] = {"norm": False, "output_fmt": "NLC", "intermediates_only": True}
        (patches_BND,) = cast("list[Tensor]", model.forward_intermediates(images_BCHW, 1, **form))
    cls_B1D = model.cls_token.expand(len(patches_BND), -1, -1)
    cls_B1D, rows = watch_class_stage(model.blocks_token_only, cls_B1D, patches_BND)
    tokens_BTD = model.norm(torch.cat((cls_B1D, patches_BND), dim=1))
    return Trace(
        logits=model.forward_head(tokens_BTD),
        features=model.forward_head(tokens_BTD, pre_logits=True),
        patches=patches_BND,
        class_attention=torch.stack([row_BA1T[:, :, 0] for row_BA1T in rows], dim=1),
        patch_attention=torch.stack(maps, dim=1) if len(maps) == len(model.blocks) else None,
    )
