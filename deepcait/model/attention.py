"""CaiT's two attention layers: talking-heads self-attention among patches, and class attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.model.watch import is_watched, report_attention


class TalkingHeadsAttention(nn.Module):
    """Self-attention among patches, with heads mixed before and after the softmax (talking heads).

        q, k, v = W_qkv tokens + b_qkv
        scores  = (q / sqrt(E)) k'                  one N x N map per head
        weights = softmax(proj_l scores)            proj_l mixes the heads
        mixed   = proj_w weights                    proj_w mixes them again
        out     = W_o (mixed v) + b_o

    Rows of `weights` sum to 1; rows of `mixed` do not, and may be negative. The bias of `proj_l` is constant
    along a row, so the softmax cancels it; it exists because the released checkpoints contain it. The bias of
    `proj_w` has an effect: it adds the sum over the values.

    Source: Touvron et al. 2021, arXiv:2103.17239, Sec. 4; talking heads: Shazeer et al. 2020, arXiv:2003.02436.

    Args:
        embed_dim: D, width of a token.
        num_heads: A; must divide D.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        # The order of these four is the order of the released checkpoints.
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_l = nn.Linear(num_heads, num_heads)
        self.proj_w = nn.Linear(num_heads, num_heads)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the update of each patch token, (B, N, D), before LayerScale."""
        out_BND, *weights = self.attend(tokens_BND)
        report_attention(self, *weights)
        return out_BND

    def attend(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output and the attention weights of each patch, by the equations of the class.

        Args:
            tokens_BND: normalised patch tokens.

        Returns:
            out_BND: update of the tokens, before LayerScale.
            weights_BANN: after the softmax, before the second mixing; rows sum to 1.
            mixed_BANN: after the second mixing: the factors of the values.
        """
        q_BANE, k_BANE, v_BANE = self._split(self.qkv(tokens_BND))
        scores_BANN = (q_BANE * self.scale) @ k_BANE.transpose(-2, -1)
        weights_BANN = softmax_wide(mix_heads(self.proj_l, scores_BANN))
        mixed_BANN = mix_heads(self.proj_w, weights_BANN)
        return self.proj(merge_heads(mixed_BANN @ v_BANE)), weights_BANN, mixed_BANN

    def _split(self, qkv_BND3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv_BND3.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class ClassAttention(nn.Module):
    """Class attention: the class token is the only query, all tokens are keys and values.

    One row of attention per head is computed, so the cost grows linearly with
    the number of tokens T (self-attention grows with T squared).

        q       = W_q tokens[0] + b_q               from the class token alone
        k, v    = W_k tokens + b_k, W_v tokens + b_v
        weights = softmax(q k' / sqrt(E))           one distribution over T tokens per head
        out     = W_o (weights v) + b_o

    Source: Touvron et al. 2021, arXiv:2103.17239, Sec. 3. No talking heads here.

    Args:
        embed_dim: D, width of a token.
        num_heads: A; must divide D.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.q = nn.Linear(embed_dim, embed_dim)
        self.k = nn.Linear(embed_dim, embed_dim)
        self.v = nn.Linear(embed_dim, embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return the class token's update, (B, 1, D), before LayerScale.

        On a GPU the three lines in the middle of the equations are one kernel of PyTorch, which returns no weights. It
        has first derivatives only; `attend` has all, and is used if it was replaced or the weights are watched.
        """
        traced = isinstance(tokens_BTD, torch.fx.Proxy)  # its device is known only when it runs
        replaced = "attend" in self.__dict__ or type(self).attend is not _ATTEND
        if traced or not tokens_BTD.is_cuda or replaced or is_watched():
            out_B1D, *weights = self.attend(tokens_BTD)
            report_attention(self, *weights)
            return out_B1D
        read_BA1E = F.scaled_dot_product_attention(*self._queries_keys_values(tokens_BTD), scale=self.scale)
        return self.proj(merge_heads(read_BA1E))

    def attend(self, tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token's update and its attention weights.

        Args:
            tokens_BTD: class token at position 0, patch tokens after it; normalised.

        Returns:
            out_B1D: update of the class token, before LayerScale.
            weights_BA1T: attention, each row sums to 1; position 0 is the class token itself.
        """
        q_BA1E, k_BATE, v_BATE = self._queries_keys_values(tokens_BTD)
        weights_BA1T = softmax_wide((q_BA1E * self.scale) @ k_BATE.transpose(-2, -1))
        return self.proj(merge_heads(weights_BA1T @ v_BATE)), weights_BA1T

    def _queries_keys_values(self, tokens_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the query of the class token and the keys and values of all tokens, by head."""
        q_B1D, k_BTD, v_BTD = self.q(tokens_BTD[:, :1]), self.k(tokens_BTD), self.v(tokens_BTD)
        return self._heads(q_B1D), self._heads(k_BTD), self._heads(v_BTD)

    def _heads(self, tokens_BTD: Tensor) -> Tensor:
        return tokens_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


# Of the class as it was defined: a replaced one takes effect.
_ATTEND = ClassAttention.attend


def mix_heads(mixing: nn.Linear, maps_BANN: Tensor) -> Tensor:
    """Apply a linear layer across the heads of attention maps; the shape stays (B, A, N, N)."""
    return mixing(maps_BANN.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def merge_heads(values_BATE: Tensor) -> Tensor:
    """Concatenate the heads: (B, A, T, E) to (B, T, D)."""
    return values_BATE.transpose(1, 2).flatten(2)


@torch.fx.wrap  # one node of a traced graph: the dtype is known only when it runs
def softmax_wide(scores: Tensor) -> Tensor:
    """Softmax over the last axis, computed in at least float32 and returned in the input's dtype."""
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
