"""Augmentation of one training image: crop, flip, RandAugment, erasing, with timm's operations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepcait.data.erasing import Patch, draw_erasing
from deepcait.data.image import DEFAULT, ImageOptions, decode_image, decode_pixels
from deepcait.data.policies import POLICIES, build_policy
from deepcait.data.preprocessing import Preprocessing
from deepcait.data.resample import FAST_FILTERS, planes, resize_pixels
from deepcait.data.slide import SLIDES, Slide
from deepcait.errors import ConfigError
from deepcait.parts import blamed, build

# What timm reads, number by number; it silently skips unknown parts (`mstd` without a number, `tx`).
_RAND_AUGMENT = re.compile(
    r"rand(-(m\d+|n[1-9]\d?|p(0?\.\d+|0|1|1\.0)|mstd(\d+|\d*\.\d+)|mmax\d+|inc[01]|t(weights|3a|3aw)))*"
)
_PAD_MODES = ("constant", "reflect", "edge", "symmetric")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Settings of augmentation. The defaults are the paper's."""

    crop: str = "random_resized"
    """Crop of a training image. random_resized: a random part, resized (the paper). pad: padded, then cut at random,
    for images of the model's own size. none: as in evaluation."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest fraction of the area that random_resized keeps."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest aspect ratio of random_resized."""
    pad_px: int = 4
    """Number of pixels that pad adds on every side."""
    pad_mode: str = "constant"
    """Values that pad adds: constant (black), reflect, edge or symmetric."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation; empty for none."""
    policy: str = "none"
    """Augmentation in place of RandAugment: 3-augment (DeiT III), trivial-augment (torchvision), or none."""
    transform: str = ""
    """Your own transform in place of crop, flip, RandAugment, policy and erasing: python:package.module:factory."""
    erase: float = 0.25
    """Probability that a rectangle is erased, that is, filled with one normal random value per pixel."""
    repeats: int = 3
    """Number of copies of an image in an epoch's sequence, each augmented differently (repeated augmentation)."""
    resampler: str = "torch"
    """Arithmetic of random_resized and of RandAugment's shears and shifts. torch: fast; values differ from Pillow's by
    up to 2 of 255, and by more if a JPEG is decoded at a fraction of its size, which is done if the crop stays at least
    as large as the model's input. pillow: bitwise timm's."""

    def __post_init__(self) -> None:
        if self.crop not in ("random_resized", "pad", "none"):
            raise ConfigError(
                f"augment.crop: expected random_resized, pad or none, got {self.crop!r}.", remedy="Choose one."
            )
        if self.resampler not in ("torch", "pillow"):
            raise ConfigError(
                f"augment.resampler: expected torch or pillow, got {self.resampler!r}.", remedy="Choose one."
            )
        if self.pad_mode not in _PAD_MODES:
            problem = f"augment.pad_mode: expected {', '.join(_PAD_MODES)}, got {self.pad_mode!r}."
            raise ConfigError(problem, remedy="Choose one.")
        if self.policy not in POLICIES or (self.policy != "none" and self.rand_augment):
            problem = f"augment.policy: expected {', '.join(POLICIES)}, got {self.policy!r}"
            problem += f" with rand_augment={self.rand_augment!r}." if self.rand_augment else "."
            raise ConfigError(problem, remedy='Choose one; a policy also needs augment.rand_augment="".')
        if self.repeats < 1 or not 0 <= self.erase <= 1 or not 0 <= self.flip <= 1:
            raise ConfigError(
                f"augment: expected repeats >= 1 and probabilities in [0, 1], got repeats={self.repeats}, "
                f"erase={self.erase}, flip={self.flip}.",
                remedy="Give another value, in the recipe or through --set augment.KEY=VALUE.",
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1] or self.pad_px < 0:
            raise ConfigError(
                f"augment: expected 0 < scale <= 1 and 0 < ratio, each from low to high, and pad_px >= 0, got "
                f"scale={self.scale}, ratio={self.ratio}, pad_px={self.pad_px}.",
                remedy="Give another value, in the recipe or through --set augment.KEY=VALUE.",
            )


class Changed(NamedTuple):
    """Augmented images before normalisation, and the patches to erase in each.

    One: pixels_CHW uint8 and one list of patches; a batch of them: pixels_BCHW and B lists. What patches are filled
    with is one tensor for all, float32: (C, height, width) of each, one after another. A tensor is sent from a worker
    by a file of its own.
    """

    pixels: Tensor
    patches: Sequence[Sequence[Patch]]
    filling: Tensor


