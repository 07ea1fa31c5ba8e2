"""The doctor: reads every image of a data source once and reports problems before a training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from deepcait.data.columns import USUAL, Columns
from deepcait.data.depth import FEW_LEVELS, few_levels
from deepcait.data.duplicates import THUMB_SHAPE, equal_groups, near_groups
from deepcait.data.findings import Diagnosis, Finding, merge_paths, sort_by_severity
from deepcait.data.folder import find_splits
from deepcait.data.formats import IMAGE_SUFFIXES, SUFFIXES
from deepcait.data.holding import open_split
from deepcait.data.image import DEFAULT, ImageOptions
from deepcait.data.layout import class_names, look_around
from deepcait.data.looking import Look, look_at_all
from deepcait.data.plausible import doubts, require_classes
from deepcait.data.sides import fold_sides, split_groups
from deepcait.data.source import Source, require_labels, with_options
from deepcait.data.spec import list_splits, open_source, parse_spec
from deepcait.errors import DataError, DeepcaitError
from deepcait.runtime.environment import num_cpus

# Starting workers costs seconds: so many images are read here faster.
_FEW_IMAGES = 300
_MAX_WORKERS = 8
_TINY_PX = 8
_HUGE_PIXELS = 24_000_000
_EXTREME_ASPECT = 8
_IMBALANCE = 10  # "a tenth" below
_ENDS_A_TRAINING = ("unusable_split", "empty_class", "unknown_class")


@dataclass(frozen=True)
class _Seen:
    """An examined image: its split, class name, location, and properties."""

    split: str
    label: str | None
    place: str
    look: Look


def examine(
    spec: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
    options: ImageOptions = DEFAULT,
    columns: Columns = USUAL,
    group: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnosis:
    """Read every image of every split once, and return the findings; changes nothing.

    Args:
        spec: a DATA.
        num_workers: processes that read; None means one per processor, at most 8, and 0 for few
            images; 0 reads in this process.
        options: limits on images, as a training would set them.
        columns: of a table whose columns are not called as usual.
        group: column of the data whose values must not be in two splits or folds; "" takes usual names.
        progress: called with (done, total) images.

    Raises:
        ConfigError: an unknown kind of MODEL.
        DataError: nothing is there, or no split can be opened.
    """
    kind, place = parse_spec(spec)
    root = Path(os.path.expanduser(place)) if kind == "folder" else None
    findings = look_around(root) if root else []
    sources, unusable = _open_splits(spec, root, columns)
    total = sum(len(source) for source in sources.values())
    if num_workers is None:
        num_workers = min(num_cpus(), _MAX_WORKERS) if total > _FEW_IMAGES else 0
    done = 0

    def count(num: int) -> None:
        nonlocal done
        done += num
        progress(done, total)

    seen: list[_Seen] = []
    sides = fold_sides(spec, sources, columns)
    for split, source in sources.items():
        looks = look_at_all(with_options(source, options), num_workers, count)
        labels = [None if label is None else source.classes[label] for label in source.labels]
        seen += [
            _Seen(sides[split][index], labels[index], source.locate(index), look) for index, look in enumerate(looks)
        ]
    sound = [one for one in seen if one.look.fault is None]
    findings += unusable + _class_findings(sources) + split_groups(spec, sources, sides, group, columns)
    findings += (
        _as_a_training(spec, findings, columns) + _faults(seen) + _oddities(sound) + _equal(sound) + _alike(sound)
    )
    return Diagnosis(
        kind,
        {split: len(source) for split, source in sources.items()},
        list(dict.fromkeys(name for source in sources.values() for name in source.classes)),
        sort_by_severity(findings),
    )


def _open_splits(
    spec: str | os.PathLike[str], root: Path | None, columns: Columns
) -> tuple[dict[str, Source], list[Finding]]:
    """Open each split separately: one that can't be opened is a finding, unless it is the only one."""
    # In folders a split without class folders is among the findings of `look_around`.
    names = list(find_splits(root)) if root else list_splits(spec, columns)
    classes = class_names(root) if root else None
    if not names:
        return {"all": open_source(spec, classes=classes, columns=columns)}, []
    sources, findings, errors = {}, [], []
    for name in names:
        try:
            sources[name] = open_source(spec, name, classes=classes, columns=columns)
        except DataError as error:
            errors.append(error)
            findings.append(Finding("unusable_split", (name,), error.problem))
    if not sources:
        raise errors[0]
    return sources, findings


def _as_a_training(spec: str | os.PathLike[str], found: list[Finding], columns: Columns) -> list[Finding]:
    """Errors and notes that a training on this data would raise, if not found already."""
    try:
        samples = open_split(spec, "train", columns=columns)
        validation = open_split(spec, "val", classes=samples.classes, labels="names", columns=columns)
        for source in (samples, validation):
            require_labels(source)
        require_classes(spec, samples)
    except DeepcaitError as error:
        reported = any(finding.kind in _ENDS_A_TRAINING for finding in found)
        return [] if reported else [Finding("refused", (os.fspath(spec),), f"{error.problem} {error.remedy}")]
    return [Finding("doubtful", (os.fspath(spec),), str(doubt)) for doubt in doubts(spec, samples)]


