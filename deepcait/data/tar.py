"""WebDataset shards: tar files of images and labels, read in place by an index of offsets.

Members whose names agree up to the first dot of the last part are one sample: `000012.jpg` and `000012.cls` (an
integer or a class name), else `000012.json` (its key `label`). Where names have dots in them (`scan.v1.000.png`),
those that agree up to the last one are. Shards without any label are read as class folders.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from deepcait.data.formats import IMAGE_SUFFIXES, count_suffixes
from deepcait.data.image import MAX_BYTES
from deepcait.data.labels import Label
from deepcait.data.members import Tree, class_folders, is_hidden, is_image, safe_name
from deepcait.data.shards import (
    find_shards,
    open_binary,
    read_range,
    require_ranges,
    shard_stem,
    size_and_stamp,
    splits_of_shards,
)
from deepcait.data.stored import read_index, write_index
from deepcait.data.table import Table
from deepcait.errors import DataError, ImageError

_FORMAT = "deepcait-tar-3"
_MAX_LABEL_BYTES = 2**20
_LABELS = ("cls", "json")
_WHOLE = re.compile("-?[0-9]+")
_MAX_DIGITS = 18
_NUM_LISTED = 1000


class Entry(NamedTuple):
    """Offset of an image in its shard, and its label."""

    name: str
    offset: int
    num_bytes: int
    label: Label


class TarReader:
    """Reads members of tar files by offset."""

    max_bytes = MAX_BYTES

    def __init__(self, shards: Sequence[str], places: Sequence[tuple[int, int, int]], names: Sequence[str]) -> None:
        self.shards = list(shards)
        self.places = list(places)  # (shard, offset, bytes) of each row
        self.names = list(names)

    def read(self, row: int) -> bytes:
        """Return the bytes of the member and no others; ImageError when they can't be read."""
        shard, offset, num_bytes = self.places[row]
        if num_bytes > self.max_bytes:
            raise ImageError(
                f"{self.locate(row)}: expected at most {self.max_bytes:,} bytes, got {num_bytes:,}.",
                remedy="Leave it out, or make the image smaller.",
            )
        return read_range(self.shards[shard], offset, num_bytes)

    def locate(self, row: int) -> str:
        """Shard and member, for messages."""
        return f"{self.shards[self.places[row][0]]}: {self.names[row]}"


def load_tar(place: str) -> tuple[Table, TarReader]:
    """List the samples of shards: a file, a pattern, a folder, or URLs.

    Raises:
        DataError: a shard that is not a tar file, damaged, compressed or unsafe, or without images.
    """
    shards = find_shards(place, ".tar")
    require_ranges(shards[0])
    words = splits_of_shards(shards, place)
    found = [(number, entry) for number, shard in enumerate(shards) for entry in index_shard(shard)]
    if not found:
        raise DataError(f"{place}: no images ({' '.join(IMAGE_SUFFIXES)}) in these shards.", remedy="Check the shards.")
    names = [entry.name for _, entry in found]
    splits: list[str | None] = [words[number] for number, _ in found]
    labels: list[Label] = [entry.label for _, entry in found]
    if all(label is None for label in labels) and any("/" in name for name in names):
        tree: Tree = class_folders(place, names)
        found, names, labels = [found[row] for row in tree.rows], tree.paths, list[Label](tree.labels)
        splits = [tree.splits[row] or splits[tree.rows[row]] for row in range(len(found))]
    table = Table(
        kind="tar",
        where=place,
        paths=names,
        labels=labels,
        splits=splits,
        parts=[shard_stem(shards[number]) for number, _ in found],
        unlabelled=_why_unlabelled(shards[0]) if all(label is None for label in labels) else "",
    )
    places = [(number, entry.offset, entry.num_bytes) for number, entry in found]
    return table, TarReader(shards, places, [entry.name for _, entry in found])


def index_shard(shard: str) -> list[Entry]:
    """The samples of one shard: from its stored index, else by walking through its headers, once.

    Raises:
        DataError: as `load_tar`.
    """
    size, stamp = size_and_stamp(shard)
    stored = _parse_index(read_index(shard, stamp, _FORMAT), size)
    if stored is not None:
        return stored
    entries = _scan(shard, size)
    write_index(shard, stamp, _FORMAT, entries)
    return entries


