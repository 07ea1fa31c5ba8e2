"""Is a map true to the model? Delete or insert patches in its order, and compare with orders drawn by lot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcait.errors import ConfigError

Probability = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Areas under the curves of the target's probability, from 0 to 1 in the share of patches changed.

    deletion: the most important patches are covered first; a faithful map brings it low.
    insertion: into a covered image, the most important first; a faithful map brings it high.
    random_deletion, random_insertion: the same for orders drawn by lot, the mean of `num_random`.
    deletion_curve, insertion_curve: probabilities at `steps` + 1 points.
    """

    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float
    num_random: int
    deletion_curve: tuple[float, ...]
    insertion_curve: tuple[float, ...]

    def to_dict(self) -> dict[str, float | int]:
        """Return the areas, for JSON."""
        names = ("deletion", "insertion", "random_deletion", "random_insertion", "num_random")
        return {name: getattr(self, name) for name in names}


def measure_faithfulness(
    probability: Probability,
    image_CHW: Tensor,
    importance: Tensor,
    *,
    steps: int = 16,
    num_random: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    by_lot: tuple[float, float] | None = None,
) -> Faithfulness:
    """Cover patches with the mean colour (zeros after normalisation), in order of importance and by lot.

    Args:
        probability: the target's probability, (B,), for images (B, C, H, W).
        image_CHW: normalised.
        importance: (rows, columns) of the patch grid, larger is more important; ties keep reading order.
        steps: how many parts the patches are covered in; never more than there are patches.
        num_random: orders drawn by lot, from `seed`.
        batch_size: images that pass through the network at once.
        by_lot: what `areas_by_lot` returned for the same image and the same settings, so that several maps of it
            need it once; None draws here.

    Source: deletion and insertion, Petsiuk et al. 2018, arXiv:1806.07421.
    Deviation: patches, not pixels, are covered, and the same mean colour stands in for both (there a blurred
    image is the start of insertion): a CaiT reads patches.

    Raises:
        ConfigError: steps or num_random below 1, or values that are not numbers.
    """
    if steps < 1 or num_random < 1:
        raise ConfigError(f"expected steps and num_random from 1 on, got {steps}, {num_random}.", remedy="Give more.")
    if not importance.isfinite().all():
        raise ConfigError("importance: expected numbers, got infinite ones or none.", remedy="Check the model.")
    rows, columns = importance.shape
    order_N = importance.flatten().argsort(descending=True, stable=True).cpu()
    deletion, insertion = _curves(probability, image_CHW, (rows, columns), order_N, steps, batch_size)
    if by_lot is None:
        drawing = {"steps": steps, "num_random": num_random, "seed": seed, "batch_size": batch_size}
        by_lot = areas_by_lot(probability, image_CHW, (rows, columns), **drawing)
    return Faithfulness(
        deletion=area(deletion, rows * columns),
        insertion=area(insertion, rows * columns),
        random_deletion=by_lot[0],
        random_insertion=by_lot[1],
        num_random=num_random,
        deletion_curve=tuple(deletion.tolist()),
        insertion_curve=tuple(insertion.tolist()),
    )


def areas_by_lot(
    probability: Probability,
    image_CHW: Tensor,
    grid: tuple[int, int],
    *,
    steps: int = 16,
    num_random: int = 4,
    seed: int = 0,
    batch_size: int = 16,
) -> tuple[float, float]:
    """Return the areas of deletion and insertion for orders drawn by lot, each the mean of `num_random`.

    Args: as for `measure_faithfulness`; `grid` is (rows, columns) of the patches.
    """
    generator = torch.Generator().manual_seed(seed)
    num_patches = grid[0] * grid[1]
    orders = [torch.randperm(num_patches, generator=generator) for _ in range(num_random)]
    curves = [_curves(probability, image_CHW, grid, order, steps, batch_size) for order in orders]
    columns = zip(*curves, strict=True)
    deletion, insertion = (sum(area(curve, num_patches) for curve in column) / num_random for column in columns)
    return deletion, insertion


def area(curve: Tensor, num_patches: int) -> float:
    """Return the area under a curve over the share of patches changed, by trapezoids.

    Where the steps do not divide the patches, they are as equal as whole patches let them be.
    """
    counts_S = _counts(num_patches, len(curve) - 1)
    return float(torch.trapezoid(curve.double(), counts_S.double()) / num_patches)


def _counts(num_patches: int, steps: int) -> Tensor:
    """How many patches are changed at each of `steps` + 1 points."""
    return torch.tensor([round(step * num_patches / steps) for step in range(steps + 1)])


def _curves(
    probability: Probability, image_CHW: Tensor, grid: tuple[int, int], order_N: Tensor, steps: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Probabilities while patches are deleted, and while they are inserted."""
    rows, columns = grid
    _, height, width = image_CHW.shape
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = torch.arange(len(order_N))
    steps = min(steps, len(order_N))
    changed_SN = rank_N[None, :] < _counts(len(order_N), steps)[:, None]
    changed_S1HW = (
        changed_SN.view(-1, 1, rows, columns)
        .repeat_interleave(height // rows, dim=2)
        .repeat_interleave(width // columns, dim=3)
        .to(image_CHW.device)
    )
    pictures = torch.cat((image_CHW * ~changed_S1HW, image_CHW * changed_S1HW))
    values = torch.cat([probability(part).float().cpu() for part in pictures.split(batch_size)])
    return values[: steps + 1], values[steps + 1 :]
