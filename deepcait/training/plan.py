"""The plan of a recipe, computed without training: steps, learning rates, memory, arithmetic."""

from __future__ import annotations

import dataclasses
import logging

from deepcait.data import Preprocessing
from deepcait.data.augment import build_augmentation
from deepcait.data.mixing import Mixer
from deepcait.model.alternatives import apply_overrides
from deepcait.model.network import NetworkConfig
from deepcait.model.networks import config_of, is_model_name, named_config
from deepcait.training.best import chosen_measure, describe_choice
from deepcait.training.compute import expected_backend, note_of
from deepcait.training.data import build_order, open_training_data
from deepcait.training.footprint import CHOICES, training_bytes, training_flops
from deepcait.training.lora import require_lora
from deepcait.training.notes import notes_of
from deepcait.training.recipe import Recipe
from deepcait.training.schedule import LearningRate
from deepcait.training.start import shape_of
from deepcait.weights.spec import describe

_logger = logging.getLogger(__name__)
_BARS = " .:-=+*#%@"


def plan(recipe: Recipe) -> dict:
    """Log and return the facts of a run; reads names and shapes only, writes and downloads nothing.

    Raises:
        DeepcaitError: whatever would stop the real run before its first step, as far as it can be seen here.
    """
    data = open_training_data(recipe)
    samples, num_validation = data.train, len(data.validation)
    order = build_order(recipe, samples)
    config = planned_config(recipe, len(samples.classes))
    # Built for their errors alone.
    if recipe.train == "lora":
        require_lora()
    build_augmentation(recipe.augment, Preprocessing(config.img_size))
    Mixer(recipe.mix, len(samples.classes), order.replica_batch_size)
    lr = LearningRate(recipe.schedule, recipe.peak_lr, recipe.epochs, order.steps_per_epoch)
    steps = recipe.epochs * order.steps_per_epoch
    batch = order.replica_batch_size
    compute = expected_backend(recipe.compute)
    device = recipe.compute.device
    choices = {name: expected_backend(dataclasses.replace(choice, device=device)) for name, choice in CHOICES.items()}
    kept = training_bytes(config, compute, batch)
    computed = training_flops(config, compute, batch) * recipe.replicas
    copies = 3 + bool(recipe.ema.decay) + (recipe.optimizer.name == "adamw")
    facts = {
        "model": recipe.model,
        # A name means random or released weights as the recipe says; any other SPEC has its own.
        "start": recipe.start if is_model_name(recipe.model) else "own",
        "img_size": list(config.img_size),
        "params": config.num_params(),
        "gmacs": config.macs() / 1e9,
        "classes": len(samples.classes),
        "train_images": len(samples),
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
        "weights_and_optimizer_bytes": 4 * copies * config.num_params(),
        "activation_bytes": kept,
        "activation_bytes_of": {name: training_bytes(config, choice, batch) for name, choice in choices.items()},
        "train_flops": 6 * config.macs() * steps * recipe.global_batch_size,
        "step_flops": computed,
        "computed_flops": computed * steps,
    }
    if num_validation:
        _logger.info(describe_choice(recipe.keep.best_by, num_validation))
    for line in _lines(facts, recipe, batch, [lr(round(steps * i / 60)) for i in range(60)]):
        _logger.info(line)
    for doubt in data.doubts:
        _logger.warning(doubt)
    if note := note_of(config, recipe.compute):
        _logger.warning(note)
    for note in notes_of(recipe, order, num_validation):
        _logger.warning(note)
    return facts


def planned_config(recipe: Recipe, num_classes: int) -> NetworkConfig:
    """Return the configuration that training would use, without touching weights."""
    config = named_config(recipe.model) if is_model_name(recipe.model) else config_of(describe(recipe.model)["config"])
    config = config.replace(**shape_of(recipe), num_classes=num_classes)
    return apply_overrides(config, dataclasses.asdict(recipe.ablation))


def _lines(facts: dict, recipe: Recipe, replica_batch: int, rates: list[float]) -> list[str]:
    peak = max(*rates, 1e-30)  # a rate of 0 draws an empty curve
    curve = "".join(_BARS[round(rate / peak * (len(_BARS) - 1))] for rate in rates)
    resident = facts["weights_and_optimizer_bytes"]
    return [
        f"model          {facts['model']} ({facts['start']} weights), {facts['img_size'][0]} x {facts['img_size'][1]} "
        f"px, {facts['params']:,} parameters, {facts['gmacs']:.3g} GMACs an image",
        f"data           {facts['train_images']:,} training images, {facts['val_images']:,} to validate on, "
        f"{facts['classes']:,} classes"
        + (f"; {facts['test_images']:,} held out as a test part" if facts["test_images"] else ""),
        f"steps          {facts['steps']:,} = {facts['epochs']} epochs of {facts['steps_per_epoch']:,}",
        f"batch          {facts['global_batch_size']} images per step = {facts['replicas']} replicas of "
        f"{replica_batch}",
        f"learning rate  {recipe.peak_lr:g} at its peak (lr {recipe.optimizer.lr:g}"
        + (f" x {facts['global_batch_size']} / {recipe.optimizer.lr_batch})" if recipe.optimizer.lr_batch else ")"),
        f"               [{curve}]",
        f"memory         {_size(resident)} weights, gradients, optimizer and average",
        f"               {_size(facts['activation_bytes'])} saved for the backward pass of a replica of {replica_batch}"
        f" ({recipe.compute.precision})",
        "               " + ", ".join(f"{_size(size)} {name}" for name, size in facts["activation_bytes_of"].items()),
        f"arithmetic     {facts['train_flops']:.3g} floating-point operations for {facts['images']:,} images; "
        f"{facts['computed_flops']:.3g} with what the backward pass computes again",
    ]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
