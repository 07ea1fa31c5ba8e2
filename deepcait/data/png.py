"""PNG files whose header promises more pixels than follow: Pillow fills the rest with black."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type of the header -> values a pixel
# Adam7 interlacing: (first column, first row, column step, row step) of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE_BYTES = 2**20


def png_misses_pixels(data: bytes, image: Image.Image) -> bool:
    """Whether the compressed pixels of a PNG end before its last row.

    Counting means inflating again, so it happens only where one of the last two rows is all
    zero: that is what Pillow leaves where nothing was written (with interlacing, too).

    Args:
        data: the bytes of a PNG whose chunks were verified.
        image: the same, decoded.
    """
    width, height = image.size
    rows = [image.crop((0, row, width, row + 1)) for row in range(max(0, height - 2), height)]
    if all(any(row.tobytes()) for row in rows):
        return False
    expected = _expected_bytes(data)
    return _inflated_bytes(data, expected) < expected


def _expected_bytes(data: bytes) -> int:
    """Bytes of all filtered rows, from the header chunk."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * _SAMPLES[colour]
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    total = 0
    for left, top, right_step, down_step in passes:
        columns = max(0, -(-(width - left) // right_step))
        rows = max(0, -(-(height - top) // down_step))
        if columns:
            total += rows * (1 + (columns * bits + 7) // 8)  # one filter byte a row
    return total


def _inflated_bytes(data: bytes, enough: int) -> int:
    """How many bytes the pixel chunks inflate to, counted in pieces and up to `enough`."""
    inflater, count = zlib.decompressobj(), 0
    for body in _pixel_chunks(data):
        while body and count < enough and not inflater.eof:
            count += len(inflater.decompress(body, _PIECE_BYTES))
            body = inflater.unconsumed_tail
    while count < enough and not inflater.eof:
        piece = inflater.decompress(b"", _PIECE_BYTES)
        if not piece:
            break
        count += len(piece)
    return count


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        if data[position + 4 : position + 8] == b"IDAT":
            yield data[position + 8 : position + 8 + length]
        position += 12 + length
