"""Resolve DATA: the kind of the source, and which split is used for which role."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepcait.data.arrow import is_saved, load_arrow
from deepcait.data.benchmarks import inat_splits, load_cars, load_flowers, open_inat
from deepcait.data.cifar import load_cifar
from deepcait.data.columns import USUAL, Columns
from deepcait.data.folder import find_splits, open_folder, require_sorted, subfolders
from deepcait.data.imagenet import imagenet_splits, open_imagenet, open_imagenet_v2
from deepcait.data.labels import RULES
from deepcait.data.manifest import load_csv, load_jsonl
from deepcait.data.members import is_image
from deepcait.data.own import load_own
from deepcait.data.parquet import load_parquet
from deepcait.data.samples import ASSETS
from deepcait.data.shards import is_url
from deepcait.data.source import Source, own_split
from deepcait.data.table import Reader, Table, open_table, table_column, table_splits
from deepcait.data.tar import load_tar
from deepcait.data.zipped import load_zip
from deepcait.errors import ConfigError, DataError
from deepcait.parts import is_part

SPLITS = ("train", "val", "test", "all")
_BUILTIN = {"demo": ASSETS / "demo"}
_SUFFIX_KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".tar": "tar", ".zip": "zip"}


@dataclass(frozen=True)
class Kind:
    """How one kind of source is opened.

    open: (the text after the colon, split or None for all, classes or None, what integers mean) -> Source.
    splits: the same place -> names of its splits, a part of train, val, test.
    """

    open: Callable[[str, str | None, Sequence[str] | None, str], Source]
    splits: Callable[[str], list[str]]


def _folder_path(place: str) -> Path:
    return Path(os.path.expanduser(place))


def _folder_splits(place: str) -> list[str]:
    path = _folder_path(place)
    splits = find_splits(path)
    # A test set without labels is usual, and training does without.
    require_sorted(path, splits, ("val",))
    return list(splits)


def _builtin_path(place: str) -> Path:
    if place not in _BUILTIN:
        raise ConfigError(
            f"builtin:{place}: expected one of {', '.join(_BUILTIN)}, got {place!r}.", remedy="Try builtin:demo."
        )
    return _BUILTIN[place]


def _listed(load: Callable[[str], tuple[Table, Reader]]) -> Kind:
    """A kind whose every image is listed in one table."""
    return Kind(
        open=lambda place, split, classes, labels: open_table(*load(place), split, classes, labels),
        splits=lambda place: table_splits(load(place)[0]),
    )


def _named(open_it: Callable[[str, str | None, Sequence[str] | None], Source]) -> Callable[..., Source]:
    """Return the kind of a benchmark with its own classes: integers have the meaning of its archive."""
    return lambda place, split, classes, labels: open_it(place, split, classes)


# Tables, whose columns a user may name.
_TABLES = {"csv": load_csv, "jsonl": load_jsonl, "parquet": load_parquet, "arrow": load_arrow}

# A new kind of source is one line here.
KINDS = {
    "folder": Kind(
        open=lambda place, split, classes, labels: open_folder(_folder_path(place), split, classes, labels),
        splits=_folder_splits,
    ),
    "builtin": Kind(
        open=lambda place, split, classes, labels: open_folder(_builtin_path(place), split, classes, labels),
        splits=lambda place: list(find_splits(_builtin_path(place))),
    ),
    **{name: _listed(load) for name, load in _TABLES.items()},
    "tar": _listed(load_tar),
    "zip": _listed(load_zip),
    "python": _listed(load_own),
    "imagenet": Kind(open=_named(open_imagenet), splits=imagenet_splits),
    "imagenet-v2": Kind(open=_named(open_imagenet_v2), splits=lambda place: ["test"]),
    "cifar10": _listed(functools.partial(load_cifar, "cifar10")),
    "cifar100": _listed(functools.partial(load_cifar, "cifar100")),
    "flowers102": _listed(load_flowers),
    "cars": _listed(load_cars),
    "inat18": Kind(
        open=_named(lambda place, split, classes: open_inat(place, 2018, split, classes)),
        splits=lambda place: inat_splits(place, 2018),
    ),
    "inat19": Kind(
        open=_named(lambda place, split, classes: open_inat(place, 2019, split, classes)),
        splits=lambda place: inat_splits(place, 2019),
    ),
}


def parse_spec(spec: str | os.PathLike[str]) -> tuple[str, str]:
    """Split a DATA into (kind, place); the kind of a bare path is recognised.

    Raises:
        ConfigError: an unknown kind.
        DataError: a path that does not exist, or a file of unknown kind.
    """
    spec = os.fspath(spec)
    if is_part(spec):
        return "python", spec
    if not spec:
        raise DataError("Data: the path is empty.", remedy="Give a path; a dot is this folder.")
    # Two letters at least: "C:" is a drive.
    prefixed = re.fullmatch(r"([A-Za-z][A-Za-z0-9-]+):(?!//)(.*)", spec, flags=re.DOTALL)
    path = Path(os.path.expanduser(spec))
    suffix = Path(spec.split("?")[0]).suffix.lower() if is_url(spec) else path.suffix.lower()
    if prefixed and not path.exists():
        kind, place = prefixed.groups()
    elif path.is_dir():
        kind, place = _kind_of_folder(path), spec
    elif suffix in _SUFFIX_KINDS:
        kind, place = _SUFFIX_KINDS[suffix], spec
    else:
        what = "the kind of this file is not known" if path.exists() else "there is no such path"
        raise DataError(
            f"Data {spec!r}: {what}.",
            remedy=f"Give a folder of class folders, a file ending in {', '.join(_SUFFIX_KINDS)}, or builtin:demo.",
        )
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise ConfigError(
            f"Data {spec!r}: expected a path or one of the kinds {', '.join(KINDS)}, got {kind!r}.",
            remedy=f"Did you mean {near[0]}:?" if near else "Give the path of a folder of class folders.",
        )
    return kind, place


def _kind_of_folder(path: Path) -> str:
    """Parquet or tar if it (or its folder data/) has shards and no class folders; arrow if `datasets` saved it."""
    if is_saved(path):
        return "arrow"
    folders = [path, *([path / "data"] if (path / "data").is_dir() else [])]
    shards = {
        entry.suffix.lower() for folder in folders for entry in folder.iterdir() if not entry.name.startswith(".")
    }
    kinds = [_SUFFIX_KINDS[suffix] for suffix in (".parquet", ".tar") if suffix in shards]
    if not kinds or any(is_image(name) for inner in subfolders(path) for name in os.listdir(path / inner)):
        return "folder"
    return "folder" if find_splits(path) else kinds[0]


def list_splits(spec: str | os.PathLike[str], columns: Columns = USUAL) -> list[str]:
    """The splits of a source among train, val, test; empty if it has none."""
    kind, place = _find_kind(spec, columns)
    return kind.splits(place)


def _find_kind(spec: str | os.PathLike[str], columns: Columns) -> tuple[Kind, str]:
    """How a DATA is opened whose columns are these, and its place."""
    name, place = parse_spec(spec)
    if columns == USUAL:
        return KINDS[name], place
    if name not in _TABLES:
        raise ConfigError(
            f"{' and '.join(columns.settings)}: expected a table ({', '.join(_TABLES)}), got {os.fspath(spec)} "
            f"({name}).",
            remedy="Leave them out: only tables have columns.",
        )
    return _listed(functools.partial(_TABLES[name], columns=columns)), place


def open_source(
    spec: str | os.PathLike[str],
    split: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    labels: str = "auto",
    columns: Columns = USUAL,
    left_out: Collection[str] = (),
) -> Source:
    """Open DATA as it is; nothing is held out here, see `open_parts`.

    Args:
        spec: a path, a kind and a path (tar:PATH), a benchmark and its root (cifar10:ROOT), or builtin:demo.
        split: train, val or test; None or "all" takes every image.
        classes: index -> class name, fixed by training; labels are mapped to them, see `map_labels`.
        labels: what integers mean: auto, names, indices.
        columns: of a table whose columns are not called as usual.
        left_out: absolute paths of class folders that are not read, of the kind folder.

    Raises:
        ConfigError: an unknown kind, split name or meaning of integers; columns for data that is not a table.
        DataError: nothing there, no such split, an unknown class.
    """
    require_one_of(split, (*SPLITS, None), "split")
    require_one_of(labels, RULES, "labels")
    kind, place = _find_kind(spec, columns)
    split = None if split == "all" else split
    if left_out and kind is KINDS["folder"]:
        return open_folder(_folder_path(place), split, classes, labels, left_out)
    return kind.open(place, split, classes, labels)


def read_column(spec: str | os.PathLike[str], column: str, source: Source, columns: Columns = USUAL) -> list[str]:
    """Return the value of a column for each image of a source opened from a DATA, as text; "" where it is empty.

    Raises:
        DataError: the kind of data has no columns, or not this one.
    """
    table = _table_of(spec, columns)
    names = [] if table is None else list(table.columns)
    if table is None or column not in names:
        found = f"the other columns are {', '.join(names)}" if names else "there are no other columns"
        raise DataError(
            f"{os.fspath(spec)}: no column {column!r} besides paths and labels; {found}.",
            remedy="Name a column of the table."
            if names
            else "Groups and folds are columns of a table of images: `deepcait split` writes one.",
        )
    return table_column(table, column, own_split(source) or None, source.names)


def column_names(spec: str | os.PathLike[str], columns: Columns = USUAL) -> list[str]:
    """Return the names of the columns of a DATA other than paths, labels and splits; none where it is not a table."""
    table = _table_of(spec, columns)
    return [] if table is None else list(table.columns)


def _table_of(spec: str | os.PathLike[str], columns: Columns) -> Table | None:
    kind, place = parse_spec(spec)
    return _TABLES[kind](place, columns)[0] if kind in _TABLES else None


def require_one_of(value: str | None, allowed: Sequence[str | None], what: str) -> None:
    """Raise ConfigError unless a value is one of those allowed; `what` it is of the data."""
    if value not in allowed:
        names = [name for name in allowed if name is not None]
        near = difflib.get_close_matches(str(value), names, n=1)
        raise ConfigError(
            f"Data {what}: expected one of {', '.join(names)}, got {value!r}.",
            remedy=f"Did you mean {near[0]}?" if near else f"Choose {names[0]}, for example.",
        )
