"""Counting: mean, spread, and when a difference is seen."""

from __future__ import annotations

import pytest

from deepcait.study.grid import load_grid
from deepcait.study.outcome import Summary, noise_of, reference_of, verdict


def place(*accuracies: float, row: str = "off", column: str = "top1", failed: int = 0, num_images: int = 10_000):
    return Summary(row=row, column=column, accuracies=accuracies, failed=failed, open=0, num_images=num_images)


def test_mean_and_spread():
    assert place(0.5, 0.52).mean == pytest.approx(0.51)
    assert place(0.5, 0.52, 0.51).spread == pytest.approx(0.02)
    assert place(0.5).spread is None
    assert place(0.5, failed=1).mean is None
    assert place().mean is None


@pytest.mark.parametrize(
    ("one", "other", "output"),
    [
        ((0.60, 0.61), (0.50, 0.51), "+10.00"),
        ((0.50, 0.51), (0.60, 0.61), "-10.00"),
        # Inside the spread of one of them, of either.
        ((0.50, 0.60), (0.50, 0.51), "n.s. (+4.50)"),
        ((0.50, 0.51), (0.50, 0.60), "n.s. (-4.50)"),
        # Equal seeds by chance: the error of counting 10,000 images is left, 2 sqrt(2 * .25 / 20,000) = 1 point.
        ((0.505, 0.505), (0.5, 0.5), "n.s. (+0.50)"),
        ((0.512, 0.512), (0.5, 0.5), "+1.20"),
        ((0.6,), (0.5, 0.51), "+9.50, one seed: spread unknown"),
    ],
)
def test_a_difference_inside_the_spread_is_not_significant(one, other, output):
    assert verdict(place(*one), place(*other)) == output


def test_the_error_of_counting_by_hand():
    # Two binomial counts of 400 images at 1/2: deviation of the difference sqrt(2 * 0.25 / 400), twice.
    one, other = place(0.5, num_images=400), place(0.5, num_images=400)
    assert noise_of(one, other) == pytest.approx(2 * (2 * 0.25 / 400) ** 0.5)


def test_failures_and_open_cells_are_reported():
    assert verdict(place(0.5, failed=1), place(0.5, 0.5)) == "failed"
    assert verdict(place(0.5, 0.5), place(failed=2)) == "the reference failed"
    assert verdict(place(), place(0.5, 0.5)) == "not done yet"
    assert verdict(place(0.5, 0.5), None) == "reference"


def test_who_is_compared_with_whom():
    grid = load_grid("layerscale")
    places = [place(0.5, row=r.id, column=c.id) for r in grid.rows for c in grid.columns]
    for each in places:
        other = reference_of(each, grid, places)
        assert (other is None) == (each.column == "baseline")
        assert other is None or (other.row, other.column) == (each.row, "baseline")
    grid = load_grid("heads")
    places = [place(0.5, row=r.id) for r in grid.rows]
    assert [reference_of(each, grid, places) is None for each in places] == [r.id == "h3" for r in grid.rows]
