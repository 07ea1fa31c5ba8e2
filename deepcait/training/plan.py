"""The plan of a recipe, computed without training: steps, learning rates, memory, arithmetic, time, disk."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import torch

from deepcait.data import Preprocessing
from deepcait.data.augment import build_augmentation
from deepcait.data.loader import TrainingSet
from deepcait.data.mixing import Mixer
from deepcait.data.order import Order
from deepcait.model.network import Network, NetworkConfig, as_module
from deepcait.model.networks import build_model, is_model_name
from deepcait.parts import blamed, is_part
from deepcait.runtime.device import choose_device
from deepcait.runtime.flops import forward_flops
from deepcait.runtime.messages import size_text
from deepcait.training.best import chosen_measure, describe_choice
from deepcait.training.compute import choose_settings, describe_choices, expected_backend, note_of
from deepcait.training.data import TrainingData, build_order, open_training_data
from deepcait.training.estimate import (
    build_smaller,
    count_params,
    disk_bytes,
    expected_s,
    measure_speed,
    needed_shared_bytes,
    require_disk,
    resident_bytes,
    shared_memory_note,
)
from deepcait.training.footprint import (
    CHOICES,
    own_bytes,
    own_flops,
    training_bytes,
    training_flops,
)
from deepcait.training.lora import add_lora
from deepcait.training.notes import notes_of
from deepcait.training.optimizer import chosen_class_weights, freeze, parameter_groups
from deepcait.training.ready import require_ready
from deepcait.training.recipe import RUN_CONFIG, Recipe
from deepcait.training.record import records_of
from deepcait.training.schedule import LearningRate
from deepcait.training.sound import require_sound
from deepcait.training.start import kept_start, planned_config, start_model
from deepcait.training.teacher import Teacher, load_teacher
from deepcait.weights.own import count_network

_logger = logging.getLogger(__name__)
_BARS = " .:-=+*#%@"


def plan(recipe: Recipe, folder: Path | None = None, *, resume: bool = False) -> dict:
    """Log and return the facts of a run; writes nothing, and fetches only a teacher's weights.

    Args:
        recipe: of the run.
        folder: of the run; None leaves out what is to be said of it.
        resume: as `train`.

    Raises:
        DeepcaitError: whatever would stop the real run before its first step, as far as it can be seen here.
    """
    if folder is None:
        require_sound(recipe)
    else:
        recipe = require_ready(recipe, folder, resume)
    known = folder if resume else None  # a new run replaces what is there
    data = open_training_data(recipe, known)
    order = build_order(recipe, data.train)
    device = choose_device(recipe.compute.device)
    asked, recipe = recipe, choose_settings(recipe, device)
    model, config = _network(recipe, list(data.train.classes), known)
    preprocessing = _preprocessing(recipe, model, config)
    samples = TrainingSet(data.train, build_augmentation(recipe.augment, preprocessing), recipe.seed)
    # Built for its errors alone.
    Mixer(recipe.mix, len(data.train.classes), order.replica_batch_size)
    chosen_class_weights(recipe.optimizer.class_weights, lambda: list(order.class_labels or [0]), config.num_classes)
    teacher = load_teacher(recipe.teacher, preprocessing, data.train.classes) if recipe.teacher.spec else None
    if known is not None:
        records_of(known, recipe, data, None)  # the teacher sees other colours here, see `_preprocessing`
    facts = _facts(recipe, model, config, data, order) | _costs(recipe, model, config, order)
    facts |= _teaching(recipe, teacher, preprocessing, facts)
    facts |= _time(recipe, model, config, teacher.to(device) if teacher else None, samples, order, device, data)
    shape = (config.in_chans, *config.img_size)
    facts["shared_memory_bytes"] = needed_shared_bytes(recipe, shape, order)
    facts["disk_bytes"] = disk_bytes(recipe, *count_params(model))
    is_new = folder is not None and not (resume and (folder / RUN_CONFIG).exists())
    facts["disk_free_bytes"] = require_disk(folder, facts["disk_bytes"]) if is_new else None
    facts |= {"device": str(device), "precision": recipe.compute.precision, "num_workers": recipe.data.num_workers}
    facts["compute"] = describe_choices(asked, recipe, device)
    for line in _lines(facts, recipe, order.replica_batch_size):
        _logger.info(line)
    shared = shared_memory_note(recipe, shape, order)
    notes = [*data.doubts, note_of(config, recipe.compute), shared, *notes_of(recipe, order, len(data.validation))]
    facts["notes"] = [note for note in notes if note]
    for note in facts["notes"]:
        _logger.warning(note)
    return facts


def _network(recipe: Recipe, classes: list[str], folder: Path | None) -> tuple[Network, NetworkConfig]:
    """The network of a run with its trained parameters marked: one's own is built, any other has shapes alone."""
    if is_part(recipe.model):
        kept = kept_start(folder, recipe) if folder is not None else None
        model: Any = (kept or start_model(recipe, classes)).model
        config: Any = model.config
    else:
        config = planned_config(recipe, len(classes), folder)
        with torch.device("meta"):
            model = build_model(config)
    if recipe.train == "lora":
        add_lora(model, recipe.lora, recipe.seed)
    freeze(model, recipe.train, recipe.freeze, recipe.freeze_blocks)
    parameter_groups(model, recipe.optimizer)
    return model, config


