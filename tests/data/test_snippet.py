"""The preprocessing that an export writes beside it: the same bits as ours, in a process without deepcait and torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from deepcait.data import ImageOptions, Preprocessing, open_image
from deepcait.data.snippet import snippet

RUN = """
import sys
sys.modules |= {"deepcait": None, "torch": None}
import runpy, numpy as np
model_input = runpy.run_path(sys.argv[1])["model_input"]
np.savez(sys.argv[2], *[model_input(path) for path in sys.argv[3:]])
"""
RNG = np.random.default_rng(0)


def noise(*shape: int, high: int = 256, kind: str = "uint8") -> np.ndarray:
    return RNG.integers(0, high, shape).astype(kind)


def odd_images(folder: Path) -> list[Path]:
    """Every form that a reader of ten lines is likely to get wrong."""
    folder.mkdir()
    rgb, saved = Image.fromarray(noise(41, 57, 3)), []

    def save(image: Image.Image, name: str, **options) -> None:
        image.save(folder / name, **options)
        saved.append(folder / name)

    cmyk = Image.frombytes("CMYK", (57, 41), noise(41, 57, 4).tobytes())
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        save(rgb, f"turned{turn}.jpg", exif=exif)
        save(rgb, f"turned{turn}.png", exif=exif)
        save(rgb, f"turned{turn}.webp", exif=exif, lossless=True)
        save(cmyk, f"turned_cmyk{turn}.jpg", exif=exif)
        for packing in ("raw", "tiff_lzw", "tiff_deflate"):
            save(rgb, f"turned_{packing}{turn}.tif", exif=exif, compression=packing)
            save(cmyk, f"turned_cmyk_{packing}{turn}.tif", tiffinfo={274: turn}, compression=packing)
    palette = rgb.quantize(16)
    save(palette, "palette.png")
    save(palette, "palette_clear.png", transparency=3)
    save(palette, "palette_alpha.png", transparency=bytes(range(0, 256, 16)))
    save(palette, "palette.gif", transparency=2)
    save(Image.fromarray(noise(41, 57, 4)), "rgba.png")
    save(Image.fromarray(noise(41, 57, 2)), "la.png")
    save(Image.fromarray(noise(41, 57)), "grey.png")
    save(Image.fromarray(noise(41, 57)), "grey_clear.png", transparency=9)
    save(rgb, "rgb_clear.png", transparency=tuple(rgb.getpixel((3, 3))))
    save(Image.fromarray(noise(41, 57)).convert("1"), "one.png")
    save(Image.fromarray(noise(41, 57, high=65536, kind="uint16")), "grey16.png")
    save(Image.fromarray(noise(41, 57, high=65536, kind="uint16")), "grey16.tif")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    save(rgb, "profile.png", icc_profile=profile)
    for name, size in (
        ("tall", (9, 200)),
        ("wide", (200, 9)),
        ("own", (32, 32)),
        ("small", (5, 4)),
        ("large", (300, 200)),
    ):
        save(Image.fromarray(noise(size[1], size[0], 3)), f"{name}.png")
    return saved


@pytest.mark.parametrize(
    ("how", "max_value"),
    [
        (Preprocessing((32, 32)), 0),
        (Preprocessing((24, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1), crop_ratio=0.875), 65535),
        (Preprocessing((32, 48), interpolation="bilinear", crop_ratio=0.9), 0),
        (Preprocessing((31, 31), mean=(0.4,), std=(0.3,), interpolation="lanczos"), 0),
    ],
)
def test_the_same_bits_without_deepcait(tmp_path, how, max_value):
    images = odd_images(tmp_path / "images")
    check(tmp_path, images, how, max_value)


@pytest.mark.parametrize("max_value", [4095, 1000, 40000])
def test_the_range_of_deep_images_goes_with_the_model(tmp_path, max_value):
    Image.fromarray(noise(41, 57, high=max_value + 1, kind="uint16")).save(tmp_path / "deep.png")
    check(tmp_path, [tmp_path / "deep.png"], Preprocessing((32, 32)), max_value)


def check(tmp_path: Path, images: list[Path], how: Preprocessing, max_value: int) -> None:
    code = tmp_path / "pets.onnx.py"
    code.write_text(snippet(how, "pets.onnx", max_value=max_value))
    found = tmp_path / "found.npz"
    command = [sys.executable, "-I", "-c", RUN, str(code), str(found), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    options = ImageOptions(max_value=max_value)
    wrong = [
        path.name
        for path, own in zip(images, np.load(found).values(), strict=True)
        if own.tobytes() != how(open_image(path, options=options)).numpy()[None].tobytes() or own.dtype != np.float32
    ]
    assert not wrong


def test_it_is_short(tmp_path):
    text = snippet(Preprocessing((32, 32)), "pets.onnx")
    body = text.partition('32, 32)."""\n')[2].strip().splitlines()
    assert len(body) <= 15
    assert max(map(len, text.splitlines())) <= 120
    names: dict = {}
    exec(text, names)
    Image.new("RGB", (40, 50), "red").save(tmp_path / "red.png")
    assert names["model_input"](tmp_path / "red.png").shape == (1, 3, 32, 32)
