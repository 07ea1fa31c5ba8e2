"""CIFAR-10 and CIFAR-100 from their official archives: the Python pickles, read without running them, or the binaries.

Both keep 3,072 bytes per image (red, green, blue planes of 32 x 32) in one piece; an image is read from there and
handed on as BMP. Names are <class>/<number in its split>.png, as in a folder of the same images.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepcait.data.shards import read_range
from deepcait.data.table import Table, require_class_labels
from deepcait.errors import DataError

_SIDE = 32
_NUM_BYTES = 3 * _SIDE * _SIDE
_MAX_FILE_BYTES = 2**30


@dataclass(frozen=True)
class _Archive:
    """Layout of an official archive; the label is the last of the first `label_bytes` bytes of a binary record."""

    folder: str
    files: dict[str, list[str]]
    names: str
    names_key: str
    label_bytes: int = 0
    labels_key: str = ""


_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
ARCHIVES = {
    "cifar10": (
        _Archive(
            "cifar-10-batches-py",
            {"train": _BATCHES, "test": ["test_batch"]},
            "batches.meta",
            "label_names",
            labels_key="labels",
        ),
        _Archive(
            "cifar-10-batches-bin",
            {"train": [f"{name}.bin" for name in _BATCHES], "test": ["test_batch.bin"]},
            "batches.meta.txt",
            "",
            label_bytes=1,
        ),
    ),
    "cifar100": (
        _Archive(
            "cifar-100-python",
            {"train": ["train"], "test": ["test"]},
            "meta",
            "fine_label_names",
            labels_key="fine_labels",
        ),
        _Archive(
            "cifar-100-binary",
            {"train": ["train.bin"], "test": ["test.bin"]},
            "fine_label_names.txt",
            "",
            label_bytes=2,
        ),
    ),
}


class CifarReader:
    """Reads images by their offset in a batch file."""

    def __init__(self, files: Sequence[str], places: Sequence[tuple[int, int]]) -> None:
        self.files = list(files)
        self.places = list(places)  # (file, offset) of each row

    def read(self, row: int) -> bytes:
        """Return the image as BMP, losslessly; ImageError when the file can't be read."""
        file, offset = self.places[row]
        planes = np.frombuffer(read_range(self.files[file], offset, _NUM_BYTES), np.uint8).reshape(3, _SIDE, _SIDE)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(buffer, "BMP")
        return buffer.getvalue()

    def locate(self, row: int) -> str:
        """Batch file and offset, for messages."""
        file, offset = self.places[row]
        return f"{self.files[file]}: byte {offset}"


def load_cifar(kind: str, root: str) -> tuple[Table, CifarReader]:
    """List the images of cifar10 or cifar100.

    Args:
        root: the unpacked archive's folder, or the folder above it.

    Raises:
        DataError: no such files, or others than the official ones.
    """
    folder, archive = _find(kind, Path(os.path.expanduser(root)))
    names = _class_names(folder, archive)
    files: list[str] = []
    places: list[tuple[int, int]] = []
    paths: list[str] = []
    labels: list[int] = []
    splits: list[str] = []
    for split, batches in archive.files.items():
        first = len(paths)
        for batch in batches:
            file = str(folder / batch)
            own_labels, offsets = _read_batch(file, archive)
            require_class_labels(file, own_labels, len(names))
            places += [(len(files), offset) for offset in offsets]
            files.append(file)
            paths += [f"{names[label]}/{len(paths) - first + row:05d}.png" for row, label in enumerate(own_labels)]
            labels += own_labels
        splits += [split] * (len(paths) - first)
    table = Table(kind=kind, where=str(folder), paths=paths, labels=labels, splits=splits, class_names=names)
    return table, CifarReader(files, places)


def read_pickle(file: str, data: bytes) -> Any:
    """Read the pickle of an official archive: dictionaries, lists, numbers, bytes and byte arrays; no code is executed.

    Raises:
        DataError: anything else is in it.
    """
    try:
        _require_bounded(data)
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise DataError(
            f"{file}: not a pickle of plain arrays as in the official archive: {error}.",
            remedy="Fetch the official archive again.",
        ) from error


def _require_bounded(data: bytes) -> None:
    """Raise for a pickle that would use far more memory than its length: the memo is a list up to the largest index."""
    for opcode, argument, position in pickletools.genops(data):
        if "PUT" in opcode.name and isinstance(argument, int) and argument >= len(data):
            raise pickle.UnpicklingError(f"the memo index {argument:,} in {len(data):,} bytes, at byte {position}")


class _Array:
    """A substitute for numpy's array while a pickle is read; keeps its bytes."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.data = b""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(dtype, _DType) or dtype.name not in ("u1", "|u1") or fortran or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array of another type")
        self.shape, self.data = tuple(shape), data


class _DType:
    """A substitute for numpy's data type while a pickle is read."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


def _new_array(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Resolves four names, each to a harmless replacement."""

    _KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): _new_array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the replacement for a name; raise for any other name."""
        try:
            return self._KNOWN[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"the name {module_name}.{global_name}") from None


def _find(kind: str, root: Path) -> tuple[Path, _Archive]:
    for archive in ARCHIVES[kind]:
        for folder in (root, root / archive.folder):
            if all((folder / name).is_file() for name in [archive.names, *sum(archive.files.values(), [])]):
                return folder, archive
    first = ARCHIVES[kind][0]
    raise DataError(
        f"{root}: the files of the official archive are missing or incomplete ({first.folder} with {first.names} and "
        f"{first.files['train'][0]}, or {ARCHIVES[kind][1].folder}).",
        remedy="Unpack the archive and give its folder, or the folder above.",
    )


def _class_names(folder: Path, archive: _Archive) -> list[str]:
    data = _read_file(folder / archive.names)
    if archive.label_bytes:
        return data.decode("utf-8", "replace").split()
    content = read_pickle(str(folder / archive.names), data)
    names = content.get(archive.names_key) if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _other(folder / archive.names, f"no {archive.names_key}")
    return names


def _read_batch(file: str, archive: _Archive) -> tuple[list[int], list[int]]:
    """The labels of a batch, and the offset of each of its images."""
    data = _read_file(Path(file))
    if archive.label_bytes:
        record = archive.label_bytes + _NUM_BYTES
        if not data or len(data) % record:
            raise _other(file, f"{len(data):,} bytes, not a multiple of the record size {record:,}")
        starts = range(0, len(data), record)
        return [data[start + archive.label_bytes - 1] for start in starts], [
            start + archive.label_bytes for start in starts
        ]
    content = read_pickle(file, data)
    content = content if isinstance(content, dict) else {}
    labels, array = content.get(archive.labels_key), content.get("data")
    if not isinstance(labels, list) or not isinstance(array, _Array) or not all(type(x) is int for x in labels):
        raise _other(file, f"no lists {archive.labels_key} and data")
    if array.shape != (len(labels), _NUM_BYTES) or len(array.data) != len(labels) * _NUM_BYTES:
        raise _other(file, f"{len(labels):,} labels and images of shape {array.shape}")
    first = data.find(array.data)
    if first < 0:
        raise _other(file, "images that are not stored byte by byte")
    return labels, [first + number * _NUM_BYTES for number in range(len(labels))]


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise _other(path, f"{path.stat().st_size:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _other(path, str(error)) from error


def _other(file: object, got: str) -> DataError:
    return DataError(
        f"{file}: expected a file of the official archive, got {got}.", remedy="Fetch the official archive again."
    )
