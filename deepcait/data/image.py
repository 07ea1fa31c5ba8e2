"""The only code that opens images: from bytes or a file to upright RGB, or an ImageError."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from deepcait.data.depth import (
    FEW_LEVELS,
    band_fault,
    few_levels,
    is_deep_colour,
    num_levels,
    range_is_assumed,
    require_bands,
    to_rgb,
)
from deepcait.data.formats import format_of, open_header
from deepcait.data.jpeg import close_jpeg, jpeg_pixels
from deepcait.data.png import complete_end, only_pixels, png_misses_pixels
from deepcait.errors import ConfigError, DeepcaitWarning, ImageError

Decoded = TypeVar("Decoded")


# A file this large is refused before it is read, an image of more pixels from its header.
MAX_BYTES = 100 * 2**20
MAX_PIXELS = 89_478_485


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Limits on accepted images, and the range of their values.

    Args:
        max_bytes: largest size of a file.
        max_pixels: largest number of pixels of an image, checked in its header.
        max_value: pixel value that is white in images with more than 8 bits per channel; 0 takes it from the file or,
            if the file has none, the largest value of its type (65535; 1 for floating point).
        accept_truncated: accept a JPEG or PNG that is cut at its end if decoding reaches its last row of pixels.
    """

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    max_value: int = 0
    accept_truncated: bool = False

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_pixels) < 1 or not 0 <= self.max_value < 2**32:
            raise ConfigError(
                f"expected max_bytes and max_pixels above 0 and max_value from 0 to {2**32 - 1}, got "
                f"{self.max_bytes}, {self.max_pixels} and {self.max_value}.",
                remedy="Leave them out for the usual limits.",
            )


DEFAULT = ImageOptions()

# EXIF orientation -> the turn that makes the image upright; 1 is upright already.
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(
    source: bytes | str | os.PathLike[str],
    *,
    name: str | None = None,
    options: ImageOptions = DEFAULT,
    max_bytes: int | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """Decode one image, safely, to upright RGB.

    The image is rotated according to its EXIF data; an animation gives its first frame; transparency is composited on
    white; grey, palette and CMYK become RGB by Pillow's formulas, colour profiles are not applied. Values with more
    than 8 bits keep their high bits, in the range of `options.max_value` or, without it, of the file (TIFF's
    BitsPerSample and MaxSampleValue, PNG's sBIT), or else in 0..65535 (0..1 for floating point); values outside are an
    error, because guessing the range per image would make brightness depend on content. The format is read from the
    content, never from the suffix.
    Known limit: a JPEG with too few coded rows but a proper end marker is filled grey by libjpeg.

    Args:
        source: the file's bytes, or the path of the file.
        name: what errors call the image; the path if there is one.
        options: limits and range.
        max_bytes, max_pixels: instead of those of `options`.

    Returns:
        Mode "RGB", its `info` empty: nothing turns it a second time.

    Raises:
        ImageError: whatever is wrong with the file; no other exception leaves this function.
        ConfigError: a limit that can't be.

    Warns:
        DeepcaitWarning: 16 bits per value in an unknown range, of which few levels are left.
    """
    options = replace(
        options,
        max_bytes=options.max_bytes if max_bytes is None else max_bytes,
        max_pixels=options.max_pixels if max_pixels is None else max_pixels,
    )
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), name or "image bytes"
    else:
        name = name or os.fspath(source)
        data = read_image_bytes(source, name=name, max_bytes=options.max_bytes)
    levels: list[int] = []
    image = _open(data, name, options, partial(_decode, levels=levels))
    if levels and levels[0] < FEW_LEVELS:
        warnings.warn(few_levels(levels[0]), DeepcaitWarning, stacklevel=2)
    # A copy, so that nothing of the file is left in it: no EXIF that could turn it a second time.
    image = image.copy() if type(image) is not Image.Image else image
    image.info = {}
    return image


def decode_image(
    data: bytes,
    *,
    name: str,
    options: ImageOptions = DEFAULT,
    shrink: Callable[[int, int], int] | None = None,
    levels: list[int] | None = None,
) -> Image.Image:
    """Decode one image as `open_image` does, without the last copy, and a JPEG at a fraction of its size if possible.

    Args:
        data: the file's bytes.
        name: what errors call the image.
        options: limits and range.
        shrink: called with width and height of a JPEG that is upright, before it is decoded; returns 1, 2, 4 or 8,
            the divisor of both sides. Its decoder then leaves out what would be averaged away (DCT scaling).
        levels: how many of 256 levels an image can have used is appended, if it is deeper than 8 bits in an unknown
            range.

    Returns:
        Mode "RGB", upright, sides ceil(side / divisor). It may still have the metadata of the file: take pixels
        or parts of it, no more.

    Raises:
        ImageError: as `open_image`.
    """
    return _open(data, name, options, partial(_decode, shrink=shrink, levels=levels))


def decode_pixels(
    data: bytes,
    *,
    name: str,
    options: ImageOptions = DEFAULT,
    shrink: Callable[[int, int], int] | None = None,
) -> np.ndarray:
    """Decode one image to the same pixels as `decode_image`, as an array; faster for JPEG.

    Args:
        data: the file's bytes.
        name: what errors call the image.
        options: limits and range.
        shrink: as of `decode_image`.

    Returns:
        pixels_HWC, uint8, which may be read only.

    Raises:
        ImageError: as `open_image`.
    """
    return _open(data, name, options, partial(_decode_pixels, shrink=shrink))


