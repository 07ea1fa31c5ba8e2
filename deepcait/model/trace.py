"""A forward pass that also returns features and the attention of both stages."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.model.cait import CaiT
from deepcait.model.watch import stack_rows, watch_attention, watch_class_stage


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The results of one forward pass.

    logits: (B, K); features (B, D) if `num_classes` is 0.
    features: (B, D), the class token, which is the head's input.
    patches: (B, N, D), patch tokens after the patch stage, before the final norm.
    rows: (B, A, 1, 1 + N) per class block, softmax weights of the class token; position 0 is the class token itself.
    patch_attention: (B, patch blocks, N, N), mean over heads of the absolute weights after the second head mixing; None
        unless all patch blocks have talking heads.
    """

    logits: Tensor
    features: Tensor
    patches: Tensor
    rows: list[Tensor]
    patch_attention: Tensor | None

    @property
    def class_attention(self) -> Tensor:
        """The rows of all class blocks, (B, class blocks, A, 1 + N)."""
        return stack_rows(self.rows)


def trace(model: CaiT, images_BCHW: Tensor, *, differentiable: bool = False) -> Trace:
    """Run the model once and return logits, features and attention.

    Every module is called, so hooks, adapters and replaced parts take effect. Of the attention maps of a patch block
    only the mean over heads is stored.

    Args:
        model: in evaluation mode.
        images_BCHW: preprocessed, on the model's device.
        differentiable: the logits can be differentiated by the rows, under `torch.no_grad()` too.

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
    patch_attention = torch.stack(maps, dim=1) if len(maps) == len(model.blocks) else None
    return trace_class_stage(model, patches_BND, patch_attention, differentiable=differentiable)


def trace_class_stage(
    model: CaiT, patches_BND: Tensor, patch_attention: Tensor | None = None, *, differentiable: bool = False
) -> Trace:
    """Run the class stage and the head on patch tokens; see `trace`."""
    cls_B1D = model.cls_token.expand(len(patches_BND), -1, -1)
    with torch.enable_grad() if differentiable else nullcontext():
        if differentiable:
            # A new leaf, since the parameters may be frozen. The patches do not depend on the class attention.
            # Copies, since tensors made in inference mode can't be saved for the backward pass.
            cls_B1D, patches_BND = cls_B1D.detach().clone().requires_grad_(), patches_BND.detach().clone()
        cls_B1D, rows = watch_class_stage(model.blocks_token_only, cls_B1D, patches_BND)
        # The norm acts per token, so only the class token needs it.
        normed_B1D = model.norm(cls_B1D)
        return Trace(
            logits=model.forward_head(normed_B1D),
            features=model.forward_head(normed_B1D, pre_logits=True),
            patches=patches_BND,
            rows=rows,
            patch_attention=patch_attention,
        )
