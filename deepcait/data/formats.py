"""Which files are images: by their first bytes, and by their suffixes."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from PIL import Image, ImageFile

from deepcait.errors import ImageError

# What Pillow logs ("More samples per pixel than can be decoded") is part of our errors.
logging.getLogger("PIL").addHandler(logging.NullHandler())

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
# Format as Pillow calls it -> suffixes, the usual first. A JPEG with more images behind it is an MPO.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
# Images too, of formats that are not read.
OTHER_SUFFIXES = (
    *(".jxl", ".jp2", ".svg", ".psd", ".raw", ".cr2", ".nef", ".dng", ".ppm", ".pgm", ".ico", ".tga", ".exr"),
    *(".mp4", ".mov"),
)
SNIFF_BYTES = 16

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def format_of(data: bytes) -> str | None:
    """Return the format by a file's first `SNIFF_BYTES` bytes; None if it is not one of FORMATS."""
    for beginning, name in _BEGINNINGS.items():
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in _AVIF_BRANDS else "HEIF" if data[8:12] in _HEIF_BRANDS else None
    return None


def open_header(data: bytes, *, name: str = "image bytes") -> ImageFile.ImageFile:
    """Open an image with Pillow's reader of its format without decoding it; the size is not checked.

    Raises:
        ImageError: none of FORMATS, or HEIF without the package for it.
        Exception: whatever Pillow raises of a damaged header.
    """
    kind = format_of(data)
    if kind is None:
        raise ImageError(
            f"{name}: not an image ({', '.join(FORMATS)}): the file starts with {data[:8]!r}.",
            remedy="Convert it to one of these formats, or remove it.",
        )
    if kind == "HEIF":
        _register_heif(name)
    Image.preinit() if kind in ("JPEG", "PNG", "GIF", "BMP") else Image.init()
    if kind not in Image.OPEN:
        raise ImageError(f"{name}: the installed Pillow can't read {kind}.", remedy="Install Pillow from its wheel.")
    # Image.open would warn of large images itself; the caller decides by the size.
    factory, _ = Image.OPEN[kind]
    image = factory(io.BytesIO(data), "")
    image.format = image.format or kind
    return image


def says_image(name: str) -> bool | None:
    """Whether a file name is that of an image; None without a suffix, when the content decides.

    Hidden files are none.
    """
    if name.startswith("."):
        return False
    suffix = PurePath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return None if not suffix or suffix[1:].isdecimal() else False


def count_suffixes(names: Iterable[str]) -> str:
    """Return "3 files (.txt 2, .mp4 1)" for skipped names; empty if there are none."""
    counts = Counter(PurePath(name).suffix.lower() or "no suffix" for name in names)
    if not counts:
        return ""
    total = counts.total()
    kinds = [f"{suffix} {num:,}" for suffix, num in counts.most_common(6)]
    return f"{total:,} file{'s' * (total > 1)} ({', '.join(kinds)}{', ...' * (len(counts) > 6)})"


def _register_heif(name: str) -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        raise ImageError(
            f"{name}: HEIF (HEIC) needs the package pillow-heif.",
            remedy='pip install "deepcait[heif]", or convert it to JPEG.',
        )
    import pillow_heif

    pillow_heif.register_heif_opener()
