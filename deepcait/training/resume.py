"""The settings that must not change when a run resumes: all that affect the result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, RunError, some
from deepcait.parts import model_in
from deepcait.training.aliases import rename_settings
from deepcait.training.journal import read_state
from deepcait.training.places import DATA_FILE, PLACES, may_move
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.schedule import CAN_BE_LONGER

# What may differ between a run and its resumption. Nothing here decides a row of metrics.jsonl but by rounding.
_FREE_ON_RESUME = (
    "about.",
    "digests.",  # `with_digests` compares them
    "compute.device",
    "compute.compile",
    "compute.grad_checkpointing",
    "compute.memory",
    "compute.channels_last",
    "data.num_workers",
    "data.on_error",
    "data.max_errors",
    "data.cache",
    "keep.checkpoint",
    "keep.max_skipped_steps",
    "keep.optimizer",
    "keep.tensorboard",
    "keep.tracker",
    "lora.save",
)
_MORE = "More: `deepcait help existing-run`."


def resumed_recipe(folder: Path, given: Recipe | None) -> Recipe:
    """Return the recipe of a resumed run: its own, with the given settings, which must not affect the result.

    Raises:
        ConfigError: the given recipe would change results.
        RunError: the run's own recipe is lost.
    """
    own = load_recipe(str((folder / "config.yaml").resolve()))
    if not own.data.source:
        raise RunError(
            f"{folder / 'config.yaml'} does not contain the settings of a run: data.source is missing.",
            remedy="Restore the file, or start a new run in another --out.",
        )
    if given is None:
        return own
    for name in ("backend", "precision"):
        if getattr(given.compute, name) == "auto":  # leaves the choice to the run
            compute = dataclasses.replace(given.compute, **{name: getattr(own.compute, name)})
            given = dataclasses.replace(given, compute=compute)
    before, now = _flat(own), _flat(given)
    differing = [name for name in before if before[name] != now[name] and not name.startswith(_FREE_ON_RESUME)]
    # Nothing compares the places of a run that is finished and stays so.
    if read_state(folder).get("state") != "finished" or given.epochs > own.epochs:
        differing = [name for name in differing if not may_move(folder, name, before[name], now[name])]
    if differing == ["epochs"] and given.epochs > own.epochs:
        return _longer(folder, given)
    if differing:
        changes = some([f"{name}: {_said(before[name])} -> {_said(now[name])}" for name in differing])
        raise ConfigError(
            f"Cannot resume {folder}: settings differ from the original run ({changes}).",
            remedy=f"Omit them, or {_new_run(folder, own)}",
        )
    return given


def _longer(folder: Path, given: Recipe) -> Recipe:
    """The recipe of a run that is prolonged."""
    if given.schedule.kind not in CAN_BE_LONGER:
        raise ConfigError(
            f"epochs: {folder} can't be prolonged: its learning rate (schedule.kind={given.schedule.kind}) was planned "
            "for its number of epochs from the first step on.",
            remedy=f"Start a new run from its model: --model {model_in(folder / 'last', given.model)} and another "
            "--out. A run that begins with --set schedule.kind=constant or warmup_stable_decay can be prolonged.",
        )
    return given


def deciding_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that affect the result, by dotted name, as JSON values; a checkpoint stores them."""
    free = (*_FREE_ON_RESUME, *(name for name, record in PLACES.items() if record == DATA_FILE))
    settings = {name: value for name, value in _flat(recipe).items() if not name.startswith(free)}
    return json.loads(json.dumps(settings))


def require_same_settings(folder: Path, before: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise if the settings differ from those in the checkpoint; settings that only one of them has are ignored.

    A higher number of epochs is allowed if the schedule can be prolonged.

    Raises:
        RunError: config.yaml was changed; the message has both values.
    """
    before, now = rename_settings(before), deciding_settings(recipe)
    if recipe.schedule.kind in CAN_BE_LONGER and before.get("epochs", 0) < recipe.epochs:
        del now["epochs"]
    if may_move(folder, "teacher.spec", before.get("teacher.spec"), now["teacher.spec"]):
        del now["teacher.spec"]
    differing = [name for name in before if name in now and before[name] != now[name]]
    if differing:
        expected, got = (some([f"{name}: {_said(of[name])}" for name in differing]) for of in (before, now))
        raise RunError(
            f"{folder / 'config.yaml'}: settings were changed since the run began, from {expected} to {got}.",
            remedy=f"Restore them, or {_new_run(folder, recipe)}",
        )


def _new_run(folder: Path, recipe: Recipe) -> str:
    return f"start a new run in another --out with --model {model_in(folder, recipe.model)}. {_MORE}"


def _said(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a recipe by their dotted names."""
    flat: dict[str, Any] = {}
    for name in (f.name for f in dataclasses.fields(settings)):
        value = getattr(settings, name)
        flat |= _flat(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else {prefix + name: value}
    return flat
