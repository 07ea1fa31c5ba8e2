"""Plots of benchmark results: bars of engines, and curves of cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcait.explain.canvas import open_figure, write_png
from deepcait.runtime.lettering import write_text

_COLOURS = {"ours": "#2b6cb0", "timm": "#b7791f"}
_HEIGHT = 0.38
_STYLES = {"inference": "-o", "training": "--s"}
_SCALES = {"_s": (1.0, "seconds"), "_bytes": (2.0**-20, "MiB")}
_AXES = {"batch": "images per call", "tokens": "patches per image"}


def require_matplotlib() -> None:
    """Raise if plots can't be drawn, before anything is measured.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    open_figure(1, 1, asked="--out, for the curves")


def draw_engines(result: dict[str, Any], path: Path) -> None:
    """Write a PNG: one panel per batch size, one pair of bars per engine, thin lines up to the 95th percentile.

    In int8 there is no bar of timm; without a measured limit there is no line for it.

    Args:
        result: of `compare_engines`.
        path: of the plot.

    Raises:
        ConfigError: matplotlib is not installed.
        WriteError: the file can't be written.
    """
    rows = result["batches"]
    figure = open_figure(4.4 * len(rows) + 1, 1.4 + 0.55 * len(result["engines"]))
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        _draw_batch(axes, row)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    write_text(figure.suptitle("", fontsize=10), f"{result['model']}, {result['threads']} threads: images per second")
    write_png(figure, path, dpi=110)


def draw_cost(result: dict[str, Any], path: Path) -> None:
    """Write the curves of `compare_cost` as a PNG: time above, memory below; batch, tokens and depth left to right.

    Both axes are logarithmic, so a power is a straight line.

    Args:
        result: of `compare_cost`.
        path: of the plot.

    Raises:
        ConfigError: matplotlib is not installed.
        WriteError: the file can't be written.
    """
    kinds = list(result["exponents"])
    figure = open_figure(3.6 * len(kinds), 6.4)
    axes = figure.subplots(2, len(kinds), squeeze=False)
    for column, kind in enumerate(kinds):
        for line, suffix in enumerate(_SCALES):
            _draw_curves(axes[line][column], result, kind, suffix)
            axes[line][column].set_ylabel(_SCALES[suffix][1] if column == 0 else "")
    write_text(figure.suptitle("", fontsize=10), f"{result['model']}, {result['threads']} threads, float32")
    write_png(figure, path, dpi=100)


def _draw_batch(axes: Any, row: dict[str, Any]) -> None:
    names = list(row["engines"])
    labelled: set[str] = set()
    for number, (who, colour) in enumerate(_COLOURS.items()):
        for position, name in enumerate(names):
            found = row["engines"][name][who]
            if found is None:
                continue
            y = position + (number - 0.5) * _HEIGHT
            label = None if who in labelled else who
            labelled.add(who)
            axes.barh(y, found["images_per_s"], _HEIGHT, color=colour, label=label)
            axes.plot([row["batch"] / found["p95_s"], found["images_per_s"]], [y, y], color="black", linewidth=0.8)
    title = f"batch {row['batch']}"
    if row["limit"] is not None:
        title += f", matrix products in {row['limit']['precision']}"
        limit = row["batch"] / row["limit"]["median_s"]
        axes.axvline(limit, color="grey", linestyle="--", linewidth=1, label="matrix products alone")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", alpha=0.3)


def _draw_curves(axes: Any, result: dict[str, Any], kind: str, suffix: str) -> None:
    rows = [row for row in result["points"] if row["axis"] == kind]
    for what, style in _STYLES.items():
        for side, colour in _COLOURS.items():
            power = result["exponents"][kind][what + suffix][side]["exponent"]
            values = [row[what + suffix][side] * _SCALES[suffix][0] for row in rows]
            label = f"{what}, {side}: {power:.2f}"
            axes.loglog([row["x"] for row in rows], values, style, color=colour, markersize=4, label=label)
    axes.set_xticks([row["x"] for row in rows], [str(row["x"]) for row in rows])
    axes.minorticks_off()
    axes.set_xlabel(_AXES.get(kind, kind))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, title="exponent", title_fontsize=7)
