"""Shrunk and kept training images: the same pixels kept or not, never stale, made again if damaged."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcait.data import open_folder, open_image, shrunk
from deepcait.data.shrunk import Shrunk
from deepcait.errors import ConfigError, DataError, ImageError


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate([(90, 60), (60, 130), (20, 30), (64, 64)]):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def pixels(source) -> list[bytes]:
    return [open_image(source.read(index).data).tobytes() for index in range(len(source))]


def kept(folder) -> list:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_kept_or_not_the_pixels_are_the_same(photos, tmp_path, monkeypatch):
    source, cache = open_folder(photos, None), tmp_path / "cache"
    plain = pixels(Shrunk(source, 32))
    assert pixels(Shrunk(source, 32, cache)) == plain
    assert len(kept(cache)) == 3  # one image is small enough
    sizes = [open_image(Shrunk(source, 32).read(index).data).size for index in range(4)]
    assert sorted(sizes) == [(20, 30), (32, 32), (32, 69), (48, 32)]
    monkeypatch.setattr(shrunk, "shrink", lambda *_, **__: pytest.fail("decoded again"))
    assert pixels(Shrunk(source, 32, cache)) == plain


def test_a_changed_file_or_size_is_never_answered_from_what_was_kept(photos, tmp_path):
    source, cache = open_folder(photos, None), tmp_path / "cache"
    before = pixels(Shrunk(source, 32, cache))
    path = photos / "a" / "0.jpg"
    status = path.stat()
    other = io.BytesIO()
    Image.new("RGB", (90, 60), (9, 99, 9)).save(other, "JPEG")
    path.write_bytes(other.getvalue().ljust(status.st_size, b"\0"))  # the same size and time: only bytes tell
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = pixels(Shrunk(source, 32, cache))
    assert after == pixels(Shrunk(source, 32))
    assert [one == two for one, two in zip(after, before, strict=True)].count(False) == 1
    assert pixels(Shrunk(source, 24, cache)) == pixels(Shrunk(source, 24))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda data: b"", lambda data: data[:60] + b"?" + data[61:]]
)
def test_a_damaged_copy_is_made_anew(photos, tmp_path, damage):
    source, cache = open_folder(photos, None), tmp_path / "cache"
    plain = pixels(Shrunk(source, 32, cache))
    contents = [path.read_bytes() for path in kept(cache)]
    for path in kept(cache):
        path.write_bytes(damage(path.read_bytes()))
    assert pixels(Shrunk(source, 32, cache)) == plain
    assert [path.read_bytes() for path in kept(cache)] == contents


def test_errors(photos, tmp_path):
    (photos / "a" / "0.jpg").write_bytes((photos / "a" / "0.jpg").read_bytes()[:900])
    with pytest.raises(ImageError, match="0.jpg"):
        pixels(Shrunk(open_folder(photos, None), 32, tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    (photos / "a" / "0.jpg").unlink()
    with pytest.raises(DataError, match="data.cache"):
        pixels(Shrunk(open_folder(photos, None), 32, tmp_path / "file"))
    for side_px, folder in ((-1, ""), (0, "cache")):
        with pytest.raises(ConfigError, match="shrink_px"):
            shrunk.shrunk(open_folder(photos, None), side_px, folder)
    source = open_folder(photos, None)
    assert shrunk.shrunk(source, 0, "") is source
    square = source.names.index("b/3.jpg")
    assert Shrunk(source, 64).read(square) == source.read(square)  # as large as asked for: the file itself
    assert shrunk.shrunk(source, 32, "~/small").folder == Path.home() / "small"
