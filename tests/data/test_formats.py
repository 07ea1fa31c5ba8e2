"""Files are images by what they hold; what is left out is named; chunks and ends that are no pixels end no image."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deepcait.data.formats import FORMATS, SUFFIXES, count_suffixes, format_of
from deepcait.data.image import ImageOptions, open_image
from deepcait.data.listing import list_images, walk_files
from deepcait.errors import DataError, ImageError

PIXELS = np.random.default_rng(0).integers(1, 255, (24, 20, 3), np.uint8)
LENIENT = ImageOptions(accept_truncated=True)


def encoded(format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).resize((60, 50)).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", [one for one in FORMATS if one != "HEIF"])
def test_every_format_is_known_by_its_first_bytes(format):
    data = encoded(format)
    assert format_of(data[:16]) == format
    assert open_image(data).size == (60, 50)


def test_heif_needs_its_package(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encoded("HEIF")
    assert format_of(data) == "HEIF"
    assert open_image(data).size == (60, 50)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"HEIF .*pip install \"deepcait\[heif\]\""):
        open_image(data)


def test_all_suffixes_and_none_are_listed(tmp_path):
    jpeg = encoded("JPEG")
    names = [f"a{suffix}" for suffixes in SUFFIXES.values() for suffix in suffixes] + ["B.JFIF", "plain", "2019.12"]
    for name in names:
        (tmp_path / name).write_bytes(jpeg)
    for name in ("notes.txt", "README", "x.jxl", ".hidden"):
        (tmp_path / name).write_text("no image")
    assert {path.name for path in list_images(tmp_path)} == set(names)
    assert walk_files(tmp_path)[1] == ["README", "notes.txt", "x.jxl"]


def test_what_was_left_out_is_counted():
    assert count_suffixes(["a.txt", "b.txt", "c"]) == "3 files (.txt 2, no suffix 1)"
    assert count_suffixes(["a.jxl"]) == "1 file (.jxl 1)"
    assert count_suffixes([]) == ""


def test_a_folder_of_other_files_says_which(tmp_path):
    (tmp_path / "a.jxl").write_bytes(b"x")
    with pytest.raises(DataError, match=r"in this folder, only 1 file \(\.jxl 1\)"):
        list_images(tmp_path)


# -- chunks that are no pixels


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (not sound))


def with_chunk(inserted: bytes) -> bytes:
    data = encoded("PNG")
    return data[:33] + inserted + data[33:]


@pytest.mark.parametrize(
    "inserted",
    [
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"tEXt", b"k\0v", sound=False),
        chunk(b"eXIf", b"MM\0*", sound=False),
        chunk(b"pHYs", b"1"),
        chunk(b"iCCP", b"no profile"),
    ],
    ids=["zTXt", "iTXt", "iCCP", "wrong checksum", "wrong checksum of EXIF", "short", "no profile"],
)
def test_faults_in_chunks_that_are_no_pixels_end_no_png(inserted):
    assert np.array_equal(np.asarray(open_image(with_chunk(inserted))), np.asarray(open_image(encoded("PNG"))))


@pytest.mark.parametrize("inserted", [chunk(b"tRNS", bytes(6), sound=False), chunk(b"IDAT", b"xx", sound=False)])
def test_faults_in_pixels_end_a_png(inserted):
    with pytest.raises(ImageError, match="can't be decoded"):
        open_image(with_chunk(inserted))


# -- ends that are missing


@pytest.mark.parametrize("cut", [2, 5])
def test_a_jpeg_without_its_end_is_taken_where_that_is_asked_for(cut):
    data = encoded("JPEG")
    with pytest.raises(ImageError):
        open_image(data[:-cut])
    got = np.asarray(open_image(data[:-cut], options=LENIENT))
    whole = np.asarray(open_image(data))
    assert got.shape == whole.shape
    assert np.array_equal(got[:32], whole[:32])


@pytest.mark.parametrize("cut", [4, 12, 14])
def test_a_png_without_its_end_is_taken_where_that_is_asked_for(cut):
    data = encoded("PNG")
    assert np.array_equal(np.asarray(open_image(data[:-cut], options=LENIENT)), np.asarray(open_image(data)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "WEBP"])
def test_an_image_without_its_last_rows_is_never_taken(format):
    data = encoded(format)
    with pytest.raises(ImageError):
        open_image(data[: len(data) // 2], options=LENIENT)


# -- limits


def test_limits_can_be_raised_and_lowered():
    data = encoded("PNG")
    with pytest.raises(ImageError, match="at most 2,999 pixels"):
        open_image(data, max_pixels=2999)
    with pytest.raises(ImageError, match="at most 99 bytes"):
        open_image(data, options=ImageOptions(max_bytes=99))


def test_more_pixels_than_pillow_opens_are_opened_without_its_warning(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_image(encoded("PNG")).size == (60, 50)
    assert not recwarn.list
