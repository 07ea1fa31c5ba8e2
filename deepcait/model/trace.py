"""A forward pass that also returns features and the attention of both stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.errors import ConfigError
from deepcait.model.cait import CaiT


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
        ConfigError: the network has no class stage, or an attention module was replaced by one without `attend`.
    """
    rows: list[Tensor] = []
    maps: list[Tensor] = []

    def keep(attention: nn.Module, weights: Tensor, mixed: Tensor | None) -> None:
        if mixed is None:
            rows.append(weights[:, :, 0])
        else:
            maps.append(mixed.abs().mean(1).float())

    with watch_attention(model, keep):
        returned = model.forward_intermediates(images_BCHW, indices=1, norm=False, output_fmt="NLC")
    tokens_BTD, (patches_BND,) = cast("tuple[Tensor, list[Tensor]]", returned)
    if len(rows) != len(model.blocks_token_only):
        raise ConfigError(
            f"Only {len(rows)} of {len(model.blocks_token_only)} class blocks returned attention weights.",
            remedy="A class block's `attn` must compute its output through `attend`, as ClassAttention does.",
        )
    return Trace(
        logits=model.forward_head(tokens_BTD),
        features=model.forward_head(tokens_BTD, pre_logits=True),
        patches=patches_BND,
        class_attention=torch.stack(rows, dim=1),
        patch_attention=torch.stack(maps, dim=1) if len(maps) == len(model.blocks) else None,
    )


@contextmanager
def watch_attention(model: CaiT, receive: Callable[[nn.Module, Tensor, Tensor | None], None]) -> Iterator[None]:
    """Inside this context, the reference computes the blocks, and each passes its attention weights on.

    Args:
        model: its blocks have an `attn`.
        receive: called with the attention module, weights (B, A, Q, J) after the softmax; and weights (B, A, N, N)
            after the second head mixing, None in the class stage, which mixes no heads.
    """

    def watched(attention: Any) -> Callable[[Tensor], tuple[Tensor, ...]]:
        attend = attention.attend

        def attend_and_report(tokens: Tensor) -> tuple[Tensor, ...]:
            out, weights, *mixed = attend(tokens)
            receive(attention, weights, mixed[0] if mixed else None)
            return (out, weights, *mixed)

        return attend_and_report

    attentions = [cast("Any", block).attn for block in (*model.blocks, *model.blocks_token_only)]
    attentions = [attention for attention in attentions if hasattr(attention, "attend")]
    before = [vars(attention).get("attend") for attention in attentions]
    backend = model._backend
    model.set_backend("reference")
    try:
        # On the instance: `forward` of the module calls it, so that its hooks run as ever.
        for attention in attentions:
            attention.attend = watched(attention)
        yield
    finally:
        model._backend = backend
        for attention, own in zip(attentions, before, strict=True):
            del attention.attend
            if own is not None:
                attention.attend = own
