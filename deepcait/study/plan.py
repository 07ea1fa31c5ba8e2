"""The plan of a study: every cell's recipe, and how many epochs and images fit the compute budget."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepcait.data import Preprocessing, Source, open_split
from deepcait.data.augment import build_augmentation
from deepcait.data.loader import TrainingSet
from deepcait.data.split import limited
from deepcait.errors import ConfigError
from deepcait.model.network import NetworkConfig
from deepcait.model.networks import build_model
from deepcait.model.variants import CaiTConfig
from deepcait.study.grid import Cell, Grid, cells_of
from deepcait.training.data import build_order
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.start import planned_config, shape_of
from deepcait.training.teacher import load_teacher

FORMAT = 1
_logger = logging.getLogger(__name__)
_MARGIN = 0.9  # of the budget; the rest is for starting, saving, and a busy machine
_MIN_IMAGES = 100
_VALIDATION_SHARE = 0.25  # largest share of the budget for validation
# Settings that a study decides for every cell, and the option that they follow from.
_DECIDED = {
    "seed": "--seeds",
    "epochs": "--epochs",
    "data.source": "--data",
    "data.limit": "--images",
    "data.val_limit": "--val-images",
    "teacher.spec": "--teacher",
}


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Everything that determines a study's table, fixed at the start and stored in its folder.

    Args:
        study: its name. data: DATA. data_name: its name in tables. teacher: MODEL, or empty.
        seeds: how many. epochs: per cell. images: training images, 0 for all. val_images: the same for validation.
        only: rows and columns kept; empty for all. set: more settings of every cell.
    """

    study: str
    data: str
    data_name: str
    seeds: int
    epochs: int
    images: int
    val_images: int
    teacher: str = ""
    only: tuple[str, ...] = ()
    set: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the text of `study.json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


def read_plan(path: Path) -> StudyPlan:
    """Read `study.json`.

    Raises:
        ConfigError: it is not a plan of this version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        tuples = {name: tuple(content[name]) for name in ("only", "set")}
        return StudyPlan(**(content | tuples))
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{path}: this is not the plan of a study ({error})."
        raise ConfigError(problem, remedy="Use another --out.") from error


def cell_recipe(grid: Grid, plan: StudyPlan, cell: Cell, cells: Path) -> Recipe:
    """Return the recipe of one cell.

    Args:
        grid: the study. plan: its plan. cell: one of its cells.
        cells: folder of all cells' runs.
    """
    recipe = _settings(grid.recipe, (*grid.set, *cell.settings, *plan.set))
    epochs = max(1, round(plan.epochs * cell.row.epochs))
    warmup = min(recipe.schedule.warmup_epochs, 0.2 * epochs)
    teacher = plan.teacher if cell.teacher else ""
    changed = dataclasses.replace(
        recipe,
        seed=cell.seed,
        epochs=epochs,
        data=dataclasses.replace(recipe.data, source=plan.data, limit=plan.images, val_limit=plan.val_images),
        schedule=dataclasses.replace(recipe.schedule, warmup_epochs=warmup),
        teacher=dataclasses.replace(recipe.teacher, spec=teacher),
        # Evaluated once, at the end: the best of many evaluations would be chosen by the test images.
        keep=dataclasses.replace(recipe.keep, evaluate_every_epochs=epochs, patience_epochs=0),
    )
    if cell.start is None:
        return changed
    own = {name: None for name in dataclasses.asdict(recipe.shape)}
    return dataclasses.replace(changed, model=str(cells / cell.start), shape=dataclasses.replace(recipe.shape, **own))


@functools.cache
def _settings(recipe: str, assignments: tuple[str, ...]) -> Recipe:
    return load_recipe(recipe, assignments)


def cell_config(grid: Grid, plan: StudyPlan, cell: Cell, cells: Path, num_classes: int) -> NetworkConfig:
    """Return the network of one cell, even if the cell that it starts from is not trained yet."""
    recipe = cell_recipe(grid, plan, cell, cells)
    if cell.start is None:
        return planned_config(recipe, num_classes)
    before = dataclasses.replace(cell, row=next(row for row in grid.rows if row.id == cell.row.follows))
    return cell_config(grid, plan, before, cells, num_classes).replace(**shape_of(recipe))


def check_cells(grid: Grid, plan: StudyPlan) -> None:
    """Raise errors that would stop a cell before its first step, as far as they can be found without training.

    Raises:
        DeepcaitError: the data or the teacher do not exist, a setting is invalid, or the study decides it.
    """
    _require_free(grid, plan)
    samples = limited(open_split(plan.data, "train"), plan.images)
    teachers: dict[str, None] = {}
    for cell in cells_of(grid, 1):
        recipe = cell_recipe(grid, plan, cell, Path())
        config = cell_config(grid, plan, cell, Path(), len(samples.classes))
        build_order(recipe, samples)
        build_augmentation(recipe.augment, Preprocessing(config.img_size))
        if recipe.teacher.spec and recipe.teacher.spec not in teachers:
            load_teacher(recipe.teacher, Preprocessing(config.img_size), samples.classes)
            teachers[recipe.teacher.spec] = None


def _require_free(grid: Grid, plan: StudyPlan) -> None:
    """Raise if `plan.set` holds a setting that the study decides: it would be silently overridden."""
    own, given = _settings(grid.recipe, grid.set), _settings(grid.recipe, (*grid.set, *plan.set))
    for name, option in _DECIDED.items():
        value = operator.attrgetter(name)
        if value(given) != value(own):
            raise ConfigError(
                f"--set {name}={value(given)}: the study decides this setting itself.",
                remedy=f"Leave it out; it follows from {option}.",
            )


@dataclass(frozen=True)
class Cost:
    """Seconds per image of a cell: in training, and in validation."""

    train_s: float
    validate_s: float


def fit_to_budget(grid: Grid, requested: StudyPlan, hours: float) -> tuple[StudyPlan, dict[str, Any]]:
    """Return the plan with as many epochs and images as fit the budget, and the measured speeds.

    First the epochs are reduced, to a quarter of the recipe's at least, then the images. Nothing is written.

    Args:
        grid: the study. requested: its plan with the recipe's own epochs and images, and all validation images.
        hours: compute budget of one machine for all cells.

    Raises:
        ConfigError: the budget is too small.
    """
    samples, validation = (open_split(requested.data, role) for role in ("train", "val"))
    seconds = hours * 3600
    _logger.info("measuring the speed of %d networks on this machine ...", len(grid.rows) * len(grid.columns))
    costs = measure(grid, requested, samples)
    shares = {cell.name: cell.row.epochs for cell in cells_of(grid, 1)}
    per_epoch_image = requested.seeds * sum(cost.train_s * shares[name] for name, cost in costs.items())
    per_validated = requested.seeds * sum(cost.validate_s for cost in costs.values())
    num_validated = min(len(validation), int(_VALIDATION_SHARE * seconds / per_validated))
    num_validated = num_validated if num_validated == len(validation) else num_validated // 10 * 10
    left_s = _MARGIN * seconds - num_validated * per_validated
    total = left_s / per_epoch_image  # image passes per cell, over all epochs
    most = min(requested.images or len(samples), len(samples))
    least_epochs = max(1, requested.epochs // 4)
    if total >= most * least_epochs:
        images, epochs = most, min(requested.epochs, int(total / most))
    else:
        images, epochs = int(total / least_epochs) // 10 * 10, least_epochs
    if images < _MIN_IMAGES or num_validated < 10:
        needed = (_MIN_IMAGES * least_epochs * per_epoch_image / (_MARGIN - _VALIDATION_SHARE)) / 3600
        raise ConfigError(
            f"--budget {hours:g} h is too small: {grid.name} with {requested.seeds} seeds needs at least "
            f"{needed:.2g} h.",
            remedy="Allow more hours, or use fewer --seeds or a part of the study (--only).",
        )
    expected_s = images * epochs * per_epoch_image + num_validated * per_validated
    facts = {
        "hours": hours,
        "expected_hours": expected_s / 3600,
        "images_per_s": {name: 1 / cost.train_s for name, cost in costs.items()},
        "threads": torch.get_num_threads(),
    }
    return dataclasses.replace(requested, images=images, epochs=epochs, val_images=num_validated), facts


def measure(grid: Grid, plan: StudyPlan, samples: Source, steps: int = 3) -> dict[str, Cost]:
    """Return seconds per image for each cell of the first seed: reading, augmenting, a step; best of a few."""
    costs = {}
    for cell in cells_of(grid, 1):
        recipe = cell_recipe(grid, plan, cell, Path())
        config = cell_config(grid, plan, cell, Path(), len(samples.classes))
        preprocessing = Preprocessing(config.img_size)
        order = build_order(recipe, limited(samples, plan.images))
        training_set = TrainingSet(samples, build_augmentation(recipe.augment, preprocessing), recipe.seed)
        slots = order.slots(0, 0)[:32]
        read_s = _seconds(lambda slots=slots, readers=training_set: [readers[slot] for slot in slots], 1) / len(slots)
        images = torch.randn(order.replica_batch_size, config.in_chans, *config.img_size)
        net = build_model(config).train()
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        teacher = load_teacher(recipe.teacher, preprocessing, samples.classes) if recipe.teacher.spec else None

        def step(net=net, images=images, optimizer=optimizer, teacher=teacher) -> None:
            if teacher:
                teacher(images)
            net(images).logsumexp(1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        def answer(net=net, images=images) -> None:
            with torch.no_grad():
                net(images)

        step_s, answer_s = _seconds(step, steps), _seconds(answer, steps)
        costs[cell.name] = Cost(read_s + step_s / len(images), read_s + answer_s / len(images))
    return costs


def _seconds(work: Callable[[], object], times: int) -> float:
    """The shortest of a few times after one warm-up: the speed of an undisturbed machine."""
    work()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def scale_of(grid: Grid, plan: StudyPlan, cells: Path, num_train: int, num_validation: int) -> str:
    """Return the scale of a study in words, for the title of its tables."""
    first = cells_of(grid, 1)[0]
    recipe = cell_recipe(grid, plan, first, cells)
    configs = [cell_config(grid, plan, cell, cells, 2) for cell in cells_of(grid, 1)]
    caits = [config for config in configs if isinstance(config, CaiTConfig)]
    tokens, widths = sorted({c.num_patches for c in caits}), sorted({c.embed_dim for c in caits})
    return (
        f"{plan.data_name}, {num_train:,} training images, {_listed(tokens)} tokens, width {_listed(widths)}, "
        f"{_plural(recipe.epochs, 'epoch')}, {_plural(plan.seeds, 'seed')}; top-1 of {num_validation:,} images"
    )


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers)) if len(numbers) < 3 else f"{numbers[0]} to {numbers[-1]}"
