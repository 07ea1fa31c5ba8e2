"""Weights with which a wrong branch shows, and the small networks that the tests of the model share.

With the paper's initial values (gamma 1e-5, head mixing near 0) every branch is invisible: a network without
attention passes a parity test at 1e-4. Here nothing is zero, gammas are of order 1 and the heads really mix.
"""

from __future__ import annotations

import dataclasses

import torch
from timm.models.cait import Cait
from torch import Tensor, nn

from deepcait.model import CaiT, CaiTConfig
from deepcait.model.ablation import AblatedCaiT
from deepcait.model.alternatives import AblationConfig


def tiny_config(**changes) -> CaiTConfig:
    """A network of 2 + 2 blocks, 3 heads of 8 channels, 4 x 4 patches and 7 classes."""
    tiny = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8, "num_classes": 7}
    return CaiTConfig(**(tiny | changes))


def wild_state(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random weights for a CaiT of ours or timm's (on any device, meta too), float32, every branch of order 1."""
    generator = torch.Generator().manual_seed(seed)
    num_patches = model.pos_embed.shape[1]
    return {
        name: _wild_tensor(name, tuple(tensor.shape), num_patches, generator)
        for name, tensor in model.state_dict().items()
    }


def _wild_tensor(name: str, shape: tuple[int, ...], num_patches: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if "gamma" in name:
        negative = torch.rand(shape, generator=generator) < 0.3
        return (0.5 + torch.rand(shape, generator=generator)) * torch.where(negative, -1.0, 1.0)
    if "norm" in name and name.endswith("weight"):
        return 1.0 + 0.2 * noise
    if name.endswith("proj_w.bias"):
        return noise / num_patches  # it adds the sum of all values: of the size of one attention weight
    if name.endswith("bias"):
        return 0.3 * noise
    if name in ("cls_token", "pos_embed"):
        return 0.5 * noise
    return noise.div_(noise[0].numel() ** 0.5)  # keeps the size of what passes through


def wild_model(config: CaiTConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> CaiT:
    """Our network with wild weights, in eval mode."""
    model = CaiT(config)
    model.load_state_dict(wild_state(model, seed))
    return model.to(dtype).eval()


def ablated(seed: int = 0, config: CaiTConfig | None = None, **options) -> AblatedCaiT:
    """A small network with alternatives, weights of order 1, in float64 and eval mode."""
    config = config or tiny_config(depth=3)
    wide = AblationConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(CaiTConfig)})
    model = AblatedCaiT(wide.replace(**options))
    model.load_state_dict(wild_state(model, seed))
    return model.double().eval()


def timm_twin(model: CaiT) -> Cait:
    """timm's network of the same shape with the same weights and dtype, in eval mode."""
    config = model.config
    twin = Cait(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        mlp_ratio_token_only=config.mlp_ratio,
        depth_token_only=config.cls_depth,
    )
    twin = twin.to(model.cls_token.dtype)
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.eval()


def some_images(config: CaiTConfig, batch: int = 2, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise of the size that the network expects."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.in_chans, *config.img_size, generator=generator).to(dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a multiple of the standard deviation of what is expected."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).abs().max() / expected.double().std()).item()
