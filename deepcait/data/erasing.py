"""Random erasing: rectangles of an image are replaced by noise. Source: Zhong et al., arXiv:1708.04896."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

# timm's defaults: parts of the image's area, and aspect ratios, from and to.
_AREA = (0.02, 1 / 3)
_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))
_NUM_TRIES = 10


class Patch(NamedTuple):
    """An erased rectangle, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_erasing(probability: float, channels: int, height: int, width: int) -> tuple[list[Patch], Tensor]:
    """Draw the rectangles to erase in one image, and the noise that replaces them.

    The draws are those of timm's `RandomErasing(probability, mode="pixel")`, from Python's and torch's generators, so
    that a seed gives the same images. Workers draw; the rectangle is filled later, after normalisation.

    Args:
        probability: of erasing at all.
        channels, height, width: of the image.

    Returns:
        At most one rectangle, and its normal noise, flat (channels * height * width of the rectangle).
    """
    if random.random() > probability:
        return [], torch.empty(0)
    for _ in range(_NUM_TRIES):
        area = random.uniform(*_AREA) * (height * width)
        ratio = math.exp(random.uniform(*_LOG_RATIO))
        patch_height, patch_width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if patch_width < width and patch_height < height:
            top = random.randint(0, height - patch_height)
            left = random.randint(0, width - patch_width)
            noise = torch.empty(channels, patch_height, patch_width).normal_()
            return [Patch(top, left, patch_height, patch_width)], noise.flatten()
    return [], torch.empty(0)
