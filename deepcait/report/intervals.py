"""How sure a share is: intervals for one accuracy, for a difference of two, and for two models on the same images."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # quantile of the normal distribution that leaves 2.5 % above


def wilson(hits: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a share; (0, 1) where nothing was tried.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22.
    """
    if not trials:
        return 0.0, 1.0
    share, extra = hits / trials, z * z / trials
    centre = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    # All or none: the formula's end is exactly 1 or 0 but for rounding.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == trials else centre + half)


def difference(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """Return the interval of second minus first, two shares (hits, trials) of independent images.

    Source: Newcombe 1998, Stat. Med. 17, method 10: the two Wilson intervals joined.
    """
    (a, b), (low_a, high_a), (low_b, high_b) = (h / n for h, n in (first, second)), wilson(*first), wilson(*second)
    gap = b - a
    return gap - math.hypot(b - low_b, high_a - a), gap + math.hypot(high_b - b, a - low_a)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that two models differ, from the images only one of them has right.

    Source: McNemar 1947; the exact binomial form.
    """
    total = only_first + only_second
    if not total:
        return 1.0
    few = min(only_first, only_second)
    # Whole numbers until the last division: no term is lost however small.
    tail = sum(math.comb(total, hits) for hits in range(few + 1))
    return min(1.0, 2 * tail / 2**total)
