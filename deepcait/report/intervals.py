"""A confidence interval for the difference of two accuracies."""

from __future__ import annotations

import math

from deepcait.evaluation import wilson


def difference(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """Return the 95 % interval of second minus first, two proportions (hits, trials) of independent images.

    Source: Newcombe 1998, Stat. Med. 17, method 10, from the two Wilson intervals.
    """
    (a, b), (low_a, high_a), (low_b, high_b) = (h / n for h, n in (first, second)), wilson(*first), wilson(*second)
    gap = b - a
    return gap - math.hypot(b - low_b, high_a - a), gap + math.hypot(high_b - b, a - low_a)
