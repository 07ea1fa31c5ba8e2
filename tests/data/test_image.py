"""The image opener: every form an image comes in, every way it can be broken."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from deepcait.data import png
from deepcait.data.image import open_image, read_image_bytes
from deepcait.errors import ImageError

WIDTH, HEIGHT = 23, 17
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def gradient(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """An RGB image without symmetry and without black rows."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([20 + columns * 200 // width, 30 + rows * 190 // height, 40 + (rows * columns) % 180], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, body: bytes, depth: int = 8) -> bytes:
    """A grey PNG whose header says what it likes."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# ---- forms


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_very_pixels(format):
    image = open_image(encoded(gradient(), format))
    assert image.mode == "RGB"
    assert image.tobytes() == gradient().tobytes()


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_come_close(format):
    image = open_image(encoded(gradient(), format))
    assert image.mode == "RGB"
    assert image.size == (WIDTH, HEIGHT)
    assert np.abs(pixels_of(image) - pixels_of(gradient())).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_turn(format, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> how to lay the upright image down
    laid = gradient() if orientation == 1 else gradient().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    upright = open_image(encoded(laid, format, exif=exif, **options))
    assert upright.size == (WIDTH, HEIGHT)
    assert upright.info == {}
    assert np.abs(pixels_of(upright) - pixels_of(gradient())).max() <= (6 if format == "JPEG" else 0)
    assert open_image(encoded(upright)).tobytes() == upright.tobytes(), "turned a second time"


def test_damaged_exif_leaves_the_image_as_it_lies():
    data = encoded(gradient(), "PNG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert open_image(data).tobytes() == gradient().tobytes()


def test_transparency_lies_on_white():
    image = gradient().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    alpha = pixels_of(image)[..., 3:] / 255
    expected = pixels_of(image)[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels_of(open_image(encoded(image))) - expected).max() <= 1

    grey = gradient().convert("LA")
    grey.putalpha(0)
    assert set(open_image(encoded(grey)).tobytes()) == {255}


def test_palette_and_transparent_palette():
    palette = gradient().quantize(256)
    assert open_image(encoded(palette)).tobytes() == palette.convert("RGB").tobytes()
    marked = palette.copy()
    marked.putpixel((0, 0), 7)
    pixels = pixels_of(open_image(encoded(marked, transparency=7)))
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert set(open_image(encoded(keyed, transparency=(1, 2, 3))).tobytes()) == {255}


def test_grey_bilevel_and_cmyk():
    grey = gradient().convert("L")
    pixels = pixels_of(open_image(encoded(grey)))
    assert (pixels == pixels_of(grey)[..., None]).all()
    assert set(open_image(encoded(grey.convert("1"))).tobytes()) == {0, 255}
    cmyk = gradient().convert("CMYK")
    assert open_image(encoded(cmyk, "TIFF")).tobytes() == gradient().tobytes()
    jpeg = pixels_of(open_image(encoded(cmyk, "JPEG", quality=100)))
    assert np.abs(jpeg - pixels_of(gradient())).max() < 20


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("factor", [256, 257])
def test_16_bit_grey_keeps_the_high_byte(format, factor):
    grey = pixels_of(gradient().convert("L"))
    deep = Image.fromarray((grey * factor).astype(np.uint16))
    assert deep.mode == "I;16"
    assert (pixels_of(open_image(encoded(deep, format))) == grey[..., None]).all()


def test_big_endian_16_bit_tiff():
    grey = pixels_of(gradient().convert("L")).astype(np.uint16) * 256
    deep = Image.frombytes("I;16B", (WIDTH, HEIGHT), grey.astype(">u2").tobytes())
    assert (pixels_of(open_image(encoded(deep, "TIFF")))[..., 0] == grey >> 8).all()


def test_wide_integers_and_floats_have_a_fixed_range():
    grey = pixels_of(gradient().convert("L"))
    wide = Image.fromarray((grey * 257).astype(np.int32))
    assert wide.mode == "I"
    assert (pixels_of(open_image(encoded(wide, "TIFF")))[..., 0] == grey).all()
    floats = Image.fromarray((grey / 255).astype(np.float32))
    assert floats.mode == "F"
    assert (pixels_of(open_image(encoded(floats, "TIFF")))[..., 0] == grey).all()
    for values in (grey.astype(np.int32) - 300, grey.astype(np.int32) * 1000):
        with pytest.raises(ImageError, match="between 0 and 65535"):
            open_image(encoded(Image.fromarray(values), "TIFF"))
    for values in (grey.astype(np.float32), np.full((3, 3), np.nan, np.float32)):
        with pytest.raises(ImageError, match="between 0"):
            open_image(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_animations(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 10, 10), (10, 250, 10))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert tuple(pixels_of(open_image(data))[4, 4]) == (250, 10, 10)


def test_golden_pixels_of_every_mode():
    """A changed conversion shows here, whatever changed it."""
    alpha = gradient().convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size, Image.Resampling.NEAREST))
    deep = Image.fromarray((pixels_of(gradient().convert("L")) * 256).astype(np.uint16))
    pictures = {
        "RGB": gradient(),
        "L": gradient().convert("L"),
        "RGBA": alpha,
        "I;16": deep,
        "1": gradient().convert("L").point(lambda value: 255 * (value > 99)).convert("1"),
    }
    hashes = {
        mode: hashlib.sha256(open_image(encoded(image)).tobytes()).hexdigest()[:12] for mode, image in pictures.items()
    }
    assert hashes == GOLDEN


GOLDEN = {
    "RGB": "b068487122e8",
    "L": "b5d59967b8b5",
    "RGBA": "b961570114d6",
    "I;16": "b5d59967b8b5",
    "1": "83d9b4ccbb1c",
}


# ---- damage


def broken_files() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(1, 255, (64, 64, 3), dtype=np.uint8))
    png, jpeg = encoded(noise), encoded(noise, "JPEG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    grey_rows = b"".join(b"\x00" + bytes([90]) * 40 for _ in range(30))
    bmp = bytearray(encoded(noise, "BMP"))
    bmp[22:26] = struct.pack("<i", 128)
    return {
        "empty.png": b"",
        "text.jpg": b"this is no image at all, only text\n" * 20,
        "html.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "zeros.png": bytes(4096),
        "truncated.png": png[: len(png) // 2],
        "no_end.png": png[:-12],
        "flipped.png": bytes(flipped),
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header_only.jpg": jpeg[:300],
        "truncated.webp": encoded(noise, "WEBP")[:900],
        "truncated.gif": encoded(noise, "GIF")[:900],
        "truncated.bmp": encoded(noise, "BMP")[:900],
        "truncated.tif": encoded(noise, "TIFF")[:900],
        "deflate.tif": encoded(noise, "TIFF", compression="tiff_adobe_deflate")[:-200],
        "lying.png": raw_png(40, 60, zlib.compress(grey_rows)),
        "lying_wide.png": raw_png(80, 30, zlib.compress(grey_rows)),
        "lying_bits.png": raw_png(23, 6, zlib.compress(bytes(4 * 5)), depth=1),
        "lying.bmp": bytes(bmp),
        "bomb.png": raw_png(60_000, 60_000, zlib.compress(bytes(1000))),
        "no_width.png": raw_png(0, 30, zlib.compress(grey_rows)),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "icon.ico": encoded(noise, "ICO"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_every_damage_is_an_image_error_with_the_path(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_black_rows_are_no_damage():
    black = gradient()
    black.paste((0, 0, 0), (0, 5, WIDTH, HEIGHT))
    for image in (black, black.convert("1"), black.quantize(4), black.convert("RGBA")):
        open_image(encoded(image))
    one_row = Image.new("L", (WIDTH, 1))
    assert open_image(encoded(one_row)).size == (WIDTH, 1)
    assert open_image(encoded(Image.new("L", (3000, 3000)))).size == (3000, 3000)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 3), (8, 8), (23, 17)])
def test_interlaced_png_is_counted_right(width, height):
    """Pillow does not write Adam7, so the seven passes are laid out here."""
    adam7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    pixels = np.full((height, width), 90, np.uint8)
    passes = [pixels[top::down, left::right] for left, top, right, down in adam7]
    raw = b"".join(b"\x00" + row.tobytes() for part in passes if part.size for row in part)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))

    def file(body: bytes) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(body)) + png_chunk(b"IEND", b"")

    assert open_image(file(raw)).size == (width, height)
    # Cut anywhere, the end of a pass among the rest.
    ends_of_passes = np.cumsum([len(part) * (1 + part.shape[1]) for part in passes if part.size])
    for end in {*range(0, len(raw), 7), *ends_of_passes[:-1], len(raw) - 1}:
        with pytest.raises(ImageError):
            open_image(file(raw[:end]))


def test_a_single_row_that_is_missing_is_noticed():
    raw = b"".join(b"\x00" + bytes([90]) * WIDTH for _ in range(HEIGHT))
    assert open_image(raw_png(WIDTH, HEIGHT, zlib.compress(raw))).size == (WIDTH, HEIGHT)
    for missing in (1, WIDTH // 2, 1 + WIDTH, 2 + 2 * WIDTH):
        with pytest.raises(ImageError):
            open_image(raw_png(WIDTH, HEIGHT, zlib.compress(raw[:-missing])))


def test_no_more_is_inflated_than_the_header_promises():
    data = raw_png(4, 4, zlib.compress(bytes(50_000_000)))
    assert png._inflated_bytes(data, 20) <= png._PIECE_BYTES
    assert open_image(data).size == (4, 4)


@pytest.mark.parametrize("checksum_bytes", [4, 0])
def test_all_pixels_count_where_they_end_just_behind_a_piece(checksum_bytes):
    rows = png._PIECE_BYTES // 5 + 1
    packed = zlib.compress(bytes(5 * rows))
    assert open_image(raw_png(4, rows, packed[: len(packed) - 4 + checksum_bytes])).size == (4, rows)


def test_a_wrong_suffix_is_no_damage(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded(gradient()))
    assert open_image(str(tmp_path / "photo.jpg")).tobytes() == gradient().tobytes()


def test_limits_come_before_decoding(tmp_path, monkeypatch):
    data = encoded(gradient())
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="at most 390 pixels, got 23 x 17"):
        open_image(data, max_pixels=390)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for source in (data, tmp_path / "a.png"):
        with pytest.raises(ImageError, match="at most 10 bytes"):
            open_image(source, max_bytes=10)


def test_exactly_at_the_limits_it_is_decoded():
    data = encoded(gradient())
    assert open_image(data, max_pixels=WIDTH * HEIGHT, max_bytes=len(data)).size == (WIDTH, HEIGHT)


def test_a_file_that_grows_while_it_is_read_is_not_read_on(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(bytes(1000))
    status = SimpleNamespace(st_mode=0o100644, st_size=10)
    monkeypatch.setattr("deepcait.data.image.os", SimpleNamespace(stat=lambda path: status, fspath=os.fspath))
    assert len(read_image_bytes(tmp_path / "a.png")) == 11


def test_places_that_hold_no_file(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="not an image file but a folder"):
        open_image(tmp_path / "folder.png")
    with pytest.raises(ImageError, match="can't be read"):
        open_image("nul\0byte.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match="but a pipe or device"):
            open_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("error", [MemoryError("x"), RecursionError("x"), SyntaxError("x"), struct.error("x")])
def test_whatever_a_decoder_raises_becomes_an_image_error(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ImageError, match=f"mine.png.*{type(error).__name__}"):
        open_image(encoded(gradient(), "JPEG"), name="mine.png")


def test_name_is_what_errors_say():
    with pytest.raises(ImageError, match=r"^shard\.tar/7\.png: "):
        open_image(b"no", name="shard.tar/7.png")


SEEDS = [encoded(gradient(), format) for format in FORMATS]
SEEDS += [encoded(gradient().quantize(16)), encoded(gradient(), "JPEG", progressive=True)]
SEEDS += [encoded(gradient(), "TIFF", compression="tiff_lzw"), encoded(gradient(), "WEBP", lossless=True)]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SEEDS), st.integers(0, 2**32), st.integers(1, 12))
def test_mutated_files_give_an_image_or_our_error(data, seed, num_changes):
    rng, mutated = random.Random(seed), bytearray(data)
    for _ in range(num_changes):
        position = rng.randrange(len(mutated))
        change = rng.randrange(4)
        if change == 0:
            mutated[position] = rng.randrange(256)
        elif change == 1:
            mutated[position : position + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x00\x00\xff\xff"])
        elif change == 2:
            del mutated[position : position + rng.randrange(1, 40)]
        else:
            mutated[position:position] = mutated[: rng.randrange(60)]
        if not mutated:
            break
    try:
        image = open_image(bytes(mutated), max_pixels=10**6)
    except ImageError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 10**6