def _why_unlabelled(shard: str) -> str:
    """The expected suffixes, and those of the first members of a shard."""
    with open_binary(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        names = [info.name for info in itertools.islice(archive, _NUM_LISTED) if info.isreg()]
    return f"no .cls or .json of the same name in the shard, which has {count_suffixes(names)}"


def _parse_index(rows: Any, size: int) -> list[Entry] | None:
    try:
        entries = [Entry(*row) for row in rows]
        for name, offset, num_bytes, label in entries:
            fits = 0 <= offset and 0 <= num_bytes and offset + num_bytes <= size
            whole = type(offset) is int and type(num_bytes) is int
            if not fits or not whole or not isinstance(name, str) or not isinstance(label, str | int | None):
                return None
    except TypeError:
        return None
    return entries


def _scan(shard: str, size: int) -> list[Entry]:
    images: dict[str, list[tuple[str, int, int]]] = {}
    labels: dict[str, dict[str, Label | DataError]] = {}
    dotted: dict[str, dict[str, Label | DataError]] = {}  # of names with dots in them, by all but the last
    try:
        with open_binary(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                name = safe_name(shard, info.name)
                if info.isdir() or is_hidden(name):
                    continue
                if not info.isreg() or info.issparse() or info.offset_data + info.size > size:
                    got = "a member cut short" if info.isreg() and not info.issparse() else "a link, device or hole"
                    raise DataError(
                        f"{shard}: expected plain files, got {got}: {name}.",
                        remedy="Pack the images themselves (tar --dereference), or fetch the shard again.",
                    )
                key, suffix = _key_and_suffix(name)
                if is_image(name):
                    images.setdefault(key, []).append((name, info.offset_data, info.size))
                elif suffix not in _LABELS and name.lower().endswith(tuple(f".{one}" for one in _LABELS)):
                    stem, _, last = name.rpartition(".")
                    dotted.setdefault(stem, {})[last.lower()] = _read_label(archive, info, shard, last.lower())
                elif suffix in _LABELS:
                    own = labels.setdefault(key, {})
                    if suffix in own:
                        raise DataError(
                            f"{shard}: expected one .{suffix} for the sample {key!r}, got another: {name}.",
                            remedy="Give each sample a different name, and pack the shard again.",
                        )
                    own[suffix] = _read_label(archive, info, shard, suffix)
            _require_end(file, archive.offset, shard)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{shard}: not a complete, uncompressed tar file: {error}.",
            remedy="Fetch it again; unpack .tar.gz to .tar, which can be read from the middle.",
        ) from error
    entries = []
    for key, members in images.items():
        own = labels.get(key)
        if own is None:  # their names have no common key
            for member in members:
                entries.append(Entry(*member, _label_of(dotted.get(member[0].rpartition(".")[0], {}))))
        else:
            entries.append(Entry(*_one_image(shard, key, members), _label_of(own)))
    return entries


def _key_and_suffix(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _one_image(shard: str, key: str, members: list[tuple[str, int, int]]) -> tuple[str, int, int]:
    """The image of a sample: its only one, or the only one with nothing between the first dot and the suffix."""
    plain = [member for member in members if f".{_key_and_suffix(member[0])[1]}" in IMAGE_SUFFIXES]
    chosen = members if len(members) == 1 else plain
    if len(chosen) != 1:
        names = ", ".join(member[0] for member in members[:4])
        raise DataError(
            f"{shard}: expected one image for the sample {key!r}, got {names}.",
            remedy="Names of one sample differ only after the first dot; rename the others.",
        )
    return chosen[0]


def _label_of(found: Mapping[str, Label | DataError]) -> Label:
    """The label of a sample: of its .cls, else of its .json; raises what is wrong with that one, and no other."""
    label = found.get("cls", found.get("json"))
    if isinstance(label, DataError):
        raise label
    return label


def _read_label(archive: tarfile.TarFile, info: tarfile.TarInfo, shard: str, suffix: str) -> Label | DataError:
    """The label in a file; the error if there is none, since the sample may have another file."""
    file = archive.extractfile(info) if info.size <= _MAX_LABEL_BYTES else None
    text = file.read().decode("utf-8", "replace").strip() if file else "a large file"
    label: Any = text
    if suffix == "json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        label = content.get("label", content.get("cls")) if isinstance(content, dict) else content
        if label is None and isinstance(content, dict):
            return None
    elif _WHOLE.fullmatch(text) and text == str(int(text[:_MAX_DIGITS])):
        label = int(text)  # with leading zeros it is a name
    if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
        return DataError(
            f"{shard}: expected an integer or a class name in {info.name}, got {text[:60]!r}.",
            remedy="Write .cls as a number, or .json with the key label.",
        )
    return None if label == -1 else label


def _require_end(file: IO[bytes], offset: int, shard: str) -> None:
    """Raise if tarfile stopped at an unreadable header, which it takes for the end."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise DataError(
            f"{shard}: neither a member nor the end of the archive at byte {offset:,}.",
            remedy="The shard is damaged: fetch it again.",
        )
