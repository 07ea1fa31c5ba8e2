"""Training images made smaller once and cached: most of the cost of large photographs is decoding."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from pathlib import Path

from PIL import Image

from deepcait.data.formats import open_header
from deepcait.data.image import DEFAULT, ImageOptions, decode_image
from deepcait.data.source import Sample, Source, options_of
from deepcait.errors import ConfigError, DataError, WriteError
from deepcait.runtime.files import write_bytes

# Part of every key: another way of shrinking must not find what this one wrote.
_FORM = "bicubic, bmp, 1"
_CHECKSUM_BYTES = 4


class Shrunk:
    """A source that reduces larger images to a shorter side of `side_px`, uncompressed.

    With a folder they are kept there, under a hash of the original file's bytes and of the size: a file that changes
    is another key, so that nothing kept can go stale, and equal files share one. A kept file that is damaged is made
    again. The original is read each time, for its hash; it is not decoded.

    Args:
        source: where images come from.
        side_px: smaller images stay as they are.
        folder: where to keep them; None keeps nothing. The pixels are the same.
    """

    def __init__(self, source: Source, side_px: int, folder: Path | None = None) -> None:
        self.source, self.side_px, self.folder = source, side_px, folder
        self.kind, self.split, self.classes = source.kind, source.split, source.classes
        self.names, self.labels = source.names, source.labels
        notes = [getattr(source, "note", ""), f"larger images shrunk to {side_px} px"]
        self.note = "; ".join(note for note in notes if note)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        """The sample, shrunk. Raises ImageError when its file can't be read, and DataError when it can't be kept."""
        sample = self.source.read(index)
        size = _size(sample.data)
        if size is None or min(size) <= self.side_px:
            return sample
        path = self._path(sample.data)
        data = None if path is None else _read(path)
        if data is None:
            data = shrink(sample.data, self.side_px, name=self.locate(index), options=options_of(self))
            if path is not None:
                _write(path, data)
        return sample._replace(data=data)

    def locate(self, index: int) -> str:
        """Location of the original."""
        return self.source.locate(index)

    def _range(self) -> str:
        """Part of the key if the range of deep images was set."""
        return f", {options_of(self).max_value}" if options_of(self).max_value else ""

    def _path(self, data: bytes) -> Path | None:
        if self.folder is None:
            return None
        key = hashlib.blake2b(f"{_FORM}, {self.side_px}{self._range()}\n".encode() + data, digest_size=20).hexdigest()
        return self.folder / key[:2] / key[2:]


def shrunk(source: Source, side_px: int, folder: str) -> Source:
    """Return the source with its images shrunk to `side_px`, cached in `folder` if given; 0 px is off.

    Raises:
        ConfigError: a negative size, or a folder without a size.
    """
    if side_px < 0 or (folder and not side_px):
        raise ConfigError(
            f"data: expected shrink_px above 0 where data.cache is set, got shrink_px={side_px}, cache={folder!r}.",
            remedy="Set data.shrink_px, for example to 256 for 224 px; or leave data.cache empty.",
        )
    return Shrunk(source, side_px, Path(os.path.expanduser(folder)) if folder else None) if side_px else source


def shrink(data: bytes, side_px: int, *, name: str, options: ImageOptions = DEFAULT) -> bytes:
    """Return a BMP file of the image, upright, its shorter side `side_px`. Raises ImageError."""
    image = decode_image(data, name=name, options=options)
    share = side_px / min(image.size)
    width, height = (max(side_px, round(side * share)) for side in image.size)
    held = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(held, "BMP")
    return held.getvalue()


def _size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the header; None if there is none (decoding then reports why)."""
    try:
        with open_header(data) as image:
            return image.size
    except Exception:  # as many kinds as Pillow has plugins
        return None


def _read(path: Path) -> bytes | None:
    """The cached bytes; None if there are none, or incomplete ones."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    data, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    return data if zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little") == checksum else None


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data + zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little"), flush=False)
    except (OSError, WriteError) as error:
        raise DataError(
            f"data.cache {path.parent.parent}: expected to write there, got {error}.",
            remedy="Free some space, or name another folder; an empty data.cache keeps nothing.",
        ) from error
