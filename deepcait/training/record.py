"""What a run began with: its images and its teacher, which a resumed run must find again, moved or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcait.data import Source
from deepcait.data.record import RUN_CONFIG, SPLIT_FILE, digest_of, read_record
from deepcait.errors import ImageError, RunError, some
from deepcait.training.data import TrainingData
from deepcait.training.places import DATA_FILE, TEACHER_FILE
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.teacher import Teacher

# Of a teacher's logits for one image: how many are recorded, and how much they may differ on another machine, as a
# part of the largest.
_NUM_LOGITS, _TOLERANCE = 100, 0.01


def records_of(folder: Path, recipe: Recipe, data: TrainingData, teacher: Teacher | None) -> dict[str, dict[str, Any]]:
    """Return the records of a run by the names of their files, compared with those in its folder.

    Args:
        folder: of the run, new or resumed.
        recipe: of the run, with the places of data and teacher.
        data: of the run.
        teacher: of distillation; None is none. A run that has come to a checkpoint without a record of its teacher, in
            an earlier version, stays without.

    Raises:
        RunError: data or teacher changed since the run began, or a record can't be read.
    """
    facts = {
        "classes": list(data.train.classes),
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        **({"num_test": len(data.test)} if len(data.test) else {}),
        "fingerprint": _fingerprint(data.train, data.validation),
    }
    if (folder / DATA_FILE).exists():
        _require_same_data(folder, facts)
        _require_same_images(folder, recipe, data)
    records: dict[str, dict[str, Any]] = {DATA_FILE: facts}
    if teacher is not None and ((folder / TEACHER_FILE).exists() or not _has_checkpoint(folder)):
        logits = teacher.sample_K[:_NUM_LOGITS].tolist()
        taught = {"spec": recipe.teacher.spec, "fingerprint": teacher.fingerprint(), "logits": logits}
        if (folder / TEACHER_FILE).exists():
            _require_same_teacher(folder, taught)
        records[TEACHER_FILE] = taught
    return records


def _fingerprint(*sources: Source) -> str:
    digest = hashlib.sha256()
    for source in sources:
        for name, label in zip(source.names, source.labels, strict=True):
            digest.update(f"{name}\t{label}\n".encode())
    return digest.hexdigest()


def _require_same_data(folder: Path, facts: dict[str, Any]) -> None:
    before = _read(folder / DATA_FILE, "data", ("fingerprint", "num_train", "num_validation"))
    if any(before[name] != facts.get(name) for name in before.keys() & {*facts, "num_test"}):
        raise RunError(
            f"{folder}: names or labels of the data have changed since the run began: {before['num_train']} training "
            f"and {before['num_validation']} validation images then, "
            f"{facts['num_train']} and {facts['num_validation']} now.",
            remedy="Restore the data, or start a new run in another --out. More in `deepcait help changed-data`.",
        )


def _require_same_images(folder: Path, recipe: Recipe, data: TrainingData) -> None:
    """Compare some images of data in another place with what the run remembers of them."""
    before = load_recipe(str((folder / RUN_CONFIG).resolve())).data if (folder / RUN_CONFIG).exists() else recipe.data
    same_place = (before.source, before.image_root) == (recipe.data.source, recipe.data.image_root)
    if same_place or not (folder / SPLIT_FILE).exists():
        return
    parts = read_record(folder / SPLIT_FILE).parts
    sources = {"train": data.parts.train, "val": data.parts.val, "test": data.parts.test}
    changed = [
        name for key, part in parts.items() if key in sources for name in _changed(sources[key], dict(part.probes))
    ]
    if changed:
        raise RunError(
            f"{folder}: {recipe.data.source} has other images of the same names than the data that the run began with, "
            f"such as {some(changed)}.",
            remedy="Give the place of the same images, or start a new run in another --out. More in `deepcait help "
            "changed-data`.",
        )


def _changed(source: Source, digests: dict[str, str]) -> list[str]:
    index_of = {name: index for index, name in enumerate(source.names) if name in digests}
    changed = []
    for name, index in index_of.items():
        try:
            if digest_of(source.read(index).data) != digests[name]:
                changed.append(name)
        except ImageError:  # training reports it, or leaves it out
            continue
    return changed


def _require_same_teacher(folder: Path, taught: dict[str, Any]) -> None:
    before = _read(folder / TEACHER_FILE, "teacher", ("fingerprint", "spec", "logits"))
    if before["fingerprint"] != taught["fingerprint"] or not _are_close(before["logits"], taught["logits"]):
        raise RunError(
            f"{folder}: the teacher {taught['spec']} differs in weights, preprocessing, classes or architecture from "
            f"that with which the run began ({before['spec']}).",
            remedy="Restore the teacher, or start a new run in another --out. More: `deepcait help existing-run`.",
        )


def _are_close(before: Sequence[float], now: Sequence[float]) -> bool:
    allowed = _TOLERANCE * max(map(abs, now), default=0.0)
    return len(before) == len(now) and all(abs(a - b) <= allowed for a, b in zip(before, now, strict=True))


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "last").exists() or any((folder / "checkpoints").rglob("*.safetensors"))


def _read(path: Path, what: str, names: Sequence[str]) -> dict[str, Any]:
    """A record, which has these facts and may have others."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {name: record[name] for name in names} | record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: the record of the run's {what} can't be read.",
            remedy=f"Remove it to continue without comparing the {what}, or start a new run in another --out.",
        ) from error
