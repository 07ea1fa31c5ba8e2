"""Line charts as inline SVG, without libraries or scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from deepcait.explain.markup import render

TEMPLATES = Path(__file__).parent / "templates"
_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 34
_MAX_POINTS = 300
_MAX_DOTS = 40


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    points: (x, y); those that are not finite are left out. band: (x, low, high) around it.
    colour: 0 to 3, a colour of the page. dashed: so that lines also differ without colour.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    band: Sequence[tuple[float, float, float]] = field(default=())
    colour: int = 0
    dashed: bool = False

    @property
    def known(self) -> list[tuple[float, float]]:
        """The finite points."""
        return [(x, y) for x, y in self.points if isinstance(y, int | float) and math.isfinite(y)]


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, percent: bool = False, caption: str = ""
) -> Markup:
    """Return a chart with its legend and caption; a sentence if there is nothing to draw.

    Args:
        title: heading above it, and the chart's accessible name.
        series: lines, drawn in order.
        x_label: below the axis.
        percent: y values are fractions, shown in percent.
        caption: below the chart.
    """
    drawn = [line for line in series if line.known]
    words = {"title": title, "caption": caption, "x_label": x_label}
    if not drawn:
        return render("chart.html", TEMPLATES, lines=[], **words)
    everything = [y for line in drawn for _, y in line.known]
    everything += [y for line in drawn for _, *low_high in line.band for y in low_high]
    x_scale = _Scale([x for line in drawn for x, _ in line.known], _LEFT, _WIDTH - _RIGHT)
    y_scale = _Scale(everything, _HEIGHT - _BOTTOM, _TOP, nice=True)
    return render(
        "chart.html",
        TEMPLATES,
        lines=[_line(line, x_scale, y_scale, percent) for line in drawn],
        label=f"{title}: " + "; ".join(_in_words(line, percent) for line in drawn),
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        bottom=_HEIGHT - _BOTTOM,
        x_ticks=[(x_scale(value), _text(value, False)) for value in x_scale.ticks()],
        y_ticks=[(y_scale(value), _text(value, percent)) for value in y_scale.ticks()],
        **words,
    )


class _Scale:
    """Return a function from values to positions on an axis, and the ticks."""

    def __init__(self, values: Sequence[float], start_px: float, end_px: float, *, nice: bool = False) -> None:
        self.low, self.high = min(values), max(values)
        if self.low == self.high:
            self.low, self.high = self.low - (abs(self.low) or 1) * 0.1, self.high + (abs(self.high) or 1) * 0.1
        self.start_px, self.end_px = start_px, end_px
        self.step = _round_step((self.high - self.low) / 4)
        if nice:
            self.low = math.floor(self.low / self.step + 1e-9) * self.step
            self.high = math.ceil(self.high / self.step - 1e-9) * self.step

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start_px + part * (self.end_px - self.start_px), 1)

    def ticks(self) -> list[float]:
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, last + 1)]


def _round_step(step: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is not smaller."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _line(line: Series, x_scale: _Scale, y_scale: _Scale, percent: bool) -> dict[str, Any]:
    """The template's values for one line: SVG points, and dots with titles if there are few."""
    points = _thinned(line.known)
    upper = [f"{x_scale(x)},{y_scale(high)}" for x, _, high in line.band]
    lower = [f"{x_scale(x)},{y_scale(low)}" for x, low, _ in reversed(line.band)]
    dots = [
        (x_scale(x), y_scale(y), f"{line.name}, {x:g}: {_text(y, percent, exact=True)}")
        for x, y in (points if len(points) <= _MAX_DOTS else ())
    ]
    return {
        "name": line.name,
        "colour": line.colour,
        "dashed": line.dashed,
        "band": " ".join(upper + lower),
        "points": " ".join(f"{x_scale(x)},{y_scale(y)}" for x, y in points),
        "dots": dots,
    }


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points: both ends, and the minimum and maximum of equal parts, so no peak is lost."""
    if len(points) <= _MAX_POINTS:
        return points
    num_parts = _MAX_POINTS // 2 - 1
    chosen = {0, len(points) - 1}
    for part in range(num_parts):
        indices = range(part * len(points) // num_parts, (part + 1) * len(points) // num_parts)
        chosen |= {find(indices, key=lambda index: points[index][1]) for find in (min, max)}
    return [points[index] for index in sorted(chosen)]


def _in_words(line: Series, percent: bool) -> str:
    (_, first), (_, last) = line.known[0], line.known[-1]
    return f"{line.name} from {_text(first, percent, exact=True)} to {_text(last, percent, exact=True)}"


def _text(value: float, percent: bool, *, exact: bool = False) -> str:
    if percent:
        return f"{100 * value:.2f} %" if exact else f"{100 * value:.4g} %"
    return number(value)


def number(value: float) -> str:
    """Return a printed number: four digits, or all integer digits."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
