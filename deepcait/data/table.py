"""A table with one row per image of a collection, and a source for one split of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deepcait.data.folder import SPLIT_NAMES, split_of
from deepcait.data.labels import Label, find_classes, is_numbering, map_labels
from deepcait.data.source import Sample
from deepcait.errors import DataError, some


@dataclass(frozen=True, kw_only=True)
class Table:
    """Facts about every image that are known before reading.

    Args:
        kind: csv, parquet, tar, ...
        where: what errors call the collection.
        paths: of each image, with "/" between parts.
        labels: class name, class index, or None if there is none.
        splits: name of the split in the data ("validation"); None if the data has no splits.
        parts: name of the file that contains the image; distinguishes equal paths in several files.
        class_names: index -> name, if the collection defines it; its labels are then indices or these names.
        note: what was assumed, for the user.
        unlabelled: if no image has a label, the reason: what was searched for and what was found.
        columns: the other columns by name, a value for each image.
    """

    kind: str
    where: str
    paths: Sequence[str]
    labels: Sequence[Label]
    splits: Sequence[str | None]
    parts: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    note: str = ""
    unlabelled: str = ""
    columns: Mapping[str, Sequence[object]] = field(default_factory=dict)


class Reader(Protocol):
    """Reads the bytes of a row; it is pickled to worker processes and opens files there on demand."""

    def read(self, row: int) -> bytes:
        """The undecoded image; ImageError when it can't be read."""
        ...

    def locate(self, row: int) -> str:
        """Its location, for messages."""
        ...


class TableSource:
    """The rows of a table that belong to one split.

    Args:
        reader: fetches a row of the whole table.
        rows: of the table, in reading order.
        names, labels: of each of these rows.
        note: what was assumed, printed by `describe`.
        unlabelled: why images have no label, if none has.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Sequence[int],
        *,
        kind: str,
        split: str,
        classes: list[str],
        names: list[str],
        labels: list[int | None],
        note: str = "",
        unlabelled: str = "",
    ) -> None:
        self.reader = reader
        self.rows = rows
        self.kind = kind
        self.split = split
        self.classes = classes
        self.names = names
        self.labels = labels
        self.note = note
        self.unlabelled = unlabelled

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Sample:
        """The sample at `index`; ImageError when it can't be read."""
        return Sample(self.reader.read(self.rows[index]), self.labels[index], self.names[index])

    def locate(self, index: int) -> str:
        """Location of the image, for messages."""
        return self.reader.locate(self.rows[index])


def table_splits(table: Table) -> list[str]:
    """The splits of a table, a part of train, val, test."""
    found = {split_of(word) for word in set(table.splits)}
    return [split for split in SPLIT_NAMES if split in found]


def open_table(
    table: Table, reader: Reader, split: str | None, classes: Sequence[str] | None, labels: str = "auto"
) -> TableSource:
    """Choose the rows of a split and give them names and labels, as `open_folder` does.

    An image's name is its path, without the split's folder if one split is taken, with it if all are: the
    same images have the same names in every form. Without `classes` the labels of the training split, sorted, are
    the classes.

    Args:
        split: train, val or test; None takes all.
        classes: index -> class name, fixed by training; labels are mapped to them, see `map_labels`.
        labels: what integers mean, see `RULES`.

    Raises:
        DataError: no such split, no images, an unknown class, an index out of range, two images of one name.
    """
    rows = _rows(table, split)
    own, note = (list(classes), "") if classes is not None else _own_classes(table, labels)
    names = _label_names(table, rows)
    index_of = map_labels(table.where, {name for name in names if name is not None}, own, labels)
    if classes is not None and not index_of.keys() <= set(own):
        note = f"integers, taken as indices of the {len(own):,} classes of the model"
    notes = [text for text in (note, table.note) if text]
    return TableSource(
        reader,
        rows,
        kind=table.kind,
        split=split or "all",
        classes=own,
        names=_names(table, rows, split),
        labels=[None if name is None else index_of[name] for name in names],
        note="; ".join(notes),
        unlabelled=table.unlabelled,
    )


