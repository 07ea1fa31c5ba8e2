"""Hold out a part of the training images: seeded, stratified, the same on every machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcait.data.source import Source, Subset
from deepcait.errors import ConfigError, DataError
from deepcait.runtime.files import write_bytes

SPLIT_FILE = "split.json"  # in a run whose data has neither val nor test
_FORMAT = "deepcait-split-1"
_LIMIT_SEED = "limit"


def stratified_split(
    names: Sequence[str], labels: Sequence[int | None], *, fraction: float = 0.1, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Split indices into train and val, class by class.

    Within a class the images are ranked by sha256(seed, name) and the first round(fraction * n)
    of its n are held out: at least 1 where n >= 2, never all. The choice follows from names and
    seed alone, whatever order the images come in.

    Returns:
        train_indices, val_indices: both ascending, together every index once.

    Raises:
        ConfigError: fraction outside (0, 1), or not one name a label.
    """
    if not 0 < fraction < 1:
        raise ConfigError(
            f"Held-out fraction: expected a number in (0, 1), got {fraction!r}.", remedy="Choose e.g. 0.1."
        )
    if len(names) != len(labels):
        raise ConfigError(
            f"Split: expected one label a name, got {len(names)} names and {len(labels)} labels.",
            remedy="Pass both of the same source.",
        )
    members: dict[int | None, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    val: set[int] = set()
    for indices in members.values():
        if len(indices) >= 2:
            num_val = min(max(1, round(fraction * len(indices))), len(indices) - 1)
            val.update(sorted(indices, key=lambda index: _rank(seed, names[index]))[:num_val])
    return [index for index in range(len(names)) if index not in val], sorted(val)


def limited(source: Source, limit: int) -> Source:
    """Return at most `limit` samples of a source, each class in proportion; 0, or more than there are, takes all.

    Within a class the images are ranked as for the split, with a seed of its own, so the choice follows from names
    alone. A smaller limit takes a part of what a larger one takes, but for rounding between classes.
    """
    if not limit or limit >= len(source):
        return source
    members: dict[int | None, list[int]] = defaultdict(list)
    for index, label in enumerate(source.labels):
        members[label].append(index)
    shares = {label: limit * len(indices) / len(source) for label, indices in members.items()}
    counts = {label: int(share) for label, share in shares.items()}
    # What rounding down left over goes to the classes that lost most, the first of equals.
    for label in sorted(shares, key=lambda label: counts[label] - shares[label])[: limit - sum(counts.values())]:
        counts[label] += 1
    chosen = [
        index
        for label, indices in members.items()
        for index in sorted(indices, key=lambda index: _rank(_LIMIT_SEED, source.names[index]))[: counts[label]]
    ]
    return Subset(source, sorted(chosen), split=source.split)


def write_manifest(
    path: str | os.PathLike[str], names: Sequence[str], val_indices: Sequence[int], **facts: Any
) -> None:
    """Write which names are held out, as JSON, whole or not at all; `facts` (seed, ...) go with it."""
    val = set(val_indices)
    train_names = [name for index, name in enumerate(names) if index not in val]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, manifest_text(train_names, [names[index] for index in sorted(val)], **facts).encode())


def manifest_text(train_names: Sequence[str], val_names: Sequence[str], **facts: Any) -> str:
    """Return what a manifest holds."""
    parts = {"train": list(train_names), "val": list(val_names)}
    return json.dumps({"format": _FORMAT, **facts, **parts}, indent=1) + "\n"


def read_manifest(path: str | os.PathLike[str], names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Read a manifest back as (train_indices, val_indices) into `names`.

    Raises:
        DataError: not a manifest, or its names are not exactly those of the data.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        fits = content["format"] == _FORMAT
        train, val = list(content["train"]), list(content["val"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_manifest(path, f"{type(error).__name__}: {error}") from error
    if not fits or not all(isinstance(name, str) for name in train + val):
        raise _not_a_manifest(path, "another format")
    index_of = {name: index for index, name in enumerate(names)}
    missing = [name for name in train + val if name not in index_of]
    if sorted(train + val) != sorted(names):
        got = f"{missing[0]!r} missing" if missing else "others than the manifest lists"
        raise DataError(
            f"{path}: expected the images that were split then, got {got}.",
            remedy="Restore the images, or take another split (all, for example).",
        )
    return sorted(index_of[name] for name in train), sorted(index_of[name] for name in val)


def _not_a_manifest(path: str | os.PathLike[str], got: str) -> DataError:
    return DataError(f"{path}: expected a split manifest ({_FORMAT}), got {got}.", remedy="Delete it to split again.")


def _rank(seed: int | str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
