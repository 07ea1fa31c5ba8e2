"""A small convolutional network for 32-pixel images: the teacher of the package's small CaiT. Not from the paper."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.errors import ConfigError
from deepcait.model.embedding import require_images

_STEM = 24  # channels of the first layer
# Standard deviation of 2 x 2 patches of CIFAR-10's images, normalised by ImageNet's mean and std, along the directions
# of `_whitening_filters`: rows mean, top to bottom, left to right, diagonal; columns grey, red - blue, green - both.
_PATCH_STD = ((3.53, 1.07, 0.48), (0.70, 0.146, 0.077), (0.64, 0.134, 0.073), (0.26, 0.046, 0.027))
_BIAS_GAIN = 8.0  # a learning rate that is 64 times as large: the factor acts on the bias and on its gradient


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """Configuration of the convolutional teacher.

    Args:
        widths: channels of the three stages.
        img_size: height and width in pixels, 24 or more; one integer means a square.
        in_chans: C, image channels.
        num_classes: K.
        quick: the initialisation that reaches 94 % on CIFAR-10 in few epochs (Jordan 2024): a fixed whitening stem,
            convolutions that start as the identity, no residual, and batch norm without a gain whose biases learn
            faster. Models saved by version 0.1 do not have it.

    Raises:
        ConfigError: a value is not valid.
    """

    widths: tuple[int, int, int] = (64, 256, 256)
    img_size: tuple[int, int] = (32, 32)
    in_chans: int = 3
    num_classes: int = 10
    quick: bool = False

    def __post_init__(self) -> None:
        size = self.img_size
        object.__setattr__(self, "img_size", (size, size) if isinstance(size, int) else tuple(size))
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) != 3 or min(self.widths) < 1 or self.in_chans < 1 or self.num_classes < 1:
            raise ConfigError(
                f"widths, in_chans and num_classes must be 1 or more, with three widths; got widths={self.widths}, "
                f"in_chans={self.in_chans}, num_classes={self.num_classes}.",
                remedy="Correct these fields of the configuration.",
            )
        if len(self.img_size) != 2 or min(self.img_size) < 24:
            problem = f"img_size: expected a height and width of 24 or more, got {self.img_size}."
            raise ConfigError(problem, remedy="Use a larger size; the network pools three times.")
        if self.quick and self.in_chans != 3:
            problem = f"quick=True needs 3 image channels (got {self.in_chans}), since its first layer whitens colours."
            raise ConfigError(problem, remedy="Set in_chans=3 or quick=False.")

    @property
    def depth(self) -> int:
        """Number of stages, which count as layers for layer-wise learning-rate decay."""
        return len(self.widths)

    def replace(self, **changes) -> ConvConfig:
        """Return a copy with some fields changed.

        Raises:
            ConfigError: the network has no such field.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(
                    f"the convolutional teacher has no field {name!r}.",
                    remedy=f"Its fields are {', '.join(known)}; LayerScale, drop-path and similar fields are CaiT's.",
                )
        return dataclasses.replace(self, **changes)

    def num_params(self) -> int:
        """Return the exact number of parameters."""
        total, width = (0 if self.quick else 4 * self.in_chans * _STEM) + _STEM, _STEM
        for stage in self.widths:
            total += 9 * width * stage + 9 * stage * stage + (2 if self.quick else 4) * stage
            width = stage
        return total + width * self.num_classes

    def macs(self) -> int:
        """Return the multiply-adds of one image: convolutions and the head."""
        rows, cols = self.img_size[0] - 1, self.img_size[1] - 1
        total, width = 4 * self.in_chans * _STEM * rows * cols, _STEM
        for stage in self.widths:
            total += 9 * width * stage * rows * cols
            rows, cols = rows // 2, cols // 2
            total += 9 * stage * stage * rows * cols
            width = stage
        return total + width * self.num_classes


