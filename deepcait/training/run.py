"""A run as a folder: found and checked first, then written, then trained; or gone on with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepcait.data import Preprocessing, Source, list_splits, open_split
from deepcait.data.augment import build_augmentation
from deepcait.data.fix_list import leave_out
from deepcait.data.loader import TrainingSet
from deepcait.data.order import Order
from deepcait.data.shrunk import shrunk
from deepcait.data.source import describe, require_labels, with_options
from deepcait.data.split import SPLIT_FILE, limited, manifest_text
from deepcait.errors import ConfigError, RunError, WeightsError
from deepcait.model import CaiT
from deepcait.runtime.device import choose_device
from deepcait.runtime.environment import environment
from deepcait.runtime.processes import (
    Processes,
    is_lost_process,
    join_processes,
    leave_processes,
)
from deepcait.training.average import WeightAverage
from deepcait.training.compute import describe_compute
from deepcait.training.journal import REMEDY, read_state, replace_text
from deepcait.training.loop import Job, Trainer
from deepcait.training.notes import notes_of
from deepcait.training.recipe import Recipe
from deepcait.training.start import keep_start, kept_start, start_model, start_of
from deepcait.training.teacher import load_teacher
from deepcait.training.validation import Validation
from deepcait.training.watch import Watch
from deepcait.weights.artefact import save_artefact
from deepcait.weights.spec import Resolved

# Sections of the recipe that a trained model need not remember.
_NOT_OF_THE_MODEL = ("about", "keep", "compute", "data")
# What a kill in the first moment of a run leaves behind: the unfinished config.yaml.
_UNFINISHED_CONFIG = ".config.yaml*.new"  # 0.1 wrote .config.yaml.new


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run came to."""

    folder: Path
    steps: int
    best_top1: float
    best_epoch: int
    classes: list[str]


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = print,
    live: bool | None = None,
) -> Outcome:
    """Train as a recipe says, into a run folder; under torchrun together with the other processes.

    Args:
        recipe: with `data.source` filled.
        folder: of the run; must not hold one yet, unless `resume`.
        resume: go on with the run in `folder`, or start it where there is none; a finished one stays as it is.
        say: prints a line, on rank 0 only.
        live: draw a progress bar; None decides by the terminal.

    Raises:
        DeepcaitError: what the user can mend, before anything is written where possible.
        Stopped: asked to stop; saved and resumable.
    """
    # Before the processes meet: afterwards the first may have written what another looks for.
    require_startable(folder, resume)
    processes = join_processes()
    try:
        say = say if processes.is_main else None
        return _train(recipe, folder, processes, say=say, live=live)
    except RuntimeError as error:
        if processes.world_size > 1 and is_lost_process(error):
            raise RunError(
                f"expected all {processes.world_size} processes to go on together, got: {str(error).splitlines()[0]}",
                remedy="Look for the error of the process that ended first; then --resume.",
            ) from error
        raise
    finally:
        leave_processes()


def _train(
    recipe: Recipe,
    folder: Path,
    processes: Processes,
    *,
    say: Callable[[str], None] | None,
    live: bool | None,
) -> Outcome:
    tell = say or (lambda line: None)
    device = choose_device(recipe.compute.device, processes.local_rank)
    tell(f"start: {start_of(recipe)}")
    sources = open_training_data(recipe, tell)
    classes = list(sources[0].classes)
    found = kept_start(folder, recipe, tell) or start_model(recipe, classes, tell)
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    tell(f"preprocessing: {preprocessing}")
    teacher = load_teacher(recipe.teacher, preprocessing, classes) if recipe.teacher.spec else None
    if teacher:
        tell(f"teacher {teacher.origin}")
    order = build_order(recipe, sources[0])
    job = Job(
        recipe=recipe,
        folder=folder,
        model=found.model.to(device),
        samples=TrainingSet(sources[0], build_augmentation(recipe.augment, preprocessing), recipe.seed),
        order=order,
        num_classes=len(classes),
        validation=Validation(sources[1], classes, preprocessing, num_workers=recipe.data.num_workers, device=device),
        save_model=_model_writer(folder, recipe, found, preprocessing),
        processes=processes,
        device=device,
        teacher=teacher.to(device) if teacher else None,
        watch=Watch(
            recipe.epochs * order.steps_per_epoch,
            recipe.global_batch_size,
            say=say,
            live=live,
            tensorboard=recipe.keep.tensorboard and processes.is_main,
            tracker=recipe.keep.tracker if processes.is_main else "",
        ),
    )
    trainer = Trainer(job)
    if processes.is_main:
        write_run_files(folder, recipe, sources)
        keep_start(folder, found)
    processes.barrier()
    computed = describe_compute(job.model, recipe.compute, device)
    tell(_plan(recipe, order, processes, computed, notes_of(recipe, order, len(sources[1]))))
    try:
        progress = trainer.fit()
    finally:
        job.watch.close()
    return Outcome(
        folder=folder,
        steps=progress.step,
        best_top1=progress.best_top1,
        best_epoch=progress.best_step // order.steps_per_epoch,
        classes=classes,
    )


