"""Estimates for a training: time, measured on a few small steps; memory, disk and shared memory, counted."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.data.faults import shared_memory
from deepcait.data.loader import TrainingSet, shared_bytes
from deepcait.data.mixing import Mixer
from deepcait.data.order import Order
from deepcait.errors import ImageError, RunError
from deepcait.model.network import Network, NetworkConfig, as_module
from deepcait.model.networks import build_model
from deepcait.model.variants import CaiTConfig
from deepcait.runtime.messages import size_text
from deepcait.runtime.processes import Processes, num_local_processes, num_processes
from deepcait.training.compute import set_compute, tf32, uses_tf32
from deepcait.training.optimizer import build_optimizer, num_states, parameter_groups
from deepcait.training.recipe import Recipe
from deepcait.training.step import Stepper
from deepcait.training.teacher import Teacher

# Larger networks are measured with fewer of their blocks, and scaled by their multiply-adds.
_MANY_MACS = 1e9
# Batches grow until one takes this long: small ones leave a GPU idle.
_LONG_S = 0.5
_MAX_READ_S, _MAX_READ = 1.0, 16


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds per image of a training step, a forward pass, the teacher's forward pass, and reading."""

    step_s: float
    forward_s: float
    teacher_s: float
    read_s: float


def measure_speed(
    recipe: Recipe, model: Network, teacher: Teacher | None, samples: TrainingSet, order: Order, device: torch.device
) -> Speed:
    """Measure a few training steps with batches of growing size, and the reading of a few images.

    Args:
        recipe: of the run.
        model: the network, or one with fewer blocks: see `smaller`.
        teacher: the teacher of a distillation.
        samples, order: the training data.
        device: the device of the run.

    Raises:
        DeepcaitError: what would stop the real run: the loss fails, an image is unreadable, ...
    """
    module = as_module(model).to(device).train()
    set_compute(model, recipe.compute)
    shape = (model.config.in_chans, *model.config.img_size)
    optimizer = build_optimizer(parameter_groups(model, recipe.optimizer), recipe.optimizer)
    batch = 2 if order.replica_batch_size % 2 == 0 else 1
    with tf32(device, uses_tf32(recipe)):
        while True:
            images_BCHW = torch.zeros(batch, *shape, device=device)
            step = _stepper(recipe, module, optimizer, model.num_classes, batch, teacher is not None)
            seconds = min(_timed(lambda: step(images_BCHW)) for _ in range(2))  # noqa: B023
            if seconds >= _LONG_S or 2 * batch > order.replica_batch_size:
                break
            batch *= 2
        module.eval()
        with torch.no_grad():
            forward_s = _timed(lambda: module(images_BCHW).sum().item())
            teacher_s = _timed(lambda: teacher(images_BCHW).sum().item()) if teacher else 0.0
    return Speed(
        step_s=seconds / batch,
        forward_s=forward_s / batch,
        teacher_s=teacher_s / batch,
        read_s=_reading(recipe, samples, order),
    )


def smaller(config: NetworkConfig) -> tuple[NetworkConfig, float]:
    """Return a configuration that is quick to measure, with fewer blocks if it is large, and the ratio of MACs."""
    if not isinstance(config, CaiTConfig) or config.macs() <= _MANY_MACS:
        return config, 1.0
    fewer = config.replace(depth=max(1, int(config.depth * _MANY_MACS / config.macs())))
    return fewer, config.macs() / fewer.macs()


def build_smaller(config: NetworkConfig) -> tuple[Network, float]:
    """Return the network of `smaller` with random weights, and the same ratio."""
    fewer, factor = smaller(config)
    return build_model(fewer), factor


def expected_s(recipe: Recipe, speed: Speed, factor: float, order: Order, num_validation: int) -> float:
    """Return the expected seconds of a run: its steps, or reading if that is slower, and its validations.

    Args:
        recipe: of the run.
        speed: as measured.
        factor: the ratio that `smaller` returned; times of the network are multiplied by it.
        order: of the training data.
        num_validation: number of validation images.
    """
    workers = recipe.num_workers
    compute_s, read_s = speed.step_s * factor + speed.teacher_s, speed.read_s / max(1, workers)
    image_s = max(compute_s, read_s) if workers else compute_s + read_s
    images = recipe.epochs * order.steps_per_epoch * recipe.global_batch_size
    evaluations = math.ceil(recipe.epochs / recipe.keep.evaluate_every_epochs)
    models = 1 + bool(recipe.ema.decay)
    evaluation_s = num_validation * (speed.forward_s * factor * models + speed.read_s)
    return (images * image_s + evaluations * evaluation_s) / num_processes()


