"""What training does to one picture: crop, flip, RandAugment, erasing. The operations are timm's, the recipe ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from deepcait.data.preprocessing import Preprocessing
from deepcait.errors import ConfigError

# What timm reads, number by number; it skips in silence what it does not know (`mstd` without a number, `tx`).
_RAND_AUGMENT = re.compile(
    r"rand(-(m\d+|n[1-9]\d?|p(0?\.\d+|0|1|1\.0)|mstd(\d+|\d*\.\d+)|mmax\d+|inc[01]|t(weights|3a|3aw)))*"
)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How a training picture is changed, each time anew. The defaults are the paper's."""

    crop: str = "random_resized"
    """random_resized: a random part, resized (the paper). pad: padded and cut, for pictures of the model's
    own size. none: as in evaluation."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Part of the area that random_resized keeps, from and to."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect ratios of random_resized, from and to."""
    pad_px: int = 4
    """Pixels that pad adds on every side."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment string; empty for none."""
    erase: float = 0.25
    """Probability of erasing a rectangle, filled with one normal draw a pixel."""
    repeats: int = 3
    """Copies of a picture in one epoch's row, each augmented differently (repeated augmentation)."""

    def __post_init__(self) -> None:
        if self.crop not in ("random_resized", "pad", "none"):
            raise ConfigError(
                f"augment.crop: expected random_resized, pad or none, got {self.crop!r}.", remedy="Choose one."
            )
        if self.repeats < 1 or not 0 <= self.erase <= 1 or not 0 <= self.flip <= 1:
            raise ConfigError(
                f"augment: expected repeats >= 1 and probabilities in [0, 1], got repeats={self.repeats}, "
                f"erase={self.erase}, flip={self.flip}.",
                remedy="Mend the recipe's augment section.",
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1] or self.pad_px < 0:
            raise ConfigError(
                f"augment: expected 0 < scale <= 1 and 0 < ratio, each from low to high, and pad_px >= 0, got "
                f"scale={self.scale}, ratio={self.ratio}, pad_px={self.pad_px}.",
                remedy="Mend the recipe's augment section.",
            )


def build_augmentation(augment: Augment, preprocessing: Preprocessing):
    """Return the training transform: a PIL picture in, a normalised tensor (C, H, W) out.

    It draws from the global generators of Python, NumPy and torch: seed them first.
    """
    from torchvision import transforms

    steps = [*_crop(augment, preprocessing)]
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip(augment.flip))
    if augment.rand_augment:
        steps.append(rand_augment(augment.rand_augment, preprocessing))
    steps += [transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    if augment.erase:
        from timm.data.random_erasing import RandomErasing

        steps.append(RandomErasing(augment.erase, mode="pixel", device="cpu"))
    return transforms.Compose(steps)


def _crop(augment: Augment, preprocessing: Preprocessing) -> list:
    from torchvision import transforms

    if augment.crop == "random_resized":
        from timm.data.transforms import RandomResizedCropAndInterpolation

        grey = [transforms.Grayscale()] if preprocessing.channels == 1 else []
        return [
            *grey,
            RandomResizedCropAndInterpolation(
                preprocessing.img_size,
                scale=augment.scale,
                ratio=augment.ratio,
                interpolation=preprocessing.interpolation,
            ),
        ]
    framed = [preprocessing.frame]
    if augment.crop == "pad":
        framed.append(transforms.RandomCrop(preprocessing.img_size, padding=augment.pad_px))
    return framed


def rand_augment(text: str, preprocessing: Preprocessing):
    """Return timm's RandAugment for a string such as `rand-m9-mstd0.5-inc1`, safe under Pillow 13.

    Raises:
        ConfigError: a string that timm can't read.
    """
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import str_to_pil_interp

    if not _RAND_AUGMENT.fullmatch(text):
        raise ConfigError(
            f"augment.rand_augment: expected a string such as 'rand-m9-mstd0.5-inc1', got {text!r}.",
            remedy="Mend it, or leave it empty for none.",
        )
    # Box, hamming and lanczos only resize; Pillow refuses to shear or rotate with them.
    warps = preprocessing.interpolation in ("nearest", "bilinear", "bicubic")
    hparams = {
        "translate_const": int(min(preprocessing.img_size) * 0.45),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in preprocessing.mean),
        "interpolation": str_to_pil_interp(preprocessing.interpolation if warps else "bicubic"),
    }
    transform = rand_augment_transform(text, hparams)
    for op in transform.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _Posterize(op.aug_fn)
    return transform


class _Posterize:
    """Posterize that keeps 0 bits: a black picture.

    Pillow 13 refuses 0 bits, which magnitude 10 asks for; Pillow had always returned black before, and that is
    what the released models were trained with. A class, so that it can travel to a worker process.
    """

    def __init__(self, original: Callable) -> None:
        self.original = original

    def __call__(self, image: Image.Image, bits_to_keep: int, **kwargs) -> Image.Image:
        if bits_to_keep < 1:
            return Image.new(image.mode, image.size)
        return self.original(image, bits_to_keep, **kwargs)