def require_startable(folder: Path, resume: bool) -> None:
    """Raise where a run exists and shall not be gone on with.

    Raises:
        RunError: the folder holds a run, or something else.
    """
    if folder.is_file():
        raise RunError(f"{folder}: expected a folder for the run, got a file.", remedy="Give another --out.")
    if (folder / "config.yaml").exists():
        if not resume:
            state = read_state(folder).get("state", "unfinished")
            raise RunError(
                f"{folder}: expected no run there yet, got one ({state}).",
                remedy="Go on with it through --resume, or give another --out.",
            )
    elif folder.exists() and any(not entry.match(_UNFINISHED_CONFIG) for entry in folder.iterdir()):
        raise RunError(f"{folder}: expected an empty folder, got other files.", remedy="Give another --out.")


def open_training_data(recipe: Recipe, tell: Callable[[str], None]) -> tuple[Source, Source]:
    """Return the sources to train on and to validate on; validation maps classes by name.

    Raises:
        DataError, ConfigError: no data, no classes, a class in validation that training lacks, or a picture
            without a label.
    """
    if not recipe.data.source:
        raise ConfigError("--data: expected a data SPEC, got none.", remedy="Give --data, for example a folder.")
    samples = open_split(recipe.data.source, "train", **_held_out(recipe))
    validation = open_split(recipe.data.source, "val", classes=samples.classes, **_held_out(recipe))
    if recipe.data.exclude:
        before = len(samples), len(validation)
        samples, validation = (leave_out(source, recipe.data.exclude) for source in (samples, validation))
        left_out = f"{before[0] - len(samples):,} training and {before[1] - len(validation):,} validation images"
        tell(f"left out by {recipe.data.exclude}: {left_out}")
    for source in (samples, validation):
        require_labels(source)  # now, not after hours
        with_options(source, recipe.data.image_options())
    samples = shrunk(samples, recipe.data.shrink_px, recipe.data.cache)
    tell(f"data: {describe(samples)}; validation: {describe(validation)}")
    for what, limit in (("training", recipe.data.limit), ("validation", recipe.data.val_limit)):
        if limit:
            tell(f"only {limit:,} {what} images of them, drawn class by class")
    return limited(samples, recipe.data.limit), limited(validation, recipe.data.val_limit)


def build_order(recipe: Recipe, samples: Source) -> Order:
    """Return the order of the training data that a recipe fixes."""
    return Order(
        num_samples=len(samples),
        global_batch_size=recipe.global_batch_size,
        replicas=recipe.replicas,
        repeats=recipe.augment.repeats,
        seed=recipe.seed,
        class_labels=tuple(require_labels(samples)) if recipe.data.balanced else None,
    )


