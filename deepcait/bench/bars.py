"""Ours and timm's on every engine as a picture: images per second, and the limit of the matrix products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcait.explain.canvas import open_figure, write_png

_COLOURS = {"ours": "#2b6cb0", "timm": "#b7791f"}
_HEIGHT = 0.38


def draw_engines(result: dict[str, Any], path: Path) -> None:
    """Write the picture, a PNG: one panel a batch size, one pair of bars an engine, thin lines to the 95th percentile.

    Args:
        result: of `compare_engines`.
        path: of the picture.

    Raises:
        ConfigError: matplotlib is not installed.
        WeightsError: the place can't be written to.
    """
    rows = result["batches"]
    figure = open_figure(4.4 * len(rows) + 1, 1.4 + 0.55 * len(result["engines"]))
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        _panel(axes, row)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"{result['model']}, {result['threads']} threads, float32: images per second", fontsize=10)
    write_png(figure, path, dpi=110)


def _panel(axes: Any, row: dict[str, Any]) -> None:
    names = list(row["engines"])
    for number, (who, colour) in enumerate(_COLOURS.items()):
        for place, name in enumerate(names):
            found = row["engines"][name][who]
            y = place + (number - 0.5) * _HEIGHT
            label = who if place == 0 else None
            axes.barh(y, found["images_per_s"], _HEIGHT, color=colour, label=label)
            axes.plot([row["batch"] / found["p95_s"], found["images_per_s"]], [y, y], color="black", linewidth=0.8)
    limit = row["batch"] / row["limit"]["median_s"]
    axes.axvline(limit, color="grey", linestyle="--", linewidth=1, label="matrix products alone")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(f"batch {row['batch']}", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
