"""CaiT with alternatives of the paper's ablations; the class CaiT itself is not changed."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.errors import ConfigError
from deepcait.model.ablation_init import init_fixup, init_tfixup, initial_scale
from deepcait.model.alternatives import SCALAR_RULES, AblationConfig
from deepcait.model.attention import ClassAttention, TalkingHeadsAttention, merge_heads, mix_heads, softmax_wide
from deepcait.model.block import NORM_EPS, Mlp, drop_path
from deepcait.model.cait import CaiT, init_linear
from deepcait.model.embedding import PatchEmbed


class PartlyTalkingHeadsAttention(nn.Module):
    """Self-attention with one head mixing only, or with none (plain multi-head attention).

    Args:
        embed_dim: D. num_heads: A; must divide D.
        before, after: whether heads are mixed before the softmax, and after it.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, before: bool, after: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_l = nn.Linear(num_heads, num_heads) if before else None
        self.proj_w = nn.Linear(num_heads, num_heads) if after else None

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the attention output of each token, (B, N, D)."""
        q, k, v = self.qkv(tokens_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.proj_l is None and self.proj_w is None:
            return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        maps_BANN = (q * self.scale) @ k.transpose(-2, -1)
        if self.proj_l is not None:
            maps_BANN = mix_heads(self.proj_l, maps_BANN)
        maps_BANN = softmax_wide(maps_BANN)
        if self.proj_w is not None:
            maps_BANN = mix_heads(self.proj_w, maps_BANN)
        return self.proj(merge_heads(maps_BANN @ v))


def _scale(config: AblationConfig) -> nn.Parameter | None:
    if config.residual == "layerscale":
        return nn.Parameter(torch.empty(config.embed_dim))
    return nn.Parameter(torch.empty(1)) if config.residual in SCALAR_RULES else None


def _norm(config: AblationConfig) -> nn.Module:
    return nn.LayerNorm(config.embed_dim, eps=NORM_EPS) if config.pre_norm else nn.Identity()


def _scaled(scale: Tensor | None, branch: Tensor) -> Tensor:
    return branch if scale is None else scale * branch


class AblatedBlock(nn.Module):
    """One block of the patch stage under another residual rule, with or without norms and talking heads."""

    def __init__(self, config: AblationConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.gamma_1, self.gamma_2 = _scale(config), _scale(config)
        self.norm1 = _norm(config)
        D, A, talking = config.embed_dim, config.num_heads, config.talking_heads
        if talking == "both":
            self.attn: nn.Module = TalkingHeadsAttention(D, A)
        else:
            self.attn = PartlyTalkingHeadsAttention(D, A, before=talking == "before", after=talking == "after")
        self.norm2 = _norm(config)
        self.mlp = Mlp(D, config.hidden_dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return tokens (B, N, D) for tokens (B, N, D)."""
        return self.add_branches(tokens_BND, self.attn(self.norm1(tokens_BND)))

    def add_branches(self, tokens_BND: Tensor, read_BND: Tensor) -> Tensor:
        """Add the attention's update to the tokens, then the MLP's branch."""
        branch_BND = _scaled(self.gamma_1, read_BND)
        tokens_BND = tokens_BND + drop_path(branch_BND, self.drop_path_rate, self.training)
        branch_BND = _scaled(self.gamma_2, self.mlp(self.norm2(tokens_BND)))
        return tokens_BND + drop_path(branch_BND, self.drop_path_rate, self.training)


class AblatedClassBlock(nn.Module):
    """One block of the class stage under another residual rule, with or without norms and MLP."""

    def __init__(self, config: AblationConfig) -> None:
        super().__init__()
        self.gamma_1 = _scale(config)
        self.gamma_2 = _scale(config) if config.class_mlp else None
        self.norm1 = _norm(config)
        self.attn = ClassAttention(config.embed_dim, config.num_heads)
        self.norm2 = _norm(config) if config.class_mlp else None
        self.mlp = Mlp(config.embed_dim, config.hidden_dim) if config.class_mlp else None

    def forward(self, cls_B1D: Tensor, patches_BND: Tensor) -> Tensor:
        """Return the class token after this block, (B, 1, D)."""
        u_BTD = self.norm1(torch.cat((cls_B1D, patches_BND), dim=1))
        cls_B1D = cls_B1D + _scaled(self.gamma_1, self.attn(u_BTD))
        if self.mlp is not None and self.norm2 is not None:
            cls_B1D = cls_B1D + _scaled(self.gamma_2, self.mlp(self.norm2(cls_B1D)))
        return cls_B1D


