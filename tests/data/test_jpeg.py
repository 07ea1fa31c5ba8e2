"""The quick decoder of JPEGs: Pillow's pixels, and Pillow's opinion of what is damaged."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

import deepcait.data.image as image_module
from deepcait.data import open_source
from deepcait.data.image import decode_image, decode_pixels, open_image
from deepcait.data.jpeg import jpeg_pixels
from deepcait.errors import ImageError

SAVED = {
    "plain": {},
    "progressive": {"progressive": True},
    "whole colours": {"subsampling": 0},
    "half colours": {"subsampling": 1},
    "quarter colours": {"subsampling": "4:1:1"},
    "restarts": {"restart_marker_rows": 1},
    "no YCbCr": {"keep_rgb": True},
    "coarse": {"quality": 15, "optimize": True},
}


def photograph(index: int, size: tuple[int, int]) -> Image.Image:
    demo = open_source("builtin:demo")
    return open_image(demo.read(index).data).resize(size, Image.Resampling.BICUBIC)


def file_of(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    held = io.BytesIO()
    image.save(held, file_format, **options)
    return held.getvalue()


def quick(data: bytes) -> np.ndarray | None:
    return jpeg_pixels(data, Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (33, 130), (257, 64)])
@pytest.mark.parametrize("kind", SAVED)
def test_pixels_are_those_of_pillow(kind, size):
    data = file_of(photograph(3, size), **SAVED[kind])
    pixels_HWC = quick(data)
    assert pixels_HWC is not None
    assert np.array_equal(pixels_HWC, np.asarray(decode_image(data, name="it")))


def test_damage_is_judged_by_pillow():
    """Of 1,500 damaged files none is decoded to other pixels, and none that Pillow refuses."""
    draw = random.Random(0)
    files = [file_of(photograph(k, (9 + 8 * k, 60 - 5 * k)), **options) for k, options in enumerate(SAVED.values())]
    decoded = refused = 0
    for _ in range(1500):
        data = damaged(draw.choice(files), draw)
        wanted, got = (judged(decode, data) for decode in (decode_image, decode_pixels))
        if isinstance(wanted, str):
            assert got == wanted
            refused += 1
        else:
            assert np.array_equal(got, wanted)
            decoded += quick(data) is not None
    assert decoded > 300
    assert refused > 300


def judged(decode: Callable, data: bytes) -> np.ndarray | str:
    """The pixels, or what is wrong."""
    try:
        return np.asarray(decode(data, name="it"))
    except ImageError as error:
        return str(error)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut off, or with bytes changed, put in or left out."""
    content, place = bytearray(data), draw.randrange(2, len(data))
    kind = draw.choice(("cut", "change", "change", "insert", "remove"))
    if kind == "cut":
        return data[:place]
    if kind == "change":
        content[place] = draw.randrange(256)
    elif kind == "insert":
        content[place:place] = draw.randbytes(draw.randint(1, 9))
    else:
        del content[place : place + draw.randint(1, 9)]
    return bytes(content)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_image_is_the_same_as_array(file_format, mode):
    data = file_of(photograph(1, (40, 31)).convert(mode), file_format)
    assert np.array_equal(decode_pixels(data, name="it"), np.asarray(open_image(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_stand_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(photograph(1, (40, 31)), exif=exif)
    assert np.array_equal(decode_pixels(data, name="it"), np.asarray(open_image(data)))


def test_only_plain_colour_is_decoded_quickly(monkeypatch):
    image = photograph(2, (40, 31))
    assert quick(file_of(image.convert("L"))) is None
    assert quick(file_of(image.convert("CMYK"))) is None
    assert quick(file_of(image, "PNG")) is None
    assert quick(file_of(image, "MPO", save_all=True, append_images=[image])) is None
    monkeypatch.setattr(image_module, "_decode", None)  # what is quick does not need it
    assert decode_pixels(file_of(image), name="it").shape == (31, 40, 3)


def test_a_fraction_is_asked_for_once():
    asked = []

    def shrink(width, height):
        asked.append((width, height))
        return 2

    data = file_of(photograph(2, (41, 30)))
    assert decode_pixels(data, name="it", shrink=shrink).shape == (15, 21, 3)
    assert asked == [(41, 30)]
