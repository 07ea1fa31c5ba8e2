"""PNG files: missing pixels, chunks other than pixels, and truncated streams."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type of the header -> values a pixel
# Adam7 interlacing: (first column, first row, column step, row step) of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE_BYTES = 2**20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that determine pixels, transparency and frames; Pillow checks them.
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_USEFUL = (b"eXIf", b"sBIT")  # orientation and range, if they are sound


def only_pixels(data: bytes) -> bytes:
    """Return a PNG with only the chunks of its pixels: Pillow refuses an image for errors in other chunks.

    Args:
        data: begins like a PNG; the same object is returned if there is nothing to leave out.
    """
    kept, position, dropped = [_SIGNATURE], len(_SIGNATURE), False
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if kind in _NEEDED or (kind in _USEFUL and _is_sound(data, position, end)):
            kept.append(data[position:end])
        elif not kind.isalpha() or kind[:1].isupper():
            return data  # no chunk, or one that a reader must know
        else:
            dropped = True
        position = end
        if kind == b"IEND":
            break
    else:
        kept.append(data[position:])
    return b"".join(kept) if dropped else data


def _is_sound(data: bytes, position: int, end: int) -> bool:
    return end <= len(data) and data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[position + 4 : end - 4]))


def significant_bits(data: bytes) -> int:
    """Return the number of significant bits that a PNG declares (sBIT, the maximum over channels), else 0."""
    position = len(_SIGNATURE)
    while data.startswith(_SIGNATURE) and position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind = data[position + 4 : position + 8]
        if kind == b"sBIT" and _is_sound(data, position, position + 12 + length):
            return max(data[position + 8 : position + 8 + length], default=0)
        if kind == b"IDAT":
            break
        position += 12 + length
    return 0


def complete_end(data: bytes) -> bytes | None:
    """Return a truncated PNG as a complete one, if all its pixels are present; else None."""
    if len(data) < 33 or data[12:16] != b"IHDR" or data[28] or data[24] not in (1, 2, 4, 8, 16):
        return None
    expected = _expected_bytes(data)
    pixels, inflater = bytearray(), zlib.decompressobj()
    try:
        for body in _pixel_chunks(data):
            pixels += inflater.decompress(body, max(0, expected - len(pixels)) or 1)
    except zlib.error:
        return None
    if len(pixels) < expected:
        return None
    head = data[: data.index(b"IDAT") - 4]
    return head + _chunk(b"IDAT", zlib.compress(bytes(pixels[:expected]), 0)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_misses_pixels(data: bytes, image: Image.Image) -> bool:
    """Whether the compressed pixels of a PNG end before its last row.

    Counting means inflating again, so it happens only if one of the last two rows is all
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
            total += rows * (1 + (columns * bits + 7) // 8)  # one filter byte per row
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
