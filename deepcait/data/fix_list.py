"""A fix list: a text file of images to leave out of a training, one path per line."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from deepcait.data.source import Source, Subset
from deepcait.errors import DataError
from deepcait.runtime.files import write_bytes

_COMMENT = "#"


def write_fix_list(
    path: str | os.PathLike[str], places: Sequence[str], reasons: Mapping[str, str] | None = None
) -> None:
    """Write the absolute paths of the images, atomically.

    Args:
        path: of the list.
        places: the paths.
        reasons: place -> a comment in the line before it.

    Raises:
        DataError: a path with a line break in it.
        WriteError: the file can't be written.
    """
    for place in places:
        if "\n" in place or "\r" in place:
            raise DataError(
                f"{os.fspath(path)}: the path {place!r} contains a line break, which a fix list can't store.",
                remedy="Rename that file by hand.",
            )
    said = {place: f"{_COMMENT} {' '.join(reason.split())}\n" for place, reason in (reasons or {}).items()}
    text = "".join(f"{said.get(place, '')}{_absolute(place)}\n" for place in places)
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def read_fix_list(path: str | os.PathLike[str]) -> list[str]:
    """Return the absolute paths of a fix list; relative ones are relative to the current folder.

    Raises:
        DataError: no such file, or one that can't be read.
    """
    try:
        data = Path(os.path.expanduser(path)).read_bytes()
    except OSError as error:
        raise DataError(
            f"{os.fspath(path)}: the fix list can't be read: {error.strerror}.",
            remedy="`deepcait doctor --data D --fix-list FILE` writes one.",
        ) from error
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    lines = text.replace("\r", "").split("\n")
    return [_absolute(line) for line in lines if line.strip() and not line.startswith(_COMMENT)]


def leave_out(source: Source, path: str | os.PathLike[str]) -> Source:
    """Return the source without the images that a fix list names; classes and their indices stay.

    Raises:
        DataError: the list can't be read, or leaves no image.
    """
    unwanted = set(read_fix_list(path))
    kept = [index for index in range(len(source)) if _absolute(source.locate(index)) not in unwanted]
    if not kept and len(source):
        raise DataError(
            f"{os.fspath(path)}: the fix list names all {len(source)} images.",
            remedy="Correct the data instead.",
        )
    return source if len(kept) == len(source) else Subset(source, kept, split=source.split)


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))
