"""`split.json` of a run: which images trained it, which chose its best epoch, which it never used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deepcait.data.columns import USUAL, Columns
from deepcait.data.source import Source, own_split
from deepcait.data.split import spread
from deepcait.errors import DataError, ImageError, some
from deepcait.parts import path_of

RUN_CONFIG = "config.yaml"  # makes a folder a run
SPLIT_FILE = "split.json"
_RUN_FILES = (SPLIT_FILE, "data.json", "status.json")
PARTS = ("train", "val", "test")
_FORMAT = "deepcait-split-2"
_FORMAT_1 = "deepcait-split-1"  # has names of train and val only
_NUM_PROBES = 64  # images of a part whose content is remembered


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images with one role in a run.

    Args:
        split: of the data, that they were taken from; "" if the data has no splits.
        names: as the source has them.
        labels: class name of each; empty if not known.
        unused: names of those that the run left out (`data.exclude`, `data.limit`).
        probes: name -> digest of the file, for some of them: other images may have the same names.
    """

    split: str = ""
    names: Sequence[str] = ()
    labels: Sequence[str] = ()
    unused: frozenset[str] = frozenset()
    probes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """The parts of a run.

    Args:
        where: the file that they were read from.
        parts: by key, see PARTS.
        source: the DATA that the run was trained on.
    """

    where: str
    parts: Mapping[str, Part]
    source: str = ""

    def indices(self, names: Sequence[str], keys: Sequence[str] = PARTS) -> dict[str, list[int]]:
        """Return the positions in `names` of the parts of a run that resumes.

        Args:
            names: of all images that the parts were drawn from.
            keys: of these parts; others are splits of the data.

        Raises:
            DataError: the names of the parts are not exactly those of the data.
        """
        parts = {key: part for key, part in self.parts.items() if key in keys}
        own = [name for part in parts.values() for name in part.names]
        index_of = {name: index for index, name in enumerate(names)}
        missing = [name for name in own if name not in index_of]
        if sorted(own) != sorted(names):
            what = f"missing are {some([repr(name) for name in missing])}" if missing else "there are new ones"
            raise DataError(
                f"{self.where}: the images are not those of the recorded split: {what}.",
                remedy="Restore the images, or start a new run in another --out.",
            )
        return {key: sorted(index_of[name] for name in part.names) for key, part in parts.items()}


def digest_of(data: bytes) -> str:
    """Return what a probe remembers of a file."""
    return hashlib.sha256(data).hexdigest()[:16]


def part_of_run(source: Source, used: Source | None = None) -> Part:
    """Return what a run remembers of a part; some of its images are read.

    Args:
        source: all of the part, labelled.
        used: what the run takes of it.
    """
    kept = set(source.names if used is None else used.names)
    return Part(
        split=own_split(source),
        names=list(source.names),
        labels=[source.classes[label] if label is not None else "" for label in source.labels],
        unused=frozenset(name for name in source.names if name not in kept),
        probes=_probes(source),
    )


def _probes(source: Source) -> dict[str, str]:
    if source.kind == "python":  # its items may be drawn at random
        return {}
    probes = {}
    for index in spread(source.names, _NUM_PROBES):
        try:
            probes[source.names[index]] = digest_of(source.read(index).data)
        except ImageError:  # training reports it, or leaves it out
            continue
    return probes


def record_text(parts: Mapping[str, Part], **facts: Any) -> str:
    """Return the content of `split.json`; `facts` (seed, ...) are for the reader."""
    classes = sorted({label for part in parts.values() for label in part.labels})
    index_of = {name: index for index, name in enumerate(classes)}
    content = {
        "format": _FORMAT,
        **facts,
        "splits": {key: part.split for key, part in parts.items()},
        **{key: list(part.names) for key, part in parts.items()},
        "classes": classes,
        "labels": {key: [index_of[label] for label in part.labels] for key, part in parts.items()},
        "unused": {key: sorted(part.unused) for key, part in parts.items()},
        "probes": {key: dict(part.probes) for key, part in parts.items()},
    }
    return json.dumps(content, indent=1) + "\n"


def read_record(path: str | os.PathLike[str]) -> SplitRecord:
    """Read `split.json`.

    Raises:
        DataError: it is not one.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] == _FORMAT_1:
            # Both were parts of train, or of data without splits, which no split contradicts.
            parts = {key: Part(split="train", names=_texts(content[key])) for key in ("train", "val")}
        elif content["format"] == _FORMAT:
            parts = {key: _part(content, key) for key in PARTS}
        else:
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{os.fspath(path)}: not a readable record of a split ({_FORMAT}): {type(error).__name__}: {error}.",
            remedy="Restore the file; only it lists the images that the run trained on.",
        ) from error
    return SplitRecord(where=os.fspath(path), parts=parts, source=str(content.get("source", "")))


def _part(content: dict[str, Any], key: str) -> Part:
    names = _texts(content[key])
    labels = [str(content["classes"][index]) for index in content["labels"][key]]
    if len(labels) != len(names):
        raise ValueError(f"{len(names)} names and {len(labels)} labels")
    unused, probes = frozenset(_texts(content["unused"][key])), dict(content["probes"][key])
    return Part(split=str(content["splits"][key]), names=names, labels=labels, unused=unused, probes=probes)


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("expected a list of names")
    return value


def run_around(spec: str) -> Path | None:
    """Return the folder of the run that a MODEL is from: itself, or around a model folder or weights file in it.

    For a user-defined network it is the run of its weights; the file of averaged weights is RUN/best/ema/FILE. Other
    programs have a config.yaml, too: a run has one of its other files as well.
    """
    path = path_of(spec).absolute()
    places = (path, *path.parents[:3]) if os.path.exists(path) else ()
    runs = (place for place in places if (place / RUN_CONFIG).is_file())
    return next((place for place in runs if any((place / name).is_file() for name in _RUN_FILES)), None)


def find_record(spec: str) -> SplitRecord | None:
    """Return the record of the run that a MODEL is from; None if it is not from a run, or the run has no record.

    Raises:
        DataError: the file is damaged.
    """
    run = run_around(spec)
    return read_record(run / SPLIT_FILE) if run is not None and (run / SPLIT_FILE).is_file() else None


def columns_for(spec: str, data: str | os.PathLike[str], given: Columns = USUAL) -> Columns:
    """Return the columns to read a DATA with for a MODEL: those given, else of a run's own data those of the run.

    Raises:
        DataError: the settings of the run can't be read.
    """
    run = run_around(spec)
    if given != USUAL or run is None:
        return given
    try:
        content = yaml.safe_load((run / RUN_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(
            f"{run / RUN_CONFIG} can't be read: {error}.", remedy="Restore the file, which has the run's settings."
        ) from error
    settings = content.get("data") if isinstance(content, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    own = settings.get("source")
    same = own == os.fspath(data) or (own and os.path.exists(data) and os.path.realpath(own) == os.path.realpath(data))
    return Columns.from_settings(settings) if same else USUAL
