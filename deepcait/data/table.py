"""Every picture of a collection as one row of a table; from the table, a source for one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from deepcait.data.folder import SPLIT_NAMES, sort_classes, split_of, unknown_class
from deepcait.data.source import Sample
from deepcait.errors import DataError, some

Label: TypeAlias = str | int | None
_MAX_BARE_LABEL = 100_000


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is known of every picture before one is read.

    Args:
        kind: csv, parquet, tar, ...
        where: what errors call the collection.
        paths: of each picture, with "/" between parts.
        labels: class name, class index, or None where there is none.
        splits: word for the split as it stands there ("validation"), None where there are no splits.
        parts: the file that holds the picture; tells apart equal paths of several files.
        class_names: index -> name, where the collection fixes it; else names are sorted, and bare integers stay.
        note: what was assumed, for the user.
    """

    kind: str
    where: str
    paths: Sequence[str]
    labels: Sequence[Label]
    splits: Sequence[str | None]
    parts: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    note: str = ""


class Reader(Protocol):
    """Fetches the bytes of a row; it is pickled to worker processes and opens files there when it needs them."""

    def read(self, row: int) -> bytes:
        """The undecoded picture; ImageError when it can't be read."""
        ...

    def locate(self, row: int) -> str:
        """Where it lies, for messages."""
        ...


class TableSource:
    """The rows of a table that make one split.

    Args:
        reader: fetches a row of the whole table.
        rows: of the table, in reading order.
        names, labels: of each of these rows.
        note: what was assumed, printed by `describe`.
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
    ) -> None:
        self.reader = reader
        self.rows = rows
        self.kind = kind
        self.split = split
        self.classes = classes
        self.names = names
        self.labels = labels
        self.note = note

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Sample:
        """The sample at `index`; ImageError when it can't be read."""
        return Sample(self.reader.read(self.rows[index]), self.labels[index], self.names[index])

    def locate(self, index: int) -> str:
        """Where the picture lies, for messages."""
        return self.reader.locate(self.rows[index])


def table_splits(table: Table) -> list[str]:
    """The splits of a table, a part of train, val, test."""
    found = {split_of(word) for word in set(table.splits)}
    return [split for split in SPLIT_NAMES if split in found]


def open_table(table: Table, reader: Reader, split: str | None, classes: Sequence[str] | None) -> TableSource:
    """Choose the rows of a split and give them names and labels, as `open_folder` does.

    A picture's name is its path, without the split's folder where one split is taken, with it where all are: the
    same pictures have the same names in every form. Class names map to `classes` by name; bare integers count as
    indices in `classes`, unless they are themselves names there. Without `classes` the names of the training
    split, sorted, are the classes.

    Args:
        split: train, val or test; None takes all.
        classes: index -> class name, fixed by training.

    Raises:
        DataError: no such split, no pictures, an unknown class, an index out of range, two pictures of one name.
    """
    rows = _rows(table, split)
    # A model's classes are fixed already: those of the rows alone matter, whatever the training split says.
    own, note = _own_classes(table, rows if classes is not None else None)
    labels = _indices(table, rows, own)
    if classes is not None:
        labels, note = _map(table, labels, own, classes)
        own = list(classes)
    notes = [text for text in (note, table.note) if text]
    return TableSource(
        reader,
        rows,
        kind=table.kind,
        split=split or "all",
        classes=own,
        names=_names(table, rows, split),
        labels=labels,
        note="; ".join(notes),
    )


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
        got = ", ".join(table_splits(table)) or "data without splits"
        raise DataError(
            f"{table.where}: expected the split {split}, got {got}.", remedy="Choose one that is there, or all."
        )
    raise DataError(f"{table.where}: expected images, got none.", remedy="Check the path.")


def _own_classes(table: Table, rows: list[int] | None) -> tuple[list[str], str]:
    """Index -> name by the data alone (by some of its rows, else by the training split), and what was assumed."""
    if table.class_names is not None:
        require_class_labels(table.where, table.labels, len(table.class_names))
        return _told_apart(table.class_names)
    if rows is None:
        rows = [row for row, word in enumerate(table.splits) if word and split_of(word) == "train"]
    found = {table.labels[row] for row in rows or range(len(table.paths))} - {None}
    names = [label for label in found if isinstance(label, str)]
    indices = [label for label in found if isinstance(label, int)]
    if names and indices:
        raise DataError(
            f"{table.where}: expected class names or class indices, got both ({names[0]!r} and {indices[0]}).",
            remedy="Write every label the same way.",
        )
    if not indices:
        return sort_classes(names), "" if names else "no labels"
    require_class_labels(table.where, indices, _MAX_BARE_LABEL)
    num_classes = max(indices) + 1
    unused = num_classes - len(indices)
    note = f"bare integers, taken as class indices 0 to {num_classes - 1}" + (f" ({unused} unused)" if unused else "")
    return [str(index) for index in range(num_classes)], note


def _told_apart(names: Sequence[str]) -> tuple[list[str], str]:
    """Class names of which each is one class's alone, and what was done: the hub's ImageNet has two called crane."""
    counts = Counter(names)
    twice = [name for name, count in counts.items() if count > 1]
    if not twice:
        return list(names), ""
    own = [name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]
    return own, f"classes of one name are told apart by their index ({some(twice)})"


def _indices(table: Table, rows: list[int], own: list[str]) -> list[int | None]:
    """The label of each row as an index in `own`."""
    index_of = {name: index for index, name in enumerate(own)}
    indices: list[int | None] = []
    for row in rows:
        label = table.labels[row]
        if isinstance(label, str):
            if label not in index_of:
                raise unknown_class(f"{table.where}: {table.paths[row]}", label, own)
            label = index_of[label]
        elif label is not None and not 0 <= label < len(own):
            raise unknown_class(f"{table.where}: {table.paths[row]}", str(label), own)
        indices.append(label)
    return indices


def _map(
    table: Table, labels: list[int | None], own: list[str], classes: Sequence[str]
) -> tuple[list[int | None], str]:
    """Labels as indices in `classes`, and what was assumed."""
    used = sorted({label for label in labels if label is not None})
    index_of = {name: index for index, name in enumerate(classes)}
    bare = all(name.isascii() and name.isdecimal() for name in own)
    if bare and not any(own[label] in index_of for label in used):
        numbers = {label: int(own[label]) for label in used}
        require_class_labels(table.where, numbers.values(), len(classes))
        mapped = [None if label is None else numbers[label] for label in labels]
        return mapped, f"bare integers, taken as indices of the {len(classes):,} classes of the model"
    for label in used:
        if own[label] not in index_of:
            raise unknown_class(table.where, own[label], classes)
    return [None if label is None else index_of[own[label]] for label in labels], ""


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
            f"{table.where}: expected every picture once, got {some(twice)} more than once.",
            remedy="Remove the repetitions.",
        )
    return names