def count_params(model: Network) -> tuple[int, int]:
    """Return the numbers of parameters of a network: all of them, and those that are trained."""
    parameters = [parameter for _, parameter in model.named_parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return sum(parameter.numel() for parameter in parameters), sum(parameter.numel() for parameter in trained)


def resident_bytes(recipe: Recipe, num_params: int, num_trained: int) -> int:
    """Return the bytes of memory of a run: weights and their average, gradients and states of those that are trained.

    Args:
        recipe: of the run.
        num_params, num_trained: as `count_params` returns them.
    """
    return _model_bytes(recipe, num_params) + 4 * num_trained * (1 + num_states(recipe.optimizer))


def disk_bytes(recipe: Recipe, num_params: int, num_trained: int) -> int:
    """Return the bytes that the files of a run take at most: checkpoints, models, and one more while it is written.

    With warmup_stable_decay that includes the checkpoint and the models from before the decay.

    Args:
        recipe: of the run.
        num_params, num_trained: as `count_params` returns them.
    """
    model = _model_bytes(recipe, num_params)
    checkpoint = model + 4 * num_trained * num_states(recipe.optimizer)
    stable = recipe.schedule.kind == "warmup_stable_decay"
    return (recipe.keep.checkpoints + 1 + stable) * checkpoint + (3 + 2 * stable) * model


def _model_bytes(recipe: Recipe, num_params: int) -> int:
    return 4 * num_params * (1 + bool(recipe.ema.decay))


def require_disk(folder: Path, needed: int) -> int:
    """Return the free bytes on the disk of a run folder, which need not exist yet.

    Raises:
        RunError: there are fewer than needed.
    """
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"{folder}: the run's files take up to {size_text(needed)}, and {size_text(free)} are free there.",
            remedy="Free space, choose another --out, or lower keep.checkpoints.",
        )
    return free


def shared_memory_note(recipe: Recipe, shape: Sequence[int], order: Order) -> str:
    """Return a warning if /dev/shm is too small for the batches that workers send; "" if it is not.

    Args:
        recipe: of the run.
        shape: (C, H, W) of an image.
        order: of the training data.
    """
    free, needed = shared_memory(), needed_shared_bytes(recipe, shape, order)
    if free is None or free >= needed:
        return ""
    return (
        f"the data-loading workers need up to {size_text(needed)} of shared memory, and /dev/shm has "
        f"{size_text(free)} free; in Docker use --shm-size, else fewer data.num_workers or more replicas"
    )


def needed_shared_bytes(recipe: Recipe, shape: Sequence[int], order: Order) -> int:
    """Return the most shared memory, in bytes, that the data-loading workers of this machine use."""
    pixel_bytes = 4 if recipe.augment.transform else 1  # one's own transform may return floats
    image_bytes = math.prod(shape) * pixel_bytes
    return num_local_processes() * shared_bytes(recipe.num_workers, order.replica_batch_size * image_bytes)


def _stepper(
    recipe: Recipe, module: nn.Module, optimizer: torch.optim.Optimizer, num_classes: int, batch: int, taught: bool
) -> Callable[[Tensor], object]:
    """A function that takes a step of one replica; its teacher is replaced by zeros and measured separately."""
    one = dataclasses.replace(recipe, global_batch_size=batch, replicas=1)
    device = next(module.parameters()).device
    labels_B = torch.arange(batch, device=device) % num_classes
    logits_BK = torch.zeros(batch, num_classes, device=device)
    stepper = Stepper(
        module,
        optimizer,
        torch.amp.GradScaler(device.type, enabled=False),
        Mixer(recipe.mix, num_classes, batch),
        one,
        Processes(),
        teacher=cast("Any", lambda images_BCHW: logits_BK) if taught else None,
    )
    return lambda images_BCHW: stepper(0, iter([(images_BCHW, labels_B)]), 0.0, head_only=False, stop=False)


def _reading(recipe: Recipe, samples: TrainingSet, order: Order) -> float:
    """Seconds to read and augment an image, in one process."""
    began, count = time.perf_counter(), 0
    for slot in order.slots(0, 0)[:_MAX_READ]:
        try:
            samples.change(slot)
        except ImageError:
            if recipe.data.on_error == "raise":
                raise
        count += 1
        if time.perf_counter() - began > _MAX_READ_S:
            break
    return (time.perf_counter() - began) / count


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return max(1e-9, time.perf_counter() - began)
