"""The preprocessing of a model as a few lines of numpy and Pillow, for programs that do not have deepcait."""

from __future__ import annotations

import math

from deepcait.data.preprocessing import MAX_ASPECT, Preprocessing

_UNSET = 65535

_TEXT = '''\
"""Prepares images for {name}: bit for bit what deepcait computes. Needs numpy and Pillow.

An image whose long side is more than {aspect} times as long as its short one loses its outer parts in deepcait first.
"""

import numpy as np
from PIL import Image, ImageOps


def model_input(path):
    """The image as float32, (1, {channels}, {height}, {width})."""
    with open(path, "rb") as file:  # given a path, Pillow does not turn some TIFFs
        image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I;16"):
        image = Image.fromarray(({scaled}).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB"){grey}
    width, height = image.size
{size}
    left, top = round((size[0] - {width}) / 2), round((size[1] - {height}) / 2)
    box = (left, top, left + {width}, top + {height})
    pixels = np.asarray(image.resize(size, Image.Resampling.{interpolation}).crop(box), np.float32)
    pixels = (pixels.reshape({height}, {width}, {channels}) / 255 - np.float32({mean})) / np.float32({std})
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]
'''


def snippet(preprocessing: Preprocessing, name: str, *, max_value: int = 0) -> str:
    """Return Python source with a function `model_input(path)`.

    Args:
        preprocessing: of the model.
        name: of the exported file.
        max_value: the value that is white in images of 16 bits; 0 is 65535.
    """
    height, width = preprocessing.img_size
    tall, wide = (math.floor(side / preprocessing.crop_ratio) for side in preprocessing.img_size)
    if tall == wide:
        size = (
            f"    size = ({wide}, int({wide} * height / width)) if width <= height "
            f"else (int({wide} * width / height), {wide})"
        )
    else:
        ratio = f"min(height / {tall}, width / {wide})"
        size = f"    size = tuple(round(side / {ratio}) for side in image.size)"
    return _TEXT.format(
        name=name,
        aspect=MAX_ASPECT,
        channels=preprocessing.channels,
        height=height,
        width=width,
        scaled=_scaled(max_value or _UNSET),
        grey='.convert("L")' if preprocessing.channels == 1 else "",
        size=size,
        interpolation=preprocessing.interpolation.upper(),
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
    )


def _scaled(highest: int) -> str:
    """Values up to `highest` as 0..255, as the images of a training are read."""
    bits = highest.bit_length()
    if highest == 2**bits - 1 and bits >= 8:
        return f"np.asarray(image) >> {bits - 8}"
    return f"np.asarray(image).astype(np.uint64) * 255 // {highest}"
