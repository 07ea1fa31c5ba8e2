"""An empty figure of matplotlib, and a figure as a PNG: what every room that draws a plot needs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from deepcait.optional import require
from deepcait.runtime.files import write_bytes


def open_figure(width: float, height: float, *, asked: str = "plot") -> Any:
    """Return an empty `matplotlib.figure.Figure`; pyplot and its global state stay out of it.

    Args:
        width, height: in inches.
        asked: what needs it, the beginning of the error's sentence.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require("matplotlib.backends.backend_agg", asked=asked, extra="explain")
    figure_class = require("matplotlib.figure", asked=asked, extra="explain").Figure
    return figure_class(figsize=(width, height), layout="constrained")


def write_png(figure: Any, path: Path, *, dpi: int) -> None:
    """Write a figure as a PNG that the same values make again, byte for byte; the old file is replaced in one step.

    Raises:
        WeightsError: the place can't be written to.
    """
    buffer = io.BytesIO()
    # Without the name and version of matplotlib in it.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
