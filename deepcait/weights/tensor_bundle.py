"""Read TensorFlow's checkpoint format without TensorFlow: an index of tensors, and files with their bytes.

`NAME.index` is a LevelDB table (key -> protocol buffer), `NAME.data-0000i-of-0000n` are the tensors back to back.
Only the needed parts of the format are supported: little-endian numbers, one slice per tensor, uncompressed blocks. All
checksums are verified. This module does not depend on the model.

Sources: leveldb, doc/table_format.md; tensorflow, core/protobuf/tensor_bundle.proto and
core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepcait.errors import WeightsError
from deepcait.weights.crc32c import masked_crc32c

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5  # of a block: compression type, checksum
_STRING = 7
# tensorflow, core/framework/types.proto: number -> little-endian NumPy type. bfloat16 (14) is read as 16 bits.
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 6: "|i1", 9: "<i8", 10: "|b1", 14: "<u2", 19: "<f2"}
BFLOAT16 = 14

# Number and value of each field: an integer, or bytes.
Fields = list[tuple[int, Any]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor in the index.

    Args:
        dtype: TensorFlow's type number. shape: of the tensor. shard: number of the data file.
        offset, num_bytes: where its bytes are. crc: masked CRC-32C of them.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    num_bytes: int
    crc: int


@dataclass(kw_only=True)
class Node:
    """One object of the saved program.

    Args:
        children: name of an attribute -> number of the object.
        checkpoint_key: key of a variable's tensor, None for other objects.
    """

    children: dict[str, int] = field(default_factory=dict)
    checkpoint_key: str | None = None


class TensorBundle:
    """A checkpoint: names, shapes and tensors.

    Args:
        prefix: path without `.index`.

    Raises:
        WeightsError: the index is missing, damaged, compressed, or has another byte order.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self._index = self.prefix.with_name(self.prefix.name + ".index")
        items = dict(_read_table(self._index, _read_file(self._index)))
        header = dict(_guarded(self._index, _fields, items.pop("", b"")))
        if header.get(2, 0):
            raise _damaged(self._index, "a little-endian checkpoint", "a big-endian one")
        self._num_shards = int(header.get(1, 1))
        self.entries = {key: _guarded(self._index, _read_entry, value) for key, value in items.items()}

    def read(self, key: str) -> np.ndarray:
        """Return one tensor; bfloat16 as 16 bits.

        Raises:
            WeightsError: the tensor does not exist, or bytes are missing or changed.
        """
        entry = self._entry(key)
        if entry.dtype not in _DTYPES:
            raise _damaged(self._index, f"{key} of numbers", f"TensorFlow's type {entry.dtype}")
        kind = np.dtype(_DTYPES[entry.dtype])
        if entry.num_bytes != math.prod(entry.shape) * kind.itemsize:
            raise _damaged(self._index, f"{key} {entry.shape} of {kind.name}", f"{entry.num_bytes} bytes")
        data = self._bytes(key, entry)
        if masked_crc32c(data) != entry.crc:
            raise _changed(self._shard(entry), key)
        return np.frombuffer(data, dtype=kind).reshape(entry.shape)

    def read_string(self, key: str) -> bytes:
        """Return a tensor that holds one string.

        Raises:
            WeightsError: as `read`; or it is not a single string.
        """
        entry = self._entry(key)
        if entry.dtype != _STRING or math.prod(entry.shape) != 1:
            raise _damaged(self._index, f"{key} as one string", f"type {entry.dtype}, shape {entry.shape}")
        data, path = self._bytes(key, entry), self._shard(entry)
        length, start = _guarded(path, _varint, data, 0)
        # The checksum covers the length as a fixed-width number, the length's own checksum, and the text.
        fixed = struct.pack("<I" if length < 2**32 else "<Q", length)
        checked, text = data[start : start + 4], data[start + 4 :]
        good = checked == struct.pack("<I", masked_crc32c(fixed)) and len(text) == length
        if not good or masked_crc32c(fixed + checked + text) != entry.crc:
            raise _changed(path, key)
        return text

    def read_objects(self) -> list[Node]:
        """Return the saved objects; the first is the root.

        Raises:
            WeightsError: the checkpoint is damaged, or of TensorFlow 1, which has no objects.
        """
        return _guarded(self._index, _read_nodes, self.read_string(OBJECT_GRAPH_KEY))

    def _entry(self, key: str) -> Entry:
        if key not in self.entries:
            raise _damaged(self._index, f"a tensor {key}", f"{len(self.entries)} others")
        return self.entries[key]

    def _shard(self, entry: Entry) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard:05d}-of-{self._num_shards:05d}")

    def _bytes(self, key: str, entry: Entry) -> bytes:
        path = self._shard(entry)
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if entry.offset + entry.num_bytes > size:
                    raise _damaged(path, f"{key} up to byte {entry.offset + entry.num_bytes:,}", f"{size:,} bytes")
                file.seek(entry.offset)
                return file.read(entry.num_bytes)
        except OSError as error:
            raise _damaged(path, "the tensors of a checkpoint", repr(error.strerror)) from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, "the index of a checkpoint", repr(error.strerror)) from error