def _preprocessing(recipe: Recipe, model: Network, config: NetworkConfig) -> Preprocessing:
    if is_part(recipe.model):
        return Preprocessing.from_pretrained_cfg(model.pretrained_cfg)
    one = (0.5,) * config.in_chans  # which numbers decides no shape, time or memory
    return Preprocessing(config.img_size, mean=one, std=one)


def _facts(recipe: Recipe, model: Network, config: NetworkConfig, data: TrainingData, order: Order) -> dict[str, Any]:
    """What follows from the recipe and the number of images."""
    num_validation = len(data.validation)
    lr = LearningRate(recipe.schedule, recipe.peak_lr, recipe.epochs, order.steps_per_epoch)
    steps = recipe.epochs * order.steps_per_epoch
    num_params, macs = count_network(model) if is_part(recipe.model) else (config.num_params(), config.macs())
    return {
        "model": str(recipe.model),
        # A name means random or released weights as the recipe says; any other MODEL has its own.
        "start": recipe.start if is_model_name(recipe.model) else "own",
        "img_size": list(config.img_size),
        "params": num_params,
        "gmacs": macs / 1e9,
        "classes": len(data.train.classes),
        "train_images": len(data.train),
        "val_images": num_validation,
        "best_by": chosen_measure(recipe.keep.best_by, num_validation) if num_validation else None,
        "test_images": len(data.test),
        "epochs": recipe.epochs,
        "steps_per_epoch": order.steps_per_epoch,
        "steps": steps,
        "images": steps * recipe.global_batch_size,
        "global_batch_size": recipe.global_batch_size,
        "replicas": recipe.replicas,
        "lr": {str(s): lr(s) for s in sorted({round(steps * i / 10) for i in range(11)})},
        "train_flops": 6 * config.macs() * steps * recipe.global_batch_size,
    }


def _costs(recipe: Recipe, model: Network, config: NetworkConfig, order: Order) -> dict[str, Any]:
    """Memory and arithmetic of a step, counted."""
    batch, shape = order.replica_batch_size, (config.in_chans, *config.img_size)
    num_params, num_trained = count_params(model)
    if is_part(recipe.model):
        module = as_module(model)
        with blamed(f"model {recipe.model}"):
            kept = own_bytes(module, shape, recipe.compute, batch)
            step_flops = own_flops(module, shape) * recipe.global_batch_size
        choices = {}
    else:
        compute, device = expected_backend(recipe.compute), recipe.compute.device
        kept = training_bytes(config, compute, batch)
        step_flops = training_flops(config, compute, batch) * recipe.replicas
        how = {"device": device, "precision": compute.precision}
        every = {name: expected_backend(dataclasses.replace(one, **how)) for name, one in CHOICES.items()}
        choices = {name: training_bytes(config, one, batch) for name, one in every.items()}
    return {
        "trained_params": num_trained,
        "weights_and_optimizer_bytes": resident_bytes(recipe, num_params, num_trained),
        "activation_bytes": kept,
        "activation_bytes_of": choices,
        "step_flops": step_flops,
    }


def _teaching(recipe: Recipe, teacher: Teacher | None, seen: Preprocessing, facts: dict) -> dict[str, Any]:
    """The teacher and its costs, and what is computed with them in all."""
    steps, teaching, known = facts["steps"], 0, None
    if teacher is not None:
        teaching = forward_flops(teacher, torch.zeros(1, seen.channels, *seen.img_size)) * recipe.global_batch_size
        parameters = list(teacher.module.parameters())
        known = {
            "teacher": recipe.teacher.spec,
            "origin": teacher.origin,
            "params": sum(parameter.numel() for parameter in parameters),
            "weights_bytes": sum(parameter.nbytes for parameter in parameters),
            "gmacs": teaching / recipe.global_batch_size / 2e9,
            "flops": teaching * steps,
        }
    return {"teacher": known, "step_flops": facts["step_flops"] + teaching} | {
        "computed_flops": (facts["step_flops"] + teaching) * steps
    }