class AblatedCaiT(CaiT):
    """CaiT with alternatives. Without any: the same parameters, initial values and logits as CaiT.

    Args:
        config: shapes, initial values, and the options.
    """

    def __init__(self, config: AblationConfig) -> None:
        # CaiT's own __init__ is skipped: it would create blocks only to replace them.
        nn.Module.__init__(self)
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = config.embed_dim
        self.grad_checkpointing = False
        self.pretrained_cfg: dict = {}
        self.set_backend("auto")
        D, average = config.embed_dim, config.class_token == "average"
        self.register_parameter("cls_token", None if average else nn.Parameter(torch.empty(1, 1, D)))
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_patches, D))
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, D)
        self.blocks = nn.ModuleList(AblatedBlock(config, rate) for rate in config.drop_path_rates)
        self.blocks_token_only = nn.ModuleList(AblatedClassBlock(config) for _ in range(config.class_blocks))
        self.norm = nn.LayerNorm(D, eps=NORM_EPS)
        self.head = nn.Linear(D, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise every parameter: as CaiT, then as the residual rule requires."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()
        value = initial_scale(self._own)
        for block in (*self.blocks, *self.blocks_token_only):
            for scale in (block.gamma_1, block.gamma_2):
                if scale is not None:
                    nn.init.constant_(cast("Tensor", scale), value)
        if self._own.residual == "fixup":
            init_fixup(self, self._own)
        elif self._own.residual == "tfixup":
            init_tfixup(self, self._own)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K); features (B, D) if `num_classes` is 0."""
        if self._own.class_token == "average":
            return self.forward_head(self.forward_features(images_BCHW))
        return super().forward(images_BCHW)

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Return all tokens after the last norm: (B, 1 + N, D), the class token first; without one (B, N, D)."""
        if self._own.class_token == "average":
            return self.norm(self._through(images_BCHW))
        return super().forward_features(images_BCHW)

    def forward_head(self, tokens_BTD: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, K) of normalised tokens; with `pre_logits` the classifier's input, (B, D)."""
        if self._own.class_token != "average":
            return super().forward_head(tokens_BTD, pre_logits)
        pooled_BD = tokens_BTD.mean(dim=1)
        return pooled_BD if pre_logits else self.head(pooled_BD)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the patch tokens after chosen blocks, as CaiT does.

        Raises:
            ConfigError: the model has no class stage.
        """
        self._require_class_stage("forward_intermediates")
        return super().forward_intermediates(x, *args, **kwargs)

    @property
    def _own(self) -> AblationConfig:
        return cast("AblationConfig", self.config)

    def _tokens(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        if self._own.class_token == "class_stage":
            return super()._tokens(images_BCHW)
        tokens_BTD = self._through(images_BCHW)
        return tokens_BTD[:, :1], tokens_BTD[:, 1:]

    def _watched(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        self._require_class_stage("class_attention")
        return super()._watched(images_BCHW)

    def _through(self, images_BCHW: Tensor) -> Tensor:
        """All tokens after the patch stage, an inserted class token first."""
        tokens_BTD = self._embed(images_BCHW)
        inserted = self._own.class_token == "inserted"
        for index, block in enumerate(self.blocks):
            if inserted and index == self._own.insert_at:
                tokens_BTD = torch.cat((self._first_cls(images_BCHW), tokens_BTD), dim=1)
            tokens_BTD = self._run_patch_block(block, tokens_BTD)
        return tokens_BTD

    def _require_class_stage(self, what: str) -> None:
        if not self._own.class_blocks:
            raise ConfigError(
                f"{what}: the model has no class stage (class_token: {self._own.class_token}).",
                remedy="Use a CaiT, or a model trained with ablation.class_token=class_stage.",
            )
