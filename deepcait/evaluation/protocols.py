"""Evaluation protocols of the paper: which images are evaluated, and which labels are correct.

folder      every image, with the data's label
imagenet    the 50,000 of ImageNet's validation, the label of its wnid
real        the same images, the reassessed labels (ReaL): any of an image's labels is correct, images
            without one are left out; 46,837 remain
v2          ImageNet-V2: folders 0 to 999, ten images each, the folder's number is the class
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepcait.data import FolderSource, Source, Subset, open_split, parse_spec
from deepcait.data.columns import USUAL, Columns
from deepcait.data.folder import subfolders
from deepcait.data.image import ImageOptions
from deepcait.data.imagenet import V2_NUM_CLASSES, V2_NUM_EACH
from deepcait.data.listing import walk_images
from deepcait.data.record import SplitRecord
from deepcait.data.roles import Roles, describe_roles, open_for_run
from deepcait.data.source import with_options
from deepcait.errors import ConfigError, DataError, some
from deepcait.parts import is_part
from deepcait.weights.imagenet import NUM_CLASSES, read_table, wnids

PROTOCOLS = ("folder", "imagenet", "real", "v2")
NUM_VAL = 50_000
REAL_SHA256 = "d83e9bff374c631aae8439eb064c7019acc56e1b3bc3f56b8380c2a710b0220b"
_REAL_FILE = "imagenet_real_labels.json"
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")
_WNID = re.compile(r"n\d{8}")
# Reassessed and original label of an image agree on nine in ten; shifted by one, on hardly any.
_LEAST_AGREEMENT = 0.5
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Task:
    """What is to be counted.

    Args:
        protocol: its name.
        source: the images that count.
        labels: for each of them the model's class indices that are right; None takes the source's own label.
        num_skipped: images that the protocol leaves out.
        warnings: what looks wrong before any model is evaluated.
    """

    protocol: str
    source: Source
    labels: Sequence[Sequence[int]] | None = None
    num_skipped: int = 0
    warnings: list[str] = field(default_factory=list)


def require_protocol(protocol: str) -> None:
    """Pass for a protocol that is known.

    Raises:
        ConfigError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
        raise ConfigError(
            f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}.",
            remedy=f"Did you mean {near[0]}?" if near else "Use folder.",
        )


def open_for(
    data: str | os.PathLike[str] | Source,
    *,
    split: str | None = None,
    protocol: str = "folder",
    options: ImageOptions | None = None,
    columns: Columns = USUAL,
) -> Source:
    """Open what is to be evaluated: a DATA's test, else val, else all; an open source as it is.

    For `imagenet` and `real` a bare path is a root with `val` in it, or that folder itself; for `v2` it is the folder
    above 0 to 999. `options` are the limits on images of what is opened here, `columns` those of a table whose columns
    are not called as usual.

    Raises:
        ConfigError: a split for a source that is open already, an unknown protocol.
        DataError: as `open_split`; for `imagenet` also a flat `val` without labels.
    """
    return open_with_roles(data, None, split=split, protocol=protocol, options=options, columns=columns)[0]


def open_with_roles(
    data: str | os.PathLike[str] | Source,
    record: SplitRecord | None,
    *,
    split: str | None = None,
    protocol: str = "folder",
    options: ImageOptions | None = None,
    columns: Columns = USUAL,
) -> tuple[Source, Roles | None]:
    """Open the images for the evaluation of a model, and determine how its training used them.

    For a run, the images are those of `open_for_run`, unless the protocol defines the images.

    Args:
        data, split, protocol, options, columns: as in `open_for`.
        record: of the run that the model is from; None for other models.

    Raises:
        ConfigError, DataError: as `open_for`; nothing but images that the run trained on.
    """
    require_protocol(protocol)
    roles = None
    # User-defined datasets number their images: only those of the same name are the same.
    own = is_part(os.fspath(data)) if isinstance(data, str | os.PathLike) else data.kind == "python"
    if own and record is not None and record.source != data:
        record = None
    if not isinstance(data, str | os.PathLike):
        if split not in (None, data.split):
            raise ConfigError(
                f"split ({split!r}) can't be used with a source that is already open.",
                remedy="Open that split of it, or give the data as MODEL.",
            )
        source = data
    elif record is not None and protocol == "folder":
        source, roles = open_for_run(data, record, split, columns)
    else:
        source = _open_spec(data, split, protocol, columns)
    if options is not None and source is not data:
        with_options(source, options)
    if record is not None and roles is None:
        roles = describe_roles(source, record)
    return source, roles


