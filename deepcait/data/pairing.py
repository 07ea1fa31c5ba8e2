"""Which images of two lists are the same by their names, wherever their files are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Named(NamedTuple):
    """An image by its path, its split ("" if not known) and its class (None if not known)."""

    path: str
    split: str
    label: str | None


def pair_images(here: Sequence[Named], there: Sequence[Named]) -> list[tuple[int, int]]:
    """Return (position in here, position in there) of the images that both lists have, ascending.

    Equal paths are one image. An image without an equal one is compared by the end of its path, of which the longest
    counts: photos/cat/1.jpg is cat/1.jpg, unless one of the lists has both. Splits that are known must be the same; so
    must classes if a path is a file's name alone.
    """
    by_path = _by_path(there, range(len(there)))
    equal = [
        (index, row)
        for index, image in enumerate(here)
        for row in by_path.get(image.path, ())
        if _may_be_one(image, there[row])
    ]
    left_here = sorted(set(range(len(here))) - {index for index, _ in equal})
    left_there = sorted(set(range(len(there))) - {row for _, row in equal})
    longer = _longest_ends(here, there, left_here, left_there)
    shorter = ((index, row) for row, index in _longest_ends(there, here, left_there, left_here))
    return sorted([*equal, *longer, *shorter])


def _longest_ends(
    images: Sequence[Named], others: Sequence[Named], left: Iterable[int], left_others: Iterable[int]
) -> Iterator[tuple[int, int]]:
    """(position in images, position in others) if the path of the other is the end of the image's."""
    by_path = _by_path(others, left_others)
    for index in left:
        path, found = images[index].path, []
        while "/" in path and not found:
            path = path.partition("/")[2]
            found = [row for row in by_path.get(path, ()) if _may_be_one(images[index], others[row])]
        yield from ((index, row) for row in found)


def _may_be_one(one: Named, other: Named) -> bool:
    if one.split and other.split and one.split != other.split:
        return False
    if "/" in one.path and "/" in other.path:
        return True
    return one.label is None or other.label is None or one.label == other.label


def _by_path(images: Sequence[Named], positions: Iterable[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for position in positions:
        found[images[position].path].append(position)
    return found
