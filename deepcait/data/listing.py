"""List the images of a folder in an order that is the same on every machine; skipped files are reported."""

from __future__ import annotations

import os
import re
from pathlib import Path

from deepcait.data.formats import IMAGE_SUFFIXES, SNIFF_BYTES, count_suffixes, format_of, says_image
from deepcait.errors import DataError


def list_images(path: str | os.PathLike[str]) -> list[Path]:
    """Return the image files at `path`: itself if it is a file, else all below it for which `is_image_file` is true.

    Hidden files and folders (.ipynb_checkpoints, ._copy.jpg) are left out; the order is natural
    (2 before 10) and the same on every machine.

    Raises:
        DataError: nothing is there, or the folder holds no image.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder.", remedy="Check the path.")
    names, others = walk_files(path)
    if not names:
        got = f", only {count_suffixes(others)}" if others else ""
        raise DataError(
            f"{path}: no images ({' '.join(IMAGE_SUFFIXES)}) in this folder{got}.",
            remedy="Give a folder that holds images, directly or in sub-folders.",
        )
    return [path / name for name in names]


def walk_images(folder: Path) -> list[str]:
    """Names of all images below `folder`, relative, with "/" between parts, in natural order.

    Links to folders are followed, except a link to a folder that contains it, or that is being walked already.

    Raises:
        DataError: a folder can't be listed.
    """
    return walk_files(folder)[0]


def walk_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the images below `folder` as `walk_images` does, and the other visible files, which are skipped."""
    images, others = [], []
    for current, subfolders, files in os.walk(folder, followlinks=True, onerror=_refuse_listing):
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and not _leads_back(folder, Path(current, name))
        ]
        prefix = Path(current).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        for name in files:
            if is_image_file(Path(current, name)):
                images.append(prefix + name)
            elif not name.startswith("."):
                others.append(prefix + name)
    return sorted(images, key=natural_key), sorted(others, key=natural_key)


def is_image_file(path: Path) -> bool:
    """Whether a file is an image: by its suffix, or by its first bytes without one. Hidden files are not."""
    said = says_image(path.name)
    if said is not None:
        return said
    try:
        with open(path, "rb") as file:
            return format_of(file.read(SNIFF_BYTES)) is not None
    except OSError:  # a pipe, a broken link: no image
        return False


def natural_key(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key that reads digits as numbers: "img2" before "img10"; ties are broken by the text itself."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if index % 2 else (1, part) for index, part in enumerate(parts) if part], name


def _leads_back(root: Path, place: Path) -> bool:
    """Whether a link points to one of its parent folders, so that following it would not end."""
    if not place.is_symlink():
        return False
    target = os.path.realpath(place)
    way = [place.parent, *(above for above in place.parent.parents if above.is_relative_to(root))]
    return any(os.path.commonpath([target, os.path.realpath(above)]) == target for above in way)


def _refuse_listing(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder can't be read: {error}.", remedy="Check its permissions.")
