"""The curves of cost as a picture: time above, memory below; batch, tokens and depth from left to right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcait.explain.canvas import open_figure, write_png

_COLOURS = {"ours": "#2b6cb0", "timm": "#b7791f"}
_STYLES = {"inference": "-o", "training": "--s"}
_SCALES = {"_s": (1.0, "seconds"), "_bytes": (2.0**-20, "MiB")}


def require_matplotlib() -> None:
    """Pass where pictures can be drawn, before anything is measured.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    _figure(1, 1)


def draw_cost(result: dict[str, Any], path: Path) -> None:
    """Write the curves of `compare_cost` as a PNG; both axes are logarithmic, so a power is a straight line."""
    kinds = list(result["exponents"])
    figure = _figure(3.6 * len(kinds), 6.4)
    axes = figure.subplots(2, len(kinds), squeeze=False)
    for column, kind in enumerate(kinds):
        rows = [row for row in result["points"] if row["axis"] == kind]
        for line, (suffix, (scale, unit)) in enumerate(_SCALES.items()):
            place = axes[line][column]
            for what, style in _STYLES.items():
                for side, colour in _COLOURS.items():
                    power = result["exponents"][kind][what + suffix][side]["exponent"]
                    values = [row[what + suffix][side] * scale for row in rows]
                    label = f"{what}, {side}: {power:.2f}"
                    place.loglog([row["x"] for row in rows], values, style, color=colour, markersize=4, label=label)
            place.set_xticks([row["x"] for row in rows], [str(row["x"]) for row in rows])
            place.minorticks_off()
            place.set_xlabel({"batch": "images a call", "tokens": "patches an image"}.get(kind, kind))
            place.set_ylabel(unit if column == 0 else "")
            place.grid(alpha=0.3)
            place.legend(fontsize=7, title="exponent", title_fontsize=7)
    figure.suptitle(f"{result['model']}, {result['threads']} threads, float32", fontsize=10)
    write_png(figure, path, dpi=100)


def _figure(width: float, height: float) -> Any:
    return open_figure(width, height, asked="--out, for the curves")
