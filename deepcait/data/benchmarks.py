"""Flowers-102, Stanford Cars and iNaturalist from the layout of their official archives."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcait.data.manifest import FileReader
from deepcait.data.matlab import load_matlab, rows_of, whole_number
from deepcait.data.table import Table, TableSource, open_table
from deepcait.errors import DataError

_NUM_FLOWERS = 102
_FLOWER_SPLITS = {"trnid": "train", "valid": "val", "tstid": "test"}
_INAT_SPLITS = ("train", "val")


def load_flowers(root: str) -> tuple[Table, FileReader]:
    """Flowers-102: jpg/image_00001.jpg, imagelabels.mat (1 to 102) and setid.mat (train, val, test).

    The archive has no class names; torchvision's list of them is taken. The split is the official one: 1,020 to
    train, 1,020 to validate, 6,149 to test.

    Raises:
        DataError: a file is missing, or holds something else.
    """
    from torchvision.datasets import Flowers102

    path = _inner(root, "imagelabels.mat", "flowers-102")
    annotated = path / "imagelabels.mat"
    labels = [whole_number(label, annotated) - 1 for label in np.atleast_1d(load_matlab(annotated, "labels"))]
    rows: list[tuple[str, int, str]] = []
    for variable, split in _FLOWER_SPLITS.items():
        for entry in np.atleast_1d(load_matlab(path / "setid.mat", variable)):
            number = whole_number(entry, path / "setid.mat")
            if not 1 <= number <= len(labels):
                raise DataError(
                    f"{path / 'setid.mat'}: expected images 1 to {len(labels)}, got {number}.",
                    remedy="Take setid.mat and imagelabels.mat of the same data set.",
                )
            rows.append((f"jpg/image_{number:05d}.jpg", labels[number - 1], split))
    return _listed("flowers102", path, rows, list(Flowers102.classes)[:_NUM_FLOWERS])


def load_cars(root: str) -> tuple[Table, FileReader]:
    """Stanford Cars: cars_annos.mat with car_ims/, or devkit/ with cars_train/ and cars_test/.

    Raises:
        DataError: a file is missing, or holds something else; also test annotations without labels.
    """
    path = Path(os.path.expanduser(root))
    for folder in (path, path / "stanford_cars"):
        if (folder / "cars_annos.mat").is_file():
            annotations = folder / "cars_annos.mat"
            cars = rows_of(load_matlab(annotations, "annotations"), annotations, "relative_im_path", "class", "test")
            rows = [
                (str(name), whole_number(label, annotations) - 1, "test" if test else "train")
                for name, label, test in cars
            ]
            return _listed("cars", folder, rows, _car_names(annotations))
        if (folder / "devkit").is_dir():
            train = folder / "devkit" / "cars_train_annos.mat"
            test = _first(folder / "cars_test_annos_withlabels.mat", folder / "devkit/cars_test_annos_withlabels.mat")
            rows = []
            for file, split in ((train, "train"), (test, "test")):
                cars = rows_of(load_matlab(file, "annotations"), file, "fname", "class")
                rows += [(f"cars_{split}/{name}", whole_number(label, file) - 1, split) for name, label in cars]
            return _listed("cars", folder, rows, _car_names(folder / "devkit" / "cars_meta.mat"))
    raise DataError(
        f"{path}: neither cars_annos.mat with car_ims/ nor devkit/ with cars_train/ and cars_test/ is there.",
        remedy="Unpack the official archives there.",
    )


def inat_splits(root: str, year: int) -> list[str]:
    """Which of train and val have an annotation file below the root."""
    return [split for split in _INAT_SPLITS if (Path(os.path.expanduser(root)) / f"{split}{year}.json").is_file()]


def open_inat(root: str, year: int, split: str | None, classes: Sequence[str] | None) -> TableSource:
    """Open iNaturalist 2018 or 2019: train2018.json, val2018.json, categories.json and the folder train_val2018.

    Classes are the categories in the order of their ids, called by name; by id where names repeat.

    Raises:
        DataError: no such split, or files that hold something else.
    """
    path = Path(os.path.expanduser(root))
    found = inat_splits(root, year)
    wanted = found if split is None else [name for name in found if name == split]
    if not wanted:
        raise DataError(
            f"{path}: expected {split or 'train'}{year}.json, got {', '.join(found) or 'no such file'}.",
            remedy="Unpack the official annotations there.",
        )
    categories: dict[int, str] = {}
    rows: list[tuple[str, int, str]] = []
    for name in wanted:
        file = path / f"{name}{year}.json"
        content = _json(file)
        try:
            categories |= {int(entry["id"]): str(entry["name"]) for entry in content.get("categories") or ()}
            label_of = {entry["image_id"]: int(entry["category_id"]) for entry in content["annotations"]}
            rows += [(str(entry["file_name"]), label_of[entry["id"]], name) for entry in content["images"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _not_official(file, f"{type(error).__name__}: {error}") from error
    names, index_of = _category_names(path / "categories.json", categories)
    unknown = next((label for _, label, _ in rows if label not in index_of), None)
    if unknown is not None:
        raise _not_official(path / "categories.json", f"no category {unknown}")
    table, reader = _listed(f"inat{year % 100}", path, [(file, index_of[label], s) for file, label, s in rows], names)
    return open_table(table, reader, split, classes)


def _category_names(file: Path, categories: dict[int, str]) -> tuple[list[str], dict[int, int]]:
    """Class names in the order of category ids, and id -> index."""
    if file.is_file():
        try:
            categories = {int(entry["id"]): str(entry["name"]) for entry in _json(file)}
        except (KeyError, TypeError, ValueError) as error:
            raise _not_official(file, f"{type(error).__name__}: {error}") from error
    if not categories:
        raise _not_official(file, "no categories")
    ids = sorted(categories)
    names = [categories[number] for number in ids]
    if len(set(names)) < len(names):
        names = [str(number) for number in ids]
    return names, {number: index for index, number in enumerate(ids)}


def _listed(
    kind: str, base: Path, rows: list[tuple[str, int, str]], class_names: list[str]
) -> tuple[Table, FileReader]:
    paths = [path for path, _, _ in rows]
    table = Table(
        kind=kind,
        where=str(base),
        paths=paths,
        labels=[label for _, label, _ in rows],
        splits=[split for _, _, split in rows],
        class_names=class_names,
    )
    return table, FileReader(str(base), paths)


def _car_names(file: Path) -> list[str]:
    return [str(name) for name in np.atleast_1d(load_matlab(file, "class_names"))]


def _inner(root: str, file: str, folder: str) -> Path:
    path = Path(os.path.expanduser(root))
    return path if (path / file).is_file() else path / folder if (path / folder / file).is_file() else path


def _first(*paths: Path) -> Path:
    return next((path for path in paths if path.is_file()), paths[0])


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _not_official(file, str(error)) from error


def _not_official(file: Path, got: str) -> DataError:
    return DataError(f"{file}: not the official annotations: {got}.", remedy="Fetch the official file again.")
