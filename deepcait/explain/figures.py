"""Plots of a model: branch strength, LayerScale, head mixing, attention by layer, accuracy against cost."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepcait.errors import ConfigError
from deepcait.explain.gallery import Plate
from deepcait.explain.layers import LayerMeasures
from deepcait.optional import require
from deepcait.runtime.lettering import shorten, write_text
from deepcait.weights.spec import describe_models

# Blue and orange, safe for colour blindness; the first is also attention, the second the MLP.
_BLUE, _ORANGE, _GREY = "#24509e", "#c26a00", "#7a8290"
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 110,
    "svg.hashsalt": "deepcait",
}


def layer_plates(measures: LayerMeasures) -> list[Plate]:
    """Return the plots of a model's layers.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    return [
        branch_ratio(measures),
        layer_scale(measures),
        head_mixing(measures),
        attention_by_layer(measures),
    ]


def branch_ratio(measures: LayerMeasures) -> Plate:
    """Return the strength of the branches relative to the residual stream, by layer."""
    with _canvas(1, 1, 6.4, 3.4) as (figure, (axes,)):
        x = 1 + np.arange(len(measures.attention_ratio))
        axes.plot(x, measures.attention_ratio, "o-", color=_BLUE, markersize=3.5, label="attention")
        axes.plot(x, measures.mlp_ratio, "s--", color=_ORANGE, markersize=3.5, label="MLP")
        _mark_class_stage(axes, measures)
        axes.set(xlabel="block", ylabel="||branch|| / ||main||", yscale="log")
        _plain_ticks(axes.yaxis)
        axes.legend(frameon=False)
        image = _draw(figure)
    caption = (
        f"2-norm of a branch's output (with LayerScale) divided by the 2-norm of the residual stream, mean over "
        f"{_images(measures)} and all tokens; in the class stage (shaded), of the class token only. Logarithmic scale. "
        "The paper has such a plot; its way of averaging is not published, so values may differ from it."
    )
    return Plate(title="Strength of the branches", caption=caption, image=image)


def layer_scale(measures: LayerMeasures) -> Plate:
    """Return the distribution of |gamma| by depth."""
    with _canvas(1, 2, 8.4, 3.4, sharey=True) as (figure, all_axes):
        for index, (axes, name, colour) in enumerate(
            zip(all_axes, ("attention", "MLP"), (_BLUE, _ORANGE), strict=True)
        ):
            gammas_MD = measures.gammas[:, index].clip(1e-12)
            x = 1 + np.arange(len(gammas_MD))
            for low, high, alpha in ((0, 100, 0.15), (25, 75, 0.35)):
                bounds = np.percentile(gammas_MD, (low, high), axis=1)
                axes.fill_between(x, *bounds, color=colour, alpha=alpha, linewidth=0)
            axes.plot(x, np.median(gammas_MD, axis=1), color=colour, linewidth=2)
            _mark_class_stage(axes, measures)
            axes.set(xlabel="block", title=f"gamma of the {name}", yscale="log")
        all_axes[0].set_ylabel("|gamma|")
        image = _draw(figure)
    caption = (
        "Absolute LayerScale values over channels: median (line), middle half (dark band), minimum to maximum (light "
        "band). Shaded: the class stage. The paper has no such plot."
    )
    return Plate(title="LayerScale by depth", caption=caption, image=image)


def head_mixing(measures: LayerMeasures) -> Plate:
    """Return the matrices of both head mixings, for up to eight blocks evenly spaced over the depth."""
    chosen = np.unique(np.linspace(0, measures.depth - 1, min(8, measures.depth)).round().astype(int))
    with _canvas(2, len(chosen), 1.25 * len(chosen) + 1.2, 3.3) as (figure, all_axes):
        shown = None
        for row, (matrices_LAA, name) in enumerate(
            ((measures.mixing, "before softmax"), (measures.mixing_after, "after softmax"))
        ):
            largest = float(np.abs(matrices_LAA[chosen]).max()) or 1.0
            axes_of_row = all_axes[row * len(chosen) : (row + 1) * len(chosen)]
            for axes, block in zip(axes_of_row, chosen, strict=True):
                shown = axes.imshow(matrices_LAA[block], cmap="PuOr", vmin=-largest, vmax=largest)
                axes.grid(False)
                axes.set_xticks([])
                axes.set_yticks([])
                if row == 0:
                    axes.set_title(f"block {block + 1}", fontsize=9)
            axes_of_row[0].set_ylabel(name, fontsize=9)
            figure.colorbar(shown, ax=list(axes_of_row), shrink=0.85)
        image = _draw(figure)
    caption = (
        "Weights of the two layers that mix the heads of a patch block (rows: output heads, columns: input heads), "
        "orange below 0, purple above, one scale per row. Biases are not shown. The paper has no such plot."
    )
    return Plate(title="Talking heads", caption=caption, image=image)


def attention_by_layer(measures: LayerMeasures) -> Plate:
    """Return entropy and distance of attention by layer, one point per head."""
    with _canvas(1, 2, 8.4, 3.4) as (figure, (left, right)):
        for axes, values_MA, even in (
            (left, measures.entropy, measures.uniform_entropy),
            (right, measures.distance, measures.uniform_distance),
        ):
            x = 1 + np.arange(len(values_MA))
            axes.plot(x, values_MA, "o", color=_BLUE, markersize=3, alpha=0.55)
            axes.plot(x, values_MA.mean(1), color=_BLUE, linewidth=2, label="mean of heads")
            axes.axhline(even, color=_GREY, linestyle=":", label="uniform attention")
            axes.set(xlabel="block", ylim=(0, None))
            axes.xaxis.get_major_locator().set_params(integer=True)
        _mark_class_stage(left, measures)
        left.set_ylabel("entropy (nats)")
        right.set_ylabel("distance (patches)")
        right.legend(frameon=False, loc="lower right")
        image = _draw(figure)
    caption = (
        f"Left: entropy of the attention weights, mean over {_images(measures)} and queries; shaded: the class stage. "
        "Right: attention distance, the attention-weighted distance between patch centres, in the patch stage. One "
        "point per head. Both after the softmax, before the second head mixing. The paper has no such plot."
    )
    return Plate(title="Attention entropy and distance", caption=caption, image=image)


