"""One door for every picture: bytes or a file in, an upright RGB image or an ImageError out."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from deepcait.data.jpeg import jpeg_pixels
from deepcait.data.png import png_misses_pixels
from deepcait.errors import DataError, ImageError

Decoded = TypeVar("Decoded")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

MAX_BYTES = 100 * 2**20
# Pillow warns of a decompression bomb above this many pixels; here it is an error.
MAX_PIXELS = 89_478_485

# EXIF orientation -> the turn that makes the picture upright; 1 is upright already.
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
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Decode one picture, safely, to an upright RGB image.

    Turned as its EXIF says; the first frame of an animation; transparency lies on white; grey,
    palette and CMYK become RGB by Pillow's formulas, colour profiles are not applied; 16-bit grey
    keeps its high byte. Mode "I" counts as 16-bit (0..65535), mode "F" as 0..1; other values are an
    error, because guessing the range per picture would make brightness depend on content.
    The format is read from the content (JPEG, PNG, WEBP, GIF, BMP, TIFF), never from the suffix.
    Known limit: a JPEG with too few coded rows but a proper end marker is filled grey by libjpeg.

    Args:
        source: the file's bytes, or the path of the file.
        name: what errors call the picture; the path where there is one.
        max_bytes: larger files are refused before they are read.
        max_pixels: larger pictures are refused from their header; Pillow refuses above
            2 * Image.MAX_IMAGE_PIXELS whatever is asked here.

    Returns:
        Mode "RGB", its `info` empty: nothing turns it a second time.

    Raises:
        ImageError: whatever is wrong with the file; no other exception leaves this function.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), name or "image bytes"
    else:
        name = name or os.fspath(source)
        data = read_image_bytes(source, name=name, max_bytes=max_bytes)
    image = _open(data, name, max_bytes, max_pixels, _decode)
    # A copy, so that nothing of the file is left in it: no EXIF that could turn it a second time.
    image = image.copy() if type(image) is not Image.Image else image
    image.info = {}
    return image


def decode_image(data: bytes, *, name: str, shrink: Callable[[int, int], int] | None = None) -> Image.Image:
    """Decode one picture as `open_image` does, without a last copy, a JPEG at a fraction of its size if that is enough.

    Args:
        data: the file's bytes.
        name: what errors call the picture.
        shrink: called with width and height of a JPEG that lies upright, before it is decoded; returns 1, 2, 4 or 8,
            the divisor of both sides. Its decoder then leaves out what would be averaged away (DCT scaling).

    Returns:
        Mode "RGB", upright, sides ceil(side / divisor). It may still carry what the file says of itself: take pixels
        or parts of it, no more.

    Raises:
        ImageError: as `open_image`.
    """
    return _open(data, name, MAX_BYTES, MAX_PIXELS, partial(_decode, shrink=shrink))


def decode_pixels(data: bytes, *, name: str, shrink: Callable[[int, int], int] | None = None) -> np.ndarray:
    """Decode one picture as `decode_image` does, to the same pixels as an array, faster where it is a JPEG.

    Args:
        data: the file's bytes.
        name: what errors call the picture.
        shrink: as of `decode_image`.

    Returns:
        pixels_HWC, uint8, which may be read only.

    Raises:
        ImageError: as `open_image`.
    """
    return _open(data, name, MAX_BYTES, MAX_PIXELS, partial(_decode_pixels, shrink=shrink))


def _open(data: bytes, name: str, max_bytes: int, max_pixels: int, decode: Callable[..., Decoded]) -> Decoded:
    """Decode with every exception turned into an ImageError."""
    _require_byte_count(len(data), name, max_bytes)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width < 1 or height < 1:
                raise ImageError(f"{name}: expected pixels, got {width} x {height}.", remedy="Remove the file.")
            if width * height > max_pixels:
                raise _too_many_pixels(name, f"{width} x {height} pixels", max_pixels)
            return decode(data, name, image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: expected an image ({', '.join(FORMATS)}), got {_first_bytes(data)}.",
            remedy="Convert it to one of these formats, or remove it.",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(name, str(error), max_pixels) from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, zlib.error, MemoryError, ...
        raise ImageError(
            f"{name}: expected a whole image, got one that can't be decoded ({type(error).__name__}: {error}).",
            remedy="The file is damaged or truncated: fetch it again, or remove it.",
        ) from error


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
            raise ImageError(f"{name}: expected an image file, got {what}.", remedy="Give the path of one image.")
        _require_byte_count(status.st_size, name, max_bytes)
        with open(path, "rb") as file:
            return file.read(status.st_size + 1)  # no more than that is set aside for it
    except FileNotFoundError as error:
        raise ImageError(f"{name}: expected an image file, got no such file.", remedy="Check the path.") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{name}: expected a readable file, got {error}.", remedy="Check the path and its permissions."
        ) from error


def list_images(path: str | os.PathLike[str]) -> list[Path]:
    """The image files at `path`: itself when it is a file, else all below it, by suffix.

    Hidden files and folders (.ipynb_checkpoints, ._copy.jpg) are left out; the order is natural
    (2 before 10) and the same on every machine.

    Raises:
        DataError: nothing is there, or the folder holds no image.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: expected an image or a folder, got no such path.", remedy="Check the path.")
    names = walk_images(path)
    if not names:
        raise DataError(
            f"{path}: expected images ({' '.join(IMAGE_SUFFIXES)}), got a folder without any.",
            remedy="Give a folder that holds images, directly or in sub-folders.",
        )
    return [path / name for name in names]


