"""The lean backend: each residual branch is one operator that saves few activations; see `branches.py`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcait.backends.branches import attention_branch, mlp_branch
from deepcait.backends.exact import (
    PATCH_BLOCK,
    Changed,
    list_parts,
    modes_in_the_way,
    read_parts,
    require_exact_gelu,
    require_own_attend,
)
from deepcait.backends.heads import talking_heads
from deepcait.backends.reference import Backend, BlockFunction
from deepcait.errors import some
from deepcait.model.ablation import AblatedBlock
from deepcait.model.attention import TalkingHeadsAttention
from deepcait.model.block import draw_keep
from deepcait.runtime.messages import log_once

logger = logging.getLogger("deepcait.backends")

# "auto" is lean on these; the meta device counts like a CPU.
_AUTO_DEVICES = ("cpu", "meta")

# In a block with other options than the paper's, only the attention between its linear layers.
_ABLATED_BLOCK = list_parts(
    {
        "": (AblatedBlock, ""),
        "attn": (TalkingHeadsAttention, ""),
        "attn.qkv": (nn.Linear, "weight bias"),
        "attn.proj_l": (nn.Linear, "weight bias"),
        "attn.proj_w": (nn.Linear, "weight bias"),
    }
)


class Lean(Backend):
    """Two operators per block. As "auto", only on devices where they are faster than the reference."""

    def __init__(self, name: str, *, small_memory: bool) -> None:
        super().__init__(name, small_memory=small_memory)
        self._reported: set[tuple[int, str]] = set()

    def function_for(self, block: nn.Module, tokens: Tensor, blocks: Sequence[nn.Module]) -> BlockFunction:
        """Return a function for an unmodified block; else the block itself, after logging why."""
        mode = modes_in_the_way(tokens)
        if mode:
            if not torch.compiler.is_compiling():
                self._report(block, mode, blocks, {mode: range(len(blocks))}, level=logging.INFO)
            return block
        if self.name == "auto" and tokens.device.type not in _AUTO_DEVICES:
            return block
        try:
            return self._take(block, tokens.dtype)
        except Changed as change:
            known = (id(block), str(change)) in self._reported  # the others are not looked at in every pass
            if not known and not torch.compiler.is_compiling():
                self._report(block, str(change), blocks, self._changes(blocks, tokens.dtype), level=logging.WARNING)
            return block

    def describe(self, blocks: Sequence[nn.Module], device: torch.device) -> str:
        """Return one line: the backend of these blocks on a device, and which are left to the reference and why."""
        auto = " (auto)" if self.name == "auto" else ""
        if auto and device.type not in _AUTO_DEVICES:
            return "reference (auto)"
        changes = self._changes(blocks, next(blocks[0].parameters()).dtype)
        return f"lean{auto}; the reference for {_text(changes)}" if changes else f"lean{auto}"

    def _take(self, block: nn.Module, dtype: torch.dtype) -> BlockFunction:
        """Return the function of a block. Raises `Changed` if a part of it is modified."""
        if type(block) is AblatedBlock:
            modules, weights = read_parts(block, _ABLATED_BLOCK, dtype)
            _require_usual_heads(modules["attn"], weights[0], weights[-1])
            return functools.partial(_lean_attention, block, *weights[2:])
        modules, (gamma_1, gamma_2, *weights) = read_parts(block, PATCH_BLOCK, dtype)
        _require_usual_heads(modules["attn"], weights[2], weights[7])
        require_exact_gelu(modules["mlp.act"])
        attention, mlp = (*weights[:10], gamma_1), (*weights[10:], gamma_2)
        eps = modules["norm1"].eps, modules["norm2"].eps
        return functools.partial(_lean_block, block, attention, mlp, eps, self.small_memory)

    def _changes(self, blocks: Sequence[nn.Module], dtype: torch.dtype) -> dict[str, Sequence[int]]:
        """Return which blocks are left to the reference, by reason."""
        found: dict[str, list[int]] = {}
        for index, block in enumerate(blocks):
            try:
                self._take(block, dtype)
            except Changed as change:
                found.setdefault(str(change), []).append(index)
        return dict(found)

    def _report(
        self,
        block: nn.Module,
        why: str,
        blocks: Sequence[nn.Module],
        changes: Mapping[str, Sequence[int]],
        *,
        level: int,
    ) -> None:
        """Log one line about all blocks, unless the same was logged for the block before."""
        if (id(block), why) in self._reported:
            return
        self._reported |= {(id(blocks[index]), reason) for reason, which in changes.items() for index in which}
        log_once(logger, level, f"computed layer by layer (backend reference, same results): {_text(changes)}")


def _text(changes: Mapping[str, Sequence[int]]) -> str:
    """Which blocks, and why: "blocks 0, 2: attn.qkv has hooks; block 3: ..."."""
    return "; ".join(
        f"block{'s' if len(which) > 1 else ''} {some([str(index) for index in which], most=8)}: {reason}"
        for reason, which in changes.items()
    )


def _require_usual_heads(attn: Any, weight_qkv: Tensor, bias_w: Tensor) -> None:
    """Raise `Changed` if the equations were replaced, or scale and heads do not match the weights."""
    require_own_attend(attn)
    num_heads = bias_w.shape[0]
    if attn.num_heads != num_heads or attn.scale != (weight_qkv.shape[0] // (3 * num_heads)) ** -0.5:
        raise Changed("attn", f"has num_heads={attn.num_heads} and scale={attn.scale:g}, unlike its weights")


def _lean_block(
    block: Any,
    attention: tuple[Tensor, ...],
    mlp: tuple[Tensor, ...],
    eps: tuple[float, float],
    small_memory: bool,
    tokens_BND: Tensor,
) -> Tensor:
    """Return patch tokens after a block by one operator per branch, each with its parameters in its order."""
    dtype, drops = _product_dtype(tokens_BND), block.training and block.drop_path_rate > 0.0
    tokens_BND = tokens_BND.contiguous()
    keep = draw_keep(tokens_BND, block.drop_path_rate) if drops else None
    tokens_BND, *_ = attention_branch(tokens_BND, *attention, keep, eps[0], dtype, small_memory)
    keep = draw_keep(tokens_BND, block.drop_path_rate) if drops else None
    tokens_BND, *_ = mlp_branch(tokens_BND, *mlp, keep, eps[1], dtype, small_memory)
    return tokens_BND


def _lean_attention(
    block: AblatedBlock, mix_l: Tensor, bias_l: Tensor, mix_w: Tensor, bias_w: Tensor, tokens_BND: Tensor
) -> Tensor:
    """Return tokens after a block of which only the attention maps are recomputed in the backward pass."""
    attn: Any = block.attn
    read_BND = talking_heads(attn.qkv(block.norm1(tokens_BND)), mix_l, mix_w, bias_w)
    # The softmax cancels this bias; it is used so that its gradient is zero, not missing.
    return block.add_branches(tokens_BND, attn.proj(read_BND + 0.0 * bias_l.sum()))


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's if it is on (not for float64), else the tensor's."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and x.dtype != torch.float64 else x.dtype
