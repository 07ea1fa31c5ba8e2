"""The sections of a recipe: one frozen dataclass each, every setting with its default and meaning."""

from __future__ import annotations

from dataclasses import dataclass

from deepcait.data.columns import Columns
from deepcait.data.image import MAX_BYTES, MAX_PIXELS, ImageOptions


@dataclass(frozen=True, kw_only=True)
class About:
    """Recipe metadata: purpose and results; no effect on the training."""

    summary: str = ""
    command: str = ""
    cost: str = "not yet measured"
    reported: str = ""
    """What the paper or its authors report, with the strength of that source."""
    measured: str = "not yet measured"
    """What we got, with the file in docs/results."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that differ from those of the model's name; null is the model's own."""

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
    """Alternatives to the paper's design choices, for ablations; null is the model's own (for CaiT the first value).

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
    """Where images come from."""

    source: str = ""
    """DATA of the run; set by `--data`."""
    labels: str = "auto"
    """What integers are as labels: names of classes (auto, names) or their indices from 0 (indices)."""
    label_column: str = ""
    """Column of a table (CSV, JSON lines, parquet, arrow) of labels; empty takes one called label or alike."""
    image_column: str = ""
    """Column of a table of images or their paths; empty takes one called path, image or alike."""
    image_suffix: str = ""
    """Suffix of the files of a table whose paths have none, such as .jpg."""
    image_root: str = ""
    """Folder that the paths of a table are relative to; empty is the table's own."""
    validate_on: str = "auto"
    """auto: val, else a part of train, held out. val, test: that split. none: the last epoch is the model."""
    val_fraction: float = 0.1
    """Part of every class held out of train where there is no split val."""
    num_workers: int = 2
    """Worker processes of one training process; changes no result."""
    balanced: bool = False
    """Draw classes equally often."""
    exclude: str = ""
    """File of paths to leave out, one per line: what `deepcait doctor --fix-list` writes."""
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

    def columns(self) -> Columns:
        """Return what is said about the columns of a table. Raises ConfigError."""
        return Columns(label=self.label_column, image=self.image_column, suffix=self.image_suffix, root=self.image_root)

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
    """adamw, sgd (Nesterov), or one of timm's: timm:lamb, timm:lion(betas=(0.9, 0.95)), ..."""
    lr: float = 5e-4
    """Learning rate for `lr_batch` images per step."""
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
    lr_factors: tuple[str, ...] = ()
    """Factors of the learning rate by parameter name, PATTERN=FACTOR, such as blocks.*=0.1; the first match counts."""
    class_weights: bool | tuple[float, ...] = False
    """true: weigh classes by the inverse of their size. A list: a weight for each class, in their order."""


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
    """The teacher: any MODEL or timm:NAME; set by `--teacher`."""
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
    best_by: str = "auto"
    """What chooses the best epoch and stops early: loss, top1, balanced_accuracy or macro_f1, of the validation images.
    auto: loss where they are fewer than 500, else top1."""
    patience_epochs: int = 0
    """Stop when the best epoch is this old; 0 is off."""
    max_skipped_steps: int = 5
    """Steps with a loss or gradient that is not finite; one more stops the run."""
    tensorboard: bool = False
    """Write TensorBoard files into the run; needs deepcait[track]."""
    tracker: str = ""
    """wandb or trackio, to hear every row too; empty for none."""


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Of the run's own parts: sha256 of their source, written by training; --resume compares them."""

    data: str = ""
    """Of data.source."""
    model: str = ""
    """Of model."""
    loss: str = ""
    """Of loss."""
    transform: str = ""
    """Of augment.transform."""
    teacher: str = ""
    """Of teacher.spec."""