def table_column(table: Table, column: str, split: str | None, names: Sequence[str]) -> list[str]:
    """Return the values of a column as text for images that `open_table` names so, "" if there is none."""
    rows = _rows(table, split)
    row_of = dict(zip(_names(table, rows, split), rows, strict=True))
    values = table.columns[column]
    return [_as_text(values[row_of[name]]) for name in names]


def _as_text(value: object) -> str:
    if value is None or value != value:  # NaN, which pandas writes for a missing value
        return ""
    # A column of whole numbers with a missing value is read as 3.0.
    return re.sub(r"(?<=[0-9])\.0$", "", str(value).strip())


def require_class_labels(where: str, labels: Iterable[Label], num_classes: int) -> None:
    """Pass when every index is one of `num_classes`.

    Raises:
        DataError: names the first that is not.
    """
    for label in labels:
        if isinstance(label, int) and not 0 <= label < num_classes:
            raise DataError(
                f"{where}: expected labels 0 to {num_classes - 1}, got {label}.",
                remedy="Labels count from 0; subtract 1 from labels that count from 1.",
            )


def _rows(table: Table, split: str | None) -> list[int]:
    if split is None:
        rows = list(range(len(table.paths)))
    else:
        rows = [row for row, word in enumerate(table.splits) if word is not None and split_of(word) == split]
    if rows:
        return rows
    if split is not None and table.paths:
        splits = ", ".join(table_splits(table))
        found = f"the splits are {splits}" if splits else "the data has no splits"
        raise DataError(f"{table.where}: there is no split {split}; {found}.", remedy="Choose one of them, or all.")
    raise DataError(f"{table.where}: no images found.", remedy="Check the path.")


def _own_classes(table: Table, rule: str) -> tuple[list[str], str]:
    """Class names by index, from the data alone (its training split, if it has one), and what was assumed."""
    if table.class_names is not None:
        return _distinct(table.class_names)
    rows = [row for row, word in enumerate(table.splits) if word and split_of(word) == "train"]
    found = {table.labels[row] for row in rows or range(len(table.paths))} - {None}
    classes = find_classes(table.where, found, rule)
    if not classes:
        return [], "no labels"
    if not any(isinstance(label, int) for label in found):
        return classes, ""
    unused = len(classes) - len(found)
    if unused:
        return classes, f"integers, taken as class indices 0 to {len(classes) - 1} ({unused} unused)"
    return classes, "" if is_numbering(classes) else "integers, taken as class names"


def _label_names(table: Table, rows: list[int]) -> list[str | None]:
    """The class name of each row, integers as text."""
    if table.class_names is None:
        return [None if table.labels[row] is None else str(table.labels[row]) for row in rows]
    require_class_labels(table.where, table.labels, len(table.class_names))
    own, _ = _distinct(table.class_names)
    labels = (table.labels[row] for row in rows)
    return [own[label] if isinstance(label, int) else label for label in labels]


def _distinct(names: Sequence[str]) -> tuple[list[str], str]:
    """Unique class names, and how they were made unique: the hub's ImageNet has two classes called crane."""
    counts = Counter(names)
    twice = [name for name, count in counts.items() if count > 1]
    if not twice:
        return list(names), ""
    own = [name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]
    return own, f"classes of the same name are distinguished by their index ({some(twice)})"


def _names(table: Table, rows: list[int], split: str | None) -> list[str]:
    inside = {word: f"{word}/" for word in set(table.splits) if word is not None}
    for row in rows:
        word = table.splits[row]
        if word in inside and not table.paths[row].startswith(inside[word]):
            del inside[word]
    names = []
    for row in rows:
        word, path = table.splits[row], table.paths[row]
        bare = path.removeprefix(inside.get(word, "")) if word is not None else path
        names.append(bare if word is None or split is not None else f"{word}/{bare}")
    if len(set(names)) < len(names) and table.parts is not None and len(set(table.parts)) > 1:
        names = [f"{table.parts[row]}/{name}" for row, name in zip(rows, names, strict=True)]
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise DataError(
            f"{table.where}: expected every image once, got {some(twice)} more than once.",
            remedy="Remove the repetitions.",
        )
    return names
