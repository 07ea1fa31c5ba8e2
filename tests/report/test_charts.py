"""Charts as text: what is drawn of very many points, and numbers of any size."""

from __future__ import annotations

import math

import pytest

from deepcait.report.charts import Series, line_chart, number
from tests.report.reading import read_page

NUM = 15_000


@pytest.fixture
def chart(tmp_path):
    """The chart of a training of 15,000 rows with one peak and one dip, read back."""
    values = [5 - 4 * index / NUM for index in range(NUM)]
    values[7_777], values[9_001], values[3] = 99.0, -20.0, math.nan
    points = [(index / 50, value) for index, value in enumerate(values)]
    path = tmp_path / "chart.html"
    path.write_text(line_chart("Loss", [Series(name="training", points=points)], x_label="epoch"), encoding="utf-8")
    return read_page(path)


def test_no_peak_is_lost_among_very_many_points(chart):
    (line,) = chart.find("polyline")
    places = [tuple(map(float, place.split(","))) for place in line.attributes["points"].split()]
    assert 100 < len(places) <= 300
    assert places == sorted(places, key=lambda place: place[0])
    ordinary = sorted(y for _, y in places)[len(places) // 2]
    (top,) = [place for place in places if place[1] < ordinary - 50]
    (bottom,) = [place for place in places if place[1] > ordinary + 25]
    assert places.index(top) < places.index(bottom)
    assert "training from 5 to 1" in chart.find("svg")[0].attributes["aria-label"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.53456, "0.5346"), (1e-5, "1e-05"), (9_999.0, "9999"), (12_345.6, "12,346"), (-1_234_567.0, "-1,234,567")],
)
def test_a_number_is_written_out(value, text):
    assert number(value) == text


def test_nothing_to_draw(tmp_path):
    (tmp_path / "chart.html").write_text(
        line_chart("Speed", [Series(name="s", points=[(1, None), (2, math.inf)])], x_label="step"), encoding="utf-8"
    )
    page = read_page(tmp_path / "chart.html")
    assert page.find("svg") == []
    assert "No values were recorded." in page.text
