"""ImageNet-1k and ImageNet-V2 from the layout of their official archives.

A released model's class index is the position of a class's wnid among all 1,000, sorted. Two other numberings
can be confused with it: the devkit's ids (1 to 1000, in another order; only its meta.mat maps them to wnids), and
ImageNet-V2's folders 0 to 999 sorted as text.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from deepcait.data.folder import SPLIT_NAMES, FolderSource, open_folder, subfolders
from deepcait.data.labels import Label, sort_classes
from deepcait.data.listing import walk_images
from deepcait.data.manifest import FileReader
from deepcait.data.matlab import load_matlab, rows_of
from deepcait.data.source import Source
from deepcait.data.table import Table, TableSource, open_table
from deepcait.errors import DataError, some

_WNID = re.compile(r"n\d{8}")
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.(JPEG|jpe?g|png)", re.IGNORECASE)
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_DEVKITS = ("", "data", "devkit/data", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12")
_LABEL_FILES = (
    "imagenet_2012_validation_synset_labels.txt", "val_labels.txt", "val.txt", "LOC_val_solution.csv", "labels.txt",
)  # fmt: skip
V2_NUM_CLASSES, V2_NUM_EACH = 1000, 10


def imagenet_splits(root: str) -> list[str]:
    """Return which of train, val and test are below the root."""
    return list(_split_folders(root))


def open_imagenet(root: str, split: str | None, classes: Sequence[str] | None) -> Source:
    """Open ImageNet-1k: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or all images in val/ with a file of labels.

    The label file of a val without class folders is in or above it: the devkit's ground truth with meta.mat, one wnid
    per line, or lines `ILSVRC2012_val_00000001.JPEG 65` (a class index) or `... n01751748`.

    Raises:
        DataError: no such folders, folders whose names are not wnids, or a val without class folders and labels.
    """
    folders = _split_folders(root)
    wanted = [split] if split is not None else list(folders)
    if split is not None and split not in folders:
        raise DataError(
            f"{root}: there is no split {split}; the splits are {', '.join(folders)}.", remedy="Choose one of them."
        )
    base = folders[wanted[0]].parent
    flat = [name for name in wanted if not subfolders(folders[name])]
    if not flat:
        source = open_folder(base, split, classes)
        source.kind = "imagenet"
        _require_wnids(root, source)
        return source
    paths: list[str] = []
    labels: list[Label] = []
    splits: list[str | None] = []
    for name in wanted:
        if name in flat:
            own = _flat_labels(Path(os.path.expanduser(root)), folders[name])
            files, own_labels = list(own), list(own.values())
        else:
            listed = open_folder(base, name)
            files, own_labels = listed.names, [listed.classes[label or 0] for label in listed.labels]
        paths += [f"{folders[name].name}/{file}" for file in files]
        labels += own_labels
        splits += [folders[name].name] * len(files)
    table = Table(
        kind="imagenet",
        where=root,
        paths=paths,
        labels=labels,
        splits=splits,
        class_names=_class_names(folders, labels),
    )
    return open_table(table, FileReader(str(base), paths), split, classes)


def open_imagenet_v2(root: str, split: str | None, classes: Sequence[str] | None) -> TableSource:
    """Open ImageNet-V2: folders 0 to 999, ten images in each; a folder's name is the class index.

    Raises:
        DataError: other folders, or more images: the faulty archive of December 2020 has wnids or 20 in each.
    """
    path = Path(os.path.expanduser(root))
    inner = subfolders(path) if path.is_dir() else []
    if len(inner) == 1 and not inner[0].isdecimal():
        path = path / inner[0]
    names = _integer_names(V2_NUM_CLASSES)
    wrong = sorted(set(subfolders(path)) - set(names))
    if wrong:
        raise DataError(
            f"{path}: expected folders 0 to {V2_NUM_CLASSES - 1}, got {some(wrong)}.",
            remedy="A faulty archive had wnids; fetch imagenetv2-matched-frequency again.",
        )
    listed = open_folder(path, None, names)
    counts = Counter(listed.labels)
    crowded = [names[label or 0] for label, count in counts.items() if count > V2_NUM_EACH]
    if crowded:
        raise DataError(
            f"{path}: more than {V2_NUM_EACH} images in the folders {some(crowded)}.",
            remedy="A faulty archive had 20; fetch imagenetv2-matched-frequency again.",
        )
    whole = len(listed) == V2_NUM_CLASSES * V2_NUM_EACH
    table = Table(
        kind="imagenet-v2",
        where=str(path),
        paths=listed.names,
        labels=listed.labels,
        splits=["test"] * len(listed),
        class_names=names,
        note="" if whole else f"only a part: {len(counts):,} of 1,000 folders, {len(listed):,} of 10,000 images",
    )
    return open_table(table, FileReader(str(path), listed.names), split, classes)


def _integer_names(num_classes: int) -> list[str]:
    return sort_classes(str(index) for index in range(num_classes))


def _split_folders(root: str) -> dict[str, Path]:
    """The folders of the splits, those with class folders and those without."""
    path = Path(os.path.expanduser(root))
    if (path / "ILSVRC" / "Data" / "CLS-LOC").is_dir():
        path = path / "ILSVRC" / "Data" / "CLS-LOC"
    names = subfolders(path)  # raises if there is no such folder
    found = {split: path / name for split, words in SPLIT_NAMES.items() for name in names if name.lower() in words}
    if not {"train", "val"} & set(found):
        raise DataError(
            f"{path}: ImageNet's folders train and val are missing; found {some(names) or 'no folder'}.",
            remedy="Give the folder above them.",
        )
    # The test set is published without labels.
    return {split: folder for split, folder in found.items() if split != "test" or subfolders(folder)}


def _require_wnids(root: str, source: FolderSource) -> None:
    used = {label for label in source.labels if label is not None}
    wrong = [source.classes[label] for label in sorted(used) if not _WNID.fullmatch(source.classes[label])]
    if wrong:
        raise DataError(
            f"{root}: class folders must have wnids such as n01440764 as names; these do not: {some(wrong)}.",
            remedy="Use `folder:` for other classes, `imagenet-v2:` for folders 0 to 999.",
        )


def _class_names(folders: dict[str, Path], labels: Sequence[Label]) -> list[str] | None:
    """All wnids in order: of the training folders, else of the labels; None if labels are indices."""
    if any(isinstance(label, int) for label in labels):
        names = subfolders(folders["train"]) if "train" in folders else []
        return sort_classes(names) if len(names) > max(label for label in labels if isinstance(label, int)) else None
    wnids = {label for label in labels if isinstance(label, str)}
    if "train" in folders:
        wnids |= set(subfolders(folders["train"]))
    return sort_classes(wnids)


def _flat_labels(root: Path, folder: Path) -> dict[str, Label]:
    """File name -> wnid or class index of a flat val."""
    files = [name for name in walk_images(folder) if "/" not in name]
    if not files:
        raise DataError(f"{folder}: no images found.", remedy="Unpack ILSVRC2012_img_val.tar there.")
    places = [base / part for base in (root, folder.parent, folder) for part in _DEVKITS]
    for place in places:
        for name in _LABEL_FILES:
            if (place / name).is_file():
                return _from_label_file(place / name, files)
    for place in places:
        if (place / _GROUND_TRUTH).is_file():
            return _from_devkit(place / _GROUND_TRUTH, files)
    raise DataError(
        f"{folder}: the images are not in class folders, and there is no file of labels ({', '.join(_LABEL_FILES)}, or "
        f"the devkit's {_GROUND_TRUTH} with meta.mat).",
        remedy="Unpack ILSVRC2012_devkit_t12.tar.gz into the same root.",
    )


def _from_devkit(path: Path, files: list[str]) -> dict[str, Label]:
    meta = path.parent / "meta.mat"
    if not meta.is_file():
        raise DataError(
            f"{path}: meta.mat is missing in this folder.",
            remedy="Copy meta.mat of the same devkit to this folder: the numbers are ids of the devkit, in another "
            "order than the model's classes, and only meta.mat maps them to classes.",
        )
    rows = rows_of(load_matlab(meta, "synsets"), meta, "ILSVRC2012_ID", "WNID")
    wnid_of = {str(number): str(wnid) for number, wnid in rows}
    return _by_number(path, files, [wnid_of.get(line, line) for line in _lines(path)])


def _from_label_file(path: Path, files: list[str]) -> dict[str, Label]:
    lines = _lines(path)
    if path.suffix == ".csv":
        pairs = [(f"{row[0]}.JPEG", row[1].split()[0]) for row in csv.reader(lines) if row[1:] and row[1].strip()]
        lines = [f"{name} {label}" for name, label in pairs if _WNID.fullmatch(label)]
    if lines and len(lines[0].split()) == 1:
        return _by_number(path, files, lines)
    label_of = {parts[0].rpartition("/")[2]: parts[1] for parts in (line.split() for line in lines) if len(parts) > 1}
    return {file: _parse(path, label_of.get(file), file) for file in files}


def _by_number(path: Path, files: list[str], lines: list[str]) -> dict[str, Label]:
    """Line i belongs to the image whose file name contains the number i, independent of the order of a listing."""
    labels: dict[str, Label] = {}
    for file in files:
        numbered = _VAL_NAME.fullmatch(file)
        number = int(numbered[1]) if numbered else 0
        if not 1 <= number <= len(lines):
            raise DataError(
                f"{path}: expected files ILSVRC2012_val_00000001.JPEG to {len(lines):08d}, as many as it has lines, "
                f"got {file}.",
                remedy="Keep the official names: the lines follow them.",
            )
        labels[file] = _parse(path, lines[number - 1], file)
    return labels


def _parse(path: Path, text: str | None, file: str) -> Label:
    if text is not None and _WNID.fullmatch(text):
        return text
    if text is not None and text.isdecimal() and path.name != _GROUND_TRUTH:
        return int(text)
    raise DataError(
        f"{path}: expected a wnid or a class index for {file}, got {text!r}.", remedy="Fetch the official file again."
    )


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
