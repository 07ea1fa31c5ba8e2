"""Create a matplotlib figure, and write a figure as a PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from deepcait.optional import require
from deepcait.runtime.files import write_bytes


def open_figure(width: float, height: float, *, asked: str = "plot") -> Any:
    """Return an empty `matplotlib.figure.Figure`; pyplot and its global state are not used.

    Args:
        width, height: in inches.
        asked: what needs it: the subject of the error's sentence.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require("matplotlib.backends.backend_agg", asked=asked, extra="explain")
    figure_class = require("matplotlib.figure", asked=asked, extra="explain").Figure
    return figure_class(figsize=(width, height), layout="constrained")


def write_png(figure: Any, path: Path, *, dpi: int) -> None:
    """Write a figure as a PNG, bit-identical for the same values; an existing file is replaced atomically.

    Raises:
        WeightsError: the file can't be written.
    """
    buffer = io.BytesIO()
    # Without metadata about matplotlib's version.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
