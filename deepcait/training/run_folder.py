"""The run folder: whether it may be used, files written before the first step, and model folders."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from deepcait.data import Preprocessing
from deepcait.data.record import PARTS, RUN_CONFIG, SPLIT_FILE, part_of_run, record_text
from deepcait.errors import RunError, WeightsError, WriteError
from deepcait.model.network import Network, as_module
from deepcait.runtime.claim import hold, require_free
from deepcait.runtime.environment import environment
from deepcait.runtime.files import require_folder
from deepcait.training.average import WeightAverage
from deepcait.training.data import TrainingData
from deepcait.training.journal import REMEDY, read_state, replace_text
from deepcait.training.lora import ADAPTERS, merged, save_adapters
from deepcait.training.places import DATA_FILE, TEACHER_FILE
from deepcait.training.recipe import Recipe
from deepcait.training.record import records_of
from deepcait.training.start import START_FILE
from deepcait.training.teacher import Teacher
from deepcait.training.trackers import FILES
from deepcait.weights.artefact import save_artefact
from deepcait.weights.spec import Resolved

_logger = logging.getLogger(__name__)
# Sections of the recipe that a trained model need not remember.
_NOT_OF_THE_MODEL = ("about", "keep", "compute", "data")
_LOCK = "run.lock"
# What a kill in the first moment of a run leaves behind; 0.1 wrote .config.yaml.new.
_LEFT_BEHIND = (".config.yaml*.new", _LOCK, f".{_LOCK}.*", *FILES)
# What a run writes before its first checkpoint. A checkpoint, a model or any other file keeps the folder as it is.
_BEFORE_CHECKPOINT = (
    *(*_LEFT_BEHIND, ".*.new", RUN_CONFIG, DATA_FILE, TEACHER_FILE, "environment.json", SPLIT_FILE, START_FILE),
    *("status.json", "metrics.jsonl", "metrics.csv", "errors.jsonl", "timing.jsonl"),
)


def require_startable(folder: Path, resume: bool) -> None:
    """Raise if the folder holds a run and `resume` is False, or anything else.

    A run without a checkpoint or a model is logged, and replaced by `held`.

    Raises:
        RunError: the folder holds a run, something else, or a process of this machine writes there.
    """
    require_folder(folder, "--out")
    require_free(folder, folder / _LOCK)
    if (folder / RUN_CONFIG).exists():
        if not resume:
            _require_no_run(folder)
            _logger.warning("%s: the run there has no checkpoint and no model; a new run replaces it", folder)
    elif folder.exists() and any(not any(map(entry.match, _LEFT_BEHIND)) for entry in folder.iterdir()):
        raise RunError(f"{folder} contains other files.", remedy="Choose another --out.")


def _require_no_run(folder: Path) -> None:
    """Raise if the folder holds a run that has come to a checkpoint or a model, or that has other files in it."""
    if (folder / RUN_CONFIG).exists() and not _is_replaceable(folder):
        state = read_state(folder).get("state", "unfinished")
        raise RunError(
            f"{folder} already contains a run ({state}).",
            remedy="Choose another --out, or add --resume to continue the run.",
        )


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder has only what a run writes before its first checkpoint."""

    def is_early(entry: Path) -> bool:
        if entry.name == "checkpoints" and entry.is_dir():
            return not any(entry.iterdir())
        return any(map(entry.match, _BEFORE_CHECKPOINT))

    return all(is_early(entry) and not entry.is_symlink() for entry in folder.iterdir())


def _clear(folder: Path) -> None:
    """Remove a run that `_is_replaceable`; config.yaml last, so that a kill leaves a run that can be replaced."""
    try:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == RUN_CONFIG):
            if entry.name.startswith((_LOCK, f".{_LOCK}.")):  # held by this process, or awaited by another
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    except OSError as error:
        problem = f"{folder}: the run there can't be replaced: {error.strerror or error}."
        raise RunError(problem, remedy="Choose another --out.") from error