def _time(
    recipe: Recipe,
    model: Network,
    config: NetworkConfig,
    teacher: Teacher | None,
    samples: TrainingSet,
    order: Order,
    device: torch.device,
    data: TrainingData,
) -> dict[str, float]:
    """Seconds of the run, and the speeds behind them."""
    measured, factor = (model, 1.0) if is_part(recipe.model) else build_smaller(config)
    if recipe.train in ("all", "head", "attention"):
        freeze(measured, recipe.train)
    speed = measure_speed(recipe, measured, teacher, samples, order, device)
    seconds = expected_s(recipe, speed, factor, order, len(data.validation))
    return {
        "expected_s": seconds,
        "images_per_s": 1 / (speed.step_s * factor + speed.teacher_s),
        "read_images_per_s": max(1, recipe.num_workers) / speed.read_s,
    }


def _lines(facts: dict, recipe: Recipe, replica_batch: int) -> list[str]:
    lr = LearningRate(recipe.schedule, recipe.peak_lr, recipe.epochs, facts["steps_per_epoch"])
    rates = [lr(round(facts["steps"] * i / 60)) for i in range(60)]
    peak = max(*rates, 1e-30)  # a rate of 0 draws an empty curve
    curve = "".join(_BARS[round(rate / peak * (len(_BARS) - 1))] for rate in rates)
    resident, choices, taught = facts["weights_and_optimizer_bytes"], facts["activation_bytes_of"], facts["teacher"]
    free = facts["disk_free_bytes"]
    at_most = "at most " if recipe.keep.patience_epochs else ""
    lines = [
        f"model          {facts['model']} ({facts['start']} weights), {facts['img_size'][0]} x {facts['img_size'][1]} "
        f"px, {facts['params']:,} parameters, {facts['gmacs']:.3g} GMACs per image",
        f"data           {facts['train_images']:,} training images, {facts['val_images']:,} to validate on, "
        f"{facts['classes']:,} classes"
        + (f"; {facts['test_images']:,} held out as a test part" if facts["test_images"] else ""),
        f"steps          {facts['steps']:,} = {facts['epochs']} epochs of {facts['steps_per_epoch']:,}",
        f"batch          {facts['global_batch_size']} images per step = {facts['replicas']} replicas of "
        f"{replica_batch}",
        f"learning rate  {recipe.peak_lr:g} at its peak (lr {recipe.optimizer.lr:g}"
        + (f" x {facts['global_batch_size']} / {recipe.optimizer.lr_batch})" if recipe.optimizer.lr_batch else ")"),
        f"               [{curve}]",
        f"compute        {facts['compute']}",
        f"memory         {size_text(resident)} weights, gradients, optimizer and average",
        f"               {size_text(facts['activation_bytes'])} saved for the backward pass of a replica of "
        f"{replica_batch} ({recipe.compute.precision})",
        "               " + ", ".join(f"{size_text(size)} {name}" for name, size in choices.items()),
        f"arithmetic     {facts['train_flops']:.3g} floating-point operations for {facts['images']:,} images; "
        f"{facts['computed_flops']:.3g} with what the backward pass computes again"
        + (" and the teacher" if taught else ""),
        f"time           {at_most}about {_span(facts['expected_s'])} on this machine: {facts['images_per_s']:,.3g} "
        f"images per second in a step, {facts['read_images_per_s']:,.3g} read; measured on a few images",
        f"disk           up to {size_text(facts['disk_bytes'])} for checkpoints and models"
        + ("" if free is None else f", {size_text(free)} free"),
    ]
    if facts["best_by"]:
        lines.insert(2, f"validation     {describe_choice(recipe.keep.best_by, facts['val_images'])}")
    if taught:
        lines.insert(2, f"teacher        {taught['origin']}")
        cost = f"               {taught['params']:,} parameters, {taught['gmacs']:.3g} GMACs per image"
        lines.insert(3, f"{cost}, {size_text(taught['weights_bytes'])} of memory")
    return [line for line in lines if line.strip()]


def _span(seconds: float) -> str:
    """A time in the unit that fits: minutes from one on, hours from two on, days from two on."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= (1 if unit == "minutes" else 2) * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} second{'s' * (seconds > 1)}"
