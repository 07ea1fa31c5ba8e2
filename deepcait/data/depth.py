"""Convert images with more than 8 bits per value, or other than three bands, to 8-bit RGB, by a known value range."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from deepcait.data.formats import open_header
from deepcait.data.png import significant_bits
from deepcait.errors import ImageError

_BITS, _PHOTOMETRIC, _SAMPLES, _MAX_VALUE, _EXTRA = 258, 262, 277, 281, 338  # tags of TIFF
# Fewer levels than these, of 256, are reported: 8 bits or less are rarely stored in 16 on purpose.
FEW_LEVELS = 65
_UNSET = 65535
_PLAIN_DEEP = re.compile(r"RGBA?;16[LBN]$")


def require_bands(image: Image.Image) -> None:
    """Raise if a TIFF has bands that are neither colour nor transparency, which Pillow would drop.

    Raises:
        ImageError: more bands than three.
    """
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None:
        return
    extra = tuple(tags.get(_EXTRA, ()))
    if 0 in extra:  # unspecified: 1 and 2 are transparency
        raise _bands(tags.get(_SAMPLES, 3 + len(extra)))


def band_fault(data: bytes) -> ImageError | None:
    """Return the error for a TIFF that Pillow can't read because of its bands; None if there is another reason."""
    if data[:2] not in (b"II", b"MM"):
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        samples = int(tags.get(_SAMPLES, 1))
    except Exception:  # whatever else is wrong with it
        return None
    grey = tags.get(_PHOTOMETRIC) in (0, 1)
    return _bands(samples) if samples > 4 or (grey and samples > 1) else None


def _bands(num: int) -> ImageError:
    return ImageError(
        f"the image has {num} bands; only one band (grey) or three (red, green, blue) can be read.",
        remedy="Keep the three bands that you want as an RGB image, e.g. `gdal_translate -b 1 -b 2 -b 3 IN OUT`.",
    )


def declared_max(image: Image.Image, data: bytes) -> int:
    """Return the largest value that a 16-bit image declares; 65535 if it declares none.

    TIFF: BitsPerSample and MaxSampleValue. PNG: sBIT, where the values were stored as they are and not scaled to the
    full range, which the standard requires (then they repeat or leave empty the bits below).
    """
    tags: Any = getattr(image, "tag_v2", None)
    if tags is not None:
        bits = max(tags.get(_BITS, (16,)))
        highest = max(_as_tuple(tags.get(_MAX_VALUE, 2**bits - 1)))
        return int(highest) if 255 < highest < 2**bits else 2**bits - 1
    bits = significant_bits(data)
    if not 8 < bits < 16:
        return _UNSET
    values = sixteen_bits(image, data)
    spare = 16 - bits
    below = values & (2**spare - 1)
    scaled = not below.any() or np.array_equal(below, values >> (16 - spare))
    return _UNSET if scaled or values.max(initial=0) >= 2**bits else 2**bits - 1


