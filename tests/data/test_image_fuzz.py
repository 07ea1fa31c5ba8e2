"""Mutated image files of every allowed format through the opener: an image or our error, in bounded time and memory."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcait.data.formats import FORMATS
from deepcait.data.image import open_image
from deepcait.errors import ImageError

MAX_PIXELS = 4_000_000
# Above what the process has at its start: decoded pixels, their RGBA form, libtiff's and libwebp's own.
MAX_MEMORY_BYTES = 512 * 2**20
MAX_SECONDS = 5.0
_SPECIAL = [b"\xff" * 4, bytes(4), b"\x00\x00\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80" + bytes(3)]


def seeds() -> list[tuple[str, bytes]]:
    """Sound files of every format, in the forms that the decoders treat differently."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((47, 33), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    forms: list[tuple[str, Image.Image, dict]] = [(format, image, {}) for format in FORMATS if format in Image.SAVE]
    forms += [("JPEG", image, {"progressive": True}), ("JPEG", image.convert("CMYK"), {})]
    forms += [("JPEG", image, {"exif": exif}), ("JPEG", image.convert("L"), {"restart_marker_blocks": 2})]
    forms += [("PNG", image.quantize(16), {}), ("PNG", image.convert("RGBA"), {}), ("PNG", image.convert("1"), {})]
    forms += [("PNG", Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), {})]
    forms += [("TIFF", image, {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    forms += [("TIFF", image.convert("1"), {"compression": "group4"}), ("TIFF", image, {"big_tiff": True})]
    forms += [("WEBP", image, {"lossless": True}), ("WEBP", image.convert("RGBA"), {"exif": exif})]
    forms += [("BMP", image.quantize(16), {}), ("BMP", image.convert("1"), {}), ("GIF", image.convert("L"), {})]
    frames = {"save_all": True, "append_images": [image.rotate(90, expand=False), image.rotate(180)]}
    forms += [(format, image, frames) for format in ("GIF", "WEBP", "PNG", "TIFF")]
    files = []
    for format, picture, options in forms:
        buffer = io.BytesIO()
        picture.save(buffer, format, **options)
        files.append((format, buffer.getvalue()))
    return files


def mutate(data: bytes, rng: random.Random, others: list[tuple[str, bytes]]) -> bytes:
    """A file with 1 to 12 changes; headers are changed as often as bodies.

    A PNG often gets right checksums again: otherwise no change would come past them.
    """
    mutated = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5, 12])):
        if not mutated:
            break
        end = min(len(mutated), 64) if rng.random() < 0.5 else len(mutated)
        position = rng.randrange(end)
        change = rng.randrange(7)
        if change == 0:
            mutated[position] = rng.randrange(256)
        elif change == 1:
            mutated[position] ^= 1 << rng.randrange(8)
        elif change == 2:
            special = rng.choice(_SPECIAL)
            mutated[position : position + len(special)] = special
        elif change == 3:
            del mutated[position : position + rng.randrange(1, 40)]
        elif change == 4:
            mutated[position:position] = mutated[: rng.randrange(60)]
        elif change == 5:
            del mutated[rng.randrange(len(mutated)) :]
        else:
            donor = rng.choice(others)[1]
            start = rng.randrange(len(donor))
            mutated[position : position + 32] = donor[start : start + 32]
    repair = data.startswith(b"\x89PNG") and rng.random() < 0.7
    return with_checksums(bytes(mutated)) if repair else bytes(mutated)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks, as far as they can be followed, have the checksum of their content."""
    repaired, position = bytearray(data), 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        end = position + 8 + length
        if end + 4 > len(data):
            break
        repaired[end : end + 4] = struct.pack(">I", zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return bytes(repaired)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz(num_files: int, seed: int) -> dict:
    """Open mutated files and say what came of them; another exception than ours ends it."""
    rng, files = random.Random(seed), seeds()
    for _, data in files:
        open_image(data, max_pixels=MAX_PIXELS)
    before, outcome, slowest_s = peak_bytes(), Counter(), 0.0
    for number in range(num_files):
        format, data = files[number % len(files)]
        mutated = mutate(data, rng, files)
        began = time.perf_counter()
        try:
            image = open_image(mutated, max_pixels=MAX_PIXELS)
            assert image.mode == "RGB"
            assert 0 < image.width * image.height <= MAX_PIXELS
            outcome[f"{format} opened"] += 1
        except ImageError:
            outcome[f"{format} refused"] += 1
        slowest_s = max(slowest_s, time.perf_counter() - began)
    return {
        "files": num_files,
        "opened": sum(num for key, num in outcome.items() if key.endswith("opened")),
        "slowest_s": slowest_s,
        "memory_bytes": peak_bytes() - before,
        "outcome": dict(sorted(outcome.items())),
    }


def require_bounds(facts: dict) -> None:
    assert sum(facts["outcome"].values()) == facts["files"]
    assert facts["slowest_s"] < MAX_SECONDS
    assert facts["memory_bytes"] < MAX_MEMORY_BYTES
    for format in (one for one in FORMATS if one in Image.SAVE):
        assert facts["outcome"].get(f"{format} refused", 0) > 0
        assert facts["outcome"].get(f"{format} opened", 0) > 0


@pytest.mark.filterwarnings("ignore")
def test_a_few_hundred_mutated_files():
    require_bounds(fuzz(600, seed=1))


@pytest.mark.soak
@pytest.mark.process
def test_20_000_mutated_files_within_a_hard_limit(tmp_path):
    """In a process of its own, which the system stops when it takes more memory or time than allowed."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_image_fuzz as t; t.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(facts))
    assert facts["files"] == 20_000
    require_bounds(facts)


def main() -> None:
    """Fuzz under limits: address space beyond the present, and an alarm that ends a hang."""
    import signal

    warnings.simplefilter("ignore")
    if sys.platform.startswith("linux"):
        present = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (present + 2 * MAX_MEMORY_BYTES,) * 2)
    signal.alarm(3000)
    print(json.dumps(fuzz(20_000, seed=2)))
