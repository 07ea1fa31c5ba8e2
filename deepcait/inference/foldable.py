"""Check whether a CaiT can be folded: every part must be unmodified."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from deepcait.backends.exact import (
    PATCH_BLOCK,
    Changed,
    Part,
    list_parts,
    read_parts,
    require_exact_gelu,
    require_own_attend,
)
from deepcait.errors import ConfigError
from deepcait.model.attention import ClassAttention
from deepcait.model.block import NORM_EPS, ClassAttentionBlock, Mlp
from deepcait.model.cait import CaiT
from deepcait.model.embedding import PatchEmbed
from deepcait.model.variants import CaiTConfig

_CLASS_BLOCK = list_parts(
    {
        "": (ClassAttentionBlock, "gamma_1 gamma_2"),
        "norm1": (nn.LayerNorm, "weight bias"),
        "attn": (ClassAttention, ""),
        "attn.q": (nn.Linear, "weight bias"),
        "attn.k": (nn.Linear, "weight bias"),
        "attn.v": (nn.Linear, "weight bias"),
        "attn.proj": (nn.Linear, "weight bias"),
        "norm2": (nn.LayerNorm, "weight bias"),
        "mlp": (Mlp, ""),
        "mlp.fc1": (nn.Linear, "weight bias"),
        "mlp.act": (nn.GELU, ""),
        "mlp.fc2": (nn.Linear, "weight bias"),
    }
)
_REST = {
    "": (CaiT, "cls_token pos_embed"),
    "patch_embed": (PatchEmbed, ""),
    "patch_embed.proj": (nn.Conv2d, "weight bias"),
    "norm": (nn.LayerNorm, "weight bias"),
}
_WITH_HEAD = list_parts(_REST | {"head": (nn.Linear, "weight bias")})
_WITHOUT_HEAD = list_parts(_REST | {"head": (nn.Identity, "")})


def foldable_config(model: CaiT) -> CaiTConfig:
    """Return the current configuration of a model, with the number of classes of its head.

    Raises:
        ConfigError: a part is modified such that folding would change the function (an adapter, a hook, a
            parametrization, a replaced layer); the message names it.
    """
    path = ""
    try:
        num_classes = _check_outside_of_blocks(model)
        for stage, parts in (("blocks", PATCH_BLOCK), ("blocks_token_only", _CLASS_BLOCK)):
            for index, block in enumerate(cast("nn.ModuleList", getattr(model, stage))):
                path = f"{stage}.{index}"
                _check_block(block, parts, model)
    except Changed as change:
        part = ".".join(name for name in (path, change.path) if name) or "it"
        raise ConfigError(
            f"fold: the model was modified: {part} {change.what}.",
            remedy="Merge or remove the modification (peft: merge_and_unload; torch: remove_parametrizations, "
            "prune.remove, remove of a hook's handle), or run the model without folding.",
        ) from None
    return model.config.replace(num_classes=num_classes)


def _check_outside_of_blocks(model: CaiT) -> int:
    """Return the number of classes; 0 for features. Raises `Changed`."""
    has_head = type(model.head) is not nn.Identity
    modules, weights = read_parts(model, _WITH_HEAD if has_head else _WITHOUT_HEAD, model.cls_token.dtype)
    conv, side = modules["patch_embed.proj"], model.config.patch_size
    how = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    if how != ((side, side), (side, side), (0, 0), (1, 1), 1, "zeros"):
        raise Changed("patch_embed.proj", "has another stride, padding, dilation or groups")
    _check_eps(modules, "norm")
    return len(weights[-1]) if has_head else 0


def _check_block(block: nn.Module, parts: tuple[Part, ...], model: CaiT) -> None:
    """Raise `Changed` if a block does not match the configuration, part by part."""
    modules, _ = read_parts(block, parts, model.cls_token.dtype)
    require_own_attend(modules["attn"])
    require_exact_gelu(modules["mlp.act"])
    _check_eps(modules, "norm1", "norm2")
    if modules["attn"].num_heads != model.config.num_heads:
        raise Changed("attn", f"has {modules['attn'].num_heads} heads, not {model.config.num_heads}")
    if len(modules["mlp.fc1"].weight) != model.config.hidden_dim:
        raise Changed("mlp", f"is {len(modules['mlp.fc1'].weight)} wide inside, not {model.config.hidden_dim}")


def _check_eps(modules: dict[str, Any], *names: str) -> None:
    for name in names:
        if modules[name].eps != NORM_EPS:
            raise Changed(name, f"has eps={modules[name].eps:g}, not {NORM_EPS:g}")
