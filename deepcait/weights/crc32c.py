"""CRC-32C (Castagnoli), the checksum of TensorFlow's checkpoints, over megabytes at once with NumPy.

A CRC is linear over GF(2): the data are split into rows, all rows are processed byte by byte in parallel, and the rows'
results are combined by shifting the left one of each pair past the length of the right one.
"""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reversed bits of 0x1EDC6F41, RFC 3720, appendix B.4
_MASK_DELTA = 0xA282EAD8
_ROW_BYTES = 512
_INVERTED = 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if len(data) < 4:
        return _crc32c_plain(data)
    num_rows = 1 << max(0, -(-len(data) // _ROW_BYTES) - 1).bit_length()
    rows = np.zeros(num_rows * _ROW_BYTES, dtype=np.uint8)
    # Leading zeros have no effect on a register that starts at zero; starting inverted equals inverting the first four
    # bytes.
    start = len(rows) - len(data)
    rows[start:] = np.frombuffer(data, dtype=np.uint8)
    rows[start : start + 4] ^= 0xFF
    crcs = _crc_of_rows(rows.reshape(num_rows, _ROW_BYTES))
    move = _move_past(_ROW_BYTES)
    while len(crcs) > 1:
        crcs = _apply(move, crcs[0::2]) ^ crcs[1::2]
        move = _apply(move, move)
    return int(crcs[0]) ^ _INVERTED


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C as LevelDB and TensorFlow store it: turned by 15 bits, plus a constant.

    >>> hex(masked_crc32c(b"123456789"))
    '0xc78ab0e5'
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


@functools.lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """The effect of each byte on an empty register: 256 values."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = (values >> 1) ^ np.where(values & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return values


def _crc32c_plain(data: bytes | memoryview) -> int:
    crc = _INVERTED
    for byte in bytes(data):
        crc = int(_table()[(crc ^ byte) & 0xFF]) ^ crc >> 8
    return crc ^ _INVERTED


def _crc_of_rows(rows: np.ndarray) -> np.ndarray:
    """The register of each row, started at zero, without the final inversion."""
    table, crcs = _table(), np.zeros(len(rows), dtype=np.uint32)
    for column in np.ascontiguousarray(rows.T):
        crcs = table[(crcs & 0xFF) ^ column] ^ crcs >> 8
    return crcs


@functools.lru_cache(maxsize=1)
def _move_past(num_bytes: int) -> np.ndarray:
    """The effect of zero bytes on each bit of a register: 32 values, a matrix over GF(2)."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(num_bytes):
        bits = _table()[bits & 0xFF] ^ bits >> 8
    return bits


def _apply(matrix: np.ndarray, crcs: np.ndarray) -> np.ndarray:
    """The product of a matrix of 32 columns with each register."""
    moved = np.zeros_like(crcs)
    for bit, column in enumerate(matrix):
        moved ^= np.where(crcs >> np.uint32(bit) & 1, column, np.uint32(0))
    return moved