def _faults(seen: list[_Seen]) -> list[Finding]:
    return [
        Finding(one.look.fault[0], (one.place,), _after_place(one.look.fault[1], one.place), (one.place,))
        for one in seen
        if one.look.fault
    ]


def _after_place(text: str, place: str) -> str:
    return text.removeprefix(f"{place}: ")


def _oddities(sound: list[_Seen]) -> list[Finding]:
    """Findings about single images: one per image if a person has to check it, else one for all."""
    findings = []
    for one in sound:
        look, paths = one.look, (one.place,)
        width, height = look.size
        suffix = PurePath(look.name).suffix.lower()
        own = SUFFIXES.get("JPEG" if look.format == "MPO" else look.format, (suffix,))
        if suffix in IMAGE_SUFFIXES and suffix not in own:
            findings.append(Finding("wrong_extension", paths, f"called {suffix}, holds {look.format}"))
        if min(look.size) < _TINY_PX:
            findings.append(Finding("tiny", paths, f"{width} x {height} pixels"))
        elif max(look.size) > _EXTREME_ASPECT * min(look.size):
            findings.append(Finding("extreme_aspect", paths, f"{width} x {height} pixels"))
        if width * height > _HUGE_PIXELS:
            findings.append(Finding("huge", paths, f"{width} x {height} pixels"))
    turned = [one.place for one in sound if one.look.turned]
    others = [one for one in sound if one.look.mode != "RGB"]
    modes = ", ".join(f"{mode} {num:,}" for mode, num in Counter(one.look.mode for one in others).most_common())
    deep = [one for one in sound if one.look.levels]
    brightest = max((one.look.levels for one in deep), default=FEW_LEVELS)
    if brightest < FEW_LEVELS:  # of all of them: one image may well be dark
        findings += merge_paths("few_levels", [one.place for one in deep], few_levels(brightest))
    animated = [one.place for one in sound if one.look.animated]
    findings += merge_paths(
        "exif_turn", turned, f"{len(turned):,} images are rotated when read, according to their EXIF data"
    )
    findings += merge_paths("not_rgb", [one.place for one in others], f"{len(others):,} images become RGB: {modes}")
    findings += merge_paths("animated", animated, f"{len(animated):,} files have several frames: the first is read")
    return findings


def _equal(sound: list[_Seen]) -> list[Finding]:
    """Images with equal pixels: with two labels, in two splits, or duplicated."""
    findings = []
    for group in equal_groups([one.look.pixels for one in sound]):
        ones = [sound[index] for index in group]
        paths = tuple(one.place for one in ones)
        labels = list(dict.fromkeys(str(one.label) for one in ones))
        splits = list(dict.fromkeys(one.split for one in ones))
        if len(labels) > 1:
            text = f"equal pixels under the labels {', '.join(labels)}: decide which label is correct"
            findings.append(Finding("two_labels", paths, text, paths))
        if len(splits) > 1:
            # What measures stays; training does without.
            text = f"equal pixels in {', '.join(splits)}: an accuracy on training images is not meaningful"
            trained = tuple(one.place for one in ones if one.split == splits[0])
            findings.append(Finding("leak", paths, text, trained))
        if len(labels) == 1 and len(splits) == 1:
            findings.append(Finding("duplicate", paths, f"equal pixels {len(ones)} times", paths[1:]))
    return findings


def _alike(sound: list[_Seen]) -> list[Finding]:
    """Images that are similar but not equal; a person has to decide whether they are the same."""
    different = list({one.look.pixels: one for one in reversed(sound)}.values())[::-1]
    thumbs = np.frombuffer(b"".join(one.look.thumb for one in different), np.uint8).reshape(-1, *THUMB_SHAPE)
    findings = []
    for group in near_groups(thumbs):
        ones = [different[index] for index in group]
        splits = list(dict.fromkeys(one.split for one in ones))
        labels = list(dict.fromkeys(str(one.label) for one in ones))
        text = f"{len(ones)} images look alike" + (f", under the labels {', '.join(labels)}" * (len(labels) > 1))
        kind = "near_leak" if len(splits) > 1 else "near_duplicate"
        text += f", in {', '.join(splits)}" * (len(splits) > 1)
        findings.append(Finding(kind, tuple(one.place for one in ones), text))
    return findings


def _class_findings(sources: dict[str, Source]) -> list[Finding]:
    """Classes that are missing in a split or in training, or that are very small compared with others."""
    counts = {
        split: Counter(source.classes[label] for label in source.labels if label is not None)
        for split, source in sources.items()
    }
    first = next(iter(sources))
    findings = []
    for split, found in counts.items():
        missing = [name for name in counts[first] if name not in found]
        unknown = [name for name in found if name not in counts[first]]
        if not found:
            continue  # without labels
        paths = [f"{split}/{name}" for name in missing]
        findings += merge_paths("class_missing", paths, f"{len(missing)} classes of {first} have no image in {split}")
        paths = [f"{split}/{name}" for name in unknown]
        findings += merge_paths("unknown_class", paths, f"{len(unknown)} classes of {split} are not in {first}")
    largest, most = max(counts[first].items(), key=lambda pair: pair[1], default=("", 0))
    small = [f"{first}/{name}" for name, num in counts[first].items() if num * _IMBALANCE < most]
    text = f"{len(small)} classes are less than a tenth of {largest} ({most:,} images): consider data.balanced"
    return findings + merge_paths("imbalance", small, text)
