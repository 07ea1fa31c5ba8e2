"""Where the data and the teacher of a run are: a resumed run may be given another place, and errors say so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepcait.errors import DeepcaitError
from deepcait.model.networks import is_model_name
from deepcait.parts import is_part

DATA_FILE = "data.json"
TEACHER_FILE = "teacher.json"
# The settings that say where something is, and the record of what is there.
PLACES = {
    "data.source": DATA_FILE,
    "data.exclude": DATA_FILE,
    "data.image_root": DATA_FILE,
    "teacher.spec": TEACHER_FILE,
}
_OPTIONS = {"data.source": "--data", "teacher.spec": "--teacher"}


def may_move(folder: Path, name: str, before: Any, now: Any) -> bool:
    """Return whether a setting of a run is a place that may change: what is there is compared by its record.

    Code of one's own may not, since it is compared by its source, nor a teacher that is named, and not placed.
    """
    if name not in PLACES or not (folder / PLACES[name]).exists():
        return False
    if name not in _OPTIONS:
        return True
    can_move = _is_place if name == "teacher.spec" else _is_no_code
    return can_move(before) and can_move(now)


@contextlib.contextmanager
def asking_for_place(folder: Path | None, name: str, spec: str) -> Iterator[None]:
    """Add the option for a new place to the remedy of an error if nothing is at the old one.

    Args:
        folder: of the resumed run; None is a new run, whose errors stay as they are.
        name: of the setting, data.source or teacher.spec.
        spec: its value.
    """
    try:
        yield
    except DeepcaitError as error:
        if folder is None or not may_move(folder, name, spec, spec) or _is_there(spec):
            raise
        what = name.partition(".")[0]
        remedy = f"{error.remedy} If the {what} of this run was moved, add {_OPTIONS[name]} with its new place."
        raise type(error)(error.problem, remedy=remedy) from error


def _is_there(spec: str) -> bool:
    return is_model_name(spec) or Path(spec.rpartition(":")[2]).expanduser().exists()


def _is_no_code(spec: Any) -> bool:
    return isinstance(spec, str) and spec != "" and not is_part(spec)


def _is_place(spec: Any) -> bool:
    """Whether a MODEL is a folder or a file: others begin with what they are, such as timm:, hf-hub: or python:."""
    return _is_no_code(spec) and ":" not in spec
