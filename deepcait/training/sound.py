"""What is wrong with a recipe before its data and weights are read: every error at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from deepcait.data import Preprocessing
from deepcait.data.augment import build_augmentation
from deepcait.data.mixing import Mixer
from deepcait.data.order import Order
from deepcait.errors import DeepcaitError, together
from deepcait.parts import is_part
from deepcait.runtime.device import choose_device
from deepcait.runtime.processes import Processes, num_processes
from deepcait.training.lora import require_lora
from deepcait.training.losses import build_loss
from deepcait.training.optimizer import build_optimizer, read_factor
from deepcait.training.recipe import Recipe
from deepcait.training.schedule import LearningRate
from deepcait.training.start import planned_config
from deepcait.training.teacher import require_teacher
from deepcait.training.trackers import require_trackers
from deepcait.weights.hub import HUB_PREFIX

# A placeholder for values that only the data and the model determine.
_NUM_CLASSES, _IMG_SIZE = 2, 224


def require_sound(recipe: Recipe, *, has_start: bool = False) -> None:
    """Raise unless the settings of a recipe fit each other and this machine.

    Args:
        recipe: of the run.
        has_start: the run folder describes the initial model, so the recipe's MODEL need not exist any more.

    Raises:
        DeepcaitError: one error with all that is wrong.
    """
    errors = []
    for check in _checks(recipe, has_start):
        try:
            check()
        except DeepcaitError as error:
            errors.append(error)
    if errors:
        raise together(errors)


def _checks(recipe: Recipe, has_start: bool) -> Iterator[Callable[[], object]]:
    """What a run builds from settings alone; each raises if it can't be built."""
    batch, replicas = recipe.global_batch_size, recipe.replicas
    size = recipe.img_size or _IMG_SIZE
    preprocessing = Preprocessing((size, size) if isinstance(size, int) else size)
    weights_K = torch.ones(_NUM_CLASSES) if recipe.optimizer.class_weights else None
    parameter = nn.Parameter(torch.zeros(1))
    yield lambda: Order(batch, batch, replicas, recipe.augment.repeats)
    yield lambda: Processes(world_size=num_processes()).share_of(replicas)
    yield lambda: LearningRate(recipe.schedule, recipe.peak_lr, recipe.epochs, 1)
    yield lambda: Mixer(recipe.mix, _NUM_CLASSES, batch // replicas if batch % replicas == 0 else 2)
    yield lambda: build_augmentation(recipe.augment, preprocessing)
    yield lambda: build_loss(recipe.loss, weights_K, label_smoothing=recipe.mix.label_smoothing)
    yield lambda: build_optimizer([{"params": [parameter]}], recipe.optimizer)
    yield lambda: [read_factor(text) for text in recipe.optimizer.lr_factors]
    yield recipe.data.image_options
    yield lambda: require_trackers(recipe.keep)
    yield lambda: choose_device(recipe.compute.device)
    if not has_start and not is_part(recipe.model) and not recipe.model.startswith(HUB_PREFIX):
        yield lambda: planned_config(recipe, _NUM_CLASSES)
    if recipe.train == "lora":
        yield require_lora
    if recipe.teacher.spec:
        yield lambda: require_teacher(recipe.teacher)