def accuracy_plate(rows: Sequence[dict[str, Any]], *, published: bool) -> Plate:
    """Return accuracy against multiply-adds and against parameters.

    Args:
        rows: with `name`, `gmacs`, `params`, `top1` (a fraction).
        published: whether the rows are published values.
    """
    with _canvas(1, 2, 9.4, 4.0, sharey=True) as (figure, all_axes):
        for axes, key, factor, label in zip(
            all_axes, ("gmacs", "params"), (1, 1e-6), ("GMACs per image", "parameters (M)"), strict=True
        ):
            x, y = [row[key] * factor for row in rows], [100 * row["top1"] for row in rows]
            axes.plot(x, y, "o", color=_BLUE, markersize=5)
            axes.set(xlabel=label, xscale="log")
            axes.margins(x=0.12, y=0.1)
            _plain_ticks(axes.xaxis)
        all_axes[0].set_ylabel("top-1 (%)")
        figure.draw_without_rendering()  # positions are known afterwards
        for axes in all_axes:
            _name_points(axes, [str(row["name"]).removeprefix("cait_") for row in rows])
        image = _draw(figure)
    source = "Published values, not measured here." if published else "Values from the given table."
    caption = f"{len(rows)} models. {source} GMACs: billions of multiply-adds per image (the paper's FLOPs)."
    return Plate(title="Accuracy against cost", caption=caption, image=image)


def read_results(path: str | Path | None) -> list[dict[str, Any]]:
    """Return the rows of a results table: `name`, `gmacs`, `params`, `top1`; without a path, the published ones.

    Args:
        path: a .csv, or a .json list of objects as printed by `deepcait models --json`; rows without an accuracy
            are left out.

    Raises:
        ConfigError: the format is wrong, no row has all four, or a value is impossible.
    """
    if path is None:
        rows: Any = describe_models()
    else:
        try:
            text = Path(path).read_text(encoding="utf-8")
            rows = list(csv.DictReader(io.StringIO(text))) if str(path).endswith(".csv") else json.loads(text)
        except ValueError:
            rows = None
    found = []
    for row in rows if isinstance(rows, list) else []:
        try:
            name, gmacs, params, top1 = row["name"], *(float(row[key]) for key in ("gmacs", "params", "top1"))
        except (KeyError, TypeError, ValueError):
            continue
        if not (0 < gmacs < math.inf and 0 < params < math.inf and 0 <= top1 <= 1):
            raise ConfigError(
                f"{path}: gmacs and params must be above 0, and top1 between 0 and 1; {name!r} has gmacs {gmacs:g}, "
                f"params {params:g}, top1 {top1:g}.",
                remedy="Write an accuracy of 78.4 % as 0.784.",
            )
        found.append({"name": name, "gmacs": gmacs, "params": params, "top1": top1})
    if not found:
        raise ConfigError(
            f"{path}: no row has name, gmacs, params and top1 (a fraction).",
            remedy="Give a .csv with these columns, or the output of `deepcait models --json`.",
        )
    return found


@contextmanager
def _canvas(rows: int, columns: int, width: float, height: float, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a matplotlib figure and its axes in reading order; global settings are restored."""
    matplotlib = require("matplotlib", asked="figures", extra="explain")
    figure_module = require("matplotlib.figure", asked="figures", extra="explain")
    with matplotlib.rc_context(_STYLE):
        figure = figure_module.Figure(figsize=(width, height))
        yield figure, figure.subplots(rows, columns, squeeze=False, **options).flatten()


def _draw(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def _mark_class_stage(axes: Any, measures: LayerMeasures) -> None:
    end = len(measures.attention_ratio) + 0.5
    axes.axvspan(measures.depth + 0.5, end, color=_GREY, alpha=0.16, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times the powers of ten, in plain numbers."""
    ticker = require("matplotlib.ticker", asked="figures", extra="explain")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _name_points(axes: Any, names: Sequence[str]) -> None:
    """Write a name next to each point of the axes' line, without covering points or other names."""
    (line,) = axes.lines
    places = axes.transData.transform(line.get_xydata())
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (x, y), data, name in zip(places, line.get_xydata(), names, strict=True):
        text = axes.annotate("", data, fontsize=7, xytext=(0, 0), textcoords="offset points")
        write_text(text, shorten(name))
        box = text.get_window_extent()
        px = axes.figure.dpi / 72
        # Right, left, below, above, then farther out at the corners.
        sides = [(6, -box.height / 2), (-box.width - 6, -box.height / 2)]
        sides += [(-box.width / 2, -box.height - 6), (-box.width / 2, 6)]
        for far in (6, 14, 24):
            sides += [(6, -box.height - far), (-box.width - 6, far), (6, far), (-box.width - 6, -box.height - far)]
        boxes = [(x + dx, y + dy, x + dx + box.width, y + dy + box.height) for dx, dy in sides]
        free = [number for number, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)]
        chosen = free[0] if free else 0
        taken.append(boxes[chosen])
        text.set_position((sides[chosen][0] / px, sides[chosen][1] / px))


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _images(measures: LayerMeasures) -> str:
    return f"{measures.num_images} image{'s' if measures.num_images > 1 else ''}"
