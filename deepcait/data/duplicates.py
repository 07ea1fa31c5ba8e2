"""Duplicate images: equal pixels by a hash, nearly equal ones by a 64-bit difference hash."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from PIL import Image

# A thumbnail is 8 rows of 9 pixels: 8 differences per row make the 64 bits of the hash.
THUMB_SHAPE = (8, 9, 3)
MAX_DISTANCE = 3
# Of 255, on average: the hash depends on edges only, so flat images of any colour would be the same to it.
_MAX_DIFFERENCE = 8.0
_BLOCK = 1024


def pixel_hash(image: Image.Image) -> bytes:
    """Return a 16-byte hash of the size and the decoded pixels of an RGB image, independent of its file format."""
    return hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size).digest()


def thumbnail(image: Image.Image) -> bytes:
    """Return the RGB image averaged to THUMB_SHAPE, row by row."""
    return image.resize((THUMB_SHAPE[1], THUMB_SHAPE[0]), Image.Resampling.BOX).tobytes()


def difference_hashes(thumbs: np.ndarray) -> np.ndarray:
    """Return the dHash (uint64) of every thumbnail: one bit per pair of neighbours, set if the second is brighter.

    Args:
        thumbs: (num, 8, 9, 3) uint8.
    """
    grey = thumbs.astype(np.int32) @ np.array([299, 587, 114])
    bits = (grey[:, :, 1:] > grey[:, :, :-1]).reshape(len(thumbs), 8, 8)
    return np.packbits(bits, axis=2).reshape(len(thumbs), 8).view(">u8").astype(np.uint64).reshape(len(thumbs))


def equal_groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions of equal keys, groups of two or more, in order."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    return [group for group in places.values() if len(group) > 1]


def near_groups(thumbs: np.ndarray) -> list[list[int]]:
    """Return groups of similar images: hashes at most MAX_DISTANCE bits apart, and similar colours.

    An image belongs to a group when it is near to any of it.

    Args:
        thumbs: (num, 8, 9, 3) uint8, of images with different pixels.
    """
    leader = list(range(len(thumbs)))

    def lead(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for one, two in _near_pairs(difference_hashes(thumbs), thumbs):
        first, second = sorted((lead(one), lead(two)))
        leader[second] = first
    return equal_groups([lead(index) for index in range(len(thumbs))])


def _near_pairs(hashes: np.ndarray, thumbs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of positions, some more than once.

    Hashes at most 3 bits apart agree in one of four bands of 16 bits, so only images that share a band meet.
    """
    num_bands = MAX_DISTANCE + 1
    width = 64 // num_bands
    for band in range(num_bands):
        values = (hashes >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=values[order][:1] + np.uint64(1)))
        for bucket in np.split(order, starts[1:]):
            if len(bucket) > 1:
                yield from _pairs_in(bucket, hashes, thumbs)


def _pairs_in(bucket: np.ndarray, hashes: np.ndarray, thumbs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Near pairs of one bucket, compared block by block: memory stays bounded."""
    blocks = [bucket[start : start + _BLOCK] for start in range(0, len(bucket), _BLOCK)]
    for number, rows in enumerate(blocks):
        for columns in blocks[number:]:
            distances = np.bitwise_count(hashes[rows][:, None] ^ hashes[columns][None, :])
            for row, column in np.argwhere(distances <= MAX_DISTANCE):
                one, two = int(rows[row]), int(columns[column])
                if one < two or (one > two and columns is not rows):
                    difference = np.abs(thumbs[one].astype(np.int16) - thumbs[two])
                    if difference.mean() <= _MAX_DIFFERENCE:
                        yield one, two
