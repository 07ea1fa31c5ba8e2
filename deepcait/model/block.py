"""CaiT's two residual blocks: each branch is normalised first, and scaled per channel last (LayerScale)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcait.model.attention import ClassAttention, TalkingHeadsAttention

NORM_EPS = 1e-6


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them.

    Args:
        embed_dim: D, width of a token.
        hidden_dim: width between the layers.
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) for tokens (..., D)."""
        return self.fc2(self.act(self.fc1(tokens)))


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Drop a residual branch for some images of the batch, and scale the others to keep the mean (stochastic depth).

    Drawn per image from torch's global generator, whose seed determines the result.

    Args:
        branch: (B, ...), the branch after LayerScale.
        rate: probability of dropping, in [0, 1).
        training: False returns the branch as it is.

    Source: stochastic depth, Huang et al. 2016, arXiv:1603.09382; uniform over depth: Touvron et al. 2021.
    """
    if not training or rate == 0.0:
        return branch
    return branch * draw_keep(branch, rate)


@torch.fx.wrap  # one node of a traced graph, which draws at each call
def draw_keep(branch: Tensor, rate: float) -> Tensor:
    """Draw the factor of each image's branch, (B, 1, ...): 0, or 1 / (1 - rate)."""
    keep = 1.0 - rate
    return branch.new_empty(branch.shape[0], *(1,) * (branch.ndim - 1)).bernoulli_(keep).div_(keep)


class LayerScaleBlock(nn.Module):
    """One block of the patch stage: talking-heads attention, then an MLP, each scaled by LayerScale.

        x = x + drop_path(gamma_1 * attention(norm1(x)))
        x = x + drop_path(gamma_2 * mlp(norm2(x)))

    Source: Touvron et al. 2021, arXiv:2103.17239, Sec. 2 (LayerScale).

    Args:
        embed_dim: D. num_heads: A. hidden_dim: width inside the MLP.
        layer_scale_init: initial value of gamma_1 and gamma_2.
        drop_path_rate: probability of dropping a branch while training.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, hidden_dim: int, *, layer_scale_init: float, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.layer_scale_init = layer_scale_init
        self.drop_path_rate = drop_path_rate
        self.gamma_1 = nn.Parameter(torch.empty(embed_dim))
        self.gamma_2 = nn.Parameter(torch.empty(embed_dim))
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = TalkingHeadsAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = Mlp(embed_dim, hidden_dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return patch tokens (B, N, D) for patch tokens (B, N, D)."""
        tokens_BND = tokens_BND + self._drop_path(self.gamma_1 * self.attn(self.norm1(tokens_BND)))
        return tokens_BND + self._drop_path(self.gamma_2 * self.mlp(self.norm2(tokens_BND)))

    def _drop_path(self, branch_BND: Tensor) -> Tensor:
        return drop_path(branch_BND, self.drop_path_rate, self.training)


class ClassAttentionBlock(nn.Module):
    """One block of the class stage: it updates the class token only; patch tokens do not change.

        u   = norm1([cls, patches])                one norm for both
        cls = cls + gamma_1 * class_attention(u)
        cls = cls + gamma_2 * mlp(norm2(cls))

    No stochastic depth here, whatever the patch stage uses.

    Source: Touvron et al. 2021, arXiv:2103.17239, Sec. 3.

    Args:
        embed_dim: D. num_heads: A. hidden_dim: width inside the MLP.
        layer_scale_init: initial value of gamma_1 and gamma_2, the same as in the patch stage.
    """

    def __init__(self, embed_dim: int, num_heads: int, hidden_dim: int, *, layer_scale_init: float) -> None:
        super().__init__()
        self.layer_scale_init = layer_scale_init
        self.gamma_1 = nn.Parameter(torch.empty(embed_dim))
        self.gamma_2 = nn.Parameter(torch.empty(embed_dim))
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = ClassAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = Mlp(embed_dim, hidden_dim)

    def forward(self, cls_B1D: Tensor, patches_BND: Tensor) -> Tensor:
        """Return the class token after this block, (B, 1, D)."""
        u_BTD = self.norm1(torch.cat((cls_B1D, patches_BND), dim=1))
        cls_B1D = cls_B1D + self.gamma_1 * self.attn(u_BTD)
        return cls_B1D + self.gamma_2 * self.mlp(self.norm2(cls_B1D))