def _open_spec(data: str | os.PathLike[str], split: str | None, protocol: str, columns: Columns) -> Source:
    if columns != USUAL:
        return open_split(data, "eval", split=split, columns=columns)
    kind, place = parse_spec(data)
    if protocol == "v2" and kind == "folder":
        return open_split(f"imagenet-v2:{place}", "eval", split=split)
    if protocol in ("imagenet", "real") and kind in ("folder", "imagenet"):
        return _open_val(protocol, place, split)
    return open_split(data, "eval", split=split)


def plan_task(source: Source, protocol: str, real_labels: str | os.PathLike[str] | None = None) -> Task:
    """Decide which images count and which labels are right.

    Args:
        source: as `open_for` returns it.
        protocol: one of PROTOCOLS.
        real_labels: a file of ReaL labels; None takes the one in timm's package.

    Raises:
        ConfigError: `real_labels` for another protocol.
        DataError: data that is not what the protocol is about.
    """
    if real_labels is not None and protocol != "real":
        raise ConfigError(
            f"real_labels ({os.fspath(real_labels)!r}) can't be used with the protocol {protocol}.",
            remedy="Give --protocol real.",
        )
    if protocol == "real":
        return _plan_real(source, real_labels)
    if protocol == "imagenet":
        _require_class_names(source, protocol, "wnids such as n01440764")
    if protocol == "v2":
        _require_class_names(source, protocol, f"the numbers 0 to {V2_NUM_CLASSES - 1}")
    return Task(protocol, source)


def check_complete(task: Task, num_classes: int) -> list[str]:
    """Return what is missing for a result that can be compared with published ones.

    Args:
        task: as planned.
        num_classes: of the model; the sets are those of its 1,000 classes.

    Raises:
        DataError: a model of 1,000 classes on a V2 that is not 1,000 x 10.
    """
    num_images = len(task.source) + task.num_skipped
    if task.protocol in ("imagenet", "real") and num_images != NUM_VAL:
        return [
            f"{task.protocol}: expected the {NUM_VAL:,} validation images, got {num_images:,}; the results are not "
            "comparable with published ones."
        ]
    if task.protocol == "v2":
        return _check_v2(task.source, num_classes)
    return []


def read_real_labels(path: str | os.PathLike[str] | None = None) -> list[list[int]]:
    """Return the ReaL labels: entry i belongs to the image number i + 1; an empty list if it has none.

    Args:
        path: a JSON list of lists of class indices; None takes timm's packaged copy, whose sha256 is checked.

    Raises:
        DataError: another file than the published one in timm's package, or one that holds something else.
    """
    if path is None:
        text = read_table(_REAL_FILE)
        got = hashlib.sha256(text.encode("utf-8")).hexdigest()
        if got != REAL_SHA256:
            raise DataError(
                f"ReaL labels in timm's package: expected sha256 {REAL_SHA256}, got {got}.",
                remedy="Install timm again, or give the published real.json with --real-labels.",
            )
    else:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8", errors="replace")
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(own, list) and _are_indices(own) for own in labels):
        raise DataError(
            f"{path}: not a JSON list with one list of class indices per image.",
            remedy="Give real.json of the ReaL labels, as published.",
        )
    return labels


def real_index(name: str) -> int | None:
    """Return the entry of the ReaL labels for an image; None for a name that is not of ImageNet's validation.

    >>> real_index("val/n01751748/ILSVRC2012_val_00000001.JPEG")
    0
    """
    found = _VAL_NAME.search(name.rpartition("/")[2])
    return int(found[1]) - 1 if found else None


