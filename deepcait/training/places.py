"""Where the data and the teacher of a run are: a resumed run may be given another place, and errors say so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepcait.errors import DeepcaitError
from deepcait.model.networks import is_model_name
from deepcait.parts import is_part
from deepcait.training.recipe import Recipe

DATA_FILE = "data.json"
TEACHER_FILE = "teacher.json"
# The settings that say where something is, and the record of what is there.
PLACES = {
    "data.source": DATA_FILE,
    "data.exclude": DATA_FILE,
    "data.image_root": DATA_FILE,
    "teacher.spec": TEACHER_FILE,
}
_OPTIONS = {"data.source": "--data", "teacher.spec": "--teacher"}  # others are given with --set


def may_move(folder: Path, name: str, before: Any, now: Any) -> bool:
    """Return whether a setting of a run is a place that may change: what is there is compared by its record.

    Code of one's own may not, since it is compared by its source, nor a teacher that is named, and not placed.
    """
    if name not in PLACES or not (folder / PLACES[name]).exists():
        return False
    if name in ("data.exclude", "data.image_root"):
        return True
    can_move = _is_place if name == "teacher.spec" else _is_no_code
    return can_move(before) and can_move(now)


@contextlib.contextmanager
def asking_for_places(folder: Path | None, recipe: Recipe, section: str) -> Iterator[None]:
    """Add to the remedy of an error how a resumed run is given the new places of what is no longer at its old ones.

    Args:
        folder: of the resumed run; None is a new run, whose errors stay as they are.
        recipe: with the old places.
        section: of the recipe, data or teacher.
    """
    try:
        yield
    except DeepcaitError as error:
        moved = [] if folder is None else _moved(folder, recipe, section)
        if not moved:
            raise
        remedy = f"{error.remedy} If the {section} of this run was moved, add the new place: {' '.join(moved)}."
        raise type(error)(error.problem, remedy=remedy) from error


def _moved(folder: Path, recipe: Recipe, section: str) -> list[str]:
    """The options for the places of a section at which there is nothing."""
    options = []
    for name in PLACES:
        part, _, field = name.partition(".")
        spec = getattr(getattr(recipe, part), field) if part == section else ""
        if spec and may_move(folder, name, spec, spec) and not _is_there(spec):
            options.append(f"{_OPTIONS[name]} NEW" if name in _OPTIONS else f"--set {name}=NEW")
    return options


def _is_there(spec: str) -> bool:
    return is_model_name(spec) or Path(spec.rpartition(":")[2]).expanduser().exists()


def _is_no_code(spec: Any) -> bool:
    return isinstance(spec, str) and spec != "" and not is_part(spec)


def _is_place(spec: Any) -> bool:
    """Whether a MODEL is a folder or a file: others begin with what they are, such as timm:, hf-hub: or python:."""
    return _is_no_code(spec) and ":" not in spec