def sixteen_bits(image: Image.Image, data: bytes) -> np.ndarray:
    """Return the full 16-bit values, uint16, of a decoded image whose file has 16 bits per value.

    Of colour Pillow keeps the high byte; read once more with the bytes of each value exchanged, it keeps the low one.

    Raises:
        ImageError: a form of RGB for which that can't be done.
    """
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    with open_header(data) as again:
        if not all(_PLAIN_DEEP.match(_raw_mode(tile)) for tile in again.tile):
            raise ImageError(
                "only the high bytes of this form of 16-bit RGB can be read, so its range can't be set.",
                remedy="Save it as 16-bit grey or RGB, without transparency.",
            )
        again.tile = [tile._replace(args=_exchanged(tile.args)) for tile in again.tile]
        again.load()
        return np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an opened, not yet decoded image has colour with 16 bits per value."""
    return image.mode in ("RGB", "RGBA") and any(";16" in _raw_mode(tile) for tile in getattr(image, "tile", ()))


def to_rgb(image: Image.Image, *, data: bytes = b"", deep: bool = False, max_value: int = 0) -> Image.Image:
    """Convert any mode that Pillow decodes to RGB with 8 bits per channel; transparency is composited on white.

    Args:
        image: decoded.
        data: its file.
        deep: its colour has 16 bits per value in the file.
        max_value: the value that is white, of grey and colour deeper than 8 bits; 0 takes the value of the file, else
            the largest of its type (65535; 1 of floating point).

    Raises:
        ImageError: values outside the range.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_scale(np.asarray(image).astype(np.uint16), max_value or declared_max(image, data)))
    elif image.mode == "I":
        values = _require_range(np.asarray(image), 0, max_value or _UNSET, "32-bit integer")
        image = Image.fromarray(_scale(values.astype(np.uint32), max_value or _UNSET))
    elif image.mode == "F":
        values = _require_range(np.asarray(image), 0.0, float(max_value or 1), "floating point")
        image = Image.fromarray(np.rint(values * (255 / (max_value or 1))).astype(np.uint8))
    elif deep and (max_value or declared_max(image, data)) != _UNSET:
        values = sixteen_bits(image, data)
        highest = max_value or declared_max(image, data)
        scaled = _scale(values[..., :3], highest)
        alpha = (values[..., 3:] >> 8).astype(np.uint8)
        image = Image.fromarray(np.concatenate((scaled, alpha), axis=2), image.mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def range_is_assumed(image: Image.Image, data: bytes, deep: bool, max_value: int) -> bool:
    """Whether the white value of a decoded image is assumed from its data type alone."""
    return not max_value and (deep or image.mode.startswith("I")) and declared_max(image, data) == _UNSET


def num_levels(image: Image.Image) -> int:
    """Return how many of 256 levels an RGB image uses at most: its largest value plus 1."""
    return max(high for _, high in image.getextrema()) + 1  # pyrefly: ignore[not-iterable]


def few_levels(num: int) -> str:
    """Return a sentence about 16-bit images that use only `num` of 256 levels."""
    return (
        f"16-bit images whose brightest value is below {num * 256:,}: {num} of 256 levels remain; set "
        f"--max-value (data.max_value in a recipe; e.g. {2 ** max(8, (num * 256 - 1).bit_length()) - 1}) to the value "
        "that is white"
    )


def _scale(values: np.ndarray, highest: int) -> np.ndarray:
    """Scale values 0..highest to 0..255; the high bits if `highest` is all ones, as Pillow does for 16 bits."""
    if values.max(initial=0) > highest:
        raise ImageError(
            f"expected values up to {highest:,}, got {int(values.max()):,}.",
            remedy="Set --max-value (data.max_value in a recipe) to the value that is white, or convert it to 8 bits.",
        )
    bits = int(highest).bit_length()
    if highest == 2**bits - 1 and bits >= 8:
        return (values >> (bits - 8)).astype(np.uint8)
    return (values.astype(np.uint64) * 255 // highest).astype(np.uint8)


def _require_range(values: np.ndarray, low: float, high: float, kind: str) -> np.ndarray:
    smallest, largest = values.min(), values.max()
    if not (smallest >= low and largest <= high):  # written so that NaN fails
        raise ImageError(
            f"expected {kind} pixels between {low} and {high}, got {smallest} to {largest}.",
            remedy="Set --max-value (data.max_value in a recipe) to the value that is white, or convert it to 8 bits.",
        )
    return values


def _raw_mode(tile: Any) -> str:
    """Pillow's name for the byte layout of a tile."""
    return str(tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0])


def _exchanged(args: Any) -> Any:
    """A tile's arguments with the raw mode's bytes exchanged."""
    if isinstance(args, str):
        return args[:-1] + {"B": "L", "L": "B"}.get(args[-1], args[-1])
    mode, *rest = args
    native = "B" if sys.byteorder == "little" else "L"
    return (mode[:-1] + {"B": "L", "L": "B", "N": native}.get(mode[-1], mode[-1]), *rest)


def _as_tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)
