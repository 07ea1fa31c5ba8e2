"""Test-time augmentation: the mean prediction for an image and its mirror image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deepcait.errors import ConfigError

TTA = ("flip",)


def augmented(network: nn.Module, tta: str | None) -> nn.Module:
    """Return a network with test-time augmentation; the network itself if `tta` is None.

    Raises:
        ConfigError: a name that is not in `TTA`.
    """
    if tta is None:
        return network
    if tta not in TTA:
        raise ConfigError(f"tta: expected one of {', '.join(TTA)}, got {tta!r}.", remedy="Leave it out for none.")
    return Flipped(network)


class Flipped(nn.Module):
    """Mean of the class probabilities for an image and for the same image flipped left to right.

    Args:
        network: images (B, C, H, W) to logits (B, K); called twice.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.pretrained_cfg = getattr(network, "pretrained_cfg", {})
        super().train(network.training)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logarithm of the mean probabilities, (B, K); their softmax is the mean itself."""
        both = [self.network(images).log_softmax(-1) for images in (images_BCHW, images_BCHW.flip(-1))]
        return torch.logaddexp(*both) - math.log(2)