@contextlib.contextmanager
def held(folder: Path, resume: bool) -> Iterator[None]:
    """Create a run's folder, and hold its lock while the run is written; a new run removes what precedes it there.

    Raises:
        RunError: the folder can't be written, another process writes the run, or has written one meanwhile.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: the run can't be written here: {error.strerror}.", remedy="Choose another --out."
        ) from error
    with hold(folder, folder / _LOCK):
        if not resume:
            _require_no_run(folder)
            if (folder / RUN_CONFIG).exists():
                _clear(folder)
        yield


def write_run_files(folder: Path, recipe: Recipe, data: TrainingData, teacher: Teacher | None) -> None:
    """Write `config.yaml`, `environment.json`, `data.json`, `split.json`, and `teacher.json` if there is a teacher.

    A resumed run's data and teacher must be the same as before.

    Raises:
        RunError: the folder can't be written, or the data or the teacher changed since the run began.
    """
    records = records_of(folder, recipe, data, teacher)
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".*.new"):  # of a process that was killed; models are folders
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    # The recipe first: it is what makes a folder a run.
    replace_text(folder / RUN_CONFIG, recipe.to_yaml())
    for name, facts in records.items():
        replace_text(folder / name, json.dumps(facts, indent=1) + "\n")
    replace_text(folder / "environment.json", json.dumps(environment(), indent=1) + "\n")
    if not (folder / SPLIT_FILE).exists():
        replace_text(folder / SPLIT_FILE, _split_of(recipe, data))


def _split_of(recipe: Recipe, data: TrainingData) -> str:
    """What the images are to the run, for whoever evaluates or resumes it later."""
    how = recipe.data
    facts = {"source": how.source, "seed": recipe.seed, "validate_on": how.validate_on, "fraction": how.val_fraction}
    facts |= {"test_fraction": how.test_fraction, "fold": how.fold, "group_column": how.group_column}
    pairs = (data.parts.train, data.train), (data.parts.val, data.validation), (data.parts.test, data.test)
    parts = {key: part_of_run(*pair) for key, pair in zip(PARTS, pairs, strict=True)}
    return record_text(parts, **facts)


class ModelFolders:
    """Writes the model folders of a run, `best` and `last`.

    Args:
        folder: of the run.
        recipe: what the models are trained by.
        start: what they started from, with their classes.
        preprocessing: image -> image_CHW.
    """

    def __init__(self, folder: Path, recipe: Recipe, start: Resolved, preprocessing: Preprocessing) -> None:
        self.folder = folder
        self.evaluates_average = recipe.ema.evaluated
        self.lora = recipe.lora if recipe.train == "lora" else None
        settings = {name: value for name, value in dataclasses.asdict(recipe).items() if name not in _NOT_OF_THE_MODEL}
        if recipe.data.max_value:  # the model's users read images in the same range
            settings["data"] = {"max_value": recipe.data.max_value}
        self.facts = {
            "preprocessing": start.pretrained_cfg | preprocessing.to_pretrained_cfg(),
            "classes": start.classes,
            "recipe": settings,
            "provenance": {
                "started_from": start.spec,
                "start": recipe.start,
                "teacher": recipe.teacher.spec or None,
                "trained_on": recipe.data.source,
            },
        }

    def save(self, name: str, model: Network, average: WeightAverage | None, metrics: dict) -> None:
        """Write a model folder, with the averaged weights in it if there are any.

        Raises:
            RunError: it can't be written; what was there before is untouched.
        """
        evaluated = "ema" if average and self.evaluates_average else "raw"
        plain = (lambda net: net) if self.lora is None else merged
        ema_state = plain(average.module).state_dict() if average else None
        try:
            save_artefact(
                self.folder / name,
                plain(as_module(model)),
                metrics=metrics,
                ema_state=ema_state,
                evaluated=evaluated,
                **self.facts,
            )
            if self.lora is not None and self.lora.save == "adapters":
                save_adapters(self.folder / name / ADAPTERS, model, self.lora)
        except (WeightsError, WriteError) as error:
            raise RunError(error.problem, remedy=REMEDY) from error
