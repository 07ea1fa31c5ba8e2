"""Verify an exported model: read it back with another program, and compare tensors and logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LARGEST = float(torch.finfo(torch.float32).max)  # in place of infinity and NaN, which JSON does not have


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Differences between an exported model, as its reader loads it, and the original.

    Args:
        reader: the program that read the export, and its version.
        max_drift: the largest drift that counts as equal.
        tolerance: the fraction of images whose top-1 class may differ.
        num_tensors: tensors compared for equality; 0 if the export has no state dict.
        changed: their keys that are missing in the export, or hold other values.
        batches: numbers of images per call.
        num_images: number of images whose logits were compared, over all calls; 0 if none were computed.
        max_difference: the largest difference of a logit.
        drift: the same, divided by the standard deviation of the logits.
        agreed: images with the same top-1 class; equal logits count as the same.
    """

    reader: str
    max_drift: float
    tolerance: float = 0.0
    num_tensors: int = 0
    changed: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    num_images: int = 0
    max_difference: float = 0.0
    drift: float = 0.0
    agreed: int = 0

    @property
    def holds(self) -> bool:
        """Whether the export is equivalent to the original."""
        same = self.agreed >= (1 - self.tolerance) * self.num_images
        return not self.changed and self.drift <= self.max_drift and same

    def facts(self) -> dict[str, Any]:
        """Return it as JSON; `engine` is another name of `reader`, drift is None without images."""
        return {
            "reader": self.reader,
            "engine": self.reader,
            "num_tensors": self.num_tensors,
            "changed": list(self.changed),
            "batches": list(self.batches),
            "num_images": self.num_images,
            "max_difference": self.max_difference,
            "drift": self.drift if self.num_images else None,
            "agreed": self.agreed,
        }

    def __str__(self) -> str:
        parts = []
        if self.num_tensors:
            named = f"{len(self.changed)} of them changed ({', '.join(self.changed[:3])})"
            parts.append(f"{self.num_tensors} tensors, {named if self.changed else 'bit-identical'}")
        if self.num_images:
            parts.append(
                f"{self.agreed} of {self.num_images} images with the same top-1 class, in batches of "
                f"{', '.join(map(str, self.batches))}; logits differ by at most {self.max_difference:.1e}, "
                f"{self.drift:.1e} of their standard deviation"
            )
        return f"{self.reader}: {'; '.join(parts)}"


def compare_logits(expected_BK: Tensor, got_BK: Tensor, max_drift: float) -> dict[str, Any]:
    """Return the fields num_images, max_difference, drift and agreed of a `Verification`.

    Args:
        expected_BK: logits of the original.
        got_BK: logits of the export; logits of another shape, or that are not finite, agree for no image.
        max_drift: differences up to this one make two classes equally good.
    """
    expected_BK, got_BK = expected_BK.double(), got_BK.double()
    num_images = len(expected_BK)
    if got_BK.shape != expected_BK.shape or not got_BK.isfinite().all():
        return {"num_images": num_images, "max_difference": _LARGEST, "drift": _LARGEST, "agreed": 0}
    worst, spread = (got_BK - expected_BK).abs().max().item(), expected_BK.std().item()
    drift = worst / spread if spread else (_LARGEST if worst else 0.0)
    chosen_B = expected_BK.gather(1, got_BK.argmax(1, keepdim=True))[:, 0]
    agreed = int((chosen_B >= expected_BK.amax(1) - max_drift * spread).sum())
    return {"num_images": num_images, "max_difference": worst, "drift": drift, "agreed": agreed}


def changed_keys(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the keys that are in one state dict only, or have other values (compared in the reader's dtype)."""
    keys = dict.fromkeys([*expected, *got])
    both = {key for key in keys if key in expected and key in got and expected[key].shape == got[key].shape}
    same = {key for key in both if torch.equal(expected[key].cpu().to(got[key].dtype), got[key].cpu())}
    return tuple(key for key in keys if key not in same)
