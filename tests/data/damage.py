"""A sound data set of class folders, and every kind of damage that the tests plant in it."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

CLASSES = ("cat", "dog", "owl")
Found = set[tuple[str, str]]


def random_image(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Smooth random colours, different for every seed."""
    pixels = np.random.default_rng(seed).integers(1, 255, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def sound_folder(root: Path) -> Path:
    """Three classes, four training and two validation images each, in three formats."""
    seed = 0
    for split, number in (("train", 4), ("val", 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                suffix, format = ((".jpg", "JPEG"), (".png", "PNG"), (".webp", "WEBP"))[index % 3]
                (root / split / name / f"{index}{suffix}").write_bytes(encoded(random_image(seed), format))
                seed += 1
    return root


def _noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(1, 255, (64, 64, 3), dtype=np.uint8))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _grey_png(width: int, height: int, body: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(body)) + _chunk(b"IEND", b"")


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def _exif(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(image, "JPEG", exif=exif)


def _damaged_files() -> dict[str, tuple[str, bytes]]:
    """File name -> (kind of finding, bytes): damage that one file carries by itself."""
    jpeg, png = encoded(_noise(1000), "JPEG"), encoded(_noise(1001), "PNG")
    frames = [random_image(1010 + index) for index in range(2)]
    return {
        "empty.jpg": ("empty_file", b""),
        "half.jpg": ("undecodable", jpeg[: len(jpeg) // 2]),
        "last_bytes_gone.jpg": ("undecodable", jpeg[:-40]),
        "header_only.jpg": ("undecodable", jpeg[:300]),
        "half.png": ("undecodable", png[: len(png) // 2]),
        "wrong_checksum.png": ("undecodable", _flipped(png)),
        "rows_missing.png": ("undecodable", _grey_png(40, 60, (b"\x00" + bytes([90]) * 40) * 30)),
        "half.webp": ("undecodable", encoded(_noise(1002), "WEBP")[:900]),
        "half.gif": ("undecodable", encoded(_noise(1003), "GIF")[:900]),
        "half.bmp": ("undecodable", encoded(_noise(1004), "BMP")[:900]),
        "half.tif": ("undecodable", encoded(_noise(1005), "TIFF", compression="tiff_adobe_deflate")[:-200]),
        "no_range.tif": ("undecodable", encoded(Image.fromarray(np.full((20, 20), 7.5, np.float32)), "TIFF")),
        "text.jpg": ("not_an_image", b"this is no image at all, only text\n" * 20),
        "page_404.jpg": ("not_an_image", b"<!DOCTYPE html><html><body>404</body></html>"),
        "zeros.png": ("not_an_image", bytes(4096)),
        "icon.png": ("not_an_image", encoded(_noise(1006), "ICO")),
        "bomb.png": ("bomb", _grey_png(60_000, 60_000, bytes(1000))),
        "png_inside.jpg": ("wrong_extension", encoded(random_image(1020), "PNG")),
        "dot.png": ("tiny", encoded(random_image(1021, (2, 2)), "PNG")),
        "poster.png": ("huge", encoded(Image.new("RGB", (6000, 4100), "teal"), "PNG", compress_level=1)),
        "strip.png": ("extreme_aspect", encoded(random_image(1023, (400, 10)), "PNG")),
        "lying.jpg": ("exif_turn", _exif(random_image(1024), 6)),
        "grey.jpg": ("not_rgb", encoded(random_image(1025).convert("L"), "JPEG")),
        "inks.jpg": ("not_rgb", encoded(random_image(1026).convert("CMYK"), "JPEG")),
        "glass.png": ("not_rgb", encoded(random_image(1027).convert("RGBA"), "PNG")),
        "deep.png": (
            "not_rgb",
            encoded(Image.fromarray(np.asarray(random_image(1028).convert("L")) * np.uint16(256)), "PNG"),
        ),
        "moving.webp": ("animated", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)),
    }


def _plant_file(name: str, kind: str, data: bytes) -> Callable[[Path], Found]:
    def plant(root: Path) -> Found:
        path = root / "train" / "cat" / name
        path.write_bytes(data)
        return {(kind, str(path))}

    return plant


def _new(path: Path, data: bytes = b"") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def dangling_link(root: Path) -> Found:
    path = root / "train" / "cat" / "link.png"
    path.symlink_to(root / "gone.png")
    return {("unreadable", str(path))}


def pipe(root: Path) -> Found:
    path = root / "train" / "cat" / "pipe.png"
    os.mkfifo(path)
    return {("unreadable", str(path))}


def hidden_folder(root: Path) -> Found:
    _new(root / "train" / ".ipynb_checkpoints" / "1.png", encoded(random_image(1100), "PNG"))
    return {("hidden_folder", str(root / "train" / ".ipynb_checkpoints"))}


def hidden_folder_in_a_class(root: Path) -> Found:
    _new(root / "val" / "owl" / ".cache" / "1.png", encoded(random_image(1101), "PNG"))
    return {("hidden_folder", str(root / "val" / "owl" / ".cache"))}


def hidden_file(root: Path) -> Found:
    return {("hidden_file", _new(root / "train" / "dog" / "._0.jpg"))}


def empty_class(root: Path) -> Found:
    (root / "train" / "fox").mkdir()
    return {("empty_class", str(root / "train" / "fox"))}


def empty_folder(root: Path) -> Found:
    (root / "val" / "owl" / "new").mkdir()
    return {("empty_folder", str(root / "val" / "owl" / "new"))}


def stray_folder(root: Path) -> Found:
    _new(root / "more" / "cat" / "1.png", encoded(random_image(1102), "PNG"))
    return {("stray_folder", str(root / "more"))}


def stray_image(root: Path) -> Found:
    return {("stray_image", _new(root / "train" / "loose.png", encoded(random_image(1103), "PNG")))}


def stray_file(root: Path) -> Found:
    return {("stray_file", _new(root / "train" / "dog" / "Thumbs.db", b"x"))}


def other_format(root: Path) -> Found:
    return {("unsupported_format", _new(root / "train" / "dog" / "IMG_1.JXL", b"x"))}


def class_missing_in_a_split(root: Path) -> Found:
    _new(root / "train" / "hen" / "1.png", encoded(random_image(1104), "PNG"))
    return {("class_missing", "val/hen")}


def class_only_in_validation(root: Path) -> Found:
    _new(root / "val" / "elk" / "1.png", encoded(random_image(1105), "PNG"))
    return {("unknown_class", "val/elk")}


def names_alike(root: Path) -> Found:
    for split in ("train", "val"):
        _new(root / split / "Dog " / "1.png", encoded(random_image(1106 + len(split)), "PNG"))
    return {("class_names_alike", str(root / split / name)) for split in ("train", "val") for name in ("dog", "Dog ")}


def imbalance(root: Path) -> Found:
    for index in range(30):
        _new(root / "train" / "dog" / f"more_{index}.png", encoded(random_image(1200 + index), "PNG"))
    for split in ("train", "val"):
        _new(root / split / "yak" / "1.png", encoded(random_image(1300 + len(split)), "PNG"))
    return {("imbalance", "train/yak")}


def _twice(kind: str, one: str, two: str, seed: int) -> Callable[[Path], Found]:
    """The same pixels at two places, in two file formats."""

    def plant(root: Path) -> Found:
        paths = (
            _new(root / one, encoded(random_image(seed), "PNG")),
            _new(root / two, encoded(random_image(seed), "BMP")),
        )
        return {(kind, path) for path in paths}

    return plant


def _alike(kind: str, one: str, two: str, seed: int) -> Callable[[Path], Found]:
    """An image, and the same smaller and through JPEG."""

    def plant(root: Path) -> Found:
        large = random_image(seed, (96, 80))
        small = large.resize((72, 60))
        paths = _new(root / one, encoded(large, "PNG")), _new(root / two, encoded(small, "JPEG", quality=80))
        return {(kind, path) for path in paths}

    return plant


DAMAGE: dict[str, Callable[[Path], Found]] = {
    **{name: _plant_file(name, kind, data) for name, (kind, data) in _damaged_files().items()},
    "dangling link": dangling_link,
    "pipe": pipe,
    "hidden folder": hidden_folder,
    "hidden folder in a class": hidden_folder_in_a_class,
    "hidden file": hidden_file,
    "empty class": empty_class,
    "empty folder": empty_folder,
    "stray folder": stray_folder,
    "stray image": stray_image,
    "stray file": stray_file,
    "other format": other_format,
    "class missing in a split": class_missing_in_a_split,
    "class only in validation": class_only_in_validation,
    "names alike": names_alike,
    "imbalance": imbalance,
    "duplicate": _twice("duplicate", "train/cat/one.png", "train/cat/two.bmp", 1400),
    "two labels": _twice("two_labels", "train/cat/a.png", "train/dog/a.bmp", 1401),
    "leak": _twice("leak", "train/cat/b.png", "val/cat/b.bmp", 1402),
    "near duplicate": _alike("near_duplicate", "train/cat/c.png", "train/cat/d.jpg", 1403),
    "near leak": _alike("near_leak", "train/cat/e.png", "val/cat/f.jpg", 1404),
}
UNREADABLE = ("empty_file", "undecodable", "not_an_image", "bomb", "unreadable")
