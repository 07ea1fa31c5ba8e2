"""What images are to a run: trained on, deciders of its best epoch, or held out; and which of them to evaluate."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepcait.data.columns import USUAL, Columns
from deepcait.data.folder import empty_classes, split_of
from deepcait.data.holding import open_split
from deepcait.data.pairing import Named, pair_images
from deepcait.data.record import PARTS, SplitRecord, digest_of
from deepcait.data.source import Source, Subset, describe, own_split
from deepcait.data.spec import list_splits, open_source, parse_spec
from deepcait.errors import DataError, ImageError

TRAINED_ON, CHOSE, HELD_OUT = ROLE_NAMES = ("trained on", "chose the best epoch", "held out")
_WORDS = {"train": "training images", "val": "validation part", "test": "test part"}
_ROLE_OF_PART = {"train": TRAINED_ON, "val": CHOSE, "test": HELD_OUT}


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What evaluated images were to the run whose model is evaluated.

    Args:
        counts: images of each role, those with any.
        part: the part of the run that they are ("test", "val"); "" for others, such as a split of the data.
        left_out: images that were not evaluated because the run trained on them.
        missing: images of the part that the data no longer has.
    """

    counts: dict[str, int] = field(default_factory=dict)
    part: str = ""
    left_out: int = 0
    missing: int = 0

    @property
    def name(self) -> str:
        """One of ROLE_NAMES, or "mixed"."""
        return next(iter(self.counts)) if len(self.counts) == 1 else "mixed"

    def __str__(self) -> str:
        if self.counts.keys() == {HELD_OUT}:
            text = "held out: used neither for training nor to choose the epoch"
        elif self.counts.keys() == {CHOSE}:
            text = "these images chose the best epoch, so the accuracy is optimistic"
        elif self.counts.keys() == {TRAINED_ON}:
            text = "trained on: this is not an accuracy on new images"
        else:
            text = ", ".join(f"{num:,} {name}" for name, num in self.counts.items())
        left_out = f"; {self.left_out:,} others that the run trained on are left out" if self.left_out else ""
        return text + left_out

    def to_dict(self) -> dict:
        """The same for JSON."""
        counts = {name.replace(" ", "_"): self.counts.get(name, 0) for name in ROLE_NAMES}
        return {"role": self.name, **counts, "part": self.part or None, "left_out": self.left_out}


def roles_in(source: Source, record: SplitRecord) -> list[str]:
    """Return the role of each image in a run, by its path and label, wherever the files are now.

    `pair_images` compares the names. Images with the names of a part but other content, as some of them show, are not
    that part's.
    """
    found = _positions(source, record)
    roles = [HELD_OUT] * len(source)
    for key in reversed(PARTS):  # what trained, trained, whatever else it was
        part = record.parts.get(key)
        for name, position in found[key]:
            if part is not None and name not in part.unused:
                roles[position] = _ROLE_OF_PART[key]
    return roles


def describe_of_run(source: Source, roles: Roles) -> str:
    """Return what is evaluated, in one line: as `describe`, and what it was to the run."""
    line = describe(source)
    if roles.part:
        line = line.replace(f"split {source.split}", f"{_WORDS[roles.part]} of the run", 1)
    return f"{line}; {roles}"


def describe_roles(source: Source, record: SplitRecord) -> Roles:
    """Return what the images of an open source were to a run."""
    return Roles(counts=_count(roles_in(source, record)))


def open_for_run(
    spec: str | os.PathLike[str], record: SplitRecord, split: str | None = None, columns: Columns = USUAL
) -> tuple[Source, Roles]:
    """Open what a run's model is evaluated on: test, else the run's own test part, else what validated it.

    Without a split, no image is taken that the run trained on.

    Args:
        spec: a DATA.
        record: of the run.
        columns: as in `open_source`.
        split: train, val, test or all: the data's own split, else that part of the run, even if it trained on it.

    Raises:
        DataError: as `open_source`; no image that the run has not trained on.
    """
    own = list_splits(spec, columns)
    if split is not None:
        return _asked(spec, record, split, own, columns)
    if "test" in own:
        return _without_trained(_open(spec, "test", columns), record)
    for part in ("test", "val"):
        if part == "val" and "val" in own:
            return _without_trained(_open(spec, "val", columns), record)
        taken = _part_of(spec, record, part, columns)
        if taken is not None:
            return taken
    return _without_trained(_open(spec, None, columns), record)


