"""Values deeper than 8 bits keep the range stored in the file; an unknown range is reported; bands are not dropped."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from deepcait.data.doctor import examine
from deepcait.data.image import ImageOptions, decode_image, decode_pixels, open_image
from deepcait.errors import ConfigError, DeepcaitWarning, ImageError

RAMP = np.tile(np.arange(4096, dtype=np.uint16), (2, 1))  # all values of 12 bits


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """A TIFF by Pillow, with further tags by their names."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        number = {"MaxSampleValue": 281}[name]
        info[number] = value
        info.tagtype[number] = 3
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo=info)
    return buffer.getvalue()


def tiff_by_hand(values_HWC: np.ndarray, photometric: int, extra: tuple[int, ...] = ()) -> bytes:
    """An uncompressed little-endian TIFF of any bands and of 8 or 16 bits, which Pillow doesn't write."""
    height, width, bands = values_HWC.shape
    bits = values_HWC.itemsize * 8
    tags = [(256, 1, width), (257, 1, height), (259, 1, 1), (262, 1, photometric), (277, 1, bands), (278, 1, height)]
    tags += [(279, 1, values_HWC.nbytes), (273, 1, 0), (258, bands, (bits,) * bands)]
    tags += [(338, len(extra), extra)] if extra else []
    tags.sort()
    start = 8 + 2 + 12 * len(tags) + 4
    spare, entries = b"", b""
    for tag, count, value in tags:
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{count}H", *values) if tag in (258, 338) else struct.pack("<I", *values)
        kind = 3 if tag in (258, 338) else 4
        if len(packed) > 4:
            place, spare = start + len(spare), spare + packed
            packed = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
    offset = struct.pack("<HHII", 273, 4, 1, start + len(spare))
    entries = b"".join(
        offset if entries[i : i + 2] == b"\x11\x01" else entries[i : i + 12] for i in range(0, len(entries), 12)
    )
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head + spare + values_HWC.astype(f"<u{values_HWC.itemsize}").tobytes()


def png(values: np.ndarray, *, bits: int = 0) -> bytes:
    """A 16-bit PNG, grey or RGB, with an sBIT chunk where bits are given."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    colour, channels = (0, 1) if values.ndim == 2 else (2, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0))
    declared = chunk(b"sBIT", bytes([bits]) * channels) if bits else b""
    return b"\x89PNG\r\n\x1a\n" + header + declared + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def opened(data: bytes, **options) -> np.ndarray:
    return np.asarray(open_image(data, options=ImageOptions(**options)))


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (tiff(RAMP, MaxSampleValue=4095), {}),
        (png(RAMP, bits=12), {}),
        (png(RAMP), {"max_value": 4095}),
        (tiff(RAMP), {"max_value": 4095}),
        (tiff(RAMP.astype(np.int32)), {"max_value": 4095}),
        (png(np.stack([RAMP] * 3, axis=2), bits=12), {}),
        (png(np.stack([RAMP] * 3, axis=2)), {"max_value": 4095}),
        (tiff_by_hand(np.stack([RAMP] * 3, axis=2), 2), {"max_value": 4095}),
    ],
    ids=["MaxSampleValue", "sBIT", "png", "tiff", "tiff of 32 bits", "RGB sBIT", "RGB png", "RGB tiff"],
)
def test_twelve_bits_in_sixteen_keep_256_levels(data, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = opened(data, **options)
    assert np.array_equal(got, np.stack([RAMP >> 4] * 3, axis=2))
    assert np.array_equal(decode_pixels(data, name="x", options=ImageOptions(**options)), got)


def test_a_range_that_is_no_power_of_two():
    values = np.array([[0, 500, 1000]], np.uint16)
    assert opened(png(values), max_value=1000)[0, :, 0].tolist() == [0, 127, 255]
    assert opened(tiff(values.astype(np.float32)), max_value=1000)[0, :, 0].tolist() == [0, 128, 255]


def test_values_that_were_scaled_to_sixteen_bits_keep_their_range():
    """As PNG's standard asks: 12 bits become 16 by repeating the high bits, or by empty low ones."""
    scaled = (RAMP << 4) | (RAMP >> 8)
    for values in (scaled, RAMP << 4):
        assert np.array_equal(opened(png(values, bits=12))[..., 0], values >> 8)


def test_values_above_the_range_are_an_error():
    with pytest.raises(ImageError, match=r"^image bytes: expected values up to 1,000, got 4,095.*data\.max_value"):
        opened(png(RAMP), max_value=1000)


@pytest.mark.parametrize("make", [png, tiff])
@pytest.mark.parametrize("color", [False, True])
def test_what_is_lost_in_an_unknown_range_is_said(make, color):
    values = np.stack([RAMP] * 3, axis=2) if color else RAMP
    make = (lambda values: tiff_by_hand(values, 2)) if color and make is tiff else make
    with pytest.warns(DeepcaitWarning, match="below 4,096: 16 of 256 levels remain; set --max-value .*4095"):
        assert opened(make(values)).max() == 15
    levels: list[int] = []
    decode_image(make(values * 16), name="x", levels=levels)
    assert levels == [256]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(make(values * 16))


def test_the_doctor_says_what_is_lost(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(png(RAMP[:, number * 50 + len(name) :]))
    (found,) = (one for one in examine(tmp_path).findings if one.kind == "few_levels")
    assert len(found.paths) == 6
    assert "16 of 256 levels" in found.text
    (tmp_path / "dog" / "bright.png").write_bytes(png(RAMP * 16))  # one that uses the range: the others are dark
    assert not [one for one in examine(tmp_path).findings if one.kind == "few_levels"]


BANDS = np.zeros((4, 5, 13), np.uint8)


@pytest.mark.parametrize(
    ("bands", "photometric", "extra"),
    [(4, 2, (0,)), (5, 2, (0, 0)), (5, 2, (1, 0)), (2, 1, (0,)), (4, 1, (0, 0, 0)), (13, 1, (0,) * 12), (13, 1, ())],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_that_are_no_colour_are_an_error(bands, photometric, extra, dtype, capfd):
    data = tiff_by_hand(BANDS[..., :bands].astype(dtype), photometric, extra)
    with pytest.raises(ImageError, match=rf"the image has {bands} bands.*gdal_translate"):
        opened(data)
    assert capfd.readouterr().err == ""  # Pillow's own words


def test_transparency_is_no_band():
    values = np.full((2, 2, 4), 255, np.uint8)
    values[..., :3], values[0, 0, 3] = 10, 0
    assert opened(tiff_by_hand(values, 2, (2,)))[:, :, 0].tolist() == [[255, 10], [10, 10]]


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, {"max_pixels": -1}, {"max_value": -1}, {"max_value": 2**32}])
def test_limits_that_can_not_be(wrong):
    with pytest.raises(ConfigError, match="above 0"):
        ImageOptions(**wrong)
