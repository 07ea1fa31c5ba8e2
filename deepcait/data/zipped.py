"""A zip of class folders, with or without splits, read in place.

The list of members is read once, when the source is opened; an image is then fetched by its offset, and never
more of it than the list declares.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from deepcait.data.image import MAX_BYTES
from deepcait.data.members import class_folders, is_hidden, is_image, safe_name
from deepcait.data.shards import find_one, open_binary, read_range, require_ranges
from deepcait.data.table import Table
from deepcait.errors import DataError, ImageError

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


class Entry(NamedTuple):
    """Offset of an image in the archive."""

    name: str
    offset: int
    num_packed: int
    num_bytes: int
    method: int
    crc: int


class ZipReader:
    """Reads members of a zip archive by offset."""

    max_bytes = MAX_BYTES

    def __init__(self, place: str, entries: Sequence[Entry]) -> None:
        self.place = place
        self.entries = list(entries)

    def read(self, row: int) -> bytes:
        """Return the unpacked member; ImageError if it is damaged or too large."""
        entry = self.entries[row]
        if max(entry.num_bytes, entry.num_packed) > self.max_bytes:
            raise ImageError(
                f"{self.locate(row)}: expected at most {self.max_bytes:,} bytes, got {entry.num_bytes:,} declared.",
                remedy="A decompression bomb, or no image: leave it out.",
            )
        header = read_range(self.place, entry.offset, _LOCAL_HEADER.size)
        signature, *_, num_name, num_extra = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\x03\x04":
            raise self._damaged(row, "no member there")
        packed = read_range(self.place, entry.offset + len(header) + num_name + num_extra, entry.num_packed)
        data = packed
        if entry.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, entry.num_bytes + 1)
            except zlib.error as error:
                raise self._damaged(row, str(error)) from error
        if len(data) != entry.num_bytes or zlib.crc32(data) != entry.crc:
            raise self._damaged(row, "another length or checksum")
        return data

    def locate(self, row: int) -> str:
        """Archive and member, for messages."""
        return f"{self.place}: {self.entries[row].name}"

    def _damaged(self, row: int, got: str) -> ImageError:
        return ImageError(
            f"{self.locate(row)}: expected the member that the archive lists, got {got}.",
            remedy="The archive is damaged: fetch it again.",
        )


def load_zip(place: str) -> tuple[Table, ZipReader]:
    """List the images of a zip of class folders.

    Raises:
        DataError: no zip, unsafe names, links, encryption, or images outside class folders.
    """
    place = find_one(place, ".zip")
    require_ranges(place)
    entries = _list(place)
    if not entries:
        raise DataError(f"{place}: no images found.", remedy="Pack class folders with images.")
    tree = class_folders(place, [entry.name for entry in entries])
    table = Table(kind="zip", where=place, paths=tree.paths, labels=tree.labels, splits=tree.splits)
    return table, ZipReader(place, [entries[row] for row in tree.rows])


def _list(place: str) -> list[Entry]:
    try:
        with open_binary(place) as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, OverflowError, struct.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{place}: not a readable zip archive: {error}.", remedy="Fetch it again, or pack it again."
        ) from error
    entries = []
    for info in infos:
        name = safe_name(place, info.filename)
        if info.is_dir() or is_hidden(name) or not is_image(name):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _unusable(place, name, "a link", "Pack what it leads to.")
        if info.flag_bits & 1:
            raise _unusable(place, name, "an encrypted one", "Pack it without a password.")
        if info.compress_type not in _METHODS:
            raise _unusable(place, name, f"compression {info.compress_type}", "Pack it stored or deflated.")
        entries.append(
            Entry(name, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
        )
    return entries


def _unusable(place: str, name: str, got: str, remedy: str) -> DataError:
    return DataError(f"{place}: expected plain members, got {got}: {name}.", remedy=remedy)
