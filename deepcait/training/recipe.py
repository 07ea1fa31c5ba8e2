"""A recipe: everything that decides a training run, as one YAML file and one frozen dataclass."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepcait.backends import BACKENDS
from deepcait.data.augment import Augment
from deepcait.data.image import MAX_BYTES, MAX_PIXELS, ImageOptions
from deepcait.data.labels import RULES
from deepcait.data.mixing import Mix
from deepcait.data.spec import VALIDATE_ON
from deepcait.errors import ConfigError
from deepcait.training.aliases import rename_nodes
from deepcait.training.schedule import Schedule
from deepcait.training.strict import overlay, read_assignment, read_text, read_yaml, to_yaml

RUN_CONFIG = "config.yaml"
RECIPES = Path(__file__).parent.parent / "recipes"
# Its square, summed over any width, is a float32; beyond, every token is NaN or the norm's bias alone.
_MAX_GAMMA = 1e15
_REMEDY = "Give another value, in the recipe or through --set."


@dataclass(frozen=True, kw_only=True)
class About:
    """Recipe metadata: what it is for, and what came of it."""

    summary: str = ""
    command: str = ""
    cost: str = "not yet measured"
    reported: str = ""
    """What the paper or its authors report, with the strength of that source."""
    measured: str = "not yet measured"
    """What we got, with the file in docs/results."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Other sizes than those of the model's name; null is the model's own."""

    embed_dim: int | None = None
    """Width D of a token."""
    depth: int | None = None
    """Blocks of the patch stage."""
    num_heads: int | None = None
    """Heads of an attention; divides embed_dim."""
    patch_size: int | None = None
    """Side of a patch in pixels."""
    in_chans: int | None = None
    """Channels of an image: 3, or 1 for grey ones."""
    cls_depth: int | None = None
    """Blocks of the class stage."""
    mlp_ratio: float | None = None
    """Width of an MLP's hidden layer, in embed_dim."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The paper's choices exchanged for those that it compares with; null is the model's own (CaiT: the first named).

    `AblationConfig` says what each one does. With all of them null, the network is the plain CaiT.
    """

    residual: str | None = None
    """layerscale, scalar, rezero, skipinit, fixup, tfixup or none."""
    pre_norm: bool | None = None
    """true: branches are normalised before; false: as the originals of rezero, skipinit, fixup and tfixup."""
    class_token: str | None = None
    """class_stage, inserted (into the patch stage) or average (no class token)."""
    insert_at: int | None = None
    """Block of the patch stage before which an inserted class token joins; 0 is ViT."""
    class_mlp: bool | None = None
    """false leaves out the MLPs of the class stage."""
    talking_heads: str | None = None
    """both, before (the softmax), after, or none."""
    drop_path_shape: str | None = None
    """uniform, or linear from 0 in the first block to drop_path_rate in the last."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where pictures come from."""

    source: str = ""
    """Data SPEC; `--data` fills it."""
    labels: str = "auto"
    """What integers are as labels: names of classes (auto, names) or their indices from 0 (indices)."""
    validate_on: str = "auto"
    """auto: val, else a part of train, held out. val, test: that split. none: the last epoch is the model."""
    val_fraction: float = 0.1
    """Part of every class held out of train where there is no split val."""
    num_workers: int = 2
    """Worker processes of one training process; changes no result."""
    balanced: bool = False
    """Draw classes equally often."""
    exclude: str = ""
    """File of paths to leave out, one a line: what `deepcait doctor --fix-list` writes."""
    on_error: str = "raise"
    """An unreadable training image stops the run (raise), or the next readable one takes its place (skip)."""
    max_errors: int = 100
    """Different images that skip passes over; one more stops the run."""
    shrink_px: int = 0
    """Make larger training images smaller first, their shorter side this many pixels; 0 is off."""
    cache: str = ""
    """Folder to keep the shrunk images in; changes no result."""
    max_pixels: int = MAX_PIXELS
    """An image of more pixels is an error, by its header."""
    max_bytes: int = MAX_BYTES
    """A larger file is an error, before it is read."""
    max_value: int = 0
    """The value that is white in images deeper than 8 bits; 0 takes what the file says, else 65535."""
    accept_truncated: bool = False
    """Take images whose end is missing where their last row was decoded."""
    limit: int = 0
    """Train on this many images, drawn class by class from their names, whatever the seed; 0 takes all."""
    val_limit: int = 0
    """Validate on this many, drawn in the same way; 0 takes all."""

    def image_options(self) -> ImageOptions:
        """Return what is accepted as an image. Raises ConfigError."""
        return ImageOptions(
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
            max_value=self.max_value,
            accept_truncated=self.accept_truncated,
        )


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How weights are updated."""

    name: str = "adamw"
    """adamw or sgd (Nesterov)."""
    lr: float = 5e-4
    """Learning rate for `lr_batch` images a step."""
    lr_batch: int = 512
    """The rate is scaled by global_batch_size / lr_batch; 0 takes lr as it is."""
    weight_decay: float = 0.05
    """Not on vectors, biases, the class token and positions."""
    beta1: float = 0.9
    """Of adamw: memory of the mean gradient."""
    beta2: float = 0.999
    """Of adamw: memory of its square."""
    eps: float = 1e-8
    """Of adamw: added to the root that the step is divided by."""
    momentum: float = 0.9
    """Of sgd."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together; 0 is off."""
    layer_decay: float = 1.0
    """Factor of the learning rate from one patch block to the one before; 1 is off."""
    class_weights: bool = False
    """Weigh classes by the inverse of their size."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """Exponential moving average of the weights, saved beside the raw ones."""

    decay: float = 0.0
    """0 is off; the paper computes 0.99996 and reports the raw weights."""
    warmup: bool = True
    """Start with min(decay, (1 + steps) / (10 + steps)), so that short runs are not dominated by the start."""
    evaluated: bool = False
    """Which weights the run's accuracy, its best model and its users take: the averaged ones or the raw."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Settings of distillation; without a teacher there is none."""

    spec: str = ""
    """Teacher SPEC; `--teacher` fills it."""
    kind: str = "hard"
    """hard: the teacher's first choice as a label. soft: its distribution."""
    alpha: float = 0.5
    """Weight of the teacher's term."""
    tau: float = 1.0
    """Temperature of soft distillation."""
    mean: tuple[float, ...] | None = None
    """Normalisation of the teacher; null takes its own."""
    std: tuple[float, ...] | None = None
    """The same, its standard deviations."""
    img_size: str | int = "own"
    """What the teacher sees: its own size, the `student`'s, or a side in pixels."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How it is computed; changes speed and memory, and results by rounding only."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast; softmax and residual stream stay in fp32)."""
    compile: bool = False
    """Steps through torch.compile; needs a C++ compiler. `--engine compile` sets it."""
    grad_checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping what they made."""
    channels_last: bool = False
    """Images in memory with the channel last."""
    backend: str = "auto"
    """What computes the patch blocks. reference: their layers. lean: two fused operators per block, which keep less
    for the backward pass. auto: lean on a CPU, reference elsewhere; a resumed run keeps its own."""
    memory: str = "normal"
    """Of the lean backend. normal: keeps what linear layers made. small: keeps the residual stream alone, and computes
    the rest of a block again in the backward pass; the same bits."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """When runs are saved, evaluated and stopped."""

    evaluate_every_epochs: int = 1
    """Epochs from one validation to the next."""
    checkpoint_every_steps: int = 0
    """Beside the end of every evaluated epoch; 0 is off."""
    checkpoint_every_s: float = 600.0
    """Seconds; 0 is off."""
    checkpoints: int = 2
    """How many are kept."""
    log_every_steps: int = 20
    """Steps from one row of the journal to the next."""
    patience_epochs: int = 0
    """Stop when the best accuracy is this old; 0 is off."""
    max_skipped_steps: int = 5
    """Steps with a loss or gradient that is not finite; one more stops the run."""
    tensorboard: bool = False
    """Write TensorBoard files into the run; needs deepcait[track]."""
    tracker: str = ""
    """wandb or trackio, to hear every row too; empty for none."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run."""

    version: int = 2
    """Of the settings: what a setting that is missing means. 1 is deepcait 0.1, whose runs have no version."""
    about: About = field(default_factory=About)
    model: str = "cait_xxs24_224"
    """Model name, or any model SPEC to start from."""
    start: str = "random"
    """random or released: what a model name stands for."""
    keep_rows: bool = False
    """A new head takes over the rows of classes that the model it starts from knows by the same name."""
    img_size: int | tuple[int, int] | None = None
    """Height and width in pixels; null is the model's own."""
    layer_scale_init: float | None = None
    """First value of LayerScale; null is the model table's."""
    drop_path_rate: float | None = None
    """Chance that a branch is left out of a training step (stochastic depth); null is the model table's."""
    shape: Shape = field(default_factory=Shape)
    ablation: Ablation = field(default_factory=Ablation)
    train: str = "all"
    """Which parameters move: all, head, or attention."""
    head_warmup_epochs: float = 0.0
    """Epochs at the start in which only the head moves."""
    seed: int = 0
    """Of the order of data, of augmentation, and of random weights."""
    epochs: int = 400
    """Of the whole run."""
    global_batch_size: int = 1024
    """Images of one optimizer step, over all processes."""
    replicas: int = 8
    """Forward passes that make one step, stand-ins for the paper's GPUs; more processes share them out."""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    ema: Average = field(default_factory=Average)
    teacher: Distillation = field(default_factory=Distillation)
    compute: Compute = field(default_factory=Compute)
    keep: Keep = field(default_factory=Keep)

    def __post_init__(self) -> None:
        one_of = {
            "version": (str(self.version), ("1", "2")),
            "start": (self.start, ("random", "released")),
            "train": (self.train, ("all", "head", "attention")),
            "data.labels": (self.data.labels, RULES),
            "data.validate_on": (self.data.validate_on, VALIDATE_ON),
            "data.on_error": (self.data.on_error, ("raise", "skip")),
            "optimizer.name": (self.optimizer.name, ("adamw", "sgd")),
            "teacher.kind": (self.teacher.kind, ("hard", "soft")),
            "compute.precision": (self.compute.precision, ("fp32", "bf16", "fp16")),
            "compute.backend": (self.compute.backend, BACKENDS),
            "compute.memory": (self.compute.memory, ("normal", "small")),
        }
        for name, (value, allowed) in one_of.items():
            if value not in allowed:
                raise ConfigError(f"{name}: expected {' or '.join(allowed)}, got {value!r}.", remedy="Choose one.")
        at_least_one = {"epochs": self.epochs, "global_batch_size": self.global_batch_size, "replicas": self.replicas}
        at_least_one |= {"keep.checkpoints": self.keep.checkpoints, "keep.log_every_steps": self.keep.log_every_steps}
        at_least_one |= {"keep.evaluate_every_epochs": self.keep.evaluate_every_epochs}
        for name, value in at_least_one.items():
            if value < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {value}.", remedy=_REMEDY)
        o, s, k = self.optimizer, self.schedule, self.keep
        not_negative = {"optimizer.lr": o.lr, "optimizer.lr_batch": o.lr_batch, "optimizer.eps": o.eps}
        not_negative |= {"optimizer.weight_decay": o.weight_decay, "head_warmup_epochs": self.head_warmup_epochs}
        not_negative |= {"schedule.warmup_epochs": s.warmup_epochs, "schedule.warmup_lr": s.warmup_lr}
        not_negative |= {"schedule.min_lr": s.min_lr, "data.num_workers": self.data.num_workers}
        not_negative |= {"data.max_errors": self.data.max_errors, "data.shrink_px": self.data.shrink_px}
        not_negative |= {"data.limit": self.data.limit, "data.val_limit": self.data.val_limit}
        not_negative |= {"keep.max_skipped_steps": k.max_skipped_steps, "keep.patience_epochs": k.patience_epochs}
        not_negative |= {"keep.checkpoint_every_steps": k.checkpoint_every_steps}
        not_negative |= {"keep.checkpoint_every_s": k.checkpoint_every_s, "optimizer.clip_norm": o.clip_norm}
        for name, value in not_negative.items():
            if value < 0:
                raise ConfigError(f"{name}: expected 0 or more, got {value}.", remedy=_REMEDY)
        if abs(self.layer_scale_init or 0) > _MAX_GAMMA:
            problem = f"layer_scale_init: expected at most {_MAX_GAMMA:g} in size, got {self.layer_scale_init:g}."
            raise ConfigError(problem, remedy="The paper starts at 0.1 or less; norms square more to infinity.")
        if self.shape.in_chans not in (None, 1, 3):
            problem = f"shape.in_chans: expected 3, or 1 for grey images, got {self.shape.in_chans}."
            raise ConfigError(problem, remedy="Choose one; pictures are read as one of the two.")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(o, name) < 1:
                problem = f"optimizer.{name}: expected a number in [0, 1), got {getattr(o, name)}."
                raise ConfigError(problem, remedy=_REMEDY)
        if not 0 <= o.layer_decay <= 1:
            problem = f"optimizer.layer_decay: expected a number in [0, 1], got {o.layer_decay:g}."
            raise ConfigError(problem, remedy="Beyond 1 early blocks would move the most; 1 is off.")
        if not 0 <= self.teacher.alpha <= 1 or self.teacher.tau <= 0 or not 0 <= self.ema.decay < 1:
            raise ConfigError(
                f"expected teacher.alpha in [0, 1], teacher.tau > 0 and ema.decay in [0, 1), got "
                f"{self.teacher.alpha}, {self.teacher.tau} and {self.ema.decay}.",
                remedy=_REMEDY,
            )

    @property
    def peak_lr(self) -> float:
        """Learning rate for the whole global batch."""
        scale = self.global_batch_size / self.optimizer.lr_batch if self.optimizer.lr_batch else 1.0
        return self.optimizer.lr * scale

    def to_yaml(self) -> str:
        """Return the whole recipe as YAML; `load_recipe` reads it back to an equal one."""
        return to_yaml(self)


