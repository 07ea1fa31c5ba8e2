"""A recipe: everything that decides a training run, as one YAML file and one frozen dataclass."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepcait.backends import BACKENDS
from deepcait.data.augment import Augment
from deepcait.data.holding import VALIDATE_ON
from deepcait.data.labels import RULES
from deepcait.data.mixing import Mix
from deepcait.data.record import RUN_CONFIG
from deepcait.errors import ConfigError, DeepcaitError, together
from deepcait.training.aliases import rename_nodes
from deepcait.training.best import MEASURES
from deepcait.training.schedule import Schedule
from deepcait.training.settings import (
    OPTIMIZERS,
    TIMM,
    Ablation,
    About,
    Average,
    Compute,
    Data,
    Digests,
    Distillation,
    Keep,
    Lora,
    Optimizer,
    Shape,
)
from deepcait.training.strict import overlay, read_assignment, read_text, read_yaml, to_yaml

RECIPES = Path(__file__).parent.parent / "recipes"
# Its square, summed over any width, is a float32; beyond, every token is NaN or the norm's bias alone.
_MAX_GAMMA = 1e15
_REMEDY = "Give another value, in the recipe or through --set."


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run."""

    version: int = 2
    """Version of the settings format; it decides the value of a missing key. Runs of deepcait 0.1 have none, which
    means 1."""
    about: About = field(default_factory=About)
    model: str = "cait_xxs24_224"
    """Model to start from: a model name, any other MODEL, or your own network, python:package.module:factory."""
    start: str = "random"
    """Initial weights of a model that is given by name: random or released."""
    keep_rows: bool = False
    """true: a new head copies the rows of classes that the initial model has under the same name."""
    img_size: int | tuple[int, int] | None = None
    """Height and width of the input in pixels; null is the model's own size."""
    layer_scale_init: float | None = None
    """Initial value of LayerScale; null is the value of the model table."""
    drop_path_rate: float | None = None
    """Probability that a residual branch is skipped in a training step (stochastic depth); null is the value of the
    model table."""
    drop_rate: float | None = None
    """Dropout rate of the token that the classification head reads; null is the model's own rate, which is 0 for
    CaiT."""
    shape: Shape = field(default_factory=Shape)
    ablation: Ablation = field(default_factory=Ablation)
    train: str = "all"
    """Parameters to train: all, head, attention, or lora (low-rank updates, see `lora`, and the head)."""
    lora: Lora = field(default_factory=Lora)
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that are not trained, such as blocks.0.* or *.gamma_1."""
    freeze_blocks: int = 0
    """Number of first patch blocks that are not trained, together with the embedding; 0 is off."""
    head_warmup_epochs: float = 0.0
    """Number of epochs at the start in which only the head is trained."""
    loss: str = "ce"
    """Loss function: ce (cross-entropy), bce (binary cross-entropy, as in DeiT III), focal, focal(gamma=2.0), or
    python:package.module:factory."""
    seed: int = 0
    """Random seed of data order, augmentation, and random initial weights."""
    epochs: int = 400
    """Number of epochs."""
    global_batch_size: int = 1024
    """Number of images in one optimizer step, over all processes."""
    replicas: int = 8
    """Number of forward and backward passes in one optimizer step; the paper has one per GPU. The number of processes
    must divide it: each process computes some of them."""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    ema: Average = field(default_factory=Average)
    teacher: Distillation = field(default_factory=Distillation)
    compute: Compute = field(default_factory=Compute)
    keep: Keep = field(default_factory=Keep)
    digests: Digests = field(default_factory=Digests)

    def __post_init__(self) -> None:
        one_of = {
            "version": (str(self.version), ("1", "2")),
            "start": (self.start, ("random", "released")),
            "train": (self.train, ("all", "head", "attention", "lora")),
            "data.labels": (self.data.labels, RULES),
            "data.validate_on": (self.data.validate_on, VALIDATE_ON),
            "data.on_error": (self.data.on_error, ("raise", "skip")),
            "teacher.kind": (self.teacher.kind, ("hard", "soft")),
            "keep.best_by": (self.keep.best_by, ("auto", *MEASURES)),
            "compute.precision": (self.compute.precision, ("auto", "fp32", "fp32-strict", "bf16", "fp16")),
            "compute.compile": (str(self.compute.compile).lower(), ("auto", "blocks", "true", "false")),
            "compute.backend": (self.compute.backend, BACKENDS),
            "compute.memory": (self.compute.memory, ("normal", "small")),
        }
        errors = [
            ConfigError(f"{name}: expected {' or '.join(allowed)}, got {value!r}.", remedy="Choose one.")
            for name, (value, allowed) in one_of.items()
            if value not in allowed
        ]
        errors += [*_wrong_optimizer(self.optimizer.name), *self._out_of_range(), *self._not_a_share()]
        if errors:
            raise together(errors)

    def _out_of_range(self) -> Iterator[ConfigError]:
        """An error for each number that is too small."""
        o, s, k = self.optimizer, self.schedule, self.keep
        at_least_one = {"epochs": self.epochs, "global_batch_size": self.global_batch_size, "replicas": self.replicas}
        at_least_one |= {"keep.checkpoints": k.checkpoints, "keep.log_every_steps": k.log_every_steps}
        at_least_one |= {"keep.evaluate_every_epochs": k.evaluate_every_epochs}
        for name, value in at_least_one.items():
            if value < 1:
                yield ConfigError(f"{name}: expected 1 or more, got {value}.", remedy=_REMEDY)
        not_negative = {"optimizer.lr": o.lr, "optimizer.lr_batch": o.lr_batch, "optimizer.eps": o.eps}
        not_negative |= {"optimizer.weight_decay": o.weight_decay, "head_warmup_epochs": self.head_warmup_epochs}
        not_negative |= {"schedule.warmup_epochs": s.warmup_epochs, "schedule.warmup_lr": s.warmup_lr}
        not_negative |= {"schedule.min_lr": s.min_lr}
        not_negative |= {"data.max_errors": self.data.max_errors, "data.shrink_px": self.data.shrink_px}
        not_negative |= {"data.limit": self.data.limit, "data.val_limit": self.data.val_limit}
        not_negative |= {"keep.max_skipped_steps": k.max_skipped_steps, "keep.patience_epochs": k.patience_epochs}
        not_negative |= {"freeze_blocks": self.freeze_blocks, "drop_rate": self.drop_rate or 0.0}
        workers = self.data.num_workers
        not_negative |= {"data.num_workers": workers} if isinstance(workers, int) else {}
        if isinstance(workers, str) and workers != "auto":
            yield ConfigError(f"data.num_workers: expected auto or a number, got {workers!r}.", remedy=_REMEDY)
        not_negative |= {"keep.checkpoint_every_steps": k.checkpoint_every_steps}
        not_negative |= {"keep.checkpoint_every_s": k.checkpoint_every_s, "optimizer.clip_norm": o.clip_norm}
        for name, value in not_negative.items():
            if value < 0:
                yield ConfigError(f"{name}: expected 0 or more, got {value}.", remedy=_REMEDY)

    def _not_a_share(self) -> Iterator[ConfigError]:
        """An error for each number that is too large, or no proportion."""
        o = self.optimizer
        if abs(self.layer_scale_init or 0) > _MAX_GAMMA:
            problem = f"layer_scale_init: expected at most {_MAX_GAMMA:g} in size, got {self.layer_scale_init:g}."
            yield ConfigError(problem, remedy="The paper starts at 0.1 or less; norms square more to infinity.")
        if self.shape.in_chans not in (None, 1, 3):
            problem = f"shape.in_chans: expected 3, or 1 for grey images, got {self.shape.in_chans}."
            yield ConfigError(problem, remedy="Choose one; images are read as one of the two.")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(o, name) < 1:
                problem = f"optimizer.{name}: expected a number in [0, 1), got {getattr(o, name)}."
                yield ConfigError(problem, remedy=_REMEDY)
        if not 0 <= o.layer_decay <= 1:
            problem = f"optimizer.layer_decay: expected a number in [0, 1], got {o.layer_decay:g}."
            yield ConfigError(problem, remedy="Beyond 1 early blocks would move the most; 1 is off.")
        if not 0 <= self.teacher.alpha <= 1 or self.teacher.tau <= 0 or not 0 <= self.ema.decay < 1:
            yield ConfigError(
                f"expected teacher.alpha in [0, 1], teacher.tau > 0 and ema.decay in [0, 1), got "
                f"{self.teacher.alpha}, {self.teacher.tau} and {self.ema.decay}.",
                remedy=_REMEDY,
            )

    @property
    def peak_lr(self) -> float:
        """Learning rate for the whole global batch."""
        scale = self.global_batch_size / self.optimizer.lr_batch if self.optimizer.lr_batch else 1.0
        return self.optimizer.lr * scale

    @property
    def num_workers(self) -> int:
        """Data-loading workers of a process; 0 as long as `data.num_workers` is auto: see `choose_settings`."""
        return self.data.num_workers if isinstance(self.data.num_workers, int) else 0

    def to_yaml(self) -> str:
        """Return the whole recipe as YAML; `load_recipe` reads it back to an equal one."""
        return to_yaml(self)


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str, assignments: Sequence[str] = (), *, version: int = 2) -> Recipe:
    """Read a recipe by name or from a file, and apply `key=value` assignments.

    `extends: NAME` in a file starts from that recipe instead of the defaults. Missing settings are those of `version`;
    a `config.yaml` without one is of a run of deepcait 0.1.

    Raises:
        ConfigError: no such recipe, unknown keys, wrong types or values, or a circle of `extends`; all that is wrong in
            one error.
    """
    errors: list[DeepcaitError] = []
    try:
        recipe = _read(_find(name_or_path, Path.cwd()), (), version)
    except ConfigError as error:  # what is wrong in the assignments is found whatever they are laid over
        errors.append(error)
        recipe = _defaults(version)
    for assignment in assignments:
        try:
            node, origin = read_assignment(assignment)
            recipe = overlay(recipe, rename_nodes(node), origin)
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise together(errors)
    return recipe


def _wrong_optimizer(name: str) -> Iterator[ConfigError]:
    """An error for a name that is neither built in nor timm:NAME; NAME is checked when the optimizer is built."""
    if name in OPTIMIZERS or (name.startswith(TIMM) and name != TIMM):
        return
    from timm.optim import list_optimizers

    if name.lower() in OPTIMIZERS:
        remedy = f"Did you mean {name.lower()}?"
    else:
        is_timm = name.partition("(")[0].lower() in list_optimizers()
        remedy = f"Did you mean {TIMM}{name}?" if is_timm else "Choose one."
    expected = f"expected {', '.join(OPTIMIZERS)} or {TIMM}NAME (for example {TIMM}lamb)"
    yield ConfigError(f"optimizer.name: {expected}, got {name!r}.", remedy=remedy)


def _find(name_or_path: str, folder: Path) -> Path:
    if name_or_path in recipe_names():
        return RECIPES / f"{name_or_path}.yaml"
    path = folder / os.path.expanduser(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return path
    near = difflib.get_close_matches(name_or_path, recipe_names(), n=1)
    hint = f"Did you mean {near[0]}?" if near else f"The recipes are {', '.join(recipe_names())}."
    raise ConfigError(f"There is no recipe {name_or_path!r}.", remedy=hint)


def _read(path: Path, readers: tuple[Path, ...], version: int) -> Recipe:
    if path in readers:
        chain = " -> ".join(reader.name for reader in (*readers, path))
        raise ConfigError(f"extends: recipes extend each other in a circle: {chain}.", remedy="Remove one `extends`.")
    root = read_yaml(read_text(path), str(path))
    if path.name == RUN_CONFIG and not any(key.value == "version" for key, _ in root.value):
        version = 1
    base = _defaults(version)
    for pair in list(root.value):
        if pair[0].value == "extends":
            base = _read(_find(str(pair[1].value), path.parent), (*readers, path), version)
            root.value.remove(pair)
    return overlay(base, rename_nodes(root), str(path))


def _defaults(version: int) -> Recipe:
    """Values of missing settings."""
    if version > 1:
        return Recipe()
    data = Data(labels="0.1", validate_on="0.1", num_workers=2)
    compute = Compute(backend="lean", precision="fp32", compile=False)
    return Recipe(version=1, data=data, compute=compute, keep=Keep(best_by="top1"))
