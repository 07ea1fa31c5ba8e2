"""The CaiT network: self-attention among patches, then class attention."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from deepcait.errors import ConfigError
from deepcait.model.block import NORM_EPS, ClassAttentionBlock, LayerScaleBlock
from deepcait.model.embedding import PatchEmbed, require_images
from deepcait.model.variants import CaiTConfig
from deepcait.model.watch import is_watched, stack_rows, watch_class_stage

torch.fx.wrap("require_images")  # one node of a traced graph: it compares sizes, which are known only at run time


class CaiT(nn.Module):
    """Class-attention image transformer.

    Patch stage: `depth` blocks of talking-heads self-attention over patch tokens, with a position embedding added once
    before them. Class stage: a class token is added and attends to the patches in `cls_depth` class-attention blocks.
    Its normalised final state is classified. Names and order of the parameters are those of the released checkpoints.

    Source: Touvron et al. 2021, "Going deeper with Image Transformers", arXiv:2103.17239.

    Args:
        config: shapes and initial values.
    """

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = config.embed_dim
        self.grad_checkpointing = False
        self.pretrained_cfg: dict = {}
        self.set_backend("auto")
        D, A, hidden = config.embed_dim, config.num_heads, config.hidden_dim
        # Never None: the configuration fills in the paper's value.
        eps = cast("float", config.layer_scale_init)
        self.cls_token = nn.Parameter(torch.empty(1, 1, D))
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_patches, D))
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, D)
        self.blocks = nn.ModuleList(
            LayerScaleBlock(D, A, hidden, layer_scale_init=eps, drop_path_rate=config.drop_path_rate)
            for _ in range(config.depth)
        )
        self.blocks_token_only = nn.ModuleList(
            ClassAttentionBlock(D, A, hidden, layer_scale_init=eps) for _ in range(config.cls_depth)
        )
        self.norm = nn.LayerNorm(D, eps=NORM_EPS)
        self.head = nn.Linear(D, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    @property
    def head_hidden_size(self) -> int:
        """Width of the classifier's input, under timm's name."""
        return self.num_features

    @property
    def default_cfg(self) -> dict:
        """`pretrained_cfg`, under timm's other name."""
        return self.pretrained_cfg

    @property
    def feature_info(self) -> list[dict]:
        """What each patch block returns, in timm's form: channels, pixels per token, and the name of the module."""
        facts = {"num_chs": self.num_features, "reduction": self.config.patch_size}
        return [facts | {"module": f"blocks.{index}"} for index in range(len(self.blocks))]

    def init_weights(self) -> None:
        """Initialise every parameter as the released code does; works after `to_empty` too.

        | parameter                                | initial value                                    |
        |------------------------------------------|--------------------------------------------------|
        | cls_token, pos_embed, weights of linears | N(0, 0.02^2), cut at -2 and 2 (100 deviations)   |
        | biases of linears                        | 0                                                |
        | norms                                    | weight 1, bias 0                                 |
        | patch_embed.proj                         | PyTorch's own: uniform in +-1 / sqrt(C P^2)      |
        | gamma_1, gamma_2                         | `layer_scale_init`, the same in both stages      |
        """
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()
            elif isinstance(module, LayerScaleBlock | ClassAttentionBlock):
                nn.init.constant_(module.gamma_1, module.layer_scale_init)
                nn.init.constant_(module.gamma_2, module.layer_scale_init)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K); features (B, D) if `num_classes` is 0.

        Raises:
            ShapeError: the images' size or number of channels is not the model's.
        """
        cls_B1D, _ = self._tokens(images_BCHW)
        # The norm acts per token, so only the class token needs it.
        return self.forward_head(self.norm(cls_B1D))

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Return all tokens after the final norm, (B, 1 + N, D), the class token first."""
        return self.norm(torch.cat(self._tokens(images_BCHW), dim=1))

    def forward_head(self, tokens_BTD: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, K) of normalised tokens; with `pre_logits` the class token itself, (B, D)."""
        cls_BD = tokens_BTD[:, 0]
        if pre_logits:
            return cls_BD
        if self.config.drop_rate:
            cls_BD = F.dropout(cls_BD, self.config.drop_rate, self.training)
        return self.head(cls_BD)

    def class_attention(self, images_BCHW: Tensor) -> Tensor:
        """Return the attention of the class token: (B, class blocks, A, 1 + N).

        Each row is a softmax and sums to 1; position 0 is the class token itself, patches follow row by row. Every
        module up to the class blocks is called once, as in `forward`.

        Raises:
            ConfigError: an attention layer of the class stage was replaced by one that reports no weights.
            ShapeError: the images' size or number of channels is not the model's.
        """
        return self._watched(images_BCHW)[1]

    def logits_and_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` and `class_attention` return, from one forward pass.

        Raises:
            ConfigError, ShapeError: as `class_attention`.
        """
        cls_B1D, attention_BLAT = self._watched(images_BCHW)
        return self.forward_head(self.norm(cls_B1D)), attention_BLAT

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = True,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the patch tokens after chosen blocks, in the form of timm's method of this name.

        Deviation: `norm` is True by default (timm: False). Patch tokens leave CaiT's blocks with large norms, which
        harm layers that follow; the final norm prevents that.

        Args:
            x: images (B, C, H, W).
            indices: the last n blocks, these blocks (negative from the end), or all.
            norm: apply the final norm to each.
            stop_early: do not compute blocks past the last one wanted; needs `intermediates_only`, since the
                class token reads the last block.
            output_fmt: "NCHW" for maps (B, D, rows, columns), "NLC" for tokens (B, N, D).
            intermediates_only: return only the list.

        Returns:
            The list, or (all tokens after the final norm (B, 1 + N, D), the list).

        Raises:
            ConfigError: a block does not exist, or `output_fmt` is unknown.
            ShapeError: the images' size or number of channels is not the model's.
        """
        wanted = self._block_indices(indices)
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigError(
                f"output_fmt: expected 'NCHW' or 'NLC', got {output_fmt!r}.",
                remedy="Use 'NCHW' for maps, 'NLC' for tokens.",
            )
        last = max(wanted) if stop_early and intermediates_only else len(self.blocks) - 1
        taken = []
        patches_BND = self._embed(x)
        for index, block in enumerate(self.blocks[: last + 1]):
            patches_BND = self._run_patch_block(block, patches_BND)
            if index in wanted:
                taken.append(self.norm(patches_BND) if norm else patches_BND)
        if output_fmt == "NCHW":
            taken = [t.transpose(1, 2).unflatten(-1, self.config.grid).contiguous() for t in taken]
        if intermediates_only:
            return taken
        cls_B1D = self._read(self._first_cls(x), patches_BND)
        return self.norm(torch.cat((cls_B1D, patches_BND), dim=1)), taken

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what `forward_intermediates` does not need for these blocks, like timm's method of this name.

        Afterwards only `forward_intermediates(..., intermediates_only=True)` works.

        Args:
            indices: as in `forward_intermediates`.
            prune_norm: drop the final norm.
            prune_head: drop the class stage and the classifier.

        Returns:
            The indices of the chosen blocks, from 0.

        Raises:
            ConfigError: a block does not exist.
        """
        wanted = self._block_indices(indices)
        self.blocks = self.blocks[: max(wanted) + 1]
        if prune_norm:
            self.norm = cast("nn.LayerNorm", nn.Identity())
        if prune_head:
            self.blocks_token_only = nn.ModuleList()
            self.reset_classifier(0)
        return sorted(wanted)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a newly initialised one with `num_classes` outputs; 0: return features.

        Raises:
            ConfigError: `global_pool` is not "token", the only pooling of CaiT.
        """
        if global_pool not in (None, "token"):
            raise ConfigError(
                f"global_pool: expected 'token', got {global_pool!r}.",
                remedy="CaiT classifies its class token; to pool patch tokens, use `forward_features`.",
            )
        like = self.pos_embed
        self.config = self.config.replace(num_classes=num_classes)
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            init_linear(self.head)
        self.head.train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay, in addition to all vectors and biases."""
        return {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block of both stages in the backward pass instead of saving its activations."""
        self.grad_checkpointing = enable

    def set_backend(self, name: str = "auto", *, small_memory: bool = False) -> None:
        """Choose what computes the blocks of the patch stage.

        A backend computes the same function in another way. It is used for a block only if every part of the block is
        unmodified; other blocks are computed by calling them, and the logger `deepcait.backends` reports which and why.

        Args:
            name: "reference" calls every block. "lean" fuses each branch into one operator that saves little for the
                backward pass; it supports first derivatives only. "auto" is lean on a CPU and the reference elsewhere.
            small_memory: lean saves only the residual stream for the backward pass and recomputes the rest.

        Raises:
            ConfigError: the name is unknown.
        """
        # The one import from a higher layer.
        from deepcait.backends import build_backend

        self._backend = build_backend(name, small_memory=small_memory)

    @property
    def backend(self) -> str:
        """The name that `set_backend` was given; "auto" at first."""
        return self._backend.name

    def describe_backend(self, device: torch.device | str | None = None) -> str:
        """Return one line: the backend of the patch blocks on a device, and which blocks it leaves out and why.

        Args:
            device: None means the model's own.
        """
        device = self.pos_embed.device if device is None else torch.device(device)
        return self._backend.describe(cast("Sequence[nn.Module]", self.blocks), device)

    def set_lean_attention(self, enable: bool = True) -> None:
        """Alias of `set_backend`, as in 0.1."""
        warnings.warn("set_lean_attention is deprecated: use set_backend('lean').", FutureWarning, stacklevel=2)
        self.set_backend("lean" if enable else "reference", small_memory=self._backend.small_memory)

    def set_small_memory(self, enable: bool = True) -> None:
        """Let the lean backend save only the residual stream for the backward pass and recompute the rest."""
        self.set_backend(self.backend, small_memory=enable)

    def _tokens(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        patches_BND = self._patches(images_BCHW)
        return self._read(self._first_cls(images_BCHW), patches_BND), patches_BND

    def _watched(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token after the class stage, (B, 1, D), and its attention, (B, class blocks, A, 1 + N)."""
        patches_BND = self._patches(images_BCHW)
        cls_B1D, rows = watch_class_stage(self.blocks_token_only, self._first_cls(images_BCHW), patches_BND)
        return cls_B1D, stack_rows(rows)

    def _embed(self, images_BCHW: Tensor) -> Tensor:
        require_images(images_BCHW, self.config.in_chans, self.config.img_size)
        return self.patch_embed(images_BCHW) + self.pos_embed

    def _patches(self, images_BCHW: Tensor) -> Tensor:
        patches_BND = self._embed(images_BCHW)
        for block in self.blocks:
            patches_BND = self._run_patch_block(block, patches_BND)
        return patches_BND

    def _first_cls(self, images_BCHW: Tensor) -> Tensor:
        return self.cls_token.expand(images_BCHW.shape[0], -1, -1)

    def _read(self, cls_B1D: Tensor, patches_BND: Tensor) -> Tensor:
        for block in self.blocks_token_only:
            cls_B1D = self._run(block, cls_B1D, patches_BND)
        return cls_B1D

    def _run_patch_block(self, block: nn.Module, patches_BND: Tensor) -> Tensor:
        """Pass the patches through one block of the patch stage: by the backend, or by calling it if it is watched."""
        if is_watched():
            return self._run(block, patches_BND)
        blocks = cast("Sequence[nn.Module]", self.blocks)
        return self._run(self._backend.function_for(block, patches_BND, blocks), patches_BND)

    def _run(self, block: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, *tokens, use_reentrant=False))
        return block(*tokens)

    def _block_indices(self, indices: int | Sequence[int] | None) -> set[int]:
        depth = len(self.blocks)
        if indices is None:
            return set(range(depth))
        chosen = list(range(-indices, 0) if isinstance(indices, int) else indices)
        if not chosen or not all(index in range(-depth, depth) for index in chosen):
            raise ConfigError(
                f"indices={indices!r}: the model has {depth} patch blocks.",
                remedy=f"Give a number of last blocks from 1 to {depth}, or indices from {-depth} to {depth - 1}.",
            )
        return {index % depth for index in chosen}


def init_linear(layer: nn.Linear) -> None:
    """Draw a linear layer's weight from N(0, 0.02^2) and set its bias to 0."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
