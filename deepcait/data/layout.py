"""Files and folders of a data set that are not read as images: hidden, stray, empty, misnamed."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from deepcait.data.findings import Finding, merge_paths
from deepcait.data.folder import find_splits, split_of, subfolders
from deepcait.data.formats import OTHER_SUFFIXES
from deepcait.data.labels import sort_classes
from deepcait.data.listing import is_image_file, walk_images


def class_names(root: Path) -> list[str]:
    """The names of all class folders of all splits, sorted as `open_folder` sorts them."""
    folders = [*find_splits(root).values()] or [root]
    return sort_classes({name for folder in folders for name in subfolders(folder)})


def look_around(root: Path) -> list[Finding]:
    """Find files and folders of a data set that are not read as images; reads names only.

    Raises:
        DataError: a folder can't be listed.
    """
    splits = find_splits(root)
    found: dict[str, list[str]] = defaultdict(list)
    findings: list[Finding] = []
    if splits:
        _sort_files(root, found, image="stray_image")
        split_folders = set(splits.values())
        for path in sorted(path for path in root.iterdir() if path.is_dir() and path not in split_folders):
            found[_kind_beside_splits(path)].append(str(path))
    for split, folder in (splits or {"": root}).items():
        _sort_files(folder, found, image="stray_image")
        found["hidden_folder"] += [str(path) for path in _hidden_folders(folder)]
        names = subfolders(folder)
        for name in names:
            teaches = split in ("train", "") or "train" not in splits
            _look_into_class(folder / name, found, "empty_class" if teaches else "empty_folder")
        findings += _names_alike(folder, names)
    for kind, text in _TEXTS.items():
        leave_out = tuple(found[kind]) if kind == "empty_class" else ()
        findings += merge_paths(kind, found[kind], text.format(num=len(found[kind])), leave_out)
    return findings


def _kind_beside_splits(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden_folder"
    flat = split_of(path.name) == "val" and not subfolders(path) and walk_images(path)
    return "unusable_split" if flat else "stray_folder"


_TEXTS = {
    "unusable_split": "{num} split whose images are not in class folders: sort them, or remove the folder",
    "empty_class": "{num} class folders without an image: training refuses a class that nothing teaches",
    "hidden_folder": "{num} hidden folders: never read, no class",
    "empty_folder": "{num} folders without an image",
    "stray_folder": "{num} folders next to the splits: not read",
    "stray_image": "{num} images next to the class folders: they have no class and are not read",
    "unsupported_format": "{num} images of a format that is never read: convert them to JPEG or PNG",
    "stray_file": "{num} files that are not images: not read",
    "hidden_file": "{num} hidden files: never read",
}


def _look_into_class(folder: Path, found: dict[str, list[str]], empty: str) -> None:
    if not walk_images(folder):
        found[empty].append(str(folder))
    for current, subs, _ in os.walk(folder):
        here = Path(current)
        _sort_files(here, found, image=None)
        found["hidden_folder"] += [str(path) for path in _hidden_folders(here)]
        subs[:] = sorted(name for name in subs if not name.startswith("."))
        # A sub-folder is reported if it is empty itself, its class folder if no image is below it.
        found["empty_folder"] += [str(here / name) for name in subs if not any((here / name).iterdir())]


def _sort_files(folder: Path, found: dict[str, list[str]], *, image: str | None) -> None:
    """Sort the files of one folder by kind of finding; images under `image`."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if path.name.startswith("."):
            kind = "hidden_file"
        elif is_image_file(path):
            kind = image
        else:
            kind = "unsupported_format" if path.suffix.lower() in OTHER_SUFFIXES else "stray_file"
        if kind is not None:
            found[kind].append(str(path))


def _hidden_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith(".") and path.is_dir())


def _names_alike(folder: Path, names: Sequence[str]) -> list[Finding]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        alike["".join(plain.replace("_", "").replace("-", "").split())].append(name)
    return [
        Finding("class_names_alike", tuple(str(folder / name) for name in group), f"one class or {len(group)}?")
        for group in alike.values()
        if len(group) > 1
    ]
