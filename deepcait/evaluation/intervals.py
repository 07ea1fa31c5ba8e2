"""Confidence intervals of measured metrics."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

LEVEL = 0.95
_NUM_RESAMPLES = 1000


def wilson(correct: int, num: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a fraction: valid for few images and near 0 and 1 too.

    >>> [round(end, 4) for end in wilson(8, 10)]
    [0.4902, 0.9433]

    Args:
        correct, num: the counts; num at least 1.
        level: confidence level.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = correct / num
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_mean(values_N: Tensor, level: float = LEVEL, *, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval of a mean, from 1,000 resamples of the images; deterministic for a seed."""
    generator = torch.Generator().manual_seed(seed)
    num = len(values_N)
    draws = (torch.randint(num, (num,), generator=generator) for _ in range(_NUM_RESAMPLES))
    means = [values_N[draw_N].mean() for draw_N in draws]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values_N.dtype)
    low, high = torch.stack(means).quantile(ends).tolist()
    return low, high
