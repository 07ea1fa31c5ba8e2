"""Compare two models on the same images, with a significance test."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from deepcait.errors import ConfigError
from deepcait.evaluation.records import Records


@dataclass(frozen=True)
class Paired:
    """Two models on the same images: images that only one predicts correctly, and the p-value.

    Args:
        only_first, only_second: numbers of images that only this model predicts correctly.
        p_value: of McNemar's exact test, two-sided.
    """

    only_first: int
    only_second: int
    p_value: float


def compare(first: Records, second: Records) -> Paired:
    """Compare the top-1 predictions of two models, image by image.

    Raises:
        ConfigError: they were evaluated on different images.
    """
    if list(first.names) != list(second.names):
        raise ConfigError(
            "compare: the two evaluations are not of the same images.",
            remedy="Evaluate both models on the same data, split and protocol.",
        )
    return count_pairs(first.correct_N, second.correct_N)


def count_pairs(first_N: Tensor, second_N: Tensor) -> Paired:
    """Compare two arrays of correct and incorrect predictions."""
    only_first, only_second = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    return Paired(only_first, only_second, mcnemar(only_first, only_second))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: images on which both agree do not matter.

    >>> mcnemar(1, 9)
    0.021484375

    Args:
        only_first, only_second: numbers of images that only one of the two predicts correctly.
    """
    num, fewer = only_first + only_second, min(only_first, only_second)
    # Exact integers: 2^num overflows a float from 1,024 images on.
    tail, term = 0, 1
    for i in range(fewer + 1):
        tail += term
        term = term * (num - i) // (i + 1)
    return min(1.0, _ratio(2 * tail, num))


def _ratio(numerator: int, exponent: int) -> float:
    """Return numerator / 2^exponent, for integers of any size."""
    shift = max(0, numerator.bit_length() - 64)
    return math.ldexp(float(numerator >> shift), shift - exponent)
