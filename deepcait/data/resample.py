"""Conversion of pixels between Pillow and torch, and resizing in torch's 8-bit arithmetic."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Those that torch computes with antialiasing on 8-bit pixels.
FAST_FILTERS = ("bicubic", "bilinear")


def resize_pixels(pixels_HWC: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize with antialiasing.

    The filter is Pillow's (a = -0.5 for bicubic); its weights have 15 bits where Pillow's have 22, so that results
    differ by up to 2 of 255 levels.

    Args:
        pixels_HWC: uint8, contiguous; or pixels_HW.
        size: (height, width) in pixels.
        interpolation: one of FAST_FILTERS.

    Returns:
        The same with the requested size.
    """
    pixels_1HWC = torch.from_numpy(pixels_HWC if pixels_HWC.ndim == 3 else pixels_HWC[..., None])[None]
    # Channels stay last, in the input and in the output: torch is fastest so, and Pillow wants them so.
    resized_1CHW = F.interpolate(pixels_1HWC.permute(0, 3, 1, 2), size=size, mode=interpolation, antialias=True)
    resized_HWC = resized_1CHW.permute(0, 2, 3, 1).contiguous()[0]
    return resized_HWC.numpy().reshape(*size, *pixels_HWC.shape[2:])


def planes(image: Image.Image) -> Tensor:
    """The pixels of a grey or RGB image as pixels_CHW, uint8: band by band, which is faster than to permute."""
    bands = image.split()
    pixels_CHW = torch.empty((len(bands), image.height, image.width), dtype=torch.uint8)
    for pixels_HW, band in zip(pixels_CHW.numpy(), bands, strict=True):
        pixels_HW[:] = np.asarray(band)
    return pixels_CHW
