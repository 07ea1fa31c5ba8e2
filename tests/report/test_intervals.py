"""Intervals and tests against scipy, and against the figures of the papers."""

from __future__ import annotations

import pytest

from deepcait.report.intervals import difference, mcnemar, wilson

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (1, 10), (5, 10), (10, 10), (81, 263), (7_654, 10_000)])
def test_wilson(hits, trials):
    expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert wilson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_tried_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    # Table II of Newcombe 1998, method 10; there first minus second.
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 10), (0.6075, 1.0000)),
    ],
)
def test_newcombe(first, second, expected):
    assert difference(second, first) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 6), (3, 9), (40, 61), (500, 500), (5_000, 5_400)])
def test_mcnemar(one, other):
    expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9)
