"""Draw parts of the images: seeded, stratified by class, groups kept together, the same on every machine."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from deepcait.data.source import Source, Subset
from deepcait.errors import ConfigError

_LIMIT_SEED = "limit"
TEST_SEED = "test"  # of the test part, whatever the seed of a run: runs with other seeds share it


def stratified_split(
    names: Sequence[str],
    labels: Sequence[int | None],
    *,
    fraction: float = 0.1,
    seed: int | str = 0,
    groups: Sequence[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Split indices into train and val, class by class.

    Within a class the images are ranked by sha256(seed, name) and the first round(fraction * n)
    of its n are held out: at least 1 where n >= 2, never all. The choice follows from names and
    seed alone, whatever order the images come in. With groups, whole groups are held out, as
    many as come nearest to these numbers; a class that has one group only stays in train.

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
    wanted = {label: _share(fraction, num) for label, num in Counter(labels).items() if num >= 2}
    if groups is not None:
        val = _whole_groups(labels, groups, wanted, seed)
    else:
        val = set()
        for label, indices in _members(labels).items():
            val.update(sorted(indices, key=lambda index: _rank(seed, names[index]))[: wanted.get(label, 0)])
    return [index for index in range(len(names)) if index not in val], sorted(val)


def deal_folds(
    names: Sequence[str],
    labels: Sequence[int | None],
    num_folds: int,
    *,
    seed: int | str = 0,
    groups: Sequence[str] | None = None,
) -> list[int]:
    """Return the fold of each image, 0 to num_folds - 1: equal in size and in classes, no group in two.

    Largest groups first, each goes to the fold that has the smallest part of its classes.

    Raises:
        ConfigError: fewer than two folds, or more than images or groups.
    """
    units = _members(names if groups is None else groups)
    if not 2 <= num_folds <= len(units):
        what = "images" if groups is None else "groups"
        raise ConfigError(
            f"Folds: expected 2 to {len(units):,}, the number of {what}, got {num_folds}.", remedy="Choose e.g. 5."
        )
    totals = Counter(labels)
    held: list[Counter] = [Counter() for _ in range(num_folds)]
    folds = [0] * len(names)
    for unit in sorted(units, key=lambda unit: (-len(units[unit]), _rank(seed, str(unit)))):
        own = Counter(labels[index] for index in units[unit])

        def crowded(fold: int, own: Counter = own) -> tuple[float, int, int]:
            share = sum(num * held[fold][label] / totals[label] for label, num in own.items())
            return share, held[fold].total(), fold

        chosen = min(range(num_folds), key=crowded)
        held[chosen] += own
        for index in units[unit]:
            folds[index] = chosen
    return folds


def limited(source: Source, limit: int) -> Source:
    """Return at most `limit` samples of a source, each class in proportion; 0, or more than there are, takes all.

    Within a class the images are ranked as for the split, with another seed, so the choice depends on names
    alone. A smaller limit takes a part of what a larger one takes, but for rounding between classes.
    """
    if not limit or limit >= len(source):
        return source
    members = _members(source.labels)
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


def spread(names: Sequence[str], num: int) -> list[int]:
    """Return the indices of at most `num` names, drawn from the names alone."""
    if len(names) <= num:
        return list(range(len(names)))
    return sorted(sorted(range(len(names)), key=lambda index: _rank("probe", names[index]))[:num])


def _members(keys: Sequence[Hashable]) -> dict:
    """Key -> the indices that have it."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    return members


def _share(fraction: float, num: int) -> int:
    return min(max(1, round(fraction * num)), num - 1)


def _whole_groups(
    labels: Sequence[int | None], groups: Sequence[str], wanted: dict[int | None, int], seed: int | str
) -> set[int]:
    """The indices of whole groups with about the wanted number of each class; no class loses its last group."""
    members = _members(groups)
    content = {group: Counter(labels[index] for index in indices) for group, indices in members.items()}
    left = Counter(label for own in content.values() for label in own)  # groups of each class that train still has
    missing = Counter(wanted)
    held: set[int] = set()
    for least in (False, True):  # then what a class without any can get
        for group in sorted(content, key=lambda group: _rank(seed, group)):
            own = content[group]
            gain = sum(min(num, missing[label]) - max(0, num - max(0, missing[label])) for label, num in own.items())
            starved = any(missing[label] == wanted.get(label, 0) > 0 for label in own)
            if (starved if least else gain > 0) and all(left[label] > 1 for label in own):
                missing.subtract(own)
                left.subtract(own.keys())
                held.update(members[group])
                content[group] = Counter()
    return held


def _rank(seed: int | str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
