"""Augmentation policies by name: DeiT III's 3-Augment and TrivialAugment."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageFilter, ImageOps

POLICIES = ("none", "3-augment", "trivial-augment")


class ThreeAugment:
    """One of greyscale, solarization and Gaussian blur, equally often, then colour jitter of 0.3.

    Source: Touvron et al. 2022 (DeiT III), arXiv:2204.07118, section 3.2: solarization at 128, a blur radius uniform
        in [0.1, 2] pixels, jitter of brightness, contrast and saturation. Crop and flip are `Augment`'s own.

    It draws from the global generators of Python and torch.
    """

    def __init__(self) -> None:
        from torchvision.transforms import ColorJitter

        self.jitter = ColorJitter(0.3, 0.3, 0.3)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the changed image, of the same size and mode."""
        return self.jitter(random.choice((_grey, _solarize, _blur))(image))


def build_policy(name: str, fill: Sequence[int]) -> Callable[[Image.Image], Image.Image] | None:
    """Return the policy of this name, a function from a PIL image to one of the same size and mode; None for "none".

    TrivialAugment is torchvision's TrivialAugmentWide (Müller and Hutter 2021, arXiv:2103.10158).

    Args:
        name: one of POLICIES.
        fill: colour, 0 to 255 of each channel, that TrivialAugment's warps uncover.
    """
    if name == "3-augment":
        return ThreeAugment()
    if name == "trivial-augment":
        from torchvision.transforms import InterpolationMode, TrivialAugmentWide

        return TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=list(fill))
    return None


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert(image.mode)


def _solarize(image: Image.Image) -> Image.Image:
    return ImageOps.solarize(image)


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