class BatchNorm(nn.Module):
    """Batch norm as in PyTorch without its batch counter, so every tensor of the state is floating point.

    Args:
        width: channels.
        quick: without a gain, with a bias that learns 64 times as fast and shorter running averages.
    """

    def __init__(self, width: int, quick: bool = False) -> None:
        super().__init__()
        self.bias_gain, self.momentum = (_BIAS_GAIN, 0.4) if quick else (1.0, 0.1)
        if quick:
            self.register_buffer("weight", torch.ones(width))
        else:
            self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, width, rows, columns) normalised by the batch; in evaluation mode by the running averages."""
        mean, var = self.running_mean, self.running_var
        bias = self.bias if self.bias_gain == 1 else self.bias * self.bias_gain
        return F.batch_norm(maps, mean, var, self.weight, bias, self.training, self.momentum, 1e-5)


class WhiteningStem(nn.Module):
    """A fixed 2 x 2 convolution that whitens patches of natural images, with both signs per direction; a trained bias.

    Source: Page 2019 and Jordan 2024, arXiv:2404.00498, section 3.1.
    Deviation: the directions are Haar patterns of opponent colours, not eigenvectors of the training images. On
        CIFAR-10 they correlate by 0.16 at most, and building the network needs no images.
    """

    def __init__(self) -> None:
        super().__init__()
        filters = _whitening_filters()
        self.register_buffer("weight", torch.cat((filters, -filters)))
        self.bias = nn.Parameter(torch.zeros(_STEM))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return maps (B, 24, H - 1, W - 1)."""
        return F.conv2d(images_BCHW, self.weight, self.bias)


def _whitening_filters() -> Tensor:
    """Return filters (12, 3, 2, 2), each divided by the deviation of patches along it."""
    patterns = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
    colours = nn.functional.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]), dim=1)
    # As in the source, small variances are raised, so that noise is not amplified.
    scales = (torch.tensor(_PATCH_STD) ** 2 + 5e-4).rsqrt()
    return torch.einsum("pc,ck,ps->pcks", scales, colours, patterns).reshape(12, 3, 2, 2)


class ConvStage(nn.Module):
    """Two convolutions with a pooling between them; the second is residual unless `quick`.

    Args:
        in_width, width: input and output channels.
        quick: as in `ConvConfig`.
    """

    def __init__(self, in_width: int, width: int, quick: bool = False) -> None:
        super().__init__()
        self.residual = not quick
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
        self.norm1 = BatchNorm(width, quick)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(width, quick)
        if quick:
            for conv in (self.conv1, self.conv2):
                nn.init.dirac_(conv.weight[: conv.in_channels].detach())

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of half the side."""
        maps = F.gelu(self.norm1(F.max_pool2d(self.conv1(maps), 2)))
        branch = F.gelu(self.norm2(self.conv2(maps)))
        return maps + branch if self.residual else branch


class ConvNet(nn.Module):
    """A 2 x 2 stem without padding, three stages, global max pooling, and a linear classifier.

    It has the methods and attributes of a CaiT that training, evaluation and the model folder use. Batch statistics are
    those of one forward pass, so its recipe keeps `replicas: 1`.

    Source: shape and widths after the networks that train to 94 % on CIFAR-10 in seconds on a GPU (Jordan 2024,
        arXiv:2404.00498). Without `quick` (version 0.1): neither their initialisation nor their first layer, and an
        additional residual in each stage.

    Args:
        config: widths and sizes.
    """

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = config.widths[-1]
        self.pretrained_cfg: dict = {}
        self.stem = WhiteningStem() if config.quick else nn.Conv2d(config.in_chans, _STEM, 2)
        widths = (_STEM, *config.widths)
        self.stages = nn.ModuleList(ConvStage(*pair, config.quick) for pair in zip(widths, widths[1:], strict=False))
        self.head = nn.Linear(self.num_features, config.num_classes, bias=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K).

        Raises:
            ShapeError: the images' size or number of channels is not the model's.
        """
        require_images(images_BCHW, self.config.in_chans, self.config.img_size)
        # Measured: 474 instead of 295 images/s in evaluation on one thread.
        maps = F.gelu(self.stem(images_BCHW.contiguous(memory_format=torch.channels_last)))
        for stage in self.stages:
            maps = stage(maps)
        # Divided by 9: features are maxima, and so the initial logits are of order 1.
        return self.head(maps.amax((2, 3))) / 9.0

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one with `num_classes` outputs.

        Raises:
            ConfigError: `num_classes` is 0, or `global_pool` is not "max", the only pooling of this network.
        """
        if global_pool not in (None, "max"):
            raise ConfigError(
                f"global_pool: expected 'max', got {global_pool!r}.",
                remedy="Omit it; this network has only max pooling.",
            )
        weight = self.head.weight
        self.config = self.config.replace(num_classes=num_classes)
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes, bias=False, device=weight.device, dtype=weight.dtype)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay, in addition to all vectors and biases: none."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Do nothing: the network is small."""