def _plan_real(source: Source, path: str | os.PathLike[str] | None) -> Task:
    entries = read_real_labels(path)
    indices = [real_index(name) for name in source.names]
    for position, index in enumerate(indices):
        if index is None or not 0 <= index < len(entries):
            raise DataError(
                f"{source.locate(position)}: the file name is not one of ILSVRC2012_val_00000001.JPEG to "
                f"{len(entries):08d}; ReaL labels are assigned by these numbers.",
                remedy="Evaluate ImageNet's validation images under their official names.",
            )
    twice = [f"{index + 1:08d}" for index, number in Counter(indices).items() if number > 1 and index is not None]
    if twice:
        raise DataError(
            f"real: these validation images occur more than once: {some(twice, _NUM_SHOWN)}.",
            remedy="Remove the copies.",
        )
    labels = [entries[index or 0] for index in indices]
    kept = [position for position, own in enumerate(labels) if own]
    warnings = _check_agreement(source, labels)
    counted = Subset(source, kept, split=source.split)
    return Task("real", counted, [labels[position] for position in kept], len(source) - len(kept), warnings)


def _check_agreement(source: Source, labels: Sequence[Sequence[int]]) -> list[str]:
    """Compare ReaL labels with those of the folders, if both are known; no model is used."""
    index_of = {wnid: index for index, wnid in enumerate(wnids())}
    own = [None if label is None else index_of.get(source.classes[label]) for label in source.labels]
    pairs = [(index, accepted) for index, accepted in zip(own, labels, strict=True) if index is not None and accepted]
    agreed = sum(index in accepted for index, accepted in pairs)
    if not pairs or agreed >= _LEAST_AGREEMENT * len(pairs):
        return []
    return [
        f"real: the labels agree with the folders on {agreed:,} of {len(pairs):,} images, although 90 % is usual: "
        "images and labels are shifted against each other, or the images are not in their classes' folders."
    ]


def _check_v2(source: Source, num_classes: int) -> list[str]:
    counts = Counter(source.classes[label] for label in source.labels if label is not None)
    wrong = [f"{index} ({counts[str(index)]})" for index in range(num_classes) if counts[str(index)] != V2_NUM_EACH]
    if not wrong:
        return []
    problem = f"v2: the folders 0 to {num_classes - 1:,} must have {V2_NUM_EACH} images each; not so in"
    if num_classes == V2_NUM_CLASSES:
        raise DataError(
            f"{problem} {len(wrong):,} of them: {some(wrong, _NUM_SHOWN)}.",
            remedy="Fetch imagenetv2-matched-frequency again; a part of it can be evaluated with --protocol folder and "
            "--data imagenet-v2:ROOT.",
        )
    return [f"{problem} {some(wrong, _NUM_SHOWN)}; the results are not comparable with published ones."]


def _open_val(protocol: str, place: str, split: str | None) -> Source:
    """ImageNet's validation below a root, or given itself; for ReaL flat and without labels, too."""
    path = Path(os.path.expanduser(place))
    if protocol == "real":
        for folder in (path, path / "val", path / "ILSVRC" / "Data" / "CLS-LOC" / "val"):
            if folder.is_dir() and not subfolders(folder):
                names = [name for name in walk_images(folder) if _VAL_NAME.match(name)]
                if names:
                    return FolderSource(folder, split="val", classes=[], names=names, labels=[None] * len(names))
    if path.is_dir():
        inner = subfolders(path)
        if inner and all(_WNID.fullmatch(name) for name in inner):
            return open_split(f"folder:{place}", "eval", split=split or "all")
        if not inner and walk_images(path):
            return open_split(f"imagenet:{path.resolve().parent}", "eval", split=split or "val")
    return open_split(f"imagenet:{place}", "eval", split=split or "val")


def _require_class_names(source: Source, protocol: str, expected: str) -> None:
    used = [source.classes[label] for label in sorted({label for label in source.labels if label is not None})]
    integers = all(name.isascii() and name.isdecimal() for name in used)
    # Labels of a flat val may be class indices; a folder's name that is a bare integer is one, too.
    fits = integers if protocol == "v2" else integers or all(_WNID.fullmatch(name) for name in used)
    if not fits or (protocol == "imagenet" and integers and source.kind == "folder"):
        raise DataError(
            f"protocol {protocol}: expected classes called by {expected}, got {some(used, _NUM_SHOWN)}.",
            remedy="Give that data set, or take --protocol folder for any other.",
        )


def _are_indices(own: list) -> bool:
    return all(isinstance(index, int) and not isinstance(index, bool) and 0 <= index < NUM_CLASSES for index in own)
