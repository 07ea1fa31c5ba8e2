"""Attribution methods independent of attention: Integrated Gradients and occlusion, computed by captum."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from deepcait.model import CaiT
from deepcait.optional import require


class Attribution(NamedTuple):
    """The attribution of a class's logit to pixels, relative to an image of the mean colour.

    values: (H, W), signed, summed over channels.
    gap: for Integrated Gradients, the error of the sum of all values relative to the difference of the two logits: 0 is
        exact; it shrinks with more steps. None for occlusion.
    """

    values: Tensor
    gap: float | None


def integrated_gradients(
    model: CaiT, image_CHW: Tensor, target: int, *, steps: int = 32, batch_size: int = 8
) -> Attribution:
    """Return Integrated Gradients of the target's logit, from the mean colour (zeros after normalisation).

    Source: Sundararajan et al. 2017, arXiv:1703.01365; Gauss-Legendre steps, by captum.

    Raises:
        ConfigError: captum is not installed.
    """
    captum = require("captum.attr", asked="Integrated Gradients", extra="explain")
    image_1CHW = image_CHW[None].detach()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        method = captum.IntegratedGradients(model)
        values_1CHW = method.attribute(
            image_1CHW, torch.zeros_like(image_1CHW), target=target, n_steps=steps, internal_batch_size=batch_size
        )
    values_CHW = values_1CHW[0].detach().float()
    with torch.no_grad():
        rise = (model(image_1CHW) - model(torch.zeros_like(image_1CHW)))[0, target].item()
    gap = abs(values_CHW.sum().item() - rise) / max(abs(rise), 1e-12)
    return Attribution(values_CHW.sum(0), gap)


@torch.no_grad()
def occlusion(model: CaiT, image_CHW: Tensor, target: int, *, batch_size: int = 8) -> Attribution:
    """Return the decrease of the target's logit when a single patch is replaced by the mean colour.

    Source: Zeiler and Fergus 2014, arXiv:1311.2901; windows are the model's own patches, by captum.

    Raises:
        ConfigError: captum is not installed.
    """
    captum = require("captum.attr", asked="Occlusion", extra="explain")
    window = (image_CHW.shape[0], model.config.patch_size, model.config.patch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values_1CHW = captum.Occlusion(model).attribute(
            image_CHW[None],
            sliding_window_shapes=window,
            strides=window,
            baselines=0,
            target=target,
            perturbations_per_eval=batch_size,
        )
    # Every element of a window has the whole decrease, in every channel.
    return Attribution(values_1CHW[0].float().mean(0), None)


def pool_to_grid(values_HW: Tensor, patch_size: int) -> Tensor:
    """Return the mean over each patch, (rows, columns)."""
    height, width = values_HW.shape
    return values_HW.reshape(height // patch_size, patch_size, width // patch_size, patch_size).mean((1, 3))
