"""Mixup and CutMix of one replica's batch, and label smoothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcait.data.seeding import seed_everything
from deepcait.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Settings of mixing and label smoothing. The defaults are the paper's."""

    mixup: float = 0.8
    """Parameter of mixup's Beta distribution; 0 is off."""
    cutmix: float = 1.0
    """Parameter of CutMix's Beta distribution; 0 is off."""
    probability: float = 1.0
    """Probability that a batch is mixed."""
    switch: float = 0.5
    """Probability of CutMix instead of mixup, if both are on."""
    label_smoothing: float = 0.1
    """Probability that is distributed evenly over all classes."""

    def __post_init__(self) -> None:
        chances = (self.probability, self.switch, self.label_smoothing)
        if self.mixup < 0 or self.cutmix < 0 or not all(0 <= chance <= 1 for chance in chances):
            raise ConfigError(
                f"mix: expected mixup and cutmix >= 0, the others in [0, 1], got {self}.",
                remedy="Give another value, in the recipe or through --set mix.KEY=VALUE.",
            )

    @property
    def active(self) -> bool:
        """Whether images are mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def accuracy_of(self, target_mass: float, num_classes: int) -> float | None:
        """Return the accuracy behind a mean target of the predicted classes; None if images are mixed.

        Smoothing lowers that mean even if every prediction is correct: then it is 1 - smoothing + smoothing / K.
        """
        if self.active or self.label_smoothing == 1:
            return None
        return (target_mass - self.label_smoothing / num_classes) / (1 - self.label_smoothing)


class Mixer:
    """Turn images and integer labels into (mixed) images and target distributions.

    One lambda, and one choice of mixup or cutmix, for the whole batch; the partner of image i is image B - 1 - i.
    timm's implementation, with our seeds.

    Args:
        mix: what to do.
        num_classes: K.
        replica_batch_size: B; must be even if images are mixed.

    Raises:
        ConfigError: an odd batch can't be paired.
    """

    def __init__(self, mix: Mix, num_classes: int, replica_batch_size: int) -> None:
        if mix.active and replica_batch_size % 2:
            raise ConfigError(
                f"mix: expected an even number of images per replica, got {replica_batch_size}.",
                remedy="Choose global_batch_size / replicas even, or set mix.mixup and mix.cutmix to 0.",
            )
        self.mix = mix
        self.num_classes = num_classes
        self._mixup = self._build() if mix.active else None

    def _build(self):
        from timm.data.mixup import Mixup

        return Mixup(
            mixup_alpha=self.mix.mixup,
            cutmix_alpha=self.mix.cutmix,
            prob=self.mix.probability,
            switch_prob=self.mix.switch,
            label_smoothing=self.mix.label_smoothing,
            num_classes=self.num_classes,
        )

    def __call__(self, images_BCHW: Tensor, labels_B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W), which may be changed in place, and targets (B, K).

        The global generators are left seeded with `seed`.
        """
        seed_everything(seed)
        if self._mixup is None:
            return images_BCHW, smooth_targets(labels_B, self.num_classes, self.mix.label_smoothing)
        return self._mixup(images_BCHW, labels_B)


def smooth_targets(labels_B: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return targets (B, K): 1 - smoothing on the label, and smoothing / K on every class."""
    low = smoothing / num_classes
    targets_BK = torch.full((len(labels_B), num_classes), low, device=labels_B.device)
    return targets_BK.scatter_(1, labels_B[:, None], 1.0 - smoothing + low)