def walk_images(folder: Path) -> list[str]:
    """Names of all images below `folder`, relative, with "/" between parts, in natural order.

    Links to folders are followed, except a link to a folder that contains it, or that is being walked already.

    Raises:
        DataError: a folder can't be listed.
    """
    names = []
    for current, subfolders, files in os.walk(folder, followlinks=True, onerror=_refuse_listing):
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and not _leads_back(folder, Path(current, name))
        ]
        prefix = Path(current).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        names += [prefix + name for name in files if is_visible_image(name)]
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key that reads digits as numbers: "img2" before "img10"; ties are broken by the text itself."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if index % 2 else (1, part) for index, part in enumerate(parts) if part], name


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow decodes to RGB, with 8 bits a channel; transparency lies on white.

    Raises:
        ImageError: mode "I" outside 0..65535, or mode "F" outside 0..1.
    """
    if image.mode.startswith("I;16"):
        # The high byte: what Pillow itself keeps of 16-bit colour, so grey and colour agree.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I":
        values = _require_range(np.asarray(image), 0, 65535, "32-bit integer")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        values = _require_range(np.asarray(image), 0.0, 1.0, "floating point")
        image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _decode(data: bytes, name: str, image: Image.Image, shrink: Callable[[int, int], int] | None = None) -> Image.Image:
    """Decode what is open, without the net that `_open` holds underneath."""
    if image.format == "PNG":
        # Pillow decodes over a wrong checksum; verify() spends the file object, so it gets its own.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as checked:
            checked.verify()
    if shrink is not None and _is_upright_jpeg(image):
        divisor = shrink(*image.size)
        if divisor > 1:
            image.draft(None, (image.width // divisor, image.height // divisor))
    image.load()
    if image.format == "PNG" and png_misses_pixels(data, image):
        raise ImageError(
            f"{name}: expected {image.width} x {image.height} pixels as the header says, got fewer.",
            remedy="The file is damaged: fetch it again, or remove it.",
        )
    try:
        upright = image if image.mode == "RGB" and not image.has_transparency_data else to_rgb(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error.problem}", remedy=error.remedy) from error
    turn = _TURNS.get(_orientation(image))
    return upright if turn is None else upright.transpose(turn)


def _decode_pixels(
    data: bytes, name: str, image: Image.Image, shrink: Callable[[int, int], int] | None = None
) -> np.ndarray:
    """The same as an array; the quicker decoder knows neither turns nor fractions."""
    divisor = 1
    if _is_upright_jpeg(image):
        divisor = 1 if shrink is None else shrink(*image.size)
        pixels_HWC = jpeg_pixels(data, image) if divisor == 1 else None
        if pixels_HWC is not None:
            return pixels_HWC
    return np.asarray(_decode(data, name, image, lambda width, height: divisor))


def _is_upright_jpeg(image: Image.Image) -> bool:
    """Whether it is a JPEG that lies upright."""
    return image.format == "JPEG" and _TURNS.get(_orientation(image)) is None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or where its block can't be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the pixels are whole; viewers show such a picture as it lies, and so do we
        return 1


def _require_range(values: np.ndarray, low: float, high: float, kind: str) -> np.ndarray:
    smallest, largest = values.min(), values.max()
    if not (smallest >= low and largest <= high):  # written so that NaN fails
        raise ImageError(
            f"expected {kind} pixels between {low} and {high}, got {smallest} to {largest}.",
            remedy="Convert the image to 8 bits a channel.",
        )
    return values


def _require_byte_count(num_bytes: int, name: str, max_bytes: int) -> None:
    if num_bytes == 0:
        raise ImageError(f"{name}: expected an image, got an empty file.", remedy="Fetch it again, or remove it.")
    if num_bytes > max_bytes:
        raise ImageError(
            f"{name}: expected at most {max_bytes:,} bytes, got {num_bytes:,}.",
            remedy="Make the image smaller, or raise max_bytes if you trust the file.",
        )


def _too_many_pixels(name: str, got: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"{name}: expected at most {max_pixels:,} pixels, got {got}.",
        remedy="Make the image smaller, or raise max_pixels if you trust the file.",
    )


def _first_bytes(data: bytes) -> str:
    return f"a file that starts with {data[:8]!r}"


def is_visible_image(name: str) -> bool:
    """Whether a file name is that of an image and not hidden."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _leads_back(root: Path, place: Path) -> bool:
    """Whether a link points at a folder on the way from `root` to it, or at one above: following it would not end."""
    if not place.is_symlink():
        return False
    target = os.path.realpath(place)
    way = [place.parent, *(above for above in place.parent.parents if above.is_relative_to(root))]
    return any(os.path.commonpath([target, os.path.realpath(above)]) == target for above in way)


def _refuse_listing(error: OSError) -> None:
    raise DataError(f"{error.filename}: expected a readable folder, got {error}.", remedy="Check its permissions.")
