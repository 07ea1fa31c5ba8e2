"""A user's data: a map-style dataset of (image, label) with `classes`, as in torch and torchvision."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Subset

from deepcait.data.inputs import to_image
from deepcait.data.table import Table
from deepcait.errors import DataError, DeepcaitError, ImageError
from deepcait.parts import Part, build

_SPLITS = ("train", "val", "test")
_REMEDY = "A dataset has __len__, __getitem__(index) -> (image, label) and classes, a list of names."


class DatasetReader:
    """Reads items of a dataset as the bytes of an image file, as all other kinds of data are read.

    Args:
        datasets: one for each split, in the order of the rows.
        where: what messages call them.
    """

    def __init__(self, datasets: Mapping[str, Any], where: str) -> None:
        self.datasets = dict(datasets)
        self.where = where

    def read(self, row: int) -> bytes:
        """Return the image as an uncompressed file, whatever form it has in the dataset.

        Raises:
            ImageError: the dataset fails, or what it returns is not an image.
        """
        split, index = self._find(row)
        try:
            image = to_image(self.datasets[split][index][0])
        except DeepcaitError as error:
            raise ImageError(f"{self.locate(row)}: {error.problem}", remedy=error.remedy) from error
        except Exception as error:  # user code may raise anything
            problem = f"{self.locate(row)}: the dataset raised {type(error).__name__}: {error}."
            raise ImageError(problem, remedy="Correct the dataset's __getitem__.") from error
        held = io.BytesIO()
        image.save(held, "BMP")
        return held.getvalue()

    def locate(self, row: int) -> str:
        """Return which item of which dataset it is."""
        split, index = self._find(row)
        return f"{self.where}[{split!r}][{index}]" if len(self.datasets) > 1 else f"{self.where}[{index}]"

    def _find(self, row: int) -> tuple[str, int]:
        for split, dataset in self.datasets.items():
            if row < len(dataset):
                return split, row
            row -= len(dataset)
        raise IndexError(row)


def load_own(place: str) -> tuple[Table, DatasetReader]:
    """Open a dataset, or a dictionary of datasets by split (train, val, test).

    Labels are indices of `classes`, or names in it. They are read from `targets`, a list as torchvision's datasets have
    it; without that every item is read once.

    Args:
        place: the part's name, python:package.module:factory, or a `Part`.

    Raises:
        DataError: something else, such as an iterable.
        ConfigError: no such factory, or one that fails.
    """
    made = build(place, "data") if isinstance(place, Part) else _build_once(place)
    datasets = dict(made) if isinstance(made, Mapping) else {"train": made}
    unknown = [name for name in datasets if name not in _SPLITS]
    if unknown or not datasets:
        raise DataError(
            f"{place}: expected a dataset, or datasets by the names {', '.join(_SPLITS)}, got {unknown or 'none'}.",
            remedy=_REMEDY,
        )
    for dataset in datasets.values():
        _require_dataset(place, dataset)
    classes = dataset_classes(next(iter(datasets.values()))) or []
    split_names = list(datasets) if isinstance(made, Mapping) else [None]
    paths, labels, splits = [], [], []
    for split, dataset in zip(split_names, datasets.values(), strict=True):
        if dataset_classes(dataset) != classes:
            raise DataError(
                f"{place}: the split {split} has other classes than the first split.",
                remedy="Give every split the same list `classes`.",
            )
        paths += [f"{split}/{index:08d}" if split else f"{index:08d}" for index in range(len(dataset))]
        labels += _labels(place, dataset, len(classes))
        splits += [split] * len(dataset)
    table = Table(kind="python", where=place, paths=paths, labels=labels, splits=splits, class_names=classes)
    return table, DatasetReader(datasets, place)


def dataset_classes(dataset: Any) -> list[str] | None:
    """Return the class names of a dataset, also of a part of one (`torch.utils.data.Subset`); None if it has none."""
    names = getattr(_whole(dataset), "classes", None)
    return [str(name) for name in names] if isinstance(names, Sequence) and names else None


class WithClasses:
    """A dataset that has no class names, with some.

    Args:
        dataset: map-style, of (image, label).
        classes: what its labels are indices of; None means numbers up to the largest label.

    Raises:
        DataError: an item fails, or its label is not a name or index.
    """

    def __init__(self, dataset: Any, classes: Sequence[str] | None) -> None:
        self.dataset = dataset
        self.targets = _read_labels(type(dataset).__name__, dataset)
        highest = max((label for label in self.targets if isinstance(label, int)), default=-1)
        self.classes = [str(index) for index in range(highest + 1)] if classes is None else list(classes)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def _whole(dataset: Any) -> Any:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def _targets(dataset: Any) -> Any:
    """The labels as torchvision's datasets list them; None if the items have to be read."""
    if not isinstance(dataset, Subset):
        return getattr(dataset, "targets", None)
    labels = _targets(dataset.dataset)
    return None if labels is None else [labels[index] for index in dataset.indices]


@functools.lru_cache(maxsize=4)
def _build_once(place: str) -> Any:
    """A run opens its data several times."""
    return build(place, "data")


def _require_dataset(place: str, dataset: Any) -> None:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        iterable = hasattr(dataset, "__iter__")
        reason = (
            "it has no __len__ or no __getitem__"
            if not iterable
            else "an iterable has no fixed order, so a run can't resume"
        )
        raise DataError(f"{place}: {type(dataset).__name__} is not a map-style dataset ({reason}).", remedy=_REMEDY)
    if dataset_classes(dataset) is None:
        raise DataError(f"{place}: the dataset has no `classes`.", remedy=_REMEDY)


def _labels(place: str, dataset: Any, num_classes: int) -> list[int | str]:
    """The label of every item."""
    labels = _read_labels(place, dataset)
    for label in labels:
        if isinstance(label, int) and not 0 <= label < num_classes:
            raise DataError(
                f"{place}: expected labels 0 to {num_classes - 1}, indices of its classes, got {label}.",
                remedy="Labels count from 0; or give names, which `classes` contains.",
            )
    return labels


def _read_labels(place: str, dataset: Any) -> list[int | str]:
    """The label of every item; tensors and NumPy's integers become Python's."""
    found = _targets(dataset)
    if found is None or len(found) != len(dataset):
        try:
            found = [dataset[index][1] for index in range(len(dataset))]
        except Exception as error:  # user code may raise anything
            problem = (
                f"{place}: the labels can't be read from the items (image, label): {type(error).__name__}: {error}."
            )
            raise DataError(problem, remedy=_REMEDY) from error
    try:
        return [label if isinstance(label, str) else int(label) for label in found]
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f"{place}: a label is not a class index or name ({error})."
        raise DataError(problem, remedy=_REMEDY) from error