def _open(spec: str | os.PathLike[str], split: str | None, columns: Columns) -> Source:
    """Open a split; class folders without images, which a fix list may have excluded, are not an error."""
    kind, place = parse_spec(spec)
    empty = empty_classes(Path(os.path.expanduser(place))) if kind == "folder" else frozenset()
    return open_source(spec, split, columns=columns, left_out=empty)


def _asked(
    spec: str | os.PathLike[str], record: SplitRecord, split: str, own: Sequence[str], columns: Columns
) -> tuple[Source, Roles]:
    taken = None if split == "all" or (split in own and split != "train") else _part_of(spec, record, split, columns)
    if taken is not None:
        return taken
    whole = split == "all" or split in own
    source = _open(spec, split, columns) if whole else open_split(spec, "eval", split=split, columns=columns)
    return source, describe_roles(source, record)


def _part_of(
    spec: str | os.PathLike[str], record: SplitRecord, key: str, columns: Columns
) -> tuple[Source, Roles] | None:
    """The images of a part of the run, None if the data has none of them."""
    part = record.parts.get(key)
    if part is None or not part.names:
        return None
    split = part.split if part.split in list_splits(spec, columns) else None
    source = _open(spec, split, columns)
    role = _ROLE_OF_PART[key]
    found = _positions(source, record)[key]
    roles = roles_in(source, record)
    indices = sorted({position for name, position in found if name not in part.unused and roles[position] == role})
    if not indices:
        return None
    wanted = len(part.names) - len(part.unused)
    return Subset(source, indices, split=key), Roles(
        counts={role: len(indices)}, part=key, missing=wanted - len(indices)
    )


def _without_trained(source: Source, record: SplitRecord) -> tuple[Source, Roles]:
    roles = roles_in(source, record)
    kept = [index for index, role in enumerate(roles) if role != TRAINED_ON]
    if not kept:
        raise DataError(
            f"all {len(source):,} images have names and labels of images that the run trained on (the first is "
            f"{source.locate(0)}).",
            remedy="Give images that it did not train on; --split all evaluates these all the same.",
        )
    counts = _count(roles[index] for index in kept)
    if len(kept) == len(source):
        return source, Roles(counts=counts)
    return Subset(source, kept, split=source.split), Roles(counts=counts, left_out=len(source) - len(kept))


def _count(roles: Iterable[str]) -> dict[str, int]:
    counts = Counter(roles)
    return {name: counts[name] for name in ROLE_NAMES if counts[name]}


def _positions(source: Source, record: SplitRecord) -> dict[str, list[tuple[str, int]]]:
    """Part -> (name in the run, position in the source) of the images that both have."""
    here = [_named(source, index) for index in range(len(source))]
    there: list[Named] = []
    keys: list[str] = []
    for key, part in record.parts.items():
        labels = part.labels or [None] * len(part.names)
        there += [Named(name, part.split, label) for name, label in zip(part.names, labels, strict=True)]
        keys += [key] * len(part.names)
    found: dict[str, list[tuple[str, int]]] = {key: [] for key in PARTS}
    for index, row in pair_images(here, there):
        found[keys[row]].append((there[row].path, index))
    return found | {key: _of_same_content(source, found[key], part.probes) for key, part in record.parts.items()}


def _named(source: Source, index: int) -> Named:
    """The name of an image, its split apart from its path."""
    name, number, own = source.names[index], source.labels[index], own_split(source)
    label = "" if number is None else source.classes[number]
    first, _, rest = name.partition("/")
    inner = split_of(first) if not own and rest else None
    return Named(rest if inner else name, inner or own, label)


def _of_same_content(
    source: Source, found: Sequence[tuple[str, int]], probes: Mapping[str, str]
) -> list[tuple[str, int]]:
    """The images of a part, found by name: none if the content of most of those that can be compared differs."""
    differing, num_same = set(), 0
    for name, position in found:
        if name in probes:
            try:
                same = digest_of(source.read(position).data) == probes[name]
            except ImageError:  # can't tell
                continue
            num_same += same
            differing |= set() if same else {position}
    return [pair for pair in found if pair[1] not in differing] if num_same >= len(differing) else []
