"""The interval of a difference against the figures of its paper; Wilson and McNemar have their tests in evaluation."""

from __future__ import annotations

import pytest

from deepcait.report.intervals import difference


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
