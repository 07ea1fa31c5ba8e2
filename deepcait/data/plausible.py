"""Plausibility of training data: too few classes, splits taken for classes, and similar mistakes."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcait.data.depth import FEW_LEVELS, few_levels
from deepcait.data.folder import FolderSource, find_splits, label_file, split_of, subfolders
from deepcait.data.image import decode_image
from deepcait.data.source import Source, innermost, options_of
from deepcait.data.spec import parse_spec
from deepcait.errors import DataError, ImageError, some

_MOST = 0.9  # part of the images in one class
_SEPARATORS = ("|", ";", ",", " ")
_FEW_NUMBERS = 5
_NUM_LOOKED_AT = 16


@dataclass(frozen=True)
class Doubt:
    """One sign that the data is not what was intended: the finding and a remedy."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"


def require_classes(spec: str | os.PathLike[str], samples: Source) -> None:
    """Raise unless there are at least two classes.

    Args:
        spec: the DATA.
        samples: what is trained on, labelled.

    Raises:
        DataError: fewer than two classes with an image; the remedy names the folder or file that was probably meant.
    """
    used = [samples.classes[label] for label in sorted({label for label in samples.labels if label is not None})]
    if len(used) > 1:
        return
    found = f"all images are of the class {used[0]}" if used else "no image has a class"
    raise DataError(
        f"{os.fspath(spec)}: {found}; training needs two classes or more.",
        remedy=_what_was_meant(spec, used) or "Add images of another class.",
    )


def doubts(spec: str | os.PathLike[str], samples: Source) -> list[Doubt]:
    """Return doubts about the data of a training; they do not end it.

    Args:
        spec: the DATA.
        samples: what is trained on, labelled, before a part of it is chosen or shrunk.
    """
    counts = Counter(samples.classes[label] for label in samples.labels if label is not None)
    names = list(counts)
    found = [_dominant(counts), _splits_as_classes(names), _several_in_one(names), *_numbers(names, counts.total())]
    kind, place = parse_spec(spec)
    if kind == "folder" and isinstance(innermost(samples), FolderSource):
        root = Path(os.path.expanduser(place))
        found += _deeper(root, samples) + _beside(root, names)
    return [doubt for doubt in found if doubt is not None]


