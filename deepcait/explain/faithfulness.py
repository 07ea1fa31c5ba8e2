"""Faithfulness of a map: delete or insert patches in its order, and compare with random orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcait.errors import ConfigError

Probability = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Areas under the curve of the target's probability over the fraction of changed patches, from 0 to 1.

    deletion: the most important patches are covered first; low for a faithful map.
    insertion: the most important patches are uncovered first; high for a faithful map.
    random_deletion, random_insertion: the same for random orders, the mean of `num_random`.
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
    by_chance: tuple[float, float] | None = None,
) -> Faithfulness:
    """Cover patches with the mean colour (zeros after normalisation), in order of importance and at random.

    Args:
        probability: the target's probability, (B,), for images (B, C, H, W).
        image_CHW: normalised.
        importance: (rows, columns) of the patch grid, larger is more important; ties are in row-major order.
        steps: number of steps in which patches are covered; at most the number of patches.
        num_random: number of random orders, drawn from `seed`.
        batch_size: images per forward pass.
        by_chance: the result of `areas_by_chance` for the same image and settings, so that several maps share it; None
            computes it here.

    Source: deletion and insertion, Petsiuk et al. 2018, arXiv:1806.07421.
    Deviation: patches, not pixels, are covered, since a CaiT reads patches, and both use the mean colour (there,
    insertion starts from a blurred image).

    Raises:
        ConfigError: steps or num_random is below 1, or a value is NaN or infinite.
    """
    if steps < 1 or num_random < 1:
        raise ConfigError(
            f"steps and num_random must be at least 1 (got {steps} and {num_random}).", remedy="Use at least 1."
        )
    if not importance.isfinite().all():
        raise ConfigError("importance: the map contains NaN or infinite values.", remedy="Check the model's weights.")
    rows, columns = importance.shape
    order_N = importance.flatten().argsort(descending=True, stable=True).cpu()
    deletion, insertion = _curves(probability, image_CHW, (rows, columns), order_N, steps, batch_size)
    if by_chance is None:
        drawing = {"steps": steps, "num_random": num_random, "seed": seed, "batch_size": batch_size}
        by_chance = areas_by_chance(probability, image_CHW, (rows, columns), **drawing)
    return Faithfulness(
        deletion=area(deletion, rows * columns),
        insertion=area(insertion, rows * columns),
        random_deletion=by_chance[0],
        random_insertion=by_chance[1],
        num_random=num_random,
        deletion_curve=tuple(deletion.tolist()),
        insertion_curve=tuple(insertion.tolist()),
    )


def areas_by_chance(
    probability: Probability,
    image_CHW: Tensor,
    grid: tuple[int, int],
    *,
    steps: int = 16,
    num_random: int = 4,
    seed: int = 0,
    batch_size: int = 16,
) -> tuple[float, float]:
    """Return the areas of deletion and insertion for random orders, each the mean of `num_random`.

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
    """Return the area under a curve over the fraction of changed patches, by the trapezoidal rule.

    If the number of patches is not divisible by the steps, they are as equal as possible.
    """
    counts_S = _counts(num_patches, len(curve) - 1)
    return float(torch.trapezoid(curve.double(), counts_S.double()) / num_patches)


def _counts(num_patches: int, steps: int) -> Tensor:
    """Number of changed patches at each of `steps` + 1 points."""
    return torch.tensor([round(step * num_patches / steps) for step in range(steps + 1)])


def _curves(
    probability: Probability, image_CHW: Tensor, grid: tuple[int, int], order_N: Tensor, steps: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Probabilities during deletion, and during insertion."""
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
    both_BCHW = torch.cat((image_CHW * ~changed_S1HW, image_CHW * changed_S1HW))
    values = torch.cat([probability(part).float().cpu() for part in both_BCHW.split(batch_size)])
    return values[: steps + 1], values[steps + 1 :]
