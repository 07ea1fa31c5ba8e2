"""The sections of a recipe: one frozen dataclass each, every setting with its default and meaning."""

from __future__ import annotations

from dataclasses import dataclass

from deepcait.data.columns import Columns
from deepcait.data.holding import Holding
from deepcait.data.image import MAX_BYTES, MAX_PIXELS, ImageOptions
from deepcait.errors import ConfigError

OPTIMIZERS = ("adamw", "sgd")
TIMM = "timm:"
"""The prefix of the optimizers of timm."""


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
    """Number of blocks in the patch stage."""
    num_heads: int | None = None
    """Number of attention heads per block; must divide embed_dim."""
    patch_size: int | None = None
    """Height and width of a patch in pixels."""
    in_chans: int | None = None
    """Number of image channels: 3, or 1 for grey images."""
    cls_depth: int | None = None
    """Number of blocks in the class stage."""
    mlp_ratio: float | None = None
    """Width of an MLP's hidden layer, divided by embed_dim."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Alternatives to the paper's design choices, for ablations; null is the model's own (for CaiT the first value).

    `AblationConfig` describes each of them. With all of them null, the network is the plain CaiT.
    """

    residual: str | None = None
    """Rule of the residual branches: layerscale, scalar, rezero, skipinit, fixup, tfixup or none."""
    pre_norm: bool | None = None
    """true: the input of a branch is normalised. false: as in the original ReZero, SkipInit, Fixup and T-Fixup."""
    class_token: str | None = None
    """Place of the class token: class_stage, inserted (into the patch stage) or average (no class token)."""
    insert_at: int | None = None
    """Block of the patch stage before which the class token is inserted; 0 is ViT."""
    class_mlp: bool | None = None
    """false: the class stage has no MLPs."""
    talking_heads: str | None = None
    """Head mixing: both, before (the softmax), after (it), or none."""
    drop_path_shape: str | None = None
    """Stochastic depth over the blocks: uniform, or linear from 0 in the first block to drop_path_rate in the last."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where images come from."""

    source: str = ""
    """DATA of the run; set by `--data`."""
    labels: str = "auto"
    """Meaning of integer labels: names of classes (auto, names) or class indices from 0 (indices)."""
    label_column: str = ""
    """Column of a table (CSV, JSON lines, parquet, arrow) with the labels; empty: a column with a usual name, such as
    label."""
    image_column: str = ""
    """Column of a table with the images or their paths; empty: a column with a usual name, such as path or image."""
    image_suffix: str = ""
    """Suffix of the files, such as .jpg, if the paths in a table have none."""
    image_root: str = ""
    """Folder that the paths in a table are relative to; empty: the folder of the table."""
    validate_on: str = "auto"
    """Validation images. auto: the split val; if there is none, a part of train. val, test: that split. none: no
    validation; the last epoch is the model."""
    val_fraction: float = 0.1
    """Fraction of every class of train that is held out for validation if there is no split val."""
    test_fraction: float = 0.0
    """Fraction of every class that is held out as a test part, before val_fraction and whatever the seed; 0 is off."""
    fold: int | None = None
    """Number of the fold to validate on: the images with this value in the column fold; the other folds train. With
    validate_on=none the fold is a test part. `deepcait split --folds K` writes the column."""
    group_column: str = ""
    """Column of a table, such as patient, whose images with the same value stay on one side of every split."""
    num_workers: int | str = "auto"
    """Number of data-loading worker processes per training process; does not change results. auto: half of its
    processors, at most 4; for a GPU all but one, at most 16."""
    balanced: bool = False
    """true: all classes are drawn equally often."""
    exclude: str = ""
    """File with paths of images to exclude, one per line, as `deepcait doctor --fix-list` writes it."""
    on_error: str = "raise"
    """What happens at an unreadable training image. raise: the run stops. skip: the next readable image replaces it."""
    max_errors: int = 100
    """Number of different images that on_error=skip may skip; one more stops the run."""
    shrink_px: int = 0
    """Larger training images are first reduced to this shorter side in pixels; 0 is off."""
    cache: str = ""
    """Folder that stores the reduced images of shrink_px; does not change results."""
    max_pixels: int = MAX_PIXELS
    """Largest number of pixels of an image; it is checked in the header, before decoding."""
    max_bytes: int = MAX_BYTES
    """Largest size of an image file in bytes; it is checked before the file is read."""
    max_value: int = 0
    """Pixel value that is white in images with more than 8 bits per channel; 0 takes it from the file or, if the file
    has none, the largest value of its type (65535; 1 for floating point)."""
    accept_truncated: bool = False
    """true: an image file that is cut at its end is accepted if decoding reaches its last row of pixels."""
    limit: int = 0
    """Number of training images to use, drawn per class from their names and independent of the seed; 0 uses all."""
    val_limit: int = 0
    """Number of validation images to use, drawn in the same way; 0 uses all."""

    def columns(self) -> Columns:
        """Return the settings of the columns of a table. Raises ConfigError."""
        return Columns.from_settings(vars(self))

    def holding(self, seed: int) -> Holding:
        """Return how parts of the training images are held out."""
        return Holding(
            validate_on=self.validate_on,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            fold=self.fold,
            group_column=self.group_column,
            seed=seed,
        )

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
    """Optimizer: adamw, sgd (Nesterov), or one of timm's: timm:lamb, timm:lion(betas=(0.9, 0.95)), ..."""
    lr: float = 5e-4
    """Learning rate for `lr_batch` images per step."""
    lr_batch: int = 512
    """The learning rate is scaled by global_batch_size / lr_batch; 0 uses lr unchanged."""
    weight_decay: float = 0.05
    """Weight decay; not applied to vectors, biases, the class token and position embeddings."""
    beta1: float = 0.9
    """AdamW: decay rate of the mean gradient."""
    beta2: float = 0.999
    """AdamW: decay rate of the mean squared gradient."""
    eps: float = 1e-8
    """AdamW: number added to the denominator of the update."""
    momentum: float = 0.9
    """SGD: momentum."""
    clip_norm: float = 0.0
    """Largest norm of the gradient of all parameters together; 0 is off."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each patch block to the one before it; 1 is off."""
    lr_factors: tuple[str, ...] = ()
    """Factors of the learning rate by parameter name, PATTERN=FACTOR, such as blocks.*=0.1; the first pattern that
    matches counts."""
    class_weights: bool | tuple[float, ...] = False
    """true: classes are weighted by the inverse of their size. A list: one weight per class, in the order of the
    classes."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Settings of `train: lora`: low-rank updates of linear layers, through the package peft."""

    rank: int = 8
    """Rank of the update of a layer."""
    alpha: float = 16.0
    """Scale of the updates: they are multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("*.qkv", "*.q", "*.k", "*.v", "*.proj")
    """Name patterns of the linear layers that get updates, such as *.fc1 in MLPs; the head is trained as a whole.
    Names of the default that the network does not have are ignored."""
    save: str = "merged"
    """merged: models are saved with the updates added to their layers. adapters: also the updates alone, in PEFT's
    format, in best/adapters and last/adapters."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            problem = f"lora: expected rank of 1 or more and alpha above 0, got {self.rank} and {self.alpha:g}."
            raise ConfigError(problem, remedy="The defaults are 8 and 16.")
        if self.save not in ("merged", "adapters"):
            problem = f"lora.save: expected merged or adapters, got {self.save!r}."
            raise ConfigError(problem, remedy="Choose one.")


