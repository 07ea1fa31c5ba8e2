"""Longer runs: where a run continues whose number of epochs was raised.

A run can be prolonged if its learning rate up to some step does not depend on the number of epochs, so that it ends
bit-identical to one that had all epochs from the start. With a constant rate it continues at its last checkpoint.
With warmup_stable_decay it continues where the decay began: a checkpoint of that step is kept in
`checkpoints/stable`, with the models of that moment, and the models of the earlier end are kept in `epoch_N`.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from deepcait.errors import RunError
from deepcait.parts import model_in
from deepcait.runtime.files import replace_folder
from deepcait.training.checkpoint import newest_checkpoint, read_progress, read_settings, step_of
from deepcait.training.journal import read_state
from deepcait.training.recipe import RUN_CONFIG, Recipe, load_recipe
from deepcait.training.schedule import LearningRate

_logger = logging.getLogger(__name__)
_MODELS = ("best", "last")


def is_longer(folder: Path, recipe: Recipe) -> bool:
    """Whether the recipe has more epochs than the run in the folder has been trained for, or was going to be."""
    path, _ = newest_checkpoint(folder / "checkpoints")
    before = load_recipe(str((folder / RUN_CONFIG).resolve())).epochs if path is None else _epochs_of(path, recipe)
    return before < recipe.epochs


def require_prolongable(folder: Path, recipe: Recipe) -> None:
    """Pass unless a finished run is to be longer and can't be.

    Raises:
        RunError: its checkpoints were removed at its end, or it had stopped early.
    """
    if read_state(folder).get("state") != "finished" or not is_longer(folder, recipe):
        return
    path, _ = newest_checkpoint(folder / "checkpoints")
    if path is None:
        problem = f"{folder}: the run is finished and has no checkpoint to continue from (keep.optimizer was false)."
    elif read_progress(path).stopped_early:
        problem = f"{folder}: the run stopped early, before its last epoch; a longer one would have ended there too."
    else:
        return
    last = model_in(folder / "last", recipe.model)
    raise RunError(problem, remedy=f"Start a new run from its model: --model {last} and another --out.")


def stable_folder(folder: Path) -> Path:
    """Return where a run keeps the checkpoint of the step in which its decay begins."""
    return folder / "checkpoints" / "stable"


def keep_stable_models(folder: Path) -> None:
    """Copy the current models to the folder of the checkpoint in `stable_folder`."""
    for name in _MODELS:
        if (folder / name).is_dir():
            _copy(folder / name, stable_folder(folder) / name)


def restore_point(folder: Path, recipe: Recipe, steps_per_epoch: int) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that a run continues from, or None, and a line for each damaged one that was skipped.

    Of a run that is longer now than its decay was planned for, the models of the earlier end are set aside.

    Raises:
        RunError: the checkpoint from before the decay is missing or damaged.
    """
    path, damaged = newest_checkpoint(folder / "checkpoints")
    before = recipe.epochs if path is None else _epochs_of(path, recipe)
    if path is None or before >= recipe.epochs:
        return path, damaged
    planned = LearningRate(recipe.schedule, recipe.peak_lr, before, steps_per_epoch)
    _logger.info("prolonged from %d to %d epochs", before, recipe.epochs)
    if step_of(path) <= planned.decay_start:
        return path, damaged
    stable, more = newest_checkpoint(stable_folder(folder))
    if stable is None:
        raise RunError(
            f"{stable_folder(folder)}: no valid checkpoint from before the decay of the learning rate.",
            remedy="Start a new run from a model of this one: "
            f"--model {model_in(folder / 'last', recipe.model)} and another --out.",
        )
    aside = folder / f"epoch_{before}"
    for name in _MODELS:
        if (folder / name).is_dir() and not (aside / name).exists():
            _copy(folder / name, aside / name)
        if (stable_folder(folder) / name).is_dir():
            _copy(stable_folder(folder) / name, folder / name)
        else:
            shutil.rmtree(folder / name, ignore_errors=True)
    _logger.info("continuing where the decay began; the models of epoch %d are in %s", before, aside)
    return stable, damaged + more


def _epochs_of(path: Path, recipe: Recipe) -> int:
    return read_settings(path).get("epochs", recipe.epochs)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)

    def fill(aside: Path) -> None:
        shutil.copytree(source, aside, dirs_exist_ok=True)

    replace_folder(target, fill)
