"""Small models whose every branch shows: gammas of order 1, random head mixing, random biases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deepcait.model import CaiT, CaiTConfig
from tests.hub_server import timm_repository


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter so that no wrong branch, order or transposition hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Matrices keep the size of what they multiply (larger ones saturate the softmax); all others are 0.5.
            fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 4
            width = fan_in**-0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * width)
    return model.eval()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., CaiT]:
    """Return a maker of random models: D=32, two blocks in each stage, 4 x 4 patches, 5 classes."""

    def build(seed: int = 0, **changes) -> CaiT:
        sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "num_classes": 5}
        return randomise(CaiT(CaiTConfig(**(sizes | changes))), seed)

    return build


@pytest.fixture(scope="session")
def random_weights() -> Callable[..., torch.nn.Module]:
    """Return the function that fills any model with telling random weights."""
    return randomise


@pytest.fixture(scope="session")
def logits() -> Callable[[torch.nn.Module], torch.Tensor]:
    """Return a function that runs a model on the same random images of its size, two small ones or one large."""

    def run(model: torch.nn.Module) -> torch.Tensor:
        weight = model.patch_embed.proj.weight
        if isinstance(model, CaiT):
            size = model.config.img_size
        else:
            size = model.patch_embed.img_size
        images = torch.randn(
            2 if size[0] < 224 else 1, weight.shape[1], *size, generator=torch.Generator().manual_seed(7)
        )
        with torch.inference_mode():
            return model(images.to(weight.dtype))

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory, random_weights) -> tuple[Path, torch.nn.Module]:
    """A tiny repository in timm's layout, and the model in it."""
    folder = tmp_path_factory.mktemp("small")
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "img_size": 32, "num_classes": 5}
    return folder, timm_repository(folder, random_weights, "cait_xxs24_224", **sizes)
