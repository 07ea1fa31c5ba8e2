"""From an image to the model's input tensor: the same code for every command."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepcait.data.resample import FAST_FILTERS, planes, resize_pixels
from deepcait.errors import ConfigError
from deepcait.model.variants import IMAGENET_MEAN, IMAGENET_STD
from deepcait.runtime.state import undisturbed

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_PIL_MODES = {1: "L", 3: "RGB"}
# timm's default for a configuration without it.
_TIMM_CROP_PCT = 0.875
MAX_ASPECT = 32
# The image is resized to the model's size divided by this: a thousandth would fill all memory.
_MIN_CROP_RATIO = 0.1


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], subtract mean, divide by std.

        square size S    the shorter side becomes floor(S / crop_ratio), then the centre S x S
        size H x W       the image is scaled until it just covers floor(H / crop_ratio) x
                         floor(W / crop_ratio), then the centre H x W

    Bitwise what timm's evaluation transform computes (crop mode "center").
    Deviation: an image so long and thin that a side would be resized to more than 32 times the
    target's longer side loses its outer parts first; otherwise 50 KB on disk could fill all memory.

    One path for every command: pixels as integers, then numbers. An image gives bit-identical results alone and in a
    batch.

    Args:
        img_size: (H, W) in pixels.
        mean: of each channel, of values in [0, 1].
        std: of each channel, positive.
        interpolation: nearest, bilinear, bicubic, box, hamming or lanczos; with antialiasing.
        crop_ratio: share of the resized side that the crop keeps, 0.1 to 1; timm's crop_pct.
        resampler: "pillow", bitwise timm's; or "torch", the same filter in less time, up to 2 of 255 levels away
            (`docs/results/data_loader.md`), bicubic and bilinear only. It is not part of what travels with a model.

    Raises:
        ConfigError: a value outside these ranges, or mean and std of different length.
    """

    img_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_ratio: float = 1.0
    resampler: str = "pillow"

    def __post_init__(self) -> None:
        # JSON gives lists; a frozen value with lists could not be compared or hashed.
        object.__setattr__(self, "img_size", _tuple_of(int, self.img_size, "img_size"))
        object.__setattr__(self, "mean", _tuple_of(float, self.mean, "mean"))
        object.__setattr__(self, "std", _tuple_of(float, self.std, "std"))
        _require(len(self.img_size) == 2 and min(self.img_size) > 0, "img_size", "(H, W), positive", self.img_size)
        _require(len(self.mean) > 0 and all(map(math.isfinite, self.mean)), "mean", "a number per channel", self.mean)
        _require(len(self.std) == len(self.mean), "std", f"{len(self.mean)} numbers like mean", self.std)
        _require(all(0 < value < math.inf for value in self.std), "std", "positive numbers", self.std)
        known = isinstance(self.interpolation, str) and self.interpolation in _INTERPOLATIONS
        _require(known, "interpolation", ", ".join(_INTERPOLATIONS), self.interpolation)
        _require(self.resampler in ("pillow", "torch"), "resampler", "pillow or torch", self.resampler)
        fits = isinstance(self.crop_ratio, (int, float)) and _MIN_CROP_RATIO <= self.crop_ratio <= 1
        _require(fits, "crop_ratio", f"a number from {_MIN_CROP_RATIO} to 1", self.crop_ratio)

    @property
    def channels(self) -> int:
        """C, the channels of the tensor: as many as means."""
        return len(self.mean)

    @undisturbed()
    def __call__(self, image: Image.Image) -> Tensor:
        """Turn one image into the model's input.

        Returns:
            image_CHW: float32, normalised.

        Raises:
            ConfigError: C is neither 1 (grey) nor 3 (RGB).
        """
        return self.normalise(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """The part of the image that is the model's input, as pixels_CHW, uint8: a quarter of the tensor's bytes.

        Raises:
            ConfigError: C is neither 1 (grey) nor 3 (RGB).
        """
        return planes(self.frame(image))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale to [0, 1], subtract the mean, divide by the std.

        Args:
            pixels: uint8, (C, H, W) or (B, C, H, W).

        Returns:
            The same shape in float32, on the same device; bit-identical for an image alone and in a batch.
        """
        mean_C11, std_C11 = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
        if pixels.ndim == 3 or pixels.device.type != "cpu":
            return pixels.to(torch.float32).div_(255).sub_(mean_C11).div_(std_C11)
        images_BCHW = torch.empty(pixels.shape, dtype=torch.float32)
        # Image by image: each stays in the processor's cache from the first operation to the last.
        for image_CHW, pixels_CHW in zip(images_BCHW, pixels, strict=True):
            # Not div(out=), which would round to the program's default dtype in between.
            image_CHW.copy_(pixels_CHW).div_(255).sub_(mean_C11).div_(std_C11)
        return images_BCHW

    def frame(self, image: Image.Image) -> Image.Image:
        """The part of the image that is the model's input, as an image of W x H pixels with C channels."""
        mode = _PIL_MODES.get(self.channels)
        _require(mode is not None, "channels", "1 (grey) or 3 (RGB) to read an image", self.channels)
        if image.mode != mode:
            image = image.convert(mode)
        image = self._limit_aspect(image)
        width, height = self._covering_size(*image.size)
        crop_height, crop_width = self.img_size
        # round() to even, as torchvision's CenterCrop has it.
        left, top = round((width - crop_width) / 2.0), round((height - crop_height) / 2.0)
        if self.resampler == "torch" and image.size != (width, height) and self.interpolation in FAST_FILTERS:
            resized = resize_pixels(np.array(image), (height, width), self.interpolation)
            return Image.fromarray(np.ascontiguousarray(resized[top : top + crop_height, left : left + crop_width]))
        if image.size != (width, height):
            image = image.resize((width, height), _INTERPOLATIONS[self.interpolation])
        return image.crop((left, top, left + crop_width, top + crop_height))

    def seen_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box of `frame` in an image of this size: (left, top, right, bottom) in its pixels."""
        (x0, x1), (y0, y1) = self._kept_sides(width, height)
        resized_width, resized_height = self._covering_size(x1 - x0, y1 - y0)
        crop_height, crop_width = self.img_size
        left, top = round((resized_width - crop_width) / 2.0), round((resized_height - crop_height) / 2.0)
        scale_x, scale_y = (x1 - x0) / resized_width, (y1 - y0) / resized_height
        return (
            x0 + left * scale_x,
            y0 + top * scale_y,
            x0 + (left + crop_width) * scale_x,
            y0 + (top + crop_height) * scale_y,
        )

    def to_pretrained_cfg(self) -> dict[str, Any]:
        """The same under timm's keys, as plain lists and numbers for JSON."""
        return {
            "input_size": [self.channels, *self.img_size],
            "interpolation": self.interpolation,
            "crop_pct": self.crop_ratio,
            "crop_mode": "center",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_pretrained_cfg(cls, cfg: Mapping[str, Any]) -> Preprocessing:
        """Read timm's keys; other keys are ignored, missing ones have timm's defaults.

        Raises:
            ConfigError: no input_size, another number of channels than mean has, a crop mode
                other than "center", or a value that does not fit.
        """
        size: Any = cfg.get("input_size")
        _require(isinstance(size, (list, tuple)) and len(size) == 3, "input_size", "[C, H, W]", size)
        crop_mode = cfg.get("crop_mode") or "center"
        _require(crop_mode == "center", "crop_mode", "center", crop_mode)
        preprocessing = cls(
            img_size=tuple(size[1:]),
            mean=cfg.get("mean", IMAGENET_MEAN),
            std=cfg.get("std", IMAGENET_STD),
            interpolation=cfg.get("interpolation") or "bicubic",
            crop_ratio=cfg.get("crop_pct") or _TIMM_CROP_PCT,
        )
        _require(preprocessing.channels == size[0], "mean", f"{size[0]} numbers, one per channel", preprocessing.mean)
        return preprocessing

    def __str__(self) -> str:
        height, width = self.img_size
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{height} x {width} px, {self.interpolation}, crop ratio {self.crop_ratio:g}, mean {mean}, std {std}"

    def _covering_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing; the rounding is torchvision's (square) and timm's (not square)."""
        target_height, target_width = (math.floor(side / self.crop_ratio) for side in self.img_size)
        if target_height == target_width:
            if width <= height:
                return target_width, int(target_width * height / width)
            return int(target_height * width / height), target_height
        ratio = min(height / target_height, width / target_width)
        return round(width / ratio), round(height / ratio)

    def _limit_aspect(self, image: Image.Image) -> Image.Image:
        """Cut the outer parts of a side that would be resized to over 32 times the target."""
        (left, right), (top, bottom) = self._kept_sides(*image.size)
        box = (left, top, right, bottom)
        return image if box == (0, 0, *image.size) else image.crop(box)

    def _kept_sides(self, width: int, height: int) -> list[tuple[int, int]]:
        """The used range of the width, then of the height."""
        longest = MAX_ASPECT * max(math.floor(side / self.crop_ratio) for side in self.img_size)
        kept_sides = []
        for side, resized in zip((width, height), self._covering_size(width, height), strict=True):
            kept = side
            if resized > longest:
                kept = max(1, side * longest // resized)
                kept += (side - kept) % 2  # as much on the left as on the right: the centre stays
            kept_sides.append(((side - kept) // 2, (side + kept) // 2))
        return kept_sides


@functools.lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one number per channel, (C, 1, 1); kept on its device, since copying it makes a GPU's host wait."""
    with torch.inference_mode(False):  # a tensor made in it could not be used outside
        return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).to(device)


def _tuple_of(kind: type, values: Any, field: str) -> tuple:
    """A tuple of numbers, exactly converted: 224.0 is not a pixel count, and "224" is not a number."""
    try:
        values = tuple(values)
    except TypeError:
        values = (values,)
    numbers = (int,) if kind is int else (int, float)
    fits = all(isinstance(value, numbers) and not isinstance(value, bool) for value in values)
    _require(fits, field, f"{kind.__name__} values", values)
    return tuple(kind(value) for value in values)


def _require(fits: bool, field: str, expected: str, got: object) -> None:
    if not fits:
        raise ConfigError(
            f"Preprocessing {field}: expected {expected}, got {got!r}.",
            remedy="Correct it where the preprocessing is written (config.json, or the call).",
        )
