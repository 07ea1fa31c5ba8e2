"""What a run began with, by content: its images and its teacher, which a resumed run must find again, moved or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcait.data import Source
from deepcait.errors import RunError
from deepcait.training.data import TrainingData
from deepcait.training.teacher import Teacher

DATA_FILE = "data.json"
TEACHER_FILE = "teacher.json"
# The settings that say where something is, and the record of what is there.
PLACES = {
    "data.source": DATA_FILE,
    "data.exclude": DATA_FILE,
    "data.image_root": DATA_FILE,
    "teacher.spec": TEACHER_FILE,
}


def records_of(folder: Path, data: TrainingData, spec: str, teacher: Teacher | None) -> dict[str, dict[str, Any]]:
    """Return the records of a run by their files, in the order to write them, compared with those in its folder.

    Args:
        folder: of the run, new or resumed.
        data: of the run.
        spec, teacher: of distillation; None is none. A run that began without a record of its teacher, in version 0.1,
            stays without.

    Raises:
        RunError: data or teacher changed since the run began, or a record can't be read.
    """
    facts = {
        "classes": data.train.classes,
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        **({"num_test": len(data.test)} if len(data.test) else {}),
        "fingerprint": _fingerprint(data.train, data.validation),
    }
    is_resumed = (folder / DATA_FILE).exists()
    if is_resumed:
        _require_same_data(folder, facts)
    if teacher is None or (is_resumed and not (folder / TEACHER_FILE).exists()):
        return {DATA_FILE: facts}
    taught = {"spec": spec, "fingerprint": teacher.fingerprint()}
    if is_resumed:
        _require_same_teacher(folder, taught)
    # The teacher first: a process that is killed in between must not leave a run without this record.
    return {TEACHER_FILE: taught, DATA_FILE: facts}


def _fingerprint(*sources: Source) -> str:
    digest = hashlib.sha256()
    for source in sources:
        for name, label in zip(source.names, source.labels, strict=True):
            digest.update(f"{name}\t{label}\n".encode())
    return digest.hexdigest()


def _require_same_data(folder: Path, facts: dict[str, Any]) -> None:
    before = _read(folder / DATA_FILE, "data", ("num_train", "num_validation"))
    if before["fingerprint"] != facts["fingerprint"]:
        raise RunError(
            f"{folder}: names or labels of the data have changed since the run began: {before['num_train']} training "
            f"and {before['num_validation']} validation images then, "
            f"{facts['num_train']} and {facts['num_validation']} now.",
            remedy="Restore the data, or start a new run in another --out. More in `deepcait help changed-data`.",
        )


def _require_same_teacher(folder: Path, taught: dict[str, Any]) -> None:
    before = _read(folder / TEACHER_FILE, "teacher", ("spec",))
    if before["fingerprint"] != taught["fingerprint"]:
        raise RunError(
            f"{folder}: the teacher {taught['spec']} differs in weights, preprocessing or classes from that with which "
            f"the run began ({before['spec']}).",
            remedy="Restore the teacher, or start a new run in another --out. More: `deepcait help existing-run`.",
        )


def _read(path: Path, what: str, names: Sequence[str]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {name: record[name] for name in ("fingerprint", *names)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: the record of the run's {what} can't be read.",
            remedy=f"Remove it to continue without comparing the {what}, or start a new run in another --out.",
        ) from error