def write_run_files(folder: Path, recipe: Recipe, sources: tuple[Source, Source]) -> None:
    """Write `config.yaml`, `environment.json`, `data.json`, and `split.json` where a part of the data was held out.

    A resumed run's data must be the same as before.

    Raises:
        RunError: the folder can't be written, or the data changed since the run began.
    """
    facts = {
        "classes": sources[0].classes,
        "num_train": len(sources[0]),
        "num_validation": len(sources[1]),
        "fingerprint": _fingerprint(sources),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: expected to write the run here, got: {error.strerror}.", remedy="Give another --out."
        ) from error
    if (folder / "data.json").exists():
        _require_same_data(folder, facts)
    for unfinished in folder.glob(".*.new"):  # of a process that was killed; models are folders
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    # The recipe first: it is what makes a folder a run.
    replace_text(folder / "config.yaml", recipe.to_yaml())
    replace_text(folder / "data.json", json.dumps(facts, indent=1) + "\n")
    replace_text(folder / "environment.json", json.dumps(environment(), indent=1) + "\n")
    if not (folder / SPLIT_FILE).exists():
        _keep_split(folder, recipe)


def _keep_split(folder: Path, recipe: Recipe) -> None:
    """Write which images are held out, for whoever measures the run later: `eval --split val` takes the same."""
    if {"val", "test"} & set(list_splits(recipe.data.source)):
        return
    names = (open_split(recipe.data.source, role, **_held_out(recipe)).names for role in ("train", "val"))
    replace_text(folder / SPLIT_FILE, manifest_text(*names, **_held_out(recipe)))


def _held_out(recipe: Recipe) -> dict:
    return {"fraction": recipe.data.val_fraction, "seed": recipe.seed}


def _plan(recipe: Recipe, order: Order, processes: Processes, computed: str, notes: list[str]) -> str:
    each = recipe.replicas // processes.world_size
    split = "" if recipe.replicas == 1 else f" = {recipe.replicas} replicas of {order.replica_batch_size}"
    shared = "" if processes.world_size == 1 else f", {each} on each of {processes.world_size} processes"
    plan = (
        f"plan: {recipe.epochs} epochs of {order.steps_per_epoch} steps, {recipe.global_batch_size} images a step"
        f"{split}{shared}; learning rate {recipe.peak_lr:g} at its peak; {computed}"
    )
    return "\n".join([plan, *(f"note: {note}" for note in notes)])


def _model_writer(folder: Path, recipe: Recipe, found: Resolved, preprocessing: Preprocessing) -> Callable:
    settings = dataclasses.asdict(recipe)
    for name in _NOT_OF_THE_MODEL:
        settings.pop(name)
    if recipe.data.max_value:  # whoever uses the model sees images in the same range
        settings["data"] = {"max_value": recipe.data.max_value}
    provenance = {
        "started_from": found.spec,
        "start": recipe.start,
        "teacher": recipe.teacher.spec or None,
        "trained_on": recipe.data.source,
    }

    def write(name: str, model: CaiT, average: WeightAverage | None, metrics: dict) -> None:
        try:
            save_artefact(
                folder / name,
                model,
                preprocessing=found.pretrained_cfg | preprocessing.to_pretrained_cfg(),
                classes=found.classes,
                recipe=settings,
                metrics=metrics,
                provenance=provenance,
                ema_state=average.module.state_dict() if average else None,
                evaluated="ema" if average and recipe.ema.evaluated else "raw",
            )
        except WeightsError as error:
            raise RunError(error.problem, remedy=REMEDY) from error

    return write


def _fingerprint(sources: Sequence[Source]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        for name, label in zip(source.names, source.labels, strict=True):
            digest.update(f"{name}\t{label}\n".encode())
    return digest.hexdigest()


def _require_same_data(folder: Path, facts: dict) -> None:
    try:
        before = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        same = before["fingerprint"] == facts["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder / 'data.json'}: expected what was noted of the run's data, got something else.",
            remedy="Remove it to go on without comparing the data, or start a new run in another --out.",
        ) from error
    if not same:
        raise RunError(
            f"{folder}: expected the data that the run began with ({before['num_train']} training and "
            f"{before['num_validation']} validation images), got other names or labels ({facts['num_train']} and "
            f"{facts['num_validation']}).",
            remedy="Bring the data back to what it was, or start a new run in another --out. More in "
            "`deepcait help changed-data`.",
        )
