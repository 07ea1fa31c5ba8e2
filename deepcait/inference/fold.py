"""The same network rewritten for inference: less arithmetic, fewer operators, the same logits.

What is folded, all of it exact in real numbers and computed in float64:

    LayerNorm's affine, q-scale, LayerScale   into the linear layers next to them
    bias of proj_l, of every key              nothing: constant along a row, the softmax cancels it
    bias of every value                       into the bias of the projection: rows sum to a constant
    bias of proj_w                            nothing: it is added where the heads are mixed
    keys and values of the class attention    q (W_k x) = (W_k' q) x and A (W_v x) = W_v (A x): products with all
                                              tokens fall from width D for each channel to width D for each head
    normalised patches                        once for both class blocks, since no affine is left that differs
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.backends.exact import standard_operators_only
from deepcait.errors import ConfigError
from deepcait.inference.blocks import attend_blocks
from deepcait.inference.foldable import foldable_config
from deepcait.inference.linear import FoldedLinear
from deepcait.inference.native import is_faster, pack_blocks, patch_stage, run_blocks
from deepcait.model.block import NORM_EPS, ClassAttentionBlock, LayerScaleBlock
from deepcait.model.cait import CaiT
from deepcait.model.embedding import require_images
from deepcait.model.variants import CaiTConfig
from deepcait.model.wrappers import unwrap
from deepcait.runtime.state import undisturbed

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_log = logging.getLogger(__name__)


@undisturbed()
def fold(model: nn.Module, precision: str = "fp32") -> FoldedCaiT:
    """Return the same function of the images, rewritten for inference; the model itself is not changed.

    Logits agree within rounding (1e-5 of their standard deviation in float32). Weights are copies: training the model
    afterwards does not change them.

    >>> from deepcait import create_model
    >>> model, images_BCHW = create_model("cait_nano_32").eval(), torch.randn(2, 3, 32, 32)
    >>> torch.allclose(fold(model)(images_BCHW), model(images_BCHW), atol=1e-5)
    True

    Args:
        model: a CaiT, possibly wrapped by torch.compile or DistributedDataParallel.
        precision: fp32, bf16 or int8. On a CPU with AVX512_BF16, bf16 computes the products of the patch stage in
            bfloat16, with float32 sums; with AVX512_VNNI, int8 computes its linear layers in int8. Everything else
            stays as it is. Without the instruction, or where float32 is faster, it is fp32, and a warning is logged.

    Raises:
        ConfigError: the network is not a CaiT, the precision is unknown, or a part was modified (an adapter, a hook, a
            replaced layer); the message names it.
    """
    if precision not in _DTYPES:
        raise ConfigError(
            f"precision: expected fp32, bf16 or int8, got {precision!r}.",
            remedy="Other precisions need an engine: deepcait.load(..., precision=...).",
        )
    core = unwrap(model)
    if isinstance(core, FoldedCaiT):
        return core if core.precision == precision else core.with_precision(precision)
    if type(core) is not CaiT:
        raise ConfigError(
            f"fold: {type(core).__name__} can't be folded; only a CaiT can.",
            remedy="Run this network as it is.",
        )
    return FoldedCaiT(core, precision)


class _Constants(nn.Module):
    """A module whose tensors are constants, registered by `_keep`."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class FoldedCaiT(_Constants):
    """A CaiT for inference, made by `fold`.

    On a CPU, the eager patch stage is one call of compiled machine code if there is a compiler; otherwise it is
    computed in blocks of rows, without whole N x N maps. If exported, traced, differentiated by the images, or on
    another device,
    whole maps are computed with operators that every engine has: on a GPU few large kernels are faster than many small
    ones. torch.compile uses the machine code after a call of `pack`.

    Args:
        model: the CaiT to fold.
        precision: fp32, bf16 or int8, of the products in the machine code.
    """

    def __init__(self, model: CaiT, precision: str = "fp32") -> None:
        super().__init__()
        self.precision = precision
        self.config: CaiTConfig = foldable_config(model)
        self.num_classes = self.config.num_classes
        self.num_features = model.num_features
        self.pretrained_cfg = dict(model.pretrained_cfg)
        with torch.no_grad():
            embed = model.patch_embed.proj
            bias = cast("Tensor", embed.bias)
            _keep(self, model.cls_token, patch_weight=embed.weight, cls_token=model.cls_token)
            _keep(self, model.cls_token, positions=(model.pos_embed.double() + bias.double()))
            N = self.config.num_patches
            blocks = (FoldedBlock(cast("LayerScaleBlock", block), N) for block in model.blocks)
            self.blocks = nn.ModuleList(blocks)
            cls_blocks = (FoldedClassBlock(cast("ClassAttentionBlock", block)) for block in model.blocks_token_only)
            self.blocks_token_only = nn.ModuleList(cls_blocks)
            if self.num_classes:
                weight, bias = _after_norm(cast("nn.Linear", model.head), model.norm)
            else:
                # No layer follows the last norm: its affine is kept.
                weight, bias = model.norm.weight, model.norm.bias
            _keep(self, model.cls_token, head_weight=weight, head_bias=bias)
        self._packed: Tensor | None = None
        self._is_packed = False
        super().train(False)

    def train(self, mode: bool = True) -> FoldedCaiT:
        """Stay in evaluation mode.

        Raises:
            ConfigError: `mode` is True.
        """
        if mode:
            refuse_training()
        return super().train(False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K); features (B, D) if `num_classes` is 0.

        Raises:
            ShapeError: the images' size or number of channels is not the model's.
        """
        cls_BD = self._read(self._patches(images_BCHW))[0]
        if not self.num_classes:
            return F.layer_norm(cls_BD, cls_BD.shape[-1:], self.head_weight, self.head_bias, NORM_EPS)
        return F.linear(normalize(cls_BD), self.head_weight, self.head_bias)

    def class_attention(self, images_BCHW: Tensor) -> Tensor:
        """Return the attention of the class token: (B, class blocks, A, 1 + N), as `CaiT.class_attention`."""
        return torch.stack(self._read(self._patches(images_BCHW))[1], dim=1)

    def get_classifier(self) -> NoReturn:
        """Raise: the head contains the last norm."""
        refuse_training()

    def _patches(self, images_BCHW: Tensor) -> Tensor:
        require_images(images_BCHW, self.config.in_chans, self.config.img_size)
        maps_BDHW = F.conv2d(images_BCHW, self.patch_weight, stride=self.config.patch_size)
        tokens_BND = self.positions + maps_BDHW.flatten(2).transpose(1, 2)
        elsewhere = tokens_BND.device.type != "cpu"
        if elsewhere or standard_operators_only() or torch.jit.is_tracing() or _wants_gradient(tokens_BND):
            return self._whole_maps(tokens_BND)
        if torch.compiler.is_compiling():
            if self._packed is None:
                return self._whole_maps(tokens_BND)
            return patch_stage(tokens_BND, self._packed, self.config.num_heads, self.config.hidden_dim, NORM_EPS)
        return self.run_blocks(tokens_BND)

    def run_blocks(self, tokens_BND: Tensor) -> Tensor:
        """Pass patch tokens (B, N, D) through the patch stage, without gradients."""
        if self.pack():
            packed = cast("Tensor", self._packed)
            return run_blocks(tokens_BND, packed, self.config.num_heads, self.config.hidden_dim, NORM_EPS)
        tokens_BND = tokens_BND.contiguous()
        for block in self.blocks:
            tokens_BND = cast("FoldedBlock", block).run(tokens_BND)
        return tokens_BND

    def pack(self) -> bool:
        """Return whether machine code can run the patch stage; the first call prepares its weights."""
        if not self._is_packed:
            self._packed, self._is_packed = self._pack_as(_DTYPES[self.precision]), True
        return self._packed is not None

    def computed_in(self) -> str:
        """Return the precision of the products: on a CPU, fp32 where `precision` is not available, or slower."""
        if self.cls_token.device.type != "cpu" or self.precision == "fp32":
            return self.precision
        packed = self._packed if self.pack() else None
        return self.precision if packed is not None and packed.dtype == _DTYPES[self.precision] else "fp32"

    def _pack_as(self, dtype: torch.dtype) -> Tensor | None:
        tensors = [cast("FoldedBlock", block).tensors() for block in self.blocks]
        packed = pack_blocks(tensors, self.config.num_heads, dtype)
        if dtype == torch.float32 or (packed is not None and is_faster(dtype)):
            return packed
        why = "not available for this processor or model" if packed is None else "slower than fp32 on this processor"
        _log.warning(f"{self.precision}: {why}; fp32 is used.")
        return pack_blocks(tensors, self.config.num_heads)

    def with_precision(self, precision: str) -> FoldedCaiT:
        """Return a copy whose products are computed in this precision: fp32, bf16 or int8."""
        other = copy.deepcopy(self)
        other.precision = precision
        return other

    # After moving, casting or loading, the packed weights are outdated.
    def _apply(self, *args: Any, **kwargs: Any) -> FoldedCaiT:
        self._packed, self._is_packed = None, False
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed, self._is_packed = None, False
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are ordered for this machine's vector width and are invalid on another machine.
        return self.__dict__ | {"_packed": None, "_is_packed": False}

    def _whole_maps(self, tokens_BND: Tensor) -> Tensor:
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        return tokens_BND

    def _read(self, patches_BND: Tensor) -> tuple[Tensor, list[Tensor]]:
        patches_BND = normalize(patches_BND)
        cls_BD = self.cls_token[:, 0].expand(patches_BND.shape[0], -1)
        maps = []
        for block in self.blocks_token_only:
            cls_BD, weights_BAT = block(cls_BD, patches_BND)
            maps.append(weights_BAT)
        return cls_BD, maps


class FoldedBlock(_Constants):
    """A block of the patch stage with everything folded.

    Args:
        block: the block to fold.
        num_patches: N; the value bias that the attention collects depends on it.
    """

    def __init__(self, block: LayerScaleBlock, num_patches: int) -> None:
        super().__init__()
        attn = block.attn
        D, A = attn.qkv.in_features, attn.num_heads
        self.num_heads = A
        weight, bias = _after_norm(attn.qkv, block.norm1)
        weight[:D] *= attn.scale
        bias[:D] *= attn.scale
        value_bias = bias[2 * D :].clone()
        bias[D:] = 0
        proj, proj_bias = _before_scale(attn.proj, block.gamma_1)
        mix_w, bias_w = attn.proj_w.weight.double(), cast("Tensor", attn.proj_w.bias).double()
        # Rows of the mixed maps sum to this factor, which multiplies the value bias.
        row_sums = mix_w.sum(1) + num_patches * bias_w
        proj_bias += proj @ (_per_channel(row_sums, D) * value_bias)
        like = block.gamma_1
        self.qkv, self.proj = FoldedLinear(weight, bias, like), FoldedLinear(proj, proj_bias, like)
        _keep(self, like, mix_l=attn.proj_l.weight, mix_w=mix_w, bias_w=bias_w)
        _keep_mlp(self, block)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return patch tokens (B, N, D), by whole maps and operators that every engine has."""
        tokens_BND = tokens_BND + self._attend(normalize(tokens_BND))
        return tokens_BND + _mlp(self, normalize(tokens_BND))

    def run(self, tokens_BND: Tensor) -> Tensor:
        """The same without gradients, a block of rows of the maps at a time; the tokens are contiguous."""
        qkv_BND3 = self.qkv.plain(normalize(tokens_BND))
        read_BND = attend_blocks(qkv_BND3, self.mix_l, self.mix_w, self.bias_w)
        del qkv_BND3
        tokens_BND = self.proj.plus(read_BND, tokens_BND)
        del read_BND
        return self.fc2.plus(self.fc1.gelu(normalize(tokens_BND)), tokens_BND)

    def tensors(self) -> list[Tensor]:
        """Return the arguments of `native.pack_blocks`."""
        layers = (self.qkv, self.proj, self.fc1, self.fc2)
        return [*(t for layer in layers for t in (layer.weight, layer.bias)), self.mix_l, self.mix_w, self.bias_w]

    def _attend(self, tokens_BND: Tensor) -> Tensor:
        B, N, D = tokens_BND.shape
        A = self.num_heads
        qkv = self.qkv(tokens_BND)
        q, k, v = qkv.reshape(B, N, 3, A, D // A).permute(2, 0, 3, 1, 4).reshape(3, B * A, N, D // A).unbind(0)
        # `bmm` alone: a broadcast product would be exported as a multiplication of whole maps by 1.
        scores_BANM = torch.bmm(q, k.transpose(1, 2)).reshape(B, A, N * N)
        weights_BANN = torch.bmm(self.mix_l.expand(B, A, A), scores_BANM).reshape(B, A, N, N).softmax(-1)
        mixed_BANM = torch.bmm(self.mix_w.expand(B, A, A), weights_BANN.reshape(B, A, N * N)) + self.bias_w[:, None]
        read_BANE = torch.bmm(mixed_BANM.reshape(B * A, N, N), v).reshape(B, A, N, D // A)
        return self.proj(read_BANE.transpose(1, 2).reshape(B, N, D))


class FoldedClassBlock(_Constants):
    """A block of the class stage with key and value projections folded into query and output.

    Args:
        block: the block to fold.
    """

    def __init__(self, block: ClassAttentionBlock) -> None:
        super().__init__()
        attn = block.attn
        D, A = attn.q.in_features, attn.num_heads
        self.num_heads = A
        q_weight, q_bias = _after_norm(attn.q, block.norm1)
        k_weight, _ = _after_norm(attn.k, block.norm1)
        v_weight, v_bias = _after_norm(attn.v, block.norm1)
        proj, proj_bias = _before_scale(attn.proj, block.gamma_1)
        proj_bias += proj @ v_bias  # rows of the attention sum to 1
        like = block.gamma_1
        self.q = FoldedLinear(q_weight * attn.scale, q_bias * attn.scale, like)
        _keep(self, like, k_AED=k_weight.view(A, D // A, D), v_ADE=v_weight.view(A, D // A, D).transpose(1, 2))
        self.proj = FoldedLinear(proj, proj_bias, like)
        _keep_mlp(self, block)

    def forward(self, cls_BD: Tensor, patches_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token after this block, (B, D), and its attention, (B, A, 1 + N).

        Args:
            cls_BD: the class token.
            patches_BND: patch tokens, normalised.
        """
        B, D = cls_BD.shape
        own_BD = normalize(cls_BD)
        asked_ABE = self.q(own_BD).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        asked_BAD = torch.bmm(asked_ABE, self.k_AED).transpose(0, 1)
        own_B1D = own_BD.unsqueeze(1)
        scores = (asked_BAD @ own_B1D.transpose(1, 2), asked_BAD @ patches_BND.transpose(1, 2))
        weights_BAT = torch.cat(scores, dim=-1).softmax(-1)
        seen_BAD = weights_BAT[..., :1] * own_B1D + weights_BAT[..., 1:] @ patches_BND
        read_BD = torch.bmm(seen_BAD.transpose(0, 1), self.v_ADE).transpose(0, 1).reshape(B, D)
        cls_BD = cls_BD + self.proj(read_BD)
        return cls_BD + _mlp(self, normalize(cls_BD)), weights_BAT


def normalize(tokens: Tensor) -> Tensor:
    """Mean 0 and variance 1 for each token: LayerNorm without its affine."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS)


def refuse_training() -> NoReturn:
    """Raise: a folded model is for inference only.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "a folded model can't be trained.",
        remedy="Train the model that it was folded from, then fold it again.",
    )


def _after_norm(layer: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer with the affine of the preceding norm folded in, in float64."""
    weight = layer.weight.double()
    bias = cast("Tensor", layer.bias).double() + weight @ norm.bias.double()
    return weight * norm.weight.double(), bias


def _before_scale(layer: nn.Linear, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer with the following LayerScale folded in, in float64."""
    return layer.weight.double() * gamma.double()[:, None], cast("Tensor", layer.bias).double() * gamma.double()


def _per_channel(per_head_A: Tensor, embed_dim: int) -> Tensor:
    return per_head_A.repeat_interleave(embed_dim // len(per_head_A))


def _keep_mlp(module: nn.Module, block: LayerScaleBlock | ClassAttentionBlock) -> None:
    module.fc1 = FoldedLinear(*_after_norm(block.mlp.fc1, block.norm2), block.gamma_2)
    module.fc2 = FoldedLinear(*_before_scale(block.mlp.fc2, block.gamma_2), block.gamma_2)


def _mlp(module: _Constants, tokens: Tensor) -> Tensor:
    return module.fc2(F.gelu(module.fc1(tokens)))


def _wants_gradient(tensor: Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()


def _keep(module: nn.Module, like: Tensor, **tensors: Tensor) -> None:
    """Register constants of the module, in the dtype and on the device of `like`, as copies."""
    for name, tensor in tensors.items():
        kept = tensor.detach().to(like.device, like.dtype)
        module.register_buffer(name, kept.clone(memory_format=torch.contiguous_format))