@dataclass(frozen=True, kw_only=True)
class Average:
    """Exponential moving average of the weights, saved in addition to the raw ones."""

    decay: float = 0.0
    """Decay of the moving average of the weights (EMA); 0 is off. The paper's code uses 0.99996, but the paper reports
    the raw weights."""
    warmup: bool = True
    """true: the decay starts at min(decay, (1 + steps) / (10 + steps)), so that initial weights do not dominate short
    runs."""
    evaluated: bool = False
    """true: validation selects the best epoch by the averaged weights, and the saved model predicts with them. false:
    by and with the raw weights."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Settings of distillation; without a teacher there is none."""

    spec: str = ""
    """The teacher: any MODEL, or timm:NAME; set by `--teacher`."""
    kind: str = "hard"
    """hard: the class that the teacher predicts is used as a label. soft: the teacher's distribution is the target."""
    alpha: float = 0.5
    """Weight of the teacher's term in the loss."""
    tau: float = 1.0
    """Temperature of soft distillation."""
    mean: tuple[float, ...] | None = None
    """Means of the teacher's normalisation; null uses the teacher's own."""
    std: tuple[float, ...] | None = None
    """Standard deviations of the teacher's normalisation; null uses the teacher's own."""
    img_size: str | int = "own"
    """Input size of the teacher: own, student (that of the student), or a number of pixels."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How it is computed; changes speed and memory, and results by rounding only."""

    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    precision: str = "auto"
    """Precision of a training step: bf16 or fp16 (autocast; softmax and residual stream stay in fp32), fp32, or
    fp32-strict (without TF32 on a GPU). auto: fp32 on a CPU; on a GPU bf16, or fp16 if it has no bf16. A run keeps its
    precision when it is resumed."""
    compile: bool | str = "auto"
    """How torch.compile is used in training steps; it needs a C++ compiler. blocks: each block of a CaiT is compiled.
    true: the whole model, which takes longer; `--engine compile` sets it. false: not at all. auto: blocks on a GPU with
    the backend reference, else false. Validation is never compiled."""
    grad_checkpointing: bool = False
    """true: blocks are computed again in the backward pass instead of storing their intermediate results."""
    channels_last: bool = False
    """true: images are in memory with the channel as last dimension."""
    backend: str = "auto"
    """Implementation of the patch blocks. reference: their layers, one by one. lean: two operators per block, which
    store less for the backward pass. auto: lean on a CPU, else reference; a resumed run keeps its own."""
    memory: str = "normal"
    """small: stores less for the backward pass, and computes it again. With the lean backend only the residual stream
    (the input of every branch) is stored, and results are bit-identical; with compiled blocks about a fifth of the
    activations. normal: stores the outputs of linear layers, or what the compiler chooses."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """When runs are saved, evaluated and stopped."""

    evaluate_every_epochs: int = 1
    """Number of epochs between two validations."""
    checkpoint_every_steps: int = 0
    """A checkpoint is also saved after this many steps, not only after each validation; 0 is off."""
    checkpoint_every_s: float = 600.0
    """A checkpoint is also saved after this many seconds; 0 is off."""
    checkpoints: int = 2
    """Number of newest checkpoints that are kept."""
    optimizer: bool = True
    """true: checkpoints, with the state of the optimizer, stay after the end of the run, so that it can be prolonged.
    false: they are removed then."""
    log_every_steps: int = 20
    """Number of steps per row of the log."""
    best_by: str = "auto"
    """Measure that selects the best epoch and controls early stopping, on the validation images: loss, top1,
    balanced_accuracy or macro_f1. auto: loss for fewer than 500 validation images, else top1."""
    patience_epochs: int = 0
    """Training stops if the best epoch is this many epochs ago; 0 is off."""
    max_skipped_steps: int = 5
    """Number of steps with a non-finite loss or gradient that may be skipped; one more stops the run."""
    tensorboard: bool = False
    """true: the run also contains TensorBoard files; needs deepcait[track]."""
    tracker: str = ""
    """Experiment tracker that also receives every row of the log: wandb, wandb(project="pets", entity="team"), trackio,
    or python:package.module:factory; empty for none."""


@dataclass(frozen=True, kw_only=True)
class Digests:
    """SHA-256 of the source of the run's own parts, written by training; `--resume` compares them."""

    data: str = ""
    """SHA-256 of the source of data.source, if it is your own code; written by the run."""
    model: str = ""
    """SHA-256 of the source of model, if it is your own code; written by the run."""
    loss: str = ""
    """SHA-256 of the source of loss, if it is your own code; written by the run."""
    transform: str = ""
    """SHA-256 of the source of augment.transform, if it is your own code; written by the run."""
    teacher: str = ""
    """SHA-256 of the source of teacher.spec, if it is your own code; written by the run."""