def recipe_names() -> list[str]:
    """Return the names of the recipes that travel in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str, assignments: Sequence[str] = (), *, version: int = 2) -> Recipe:
    """Read a recipe by name or from a file, and lay `key=value` assignments over it.

    `extends: NAME` in a file starts from that recipe instead of the defaults. Missing settings are those of `version`;
    a `config.yaml` without one is of a run of deepcait 0.1.

    Raises:
        ConfigError: no such recipe, unknown key, wrong type, or a circle of `extends`.
    """
    recipe = _read(_find(name_or_path, Path.cwd()), (), version)
    for assignment in assignments:
        node, origin = read_assignment(assignment)
        recipe = overlay(recipe, rename_nodes(node), origin)
    return recipe


def _find(name_or_path: str, folder: Path) -> Path:
    if name_or_path in recipe_names():
        return RECIPES / f"{name_or_path}.yaml"
    path = folder / os.path.expanduser(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return path
    near = difflib.get_close_matches(name_or_path, recipe_names(), n=1)
    hint = f"Did you mean {near[0]}?" if near else f"The recipes are {', '.join(recipe_names())}."
    raise ConfigError(f"expected a recipe's name or a .yaml file, got {name_or_path!r}.", remedy=hint)


def _read(path: Path, readers: tuple[Path, ...], version: int) -> Recipe:
    if path in readers:
        chain = " -> ".join(reader.name for reader in (*readers, path))
        raise ConfigError(f"extends: expected an end, got a circle: {chain}.", remedy="Take one `extends` out.")
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
    """What a setting that is missing means."""
    data, compute = Data(labels="0.1", validate_on="0.1"), Compute(backend="lean", precision="fp32")
    return Recipe() if version > 1 else Recipe(version=1, data=data, compute=compute)
