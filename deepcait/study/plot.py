"""Plot a study's table: a dot per seed; lines or bars for the means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcait.explain.canvas import open_figure, write_png
from deepcait.study.grid import Grid


def plot(found: dict[str, Any], grid: Grid, path: Path) -> None:
    """Write the plot as a PNG.

    Args:
        found: from `table.results`. grid: the study. path: of the PNG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    wide = len(grid.columns) > 1
    figure = open_figure(9, 5 if wide else 1.5 + 0.4 * len(grid.rows))
    axes = figure.subplots()
    if wide:
        _lines(axes, found, grid)
    else:
        _dots(axes, found, grid)
    figure.suptitle(f"{found['title']}\n{found['scale']}", fontsize=9)  # over the whole width: the scale is long
    axes.grid(alpha=0.3)
    write_png(figure, path, dpi=120)


def _lines(axes: Any, found: dict[str, Any], grid: Grid) -> None:
    """Rows from left to right, one line per column."""
    for number, column in enumerate(grid.columns):
        places = [place for place in found["table"] if place["column"] == column.id]
        at = [(x, place) for x, place in enumerate(places) if place["mean"] is not None]
        colour = f"C{number}"
        axes.plot([x for x, _ in at], [100 * p["mean"] for _, p in at], color=colour, label=column.title)
        for x, place in at:
            axes.plot([x] * len(place["top1"]), [100 * value for value in place["top1"]], ".", color=colour)
    axes.set_xticks(range(len(grid.rows)), [row.title for row in grid.rows])
    axes.set_ylabel("top-1 %")
    axes.legend(fontsize=8)


def _dots(axes: Any, found: dict[str, Any], grid: Grid) -> None:
    """One bar with dots per row, the first on top."""
    for y, place in enumerate(found["table"]):
        if place["mean"] is not None:
            axes.plot([100 * value for value in place["top1"]], [y] * len(place["top1"]), ".", color="C0")
            axes.plot([100 * place["mean"]], [y], "|", color="C1", markersize=14)
    axes.set_yticks(range(len(grid.rows)), [row.title for row in grid.rows])
    axes.set_ylim(len(grid.rows) - 0.5, -0.5)
    axes.set_xlabel("top-1 % (dots: seeds, bar: mean)")
