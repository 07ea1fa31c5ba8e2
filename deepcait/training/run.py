"""A training run: data, model and teacher of a recipe are opened, built and checked, then the trainer runs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deepcait.data import Preprocessing, Source
from deepcait.data.augment import build_augmentation
from deepcait.data.loader import TrainingSet
from deepcait.errors import LostProcessError
from deepcait.runtime.device import choose_device
from deepcait.runtime.processes import Processes, is_lost_process, join_processes, leave_processes
from deepcait.training.best import describe_choice
from deepcait.training.compute import choose_settings, describe_compute
from deepcait.training.data import TrainingData, build_order, open_training_data
from deepcait.training.estimate import count_params, disk_bytes, require_disk, shared_memory_note
from deepcait.training.events import Callback
from deepcait.training.job import Job
from deepcait.training.lora import add_lora
from deepcait.training.notes import describe_plan, notes_of
from deepcait.training.ready import require_ready
from deepcait.training.recipe import RUN_CONFIG, Recipe
from deepcait.training.run_folder import ModelFolders, held, write_run_files
from deepcait.training.start import keep_start, kept_start, start_model, start_of
from deepcait.training.teacher import load_teacher
from deepcait.training.trackers import Tracker, open_trackers
from deepcait.training.trainer import Trainer
from deepcait.training.validation import Validation
from deepcait.weights.spec import Resolved

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a finished run."""

    folder: Path
    steps: int
    best_top1: float | None
    """None where nothing validated."""
    best_epoch: int
    classes: list[str]


def train(recipe: Recipe, folder: Path, *, resume: bool = False, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train by a recipe, into a run folder; under torchrun together with the other processes.

    Args:
        recipe: with `data.source` filled.
        folder: of the run; must not hold one yet, unless `resume` or it has neither checkpoint nor model.
        resume: continue the run in `folder`, or start it if there is none; a finished one stays as it is, unless the
            recipe has more epochs.
        callbacks: called with each `Event` in the main process.

    Raises:
        DeepcaitError: what the user can correct, before anything is written where possible.
        Stopped: a stop was requested; saved and resumable.
    """
    # Before the processes meet: afterwards the first may have written what another looks for.
    recipe = require_ready(recipe, folder, resume)
    processes = join_processes()
    try:
        return _train(recipe, folder, processes, callbacks, resume)
    except RuntimeError as error:
        if processes.world_size > 1 and is_lost_process(error):
            raise LostProcessError(
                f"One of the {processes.world_size} processes was lost: {str(error).splitlines()[0]}",
                remedy="Find the error of the process that ended first; then --resume.",
            ) from error
        raise
    finally:
        leave_processes()


def _train(recipe: Recipe, folder: Path, processes: Processes, callbacks: Sequence[Callback], resume: bool) -> Outcome:
    device = choose_device(recipe.compute.device)
    asked, recipe = recipe, choose_settings(recipe, device)
    _logger.info("start: %s", start_of(recipe))
    known = folder if resume else None  # a new run replaces what is there
    data = open_training_data(recipe, known)
    for message in data.messages:
        _logger.info(message)
    for doubt in data.doubts:
        _logger.warning(doubt)
    if num_validation := len(data.validation):
        _logger.info(describe_choice(recipe.keep.best_by, num_validation))
    classes = list(data.train.classes)
    start = (kept_start(known, recipe) if known else None) or start_model(recipe, classes)
    if recipe.train == "lora":
        add_lora(start.model, recipe.lora, recipe.seed)
    preprocessing = Preprocessing.from_pretrained_cfg(start.pretrained_cfg)
    _logger.info("preprocessing: %s", preprocessing)
    teacher = load_teacher(recipe.teacher, preprocessing, classes) if recipe.teacher.spec else None
    if teacher:
        _logger.info("teacher %s", teacher.origin)
    order = build_order(recipe, data.train)
    job = Job(
        recipe=recipe,
        folder=folder,
        model=start.model.to(device),
        samples=TrainingSet(data.train, build_augmentation(recipe.augment, preprocessing), recipe.seed),
        order=order,
        validation=_validation(recipe, data.validation, classes, preprocessing, device),
        models=ModelFolders(folder, recipe, start, preprocessing),
        processes=processes,
        device=device,
        teacher=teacher.to(device) if teacher else None,
        callbacks=callbacks if processes.is_main else (),
    )
    trainer = Trainer(job)
    # Another machine may resume the run, with as many workers as suit it, and with or without a compiler.
    compute = dataclasses.replace(recipe.compute, compile=asked.compute.compile)
    kept = dataclasses.replace(recipe, data=asked.data, compute=compute)
    with _begun(job, kept, data, start, resume) as trackers:
        processes.barrier()
        computed = describe_compute(job.model, asked, recipe, device)
        _logger.info(describe_plan(recipe, order, processes.world_size, computed))
        shape = (preprocessing.channels, *preprocessing.img_size)
        for note in (shared_memory_note(recipe, shape, order), *notes_of(recipe, order, num_validation)):
            if note:
                _logger.warning(note)
        progress = trainer.fit(trackers)
    return Outcome(
        folder=folder,
        steps=progress.step,
        best_top1=progress.best_top1 if job.validation else None,
        best_epoch=progress.best_step // order.steps_per_epoch,
        classes=classes,
    )


@contextlib.contextmanager
def _begun(job: Job, recipe: Recipe, data: TrainingData, start: Resolved, resume: bool) -> Iterator[list[Tracker]]:
    """Hold the run's folder while it is written, with the files that precede the first step; in the main process.

    Yields:
        The trackers, which are closed at the end.
    """
    if not job.processes.is_main:
        yield []
        return
    if not resume or not (job.folder / RUN_CONFIG).exists():
        require_disk(job.folder, disk_bytes(recipe, *count_params(job.model)))
    with held(job.folder, resume), contextlib.ExitStack() as stack:
        # Before the files that make the folder a run: if a tracker can't be opened, the run can be started again.
        trackers = open_trackers(job.recipe, job.folder)
        for tracker in trackers:
            stack.callback(tracker.close)
        write_run_files(job.folder, recipe, data, job.teacher)
        keep_start(job.folder, start)
        yield trackers


def _validation(
    recipe: Recipe, source: Source, classes: Sequence[str], preprocessing: Preprocessing, device: torch.device
) -> Validation | None:
    """What measures the models of a run; None if no image validates."""
    if not len(source):
        return None
    how: dict = {"best_by": recipe.keep.best_by, "num_workers": recipe.num_workers}
    return Validation(source, classes, preprocessing, **how, device=device)
