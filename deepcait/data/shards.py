"""Files with many images, local or at a URL: named by a pattern, read in part.

Nothing stays open between two reads, so that a source can travel to worker processes and be read by threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from deepcait.data.folder import split_of
from deepcait.data.listing import natural_key
from deepcait.errors import DataError, DeepcaitError, ImageError
from deepcait.optional import require

_MAX_SHARDS = 100_000
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BRACES = re.compile(r"\{([^{}]*)\}")
_T = TypeVar("_T")
_OTHER_SERVER = "Fetch the files and give their path, or use another server; `python -m http.server` sends whole files."
_SEND_RANGES: set[str] = set()  # servers that were checked


def is_url(place: str) -> bool:
    """Whether a place is a URL, to be read through fsspec."""
    return _URL.match(place) is not None


def find_shards(place: str, suffix: str) -> list[str]:
    """The files at a place: itself, the expansion of its braces, or all files of that suffix below a folder.

    `x-{000..015}.tar` counts with leading zeros, `{train,val}.tar` lists. A folder is searched to any depth,
    hidden files and folders left out, in natural order.

    Raises:
        DataError: nothing there, or braces that can't be read.
    """
    if is_url(place):
        return expand_braces(place)
    path = Path(os.path.expanduser(place))
    if not path.is_dir():
        shards = [str(path)] if path.exists() else expand_braces(str(path))
        missing = [shard for shard in shards if not os.path.isfile(shard)]
        if missing:
            more = f" (and {len(missing) - 1} more of {len(shards)})" if len(missing) > 1 else ""
            raise DataError(f"{missing[0]}{more}: there is no such file.", remedy="Check the path.")
        return shards
    names = []
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        prefix = Path(folder).relative_to(path)
        names += [
            (prefix / name).as_posix() for name in files if name.lower().endswith(suffix) and not name.startswith(".")
        ]
    if not names:
        raise DataError(f"{path}: no {suffix} files in this folder.", remedy="Check the path.")
    return [str(path / name) for name in sorted(names, key=natural_key)]


def find_one(place: str, suffix: str) -> str:
    """The only file at a place.

    Raises:
        DataError: none, or several.
    """
    found = find_shards(place, suffix)
    if len(found) > 1:
        raise DataError(f"{place}: expected one {suffix} file, got {len(found)}.", remedy="Give one of them.")
    return found[0]


def expand_braces(pattern: str) -> list[str]:
    """Write out `{000..015}` and `{a,b}`, the last braces counting fastest.

    >>> expand_braces("x-{08..10}.tar")
    ['x-08.tar', 'x-09.tar', 'x-10.tar']

    Raises:
        DataError: anything else in braces, or more than 100,000 files.
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    inside = found[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") or len(numbers[1]) == len(numbers[2]) else 0
        choices = [str(number).zfill(width) for number in range(first, min(last, first + _MAX_SHARDS) + 1)]
    else:
        choices = inside.split(",") if "," in inside else []
    rests = expand_braces(pattern[found.end() :])
    if not choices or len(choices) * len(rests) > _MAX_SHARDS:
        raise DataError(
            f"{pattern}: expected braces such as {{000..015}} or {{train,val}}, got {{{inside}}}.",
            remedy=f"Count upwards, at most {_MAX_SHARDS:,} files.",
        )
    return [pattern[: found.start()] + choice + rest for choice in choices for rest in rests]


def splits_of_shards(shards: list[str], place: str) -> list[str | None]:
    """The split of each file by its name or folder (`train-00000-of-00001.parquet`, `val/0.tar`).

    Raises:
        DataError: some files name a split and some do not.
    """
    base = place.rstrip("/") + "/"
    names = [shard.removeprefix(base) if shard.startswith(base) else shard_name(shard) for shard in shards]
    splits = [_split_word(name) for name in names]
    if len({split is None for split in splits}) > 1:
        odd = shards[splits.index(None)]
        raise DataError(
            f"{odd}: this file name has no split (train, val or test), but others have.",
            remedy="Rename it, or give a pattern that leaves it out.",
        )
    return splits


def shard_name(place: str) -> str:
    """The last part of a path or URL, without its query."""
    return PurePosixPath(place.split("?")[0].replace(os.sep, "/")).name


def shard_stem(place: str) -> str:
    """The same without its suffix; distinguishes the members of one file from those of another."""
    return PurePosixPath(shard_name(place)).stem


def size_and_stamp(place: str) -> tuple[int, str]:
    """The size in bytes, and a text that changes when the file does.

    Raises:
        DataError: it can't be had.
    """

    def look() -> tuple[int, str]:
        if is_url(place):
            filesystem, path = _filesystem(place)
            info = filesystem.info(path)
            size = info["size"]
            if size is None:
                raise OSError("the server does not report its size")
            return int(size), f"{size} {filesystem.ukey(path)} {info.get('ETag', '')}".rstrip()
        status = os.stat(place)
        return status.st_size, f"{status.st_size} {status.st_mtime_ns}"

    return _guarded(place, look, DataError)


def open_binary(place: str) -> IO[bytes]:
    """Open a local file or a URL for reading.

    Raises:
        DataError: it can't be opened.
    """

    def open_it() -> IO[bytes]:
        if is_url(place):
            filesystem, path = _filesystem(place)
            return filesystem.open(path, "rb")
        return open(place, "rb")

    return _guarded(place, open_it, DataError)


def read_range(place: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on, and no others.

    Raises:
        ImageError: they can't be read, or the file ends before.
    """

    def read() -> bytes:
        if is_url(place):
            filesystem, path = _filesystem(place)
            return filesystem.cat_file(path, start=offset, end=offset + size)
        with open(place, "rb") as file:
            file.seek(offset)
            return file.read(size)

    data = _guarded(place, read, ImageError)
    if len(data) > size and is_url(place):
        raise ImageError(_whole_files(place), remedy=_OTHER_SERVER)
    if len(data) != size:
        raise ImageError(
            f"{place}: expected {size:,} bytes at {offset:,}, got {len(data):,}.",
            remedy="The file is cut short: fetch it again.",
        )
    return data


def require_ranges(place: str) -> None:
    """Raise if a server over HTTP sends whole files only: each image would need its whole shard.

    Each server is checked once.

    Raises:
        DataError: it does.
    """
    server = "/".join(place.split("/")[:3])
    if server in _SEND_RANGES or not place.lower().startswith(("http://", "https://")):
        return
    try:
        filesystem, path = _filesystem(place)
        with filesystem.open(path, "rb", cache_type="none") as file:
            file.seek(1)
            file.read(1)
    except DeepcaitError:
        raise
    except ValueError as error:  # raised by fsspec before it reads the file
        raise DataError(_whole_files(place), remedy=_OTHER_SERVER) from error
    except Exception:  # absent, out of reach, ...: reported when it is opened
        return
    _SEND_RANGES.add(server)


def _whole_files(place: str) -> str:
    return f"{place}: the server does not send parts of a file (Range requests), only whole files."


def _split_word(name: str) -> str | None:
    *folders, file = name.split("/")
    words = [re.split(r"[-_.]", file)[0], *reversed(folders)]
    return next((word for word in words if split_of(word)), None)


def _filesystem(url: str) -> tuple[Any, str]:
    return require("fsspec.core", asked="a URL", extra="data").url_to_fs(url)


def _guarded(place: str, action: Callable[[], _T], kind: type[DataError]) -> _T:
    try:
        return action()
    except DeepcaitError:
        raise
    except Exception as error:  # each file system of fsspec raises its own kinds
        if not isinstance(error, OSError | ValueError) and not is_url(place):
            raise
        missing = isinstance(error, FileNotFoundError)
        what = "there is no such file" if missing else f"the file can't be read: {type(error).__name__}: {error}"
        raise kind(f"{place}: {what}.", remedy="Check the path and its permissions.") from error
