"""Images as Python callers pass them: a path, bytes, an open file, a PIL image, or an array of pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import BinaryIO, TypeAlias, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deepcait.data.depth import require_bands, to_rgb
from deepcait.data.image import DEFAULT, ImageOptions, open_image
from deepcait.errors import ConfigError

ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Tensor
)
_WHOLE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)
_PIXELS = (
    "pixels, red first, as uint8 or as floats from 0 to 1: an array (H, W), (H, W, 3) or (H, W, 4), or a tensor "
    "(3, H, W)"
)


def image_list(images: ImageInput | Iterable[ImageInput]) -> list[ImageInput]:
    """Return one image or several as a list; an array or tensor of four dimensions is a batch of images."""
    if isinstance(images, np.ndarray | Tensor):
        several = images.ndim > 3 or getattr(images.dtype, "kind", "") in ("O", "S", "U")  # arrays of paths
    else:
        several = isinstance(images, Iterable) and not isinstance(images, _WHOLE) and not hasattr(images, "read")
    return list(cast("Iterable[ImageInput]", images)) if several else [cast("ImageInput", images)]


def to_image(source: ImageInput, *, options: ImageOptions = DEFAULT) -> Image.Image:
    """Return an image as upright RGB, as `open_image` does, from any accepted form.

    Args:
        source: a path; the content of a file as bytes, or a file opened in binary mode; a PIL image; pixels with
            red first (OpenCV's arrays have blue first), as uint8 or as floats from 0 to 1: an array (H, W), (H, W, 3)
            or (H, W, 4), uint16 if grey, or a tensor (C, H, W).
        options: limits and range.

    Raises:
        ImageError: the image can't be read.
        ConfigError: something that is not an image.
    """
    if isinstance(source, Image.Image):
        require_bands(source)
        return to_rgb(ImageOps.exif_transpose(source), max_value=options.max_value)
    if isinstance(source, np.ndarray | Tensor):
        return to_rgb(_from_pixels(source), max_value=options.max_value)
    if isinstance(source, bytes | bytearray | memoryview):
        return open_image(bytes(source), options=options)
    if isinstance(source, str | os.PathLike):
        return open_image(source, options=options)
    if not hasattr(source, "read"):
        raise ConfigError(
            "image: expected a path, bytes, a file opened in binary mode, a PIL image, an array or a tensor, got "
            f"{type(source).__name__}.",
            remedy=f"Give one of these. Pixels are {_PIXELS}.",
        )
    content = source.read(options.max_bytes + 1)
    if not isinstance(content, bytes):
        raise ConfigError("image: expected a file opened in binary mode, got text.", remedy='Use open(path, "rb").')
    name = getattr(source, "name", None)
    return open_image(content, name=name if isinstance(name, str) else "open file", options=options)


def _from_pixels(pixels: np.ndarray | Tensor) -> Image.Image:
    """An array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W), as a PIL image."""
    shape, dtype = tuple(pixels.shape), str(pixels.dtype).removeprefix("torch.")
    if isinstance(pixels, Tensor):
        pixels = pixels.detach().cpu()
        pixels = pixels.float() if pixels.dtype == torch.bfloat16 else pixels  # which NumPy does not have
        pixels = (pixels.movedim(0, -1) if pixels.ndim == 3 else pixels).numpy()
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    colours = pixels.shape[-1] if pixels.ndim == 3 else 1
    is_float = pixels.dtype.kind == "f"
    form = ("uint8" if is_float else dtype, colours)
    if pixels.ndim not in (2, 3) or not pixels.size or form not in _PIXEL_FORMS:
        raise ConfigError(
            f"image: expected {_PIXELS}; got {dtype} of {shape}.",
            remedy="Convert it; `Classifier.logits` takes tensors that are preprocessed already.",
        )
    return Image.fromarray(np.ascontiguousarray(_eight_bits(pixels) if is_float else pixels))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Floats in [0, 1], as torchvision's ToTensor makes them of 8-bit pixels, as these pixels."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise ConfigError(
            f"image: expected floats from 0 to 1, got {low:.3g} to {high:.3g}.",
            remedy="Divide pixels up to 255 by 255. For images that are normalised already, `Classifier.logits` takes "
            "a batch as it is, and so does `evaluate` a DataLoader.",
        )
    return (pixels.astype(np.float32) * 255).round().astype(np.uint8)


_PIXEL_FORMS = {("uint8", 1), ("uint8", 3), ("uint8", 4), ("uint16", 1)}
