"""Initial weights of other residual rules (ReZero, SkipInit, Fixup, T-Fixup), by their papers' formulas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from deepcait.model.alternatives import AblationConfig
from deepcait.model.attention import ClassAttention
from deepcait.model.cait import CaiT


class _Matrices(NamedTuple):
    """The weight matrices of a block's branches: queries and keys, other input layers, output layers."""

    asking: list[Tensor]
    inner: list[Tensor]
    last: list[Tensor]


def initial_scale(config: AblationConfig) -> float:
    """Return the initial value of every residual multiplier."""
    if config.residual == "rezero":
        return 0.0
    if config.residual == "skipinit":
        return config.num_branches**-0.5
    # Never None: the configuration fills in the paper's value.
    return 1.0 if config.residual == "fixup" else cast("float", config.layer_scale_init)


@torch.no_grad()
def init_fixup(model: CaiT, config: AblationConfig) -> None:
    """Initialise as Fixup: last layer of each branch and classifier at 0, the layers before it He-normal, scaled.

        scale = L^(-1 / (2 m - 2))          L branches in the network, m weight layers in a branch

    Attention counts as two layers (q, k, v; output), an MLP as two: the scale is L^(-1/2). Head mixings are not counted
    and start as in CaiT.

    Deviation: Fixup's scalar biases are left out: the biases of the linear layers contain them.

    Source: Zhang et al. 2019, arXiv:1901.09321, Sec. 3.2.
    """
    m = 2
    scale = config.num_branches ** (-1 / (2 * m - 2))
    for block in _matrices(model):
        for weight in (*block.asking, *block.inner):
            nn.init.kaiming_normal_(weight, nonlinearity="relu").mul_(scale)
        for weight in block.last:
            nn.init.zeros_(weight)
    if isinstance(model.head, nn.Linear):
        nn.init.zeros_(model.head.weight)


@torch.no_grad()
def init_tfixup(model: CaiT, config: AblationConfig) -> None:
    """Initialise as T-Fixup's encoder: Xavier-uniform branches; values, outputs and MLPs scaled by 0.67 N^(-1/4).

    N counts the layers, patch and class stage together. Queries and keys are not scaled.

    Deviation: T-Fixup also scales word embeddings; here patches are projected, and start as in CaiT.

    Source: Huang et al. 2020, "Improving Transformer Optimization Through Better Initialization", ICML, Sec. 3.
    """
    scale = 0.67 * (config.depth + config.class_blocks) ** -0.25
    for block in _matrices(model):
        for weight in block.asking:
            nn.init.xavier_uniform_(weight)
        for weight in (*block.inner, *block.last):
            nn.init.xavier_uniform_(weight).mul_(scale)


def _matrices(model: CaiT) -> Iterable[_Matrices]:
    """The branches of every block; a fused q, k, v as three views."""
    for block in (*model.blocks, *model.blocks_token_only):
        attn, mlp = cast("Any", block.attn), cast("Any", block.mlp)
        if isinstance(attn, ClassAttention):
            q, k, v = attn.q.weight, attn.k.weight, attn.v.weight
        else:
            q, k, v = attn.qkv.weight.chunk(3)
        inner, last = [v], [attn.proj.weight]
        if mlp is not None:
            inner, last = [v, mlp.fc1.weight], [*last, mlp.fc2.weight]
        yield _Matrices([q, k], inner, last)