def _read_table(path: Path, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Keys and values of a LevelDB table, in order."""
    if len(data) < _FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise _damaged(path, "the index of a checkpoint", "a file that does not end like one")
    footer = data[-_FOOTER_BYTES:]
    (offset, size), position = _guarded(path, _handle, footer, 0)
    list(_read_block(path, data, offset, size))  # not needed, but its checksum is verified
    (offset, size), _ = _guarded(path, _handle, footer, position)
    for _, value in _read_block(path, data, offset, size):
        (offset, size), _ = _guarded(path, _handle, value, 0)
        for key, content in _read_block(path, data, offset, size):
            yield _guarded(path, bytes.decode, key), content


def _read_block(path: Path, data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Entries of one block; each key stores the length of the prefix shared with the previous one."""
    block = data[offset : offset + size + _TRAILER_BYTES]
    if len(block) < size + _TRAILER_BYTES or size < 4:
        raise _damaged(path, f"a block of {size:,} bytes at byte {offset:,}", "fewer")
    compression, crc = struct.unpack("<BI", block[size:])
    if masked_crc32c(block[: size + 1]) != crc:
        raise _changed(path, f"the block at byte {offset:,}")
    if compression:
        raise WeightsError(
            f"{path}: the index is compressed (type {compression}{', Snappy' if compression == 1 else ''}), which is "
            "not supported.",
            remedy="Load the model with TensorFlow and save it again.",
        )
    (num_restarts,) = struct.unpack("<I", block[size - 4 : size])
    yield from _guarded(path, _block_entries, block, size - 4 - 4 * num_restarts)


def _block_entries(block: bytes, end: int) -> list[tuple[bytes, bytes]]:
    entries, key, position = [], b"", 0
    while position < end:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + _take(block, position, own)
        entries.append((key, _take(block, position + own, length)))
        position += own + length
    return entries


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and the position after it."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A varint (seven bits per byte, lowest first), and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than ten bytes")


def _take(data: bytes, position: int, length: int) -> bytes:
    if position + length > len(data):
        raise ValueError("it ends too early")
    return data[position : position + length]


def _fields(message: bytes) -> Fields:
    """The fields of a protocol buffer, in order: number and value."""
    found: Fields = []
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
        else:
            length, position = _varint(message, position) if kind == 2 else ({1: 8, 5: 4}[kind], position)
            value = _take(message, position, length)
            position += length
        found.append((tag >> 3, value))
    return found


def _read_entry(message: bytes) -> Entry:
    values = dict(_fields(message))
    if 7 in values:
        raise ValueError("a tensor in slices")
    shape = tuple(int(dict(_fields(dim)).get(1, 0)) for number, dim in _fields(values.get(2, b"")) if number == 2)
    return Entry(
        dtype=int(values.get(1, 0)),
        shape=shape,
        shard=int(values.get(3, 0)),
        offset=int(values.get(4, 0)),
        num_bytes=int(values.get(5, 0)),
        crc=struct.unpack("<I", values.get(6, b"\0\0\0\0"))[0],
    )


def _read_nodes(message: bytes) -> list[Node]:
    nodes = []
    for number, content in _fields(message):
        if number != 1:
            continue
        node = Node()
        for part, value in _fields(content):
            inner = dict(_fields(value)) if part in (1, 2) else {}
            if part == 1:
                node.children[inner.get(2, b"").decode()] = inner.get(1, 0)
            elif part == 2 and inner.get(1) == b"VARIABLE_VALUE":
                node.checkpoint_key = inner[3].decode()
        nodes.append(node)
    if any(child >= len(nodes) for node in nodes for child in node.children.values()):
        raise ValueError("an object that is not there")
    return nodes


def _guarded(path: Path, read, *args):
    """Call a reader; errors from broken bytes become a WeightsError."""
    try:
        return read(*args)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise _damaged(path, "a checkpoint of TensorFlow", f"invalid bytes ({error})") from error


def _damaged(path: Path, expected: str, got: str) -> WeightsError:
    return WeightsError(f"{path}: expected {expected}, got {got}.", remedy="Download the SavedModel again.")


def _changed(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path}: the checksum of {what} does not match.",
        remedy="The file was changed or truncated; download it again.",
    )