class Augmentation:
    """The training transform.

    It draws from the global generators of Python, NumPy and torch, in timm's order: seed them first.

    Args:
        augment: what is done.
        preprocessing: the size, the filter, and what normalises.
    """

    def __init__(self, augment: Augment, preprocessing: Preprocessing) -> None:
        self.augment = augment
        self.preprocessing = preprocessing
        self.rand_augment = rand_augment(augment.rand_augment, preprocessing) if augment.rand_augment else None
        self.policy = build_policy(augment.policy, _fill(preprocessing))
        self.fast = augment.resampler == "torch" and preprocessing.interpolation in FAST_FILTERS
        for op in self.rand_augment.ops if self.fast and self.rand_augment is not None else ():
            if op.name in SLIDES:
                op.aug_fn = Slide(op.name, op.aug_fn)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the changed image, normalised: image_CHW float32."""
        return self.finish(self.change(image))

    def read(self, data: bytes, name: str, options: ImageOptions = DEFAULT) -> Changed:
        """Decode an image at no more than the resolution that the crop needs, and augment it. Raises ImageError."""
        if self.augment.crop != "random_resized" or self.preprocessing.channels != 3:
            return self.change(decode_image(data, name=name, options=options))
        box, divisor = None, 1

        def shrink(width: int, height: int) -> int:
            nonlocal box, divisor
            box = self._box(width, height)
            divisor = self._divisor(box) if self.fast else 1
            return divisor

        if self.fast:
            pixels_HWC = decode_pixels(data, name=name, options=options, shrink=shrink)
            height, width = pixels_HWC.shape[:2]
            return self._color(self._cut_pixels(pixels_HWC, box or self._box(width, height), divisor))
        image = decode_image(data, name=name, options=options, shrink=shrink)
        return self._color(self._cut(image, box or self._box(*image.size)))

    def change(self, image: Image.Image) -> Changed:
        """Change a decoded image."""
        if self.augment.crop == "random_resized":
            image = image.convert("L" if self.preprocessing.channels == 1 else "RGB")
            return self._color(self._cut(image, self._box(*image.size)))
        image = self.preprocessing.frame(image)
        if self.augment.crop == "pad":
            from torchvision import transforms

            size, mode = self.preprocessing.img_size, self.augment.pad_mode
            image = transforms.RandomCrop(size, padding=self.augment.pad_px, padding_mode=mode)(image)
        return self._color(image)

    def finish(self, changed: Changed) -> Tensor:
        """Normalise an image, (C, H, W), or a batch, (B, C, H, W), and erase."""
        images = self.preprocessing.normalise(changed.pixels)
        images_BCHW = images if images.ndim == 4 else images[None]
        filling = changed.filling.to(images.device, non_blocking=True)
        for image_CHW, patches in zip(images_BCHW, changed.patches, strict=True):
            for top, left, height, width in patches:
                place_Chw = image_CHW[:, top : top + height, left : left + width]
                values, filling = filling.tensor_split((place_Chw.numel(),))
                place_Chw.copy_(values.view(place_Chw.shape))
        return images

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Draw the crop box of an image: (top, left, height, width)."""
        from timm.data.transforms import RandomResizedCropAndInterpolation

        # Only its size is read.
        image_HW = torch.empty((height, width), device="meta")
        return RandomResizedCropAndInterpolation.get_params(image_HW, self.augment.scale, self.augment.ratio)

    def _divisor(self, box: tuple[int, int, int, int]) -> int:
        """The factor by which a JPEG can be decoded smaller with a crop at least as large as the model's input."""
        (_, _, height, width), (out_height, out_width) = box, self.preprocessing.img_size
        fitting = [n for n in (2, 4, 8) if height // n >= out_height and width // n >= out_width]
        return max(fitting, default=1)

    def _cut(self, image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        """Crop to the box and resize."""
        if self.fast:
            return self._cut_pixels(np.asarray(image), box)
        top, left, height, width = box
        size = self.preprocessing.img_size[::-1]
        cut = image.crop((left, top, left + width, top + height))
        if cut.size == size:
            return cut
        return cut.resize(size, getattr(Image.Resampling, self.preprocessing.interpolation.upper()))

    def _cut_pixels(self, pixels: np.ndarray, box: tuple[int, int, int, int], divisor: int = 1) -> Image.Image:
        """The same with torch, for pixels_HWC or pixels_HW; the box is in pixels of the full-size image."""
        top, left, height, width = (side // divisor for side in box)
        cut = pixels[top : top + height, left : left + width].copy()
        size = self.preprocessing.img_size
        return Image.fromarray(
            cut if cut.shape[:2] == size else resize_pixels(cut, size, self.preprocessing.interpolation)
        )

    def _color(self, image: Image.Image) -> Changed:
        """Flip, RandAugment or another policy, and draw the patches to erase."""
        # torch's generator, as torchvision's flip draws.
        if self.augment.flip and torch.rand(1) < self.augment.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            image = self.rand_augment(image)
        if self.policy is not None:
            image = self.policy(image)
        channels, (height, width) = self.preprocessing.channels, self.preprocessing.img_size
        pixels = planes(image)
        if not self.augment.erase:
            return Changed(pixels, [[]], torch.empty(0))
        patches, filling = draw_erasing(self.augment.erase, channels, height, width)
        return Changed(pixels, [patches], filling)


class OwnAugmentation(Augmentation):
    """A user's transform: takes an upright RGB image, returns an image of the model's size, PIL or tensor.

    A tensor (C, H, W) of uint8 is normalised as usual; one of floats is passed on as it is, normalised already.
    """

    def __init__(self, augment: Augment, preprocessing: Preprocessing) -> None:
        super().__init__(augment, preprocessing)
        self.transform = build(augment.transform, "augment.transform")
        if not callable(self.transform):
            problem = f"augment.transform: expected a callable, got {type(self.transform).__name__}."
            raise ConfigError(problem, remedy="It takes a PIL image and returns one, or a tensor (C, H, W).")

    def read(self, data: bytes, name: str, options: ImageOptions = DEFAULT) -> Changed:
        """Decode an image and change it. Raises ImageError, naming it, and ConfigError if the transform fails."""
        return self.change(decode_image(data, name=name, options=options))

    def change(self, image: Image.Image) -> Changed:
        """Change a decoded image. Raises ConfigError if the transform fails or returns another size."""
        with blamed("augment.transform"):
            changed = self.transform(image.convert("L" if self.preprocessing.channels == 1 else "RGB"))
        if isinstance(changed, Image.Image):
            changed = planes(changed)
        expected = (self.preprocessing.channels, *self.preprocessing.img_size)
        if not isinstance(changed, Tensor) or changed.shape != expected:
            got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ConfigError(
                f"augment.transform: expected a PIL image of {expected[2]} x {expected[1]} px, or a tensor "
                f"{expected}, got {got}.",
                remedy=f"Crop or resize in it, for example v2.RandomResizedCrop({expected[1:]}).",
            )
        if changed.dtype != torch.uint8:
            changed = changed.float()
        return Changed(torch.as_tensor(changed).as_subclass(Tensor).contiguous(), [[]], torch.empty(0))

    def finish(self, changed: Changed) -> Tensor:
        """Normalise 8-bit images, (C, H, W) or a batch of them."""
        return changed.pixels if changed.pixels.is_floating_point() else super().finish(changed)


def build_augmentation(augment: Augment, preprocessing: Preprocessing) -> Augmentation:
    """Return the training transform: from a PIL image to a normalised tensor (C, H, W).

    It draws from the global generators of Python, NumPy and torch: seed them first.

    Raises:
        ConfigError: a RandAugment string that timm can't read, or a user-defined transform that can't be built.
    """
    return OwnAugmentation(augment, preprocessing) if augment.transform else Augmentation(augment, preprocessing)


def collate(items: Sequence[Changed]) -> Changed:
    """Return one batch: pixels (B, C, H, W), a list of patches per image, and the fill values of all patches."""
    pixels_BCHW = torch.stack([item.pixels for item in items])
    patches = [patches for item in items for patches in item.patches]
    return Changed(pixels_BCHW, patches, torch.cat([item.filling for item in items]))


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
            remedy="Write it like rand-m9-mstd0.5-inc1, or leave it empty for none.",
        )
    # Box, hamming and lanczos only resize; Pillow refuses to shear or rotate with them.
    warps = preprocessing.interpolation in ("nearest", "bilinear", "bicubic")
    hparams = {
        "translate_const": int(min(preprocessing.img_size) * 0.45),
        "img_mean": _fill(preprocessing),
        "interpolation": str_to_pil_interp(preprocessing.interpolation if warps else "bicubic"),
    }
    return guard_posterize(rand_augment_transform(text, hparams))


def _fill(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The mean colour, 0 to 255, which fills the areas that warps uncover."""
    return tuple(min(255, round(255 * channel)) for channel in preprocessing.mean)


def guard_posterize(transform: Any) -> Any:
    """Let the Posterize of a RandAugment of timm keep 0 bits under Pillow 13; returns the same object."""
    for op in transform.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _Posterize(op.aug_fn)
    return transform


class _Posterize:
    """Posterize that keeps 0 bits: a black image.

    Pillow 13 refuses 0 bits, which magnitude 10 requires; earlier versions of Pillow returned black, and that is
    what the released models were trained with. A class, so that it can travel to a worker process.
    """

    def __init__(self, original: Callable) -> None:
        self.original = original

    def __call__(self, image: Image.Image, bits_to_keep: int, **kwargs) -> Image.Image:
        if bits_to_keep < 1:
            return Image.new(image.mode, image.size)
        return self.original(image, bits_to_keep, **kwargs)