def _open(data: bytes, name: str, options: ImageOptions, decode: Callable[..., Decoded]) -> Decoded:
    """Decode with every exception turned into an ImageError."""
    _require_byte_count(len(data), name, options.max_bytes)
    try:
        data = only_pixels(data) if format_of(data) == "PNG" else data
        with open_header(data, name=name) as image:
            width, height = image.size
            if width < 1 or height < 1:
                raise ImageError(f"{name}: the image has no pixels ({width} x {height}).", remedy="Remove the file.")
            if width * height > options.max_pixels:
                raise _too_many_pixels(name, f"{width} x {height} pixels", options.max_pixels)
            try:
                return decode(data, name, image, options)
            except Exception:
                whole = _completed(data) if options.accept_truncated else None
                if whole is None:
                    raise
        with open_header(whole, name=name) as image:
            return decode(whole, name, image, options)
    except ImageError as error:
        raise (
            error if error.problem.startswith(name) else ImageError(f"{name}: {error.problem}", remedy=error.remedy)
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(name, str(error), options.max_pixels) from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, zlib.error, MemoryError, ...
        bands = band_fault(data)
        if bands is not None:
            raise ImageError(f"{name}: {bands.problem}", remedy=bands.remedy) from error
        raise ImageError(
            f"{name}: the image can't be decoded ({type(error).__name__}: {error}).",
            remedy="The file is damaged or truncated: fetch it again, or remove it.",
        ) from error


def _completed(data: bytes) -> bytes | None:
    """Return a truncated file with a valid end, if its last row is present; else None."""
    kind = format_of(data)
    if kind == "PNG":
        return complete_end(data)
    return close_jpeg(data) if kind == "JPEG" else None


def read_image_bytes(path: str | os.PathLike[str], *, name: str | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file of limited size.

    Raises:
        ImageError: missing, a folder, a pipe or device, unreadable, or larger than `max_bytes`.
    """
    name = name or os.fspath(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
            raise ImageError(f"{name}: not an image file but {what}.", remedy="Give the path of one image.")
        _require_byte_count(status.st_size, name, max_bytes)
        with open(path, "rb") as file:
            return file.read(status.st_size + 1)  # no more than that is set aside for it
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file.", remedy="Check the path.") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{name}: the file can't be read: {error}.", remedy="Check the path and its permissions."
        ) from error


def _decode(
    data: bytes,
    name: str,
    image: ImageFile,
    options: ImageOptions,
    shrink: Callable[[int, int], int] | None = None,
    levels: list[int] | None = None,
) -> Image.Image:
    """Decode an opened image, without the exception handling of `_open`."""
    require_bands(image)
    if image.format == "PNG":
        # Pillow decodes over a wrong checksum; verify() spends the file object, so it gets its own.
        with open_header(data, name=name) as checked:
            checked.verify()
    if shrink is not None and _is_upright_jpeg(image):
        divisor = shrink(*image.size)
        if divisor > 1:
            image.draft(None, (image.width // divisor, image.height // divisor))
    deep = is_deep_colour(image)
    image.load()
    if image.format == "PNG" and png_misses_pixels(data, image):
        raise ImageError(
            f"{name}: the file has fewer than the {image.width} x {image.height} pixels of its header.",
            remedy="The file is damaged: fetch it again, or remove it.",
        )
    if image.mode == "RGB" and not deep and not image.has_transparency_data:
        upright = image
    else:
        upright = to_rgb(image, data=data, deep=deep, max_value=options.max_value)
        if levels is not None and range_is_assumed(image, data, deep, options.max_value):
            levels.append(num_levels(upright))
    turn = _TURNS.get(_orientation(image))
    return upright if turn is None else upright.transpose(turn)


def _decode_pixels(
    data: bytes,
    name: str,
    image: ImageFile,
    options: ImageOptions,
    shrink: Callable[[int, int], int] | None = None,
) -> np.ndarray:
    """The same as an array; the faster decoder supports neither rotation nor scaled decoding."""
    divisor = 1
    if _is_upright_jpeg(image):
        divisor = 1 if shrink is None else shrink(*image.size)
        pixels_HWC = jpeg_pixels(data, image) if divisor == 1 else None
        if pixels_HWC is not None:
            return pixels_HWC
    return np.asarray(_decode(data, name, image, options, lambda width, height: divisor))


def _is_upright_jpeg(image: Image.Image) -> bool:
    """Whether it is a JPEG that needs no rotation."""
    return image.format == "JPEG" and _TURNS.get(_orientation(image)) is None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none or it can't be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the pixels are complete; viewers show such an image unrotated, and so does deepcait
        return 1


def _require_byte_count(num_bytes: int, name: str, max_bytes: int) -> None:
    if num_bytes == 0:
        raise ImageError(f"{name}: the file is empty.", remedy="Fetch it again, or remove it.")
    if num_bytes > max_bytes:
        raise ImageError(
            f"{name}: expected at most {max_bytes:,} bytes, got {num_bytes:,}.",
            remedy="Make the image smaller, or raise --max-bytes (data.max_bytes in a recipe) if you trust the file.",
        )


def _too_many_pixels(name: str, got: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"{name}: expected at most {max_pixels:,} pixels, got {got}.",
        remedy="Make the image smaller, or raise --max-pixels (data.max_pixels in a recipe) if you trust the file.",
    )