def lost_levels(samples: Source) -> list[str]:
    """Return a sentence if 16-bit images use few levels, based on a few of them; the doctor checks all."""
    levels: list[int] = []
    for index in range(0, len(samples), -(-len(samples) // _NUM_LOOKED_AT)):
        try:
            data = samples.read(index).data
            decode_image(data, name=samples.names[index], options=options_of(samples), levels=levels)
        except ImageError:  # said when it is read
            continue
        if not levels:
            return []
    brightest = max(levels, default=FEW_LEVELS)
    return [few_levels(brightest)] if brightest < FEW_LEVELS else []


def _what_was_meant(spec: str | os.PathLike[str], used: Sequence[str]) -> str | None:
    """The remedy, if the folder shows what was intended."""
    kind, place = parse_spec(spec)
    root = Path(os.path.expanduser(place))
    if kind != "folder" or not root.is_dir():
        return None
    splits = find_splits(root)
    base = splits.get("train", root)
    for folder in (base, *(base / name for name in used), root):
        labels = label_file(folder)
        if labels is not None:
            return f"Give {labels}: it names the label of each image."
    inner = base / used[0] if used else base
    below = subfolders(inner) if inner.is_dir() else []
    return _give(inner, below) if len(below) > 1 and not splits else None


def folder_meant(source: Any, classes: Sequence[str]) -> str:
    """Return the remedy for a folder above the class folders of a model; "" if it is not such a folder.

    Args:
        source: the images, whose labels are not classes of the model.
        classes: index -> class name of the model.
    """
    opened = innermost(source)
    if not isinstance(opened, FolderSource):
        return ""
    for name in opened.classes:
        folder = opened.base / name
        if not folder.is_dir():  # a split's
            continue
        below = subfolders(folder)
        inner = [folder / one for one in below] if below and all(map(split_of, below)) else [folder]
        found = {one for place in inner for one in subfolders(place)}
        if found and found <= set(classes):
            return _give(folder, below)
    return ""


def _give(folder: Path, below: Sequence[str]) -> str:
    what = "splits" if all(map(split_of, below)) else "classes"
    return f"Give {folder}: the {what} ({some(below)}) are in it."


def _dominant(counts: Counter[str]) -> Doubt | None:
    name, most = counts.most_common(1)[0] if counts else ("", 0)
    if most <= _MOST * counts.total() or most == counts.total():
        return None
    return Doubt(
        f"{100 * most / counts.total():.1f} % of the training images are of the class {name}: a model that always "
        "predicts this class has this accuracy",
        "Set data.balanced=true, and look at balanced accuracy",
    )


def _splits_as_classes(names: Sequence[str]) -> Doubt | None:
    """Class names with words for different splits: train_2019 and test_2019."""
    words = {name: {split_of(word) for word in re.split(r"[^A-Za-z]+", name)} - {None} for name in names}
    called = [name for name in names if words[name]]
    if len({split for name in called for split in words[name]}) < 2 or len(called) < len(names):
        return None
    return Doubt(
        f"the classes are called like splits ({some(called)})",
        "If they are, call these folders (or the words in the column split) train, val and test",
    )


def _several_in_one(names: Sequence[str]) -> Doubt | None:
    """Class names that combine others: "cat dog" next to "cat" and "dog", or "cat|bird"."""
    for separator in _SEPARATORS:
        composed = [name for name in names if separator in name.strip()]
        parts = {name: [part.strip() for part in name.split(separator)] for name in composed}
        every = Counter(part for own in parts.values() for part in set(own))
        # A part that is a class itself, or is in several of them.
        shared = [name for name in composed if sum(part in names or every[part] > 1 for part in parts[name]) > 1]
        if len(shared) > (1 if separator in "|;" else max(1, 0.2 * len(names))):
            return Doubt(
                f"labels look like several in one ({some([repr(name) for name in shared], 3)}): each combination is a "
                "separate class",
                "Several labels per image are not supported; keep one for each image",
            )
    return None


def _numbers(names: Sequence[str], num_images: int) -> list[Doubt]:
    """Class names that are values to predict, or one for each image."""
    remedy = "Regression is not supported; make a class of each range of numbers"
    if len(names) > 1 and all(re.fullmatch(r"[+-]?\d+\.\d+(e[+-]?\d+)?", name) for name in names):
        return [Doubt(f"labels look like numbers to predict ({some(names, 3)}): each number is a class", remedy)]
    if len(names) > _FEW_NUMBERS and 2 * len(names) > num_images:
        remedy = remedy if all(name.isdecimal() for name in names) else "Check the labels: names of files, perhaps?"
        return [Doubt(f"there are {len(names):,} classes for {num_images:,} training images", remedy)]
    return []


def _deeper(root: Path, samples: Source) -> list[Doubt]:
    """Classes whose images are all in two or more folders below the class folder.

    Nothing is reported if every class has such folders with other names, for example one folder per patient.
    """
    base = find_splits(root).get("train", root)
    folders: dict[str, set[str]] = defaultdict(set)
    for path, label in zip(samples.names, samples.labels, strict=True):
        name = samples.classes[label] if label is not None else ""
        folders[name].add(posixpath.dirname(f"/{path}".partition(f"/{name}/")[2]))
    below: dict[str, list[str]] = {}
    for name, own in folders.items():
        above = posixpath.commonpath(own)
        if above not in own:
            below[f"{name}/{above}".rstrip("/")] = sorted({posixpath.relpath(one, above).split("/")[0] for one in own})
    every = [one for own in below.values() for one in own]
    inner = sorted(set(every))
    if not below or (len(below) == len(folders) and len(inner) == len(every)):
        return []
    where = "any of these folders, or sort the images by class first"
    return [
        Doubt(
            f"all images of {some(list(below))} are in subfolders ({some(inner)}), which may be the classes",
            f"If they are, give {base / next(iter(below)) if len(below) == 1 else where}",
        )
    ]


def _beside(root: Path, names: Sequence[str]) -> list[Doubt]:
    """Folders next to the splits with class folders of the same names."""
    splits = find_splits(root)
    found = []
    for path in sorted(root.iterdir()) if splits else ():
        beside = path.is_dir() and not path.name.startswith(".") and not split_of(path.name)
        if beside and len(set(subfolders(path)) & set(names)) > 1:
            found.append(
                Doubt(
                    f"{path} has class folders of the same names and is not read",
                    "If it is a split, call it train, val or test",
                )
            )
    return found
