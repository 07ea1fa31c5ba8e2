"""A data SPEC resolved: the kind of the source, and which split serves which role."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepcait.data.benchmarks import inat_splits, load_cars, load_flowers, open_inat
from deepcait.data.cifar import load_cifar
from deepcait.data.folder import find_splits, open_folder, require_sorted, subfolders
from deepcait.data.imagenet import imagenet_splits, open_imagenet, open_imagenet_v2
from deepcait.data.manifest import load_csv
from deepcait.data.members import is_image
from deepcait.data.parquet import load_parquet
from deepcait.data.shards import is_url
from deepcait.data.source import Source, Subset
from deepcait.data.split import read_manifest, stratified_split, write_manifest
from deepcait.data.table import Reader, Table, open_table, table_splits
from deepcait.data.tar import load_tar
from deepcait.data.zipped import load_zip
from deepcait.errors import ConfigError, DataError

ROLES = ("train", "val", "eval")
SPLITS = ("train", "val", "test", "all")
_ASSETS = Path(__file__).parent.parent / "assets"
_BUILTIN = {"demo": _ASSETS / "demo"}
_SUFFIX_KINDS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".tar": "tar", ".zip": "zip"}


@dataclass(frozen=True)
class Kind:
    """How one kind of source is opened.

    open: (what stands behind the colon, split or None for all, classes or None) -> Source.
    splits: the same place -> names of its splits, a part of train, val, test.
    """

    open: Callable[[str, str | None, Sequence[str] | None], Source]
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
    """A kind whose every picture is listed in one table."""
    return Kind(
        open=lambda place, split, classes: open_table(*load(place), split, classes),
        splits=lambda place: table_splits(load(place)[0]),
    )


# A new kind of source is one line here.
KINDS = {
    "folder": Kind(
        open=lambda place, split, classes: open_folder(_folder_path(place), split, classes),
        splits=_folder_splits,
    ),
    "builtin": Kind(
        open=lambda place, split, classes: open_folder(_builtin_path(place), split, classes),
        splits=lambda place: list(find_splits(_builtin_path(place))),
    ),
    "csv": _listed(load_csv),
    "parquet": _listed(load_parquet),
    "tar": _listed(load_tar),
    "zip": _listed(load_zip),
    "imagenet": Kind(open=open_imagenet, splits=imagenet_splits),
    "imagenet-v2": Kind(open=open_imagenet_v2, splits=lambda place: ["test"]),
    "cifar10": _listed(functools.partial(load_cifar, "cifar10")),
    "cifar100": _listed(functools.partial(load_cifar, "cifar100")),
    "flowers102": _listed(load_flowers),
    "cars": _listed(load_cars),
    "inat18": Kind(
        open=lambda place, split, classes: open_inat(place, 2018, split, classes),
        splits=lambda place: inat_splits(place, 2018),
    ),
    "inat19": Kind(
        open=lambda place, split, classes: open_inat(place, 2019, split, classes),
        splits=lambda place: inat_splits(place, 2019),
    ),
}


def parse_spec(spec: str | os.PathLike[str]) -> tuple[str, str]:
    """Split a data SPEC into (kind, place); the kind of a bare path is recognised.

    Raises:
        ConfigError: an unknown kind.
        DataError: a path that does not exist, or a file of no known kind.
    """
    spec = os.fspath(spec)
    if not spec:
        raise DataError("Data: expected a path, got an empty text.", remedy="Give a path; a dot is this folder.")
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
        got = "a file of no known kind" if path.exists() else "no such path"
        raise DataError(
            f"Data {spec!r}: expected a folder of class folders, or a file ending in {', '.join(_SUFFIX_KINDS)}, "
            f"got {got}.",
            remedy="Check the path, or try builtin:demo.",
        )
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise ConfigError(
            f"Data {spec!r}: expected a path or one of the kinds {', '.join(KINDS)}, got {kind!r}.",
            remedy=f"Did you mean {near[0]}:?" if near else "Give the path of a folder of class folders.",
        )
    return kind, place


def _kind_of_folder(path: Path) -> str:
    """Shards lying in it (or in its folder data/) and no class folders make it parquet or tar."""
    folders = [path, *([path / "data"] if (path / "data").is_dir() else [])]
    shards = {
        entry.suffix.lower() for folder in folders for entry in folder.iterdir() if not entry.name.startswith(".")
    }
    kinds = [_SUFFIX_KINDS[suffix] for suffix in (".parquet", ".tar") if suffix in shards]
    if not kinds or any(is_image(name) for inner in subfolders(path) for name in os.listdir(path / inner)):
        return "folder"
    return "folder" if find_splits(path) else kinds[0]


def list_splits(spec: str | os.PathLike[str]) -> list[str]:
    """The splits that a source itself has, a part of train, val, test; empty when it has none."""
    kind, place = parse_spec(spec)
    return KINDS[kind].splits(place)


def open_source(
    spec: str | os.PathLike[str], split: str | None = None, *, classes: Sequence[str] | None = None
) -> Source:
    """Open a data SPEC as it lies; nothing is held out here, see `open_split`.

    Args:
        spec: a path, a kind and a path (tar:PATH), a benchmark and its root (cifar10:ROOT), or builtin:demo.
        split: train, val or test; None or "all" takes every picture.
        classes: index -> class name, fixed by training; classes are mapped by name.

    Raises:
        ConfigError: an unknown kind or split name.
        DataError: nothing there, no such split, an unknown class.
    """
    _require_one_of(split, (*SPLITS, None), "split")
    kind, place = parse_spec(spec)
    return KINDS[kind].open(place, None if split == "all" else split, classes)


def open_split(
    spec: str | os.PathLike[str],
    role: str,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    fraction: float = 0.1,
    seed: int = 0,
    manifest: str | os.PathLike[str] | None = None,
) -> Source:
    """Open the pictures for a role: to train, to validate during training, to evaluate.

        train   the split train
        val     val, else test, else a stratified part of train
        eval    test, else val, else all

    Where a source has neither val nor test, `train` leaves out the part that `val` holds out: a
    pure function of names and seed. An explicit `split` means the same parts, or "all".

    Args:
        role: train, val or eval.
        split: train, val, test or all, instead of what the role would take.
        classes: as in `open_source`.
        fraction, seed: of the part held out, see `stratified_split`.
        manifest: JSON file of the part held out; read where it exists, else written.

    Raises:
        ConfigError: unknown role, split or kind.
        DataError: as `open_source`, or too few pictures to hold any out.
    """
    _require_one_of(role, ROLES, "role")
    _require_one_of(split, (*SPLITS, None), "split")
    own = list_splits(spec)
    wanted = split or _split_for(role, own)
    holds_out = "val" not in own and "test" not in own
    if wanted not in ("train", "val") or not holds_out:
        return open_source(spec, wanted, classes=classes)

    source = open_source(spec, "train" if "train" in own else None, classes=classes)
    if manifest is not None and Path(manifest).exists():
        train, val = read_manifest(manifest, source.names)
    else:
        train, val = stratified_split(source.names, source.labels, fraction=fraction, seed=seed)
        if not val:
            raise DataError(
                f"{os.fspath(spec)}: expected a class with 2 images or more to hold one out, got none.",
                remedy="Add images, or a folder val/ of class folders.",
            )
        if manifest is not None:
            write_manifest(manifest, source.names, val, seed=seed, fraction=fraction)
    return Subset(source, train if wanted == "train" else val, split=wanted)


def _split_for(role: str, own: list[str]) -> str:
    if role == "train":
        return "train"
    order, otherwise = (("val", "test"), "val") if role == "val" else (("test", "val"), "all")
    return next((split for split in order if split in own), otherwise)


def _require_one_of(value: str | None, allowed: Sequence[str | None], what: str) -> None:
    if value not in allowed:
        names = [name for name in allowed if name is not None]
        near = difflib.get_close_matches(str(value), names, n=1)
        raise ConfigError(
            f"Data {what}: expected one of {', '.join(names)}, got {value!r}.",
            remedy=f"Did you mean {near[0]}?" if near else f"Choose {names[0]}, for example.",
        )
