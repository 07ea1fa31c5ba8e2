"""Decode most JPEGs directly into an array: bit-identical to Pillow, with fewer copies."""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

_END = b"\xff\xd9"
# What libjpeg leaves where no data came.
_GREY = 128


def close_jpeg(data: bytes) -> bytes | None:
    """Return a truncated JPEG with an end marker added, if part of its last row is present; else None."""
    data = data + _END
    try:
        pixels_HWC = simplejpeg.decode_jpeg(data, "RGB", strict=False)
    except (ValueError, MemoryError):
        return None
    return None if (pixels_HWC[-1] == _GREY).all() else data


def jpeg_pixels(data: bytes, header: Image.Image) -> np.ndarray | None:
    """Decode a JPEG; return None if Pillow has to do it.

    Both decode with libjpeg-turbo, whose exact transforms give equal pixels. Whatever it so much as warns about is
    left to Pillow, so that one decoder decides which images are damaged.

    Args:
        data: the file's bytes.
        header: the same, opened by Pillow and not yet decoded.

    Returns:
        pixels_HWC, uint8, not turned; None where Pillow has to decode it: no JPEG, grey, CMYK, several images in
        one file, anything wrong with it.
    """
    if header.format != "JPEG" or header.mode != "RGB":
        return None
    try:
        pixels_HWC = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except (ValueError, MemoryError):
        return None
    return pixels_HWC if pixels_HWC.shape == (header.height, header.width, 3) else None
