"""Names inside archives: only safe ones, and the class folders in a list of names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deepcait.data.folder import split_of
from deepcait.data.formats import IMAGE_SUFFIXES
from deepcait.errors import DataError


def safe_name(archive: str, name: str) -> str:
    """A member's name without "./" in front.

    Nothing is ever unpacked, so such names could do no harm here; an archive that holds them is not what it
    seems, and somebody will unpack it one day.

    Raises:
        DataError: an absolute name, one that climbs out with "..", or one with a zero byte.
    """
    plain = name.replace("\\", "/")
    if plain.startswith("/") or re.match(r"[A-Za-z]:/", plain) or ".." in plain.split("/") or "\0" in plain:
        raise DataError(
            f"{archive}: the name {name!r} points outside the archive.",
            remedy="Do not unpack this archive; pack the images again.",
        )
    return "/".join(part for part in plain.split("/") if part not in ("", "."))


def is_hidden(name: str) -> bool:
    """Whether a part of the name begins with a dot, or macOS put it there."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether the suffix is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Class folders in a list of paths; `rows` are the positions of those paths that belong to them."""

    rows: list[int]
    paths: list[str]
    splits: list[str | None]
    labels: list[str]


def class_folders(where: str, paths: Sequence[str]) -> Tree:
    """Find <class>/<image> or <split>/<class>/<image> in paths; a single folder around everything is ignored.

    Raises:
        DataError: images that are not in a class folder.
    """
    parts = [path.split("/") for path in paths]
    while (
        parts
        and len({path[0] for path in parts}) == 1
        and all(len(path) >= 3 for path in parts)
        and not split_of(parts[0][0])
    ):
        parts = [path[1:] for path in parts]
    # seg_train/seg_train/cat/1.jpg, as some archives are packed.
    parts = [
        [path[0], *path[2:]] if len(path) > 3 and split_of(path[0]) and split_of(path[0]) == split_of(path[1]) else path
        for path in parts
    ]
    with_splits = {path[0] for path in parts if len(path) >= 3 and split_of(path[0])}
    # As for folders: a val without class folders is an error, a test without labels is left out.
    rows = [
        row for row, path in enumerate(parts) if not with_splits or path[0] in with_splits or split_of(path[0]) == "val"
    ]
    for row in rows:
        if len(parts[row]) < (3 if with_splits else 2):
            raise DataError(
                f"{where}: {paths[row]!r} is not in a class folder.",
                remedy="Sort the images into class folders, e.g. cat/1.jpg: the folder's name is the label.",
            )
    words = {word: split_of(word) for word in with_splits}
    if len(set(words.values())) < len(words):
        raise DataError(
            f"{where}: several folders for one split: {', '.join(sorted(words))}.", remedy="Merge or rename them."
        )
    return Tree(
        rows=rows,
        paths=["/".join(parts[row]) for row in rows],
        splits=[parts[row][0] if with_splits else None for row in rows],
        labels=[parts[row][1 if with_splits else 0] for row in rows],
    )
