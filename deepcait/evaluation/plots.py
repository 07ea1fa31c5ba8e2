"""Plots of an evaluation: reliability, classes, confusion; as PNG and SVG, with their values as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepcait.evaluation.metrics import (
    confusion,
    list_classes,
    list_confusion,
    list_reliability,
    most_errors,
    per_class,
)
from deepcait.evaluation.records import Records
from deepcait.optional import require
from deepcait.runtime.lettering import name_ticks, shorten, write_text

FORMATS = ("png", "svg")
_MAX_NAMES = 40
_MAX_CLASSES = 1000  # of the confusion matrix; with more, those with most errors
_COLOUR, _SECOND = "#2b6cb0", "#b7791f"


def require_matplotlib() -> None:
    """Raise if plots can't be drawn, before any work is done.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    _figure_class()


def write_plots(folder: Path, records: Records, title: str) -> list[Path]:
    """Write reliability, per_class and confusion, each as .png, .svg and .json.

    Args:
        folder: created if it does not exist; existing files are replaced.
        records: of one evaluation.
        title: title of each plot.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, tuple[Callable[[Any, Records], None], list]] = {
        "reliability": (_draw_reliability, list_reliability(records)),
        "per_class": (_draw_classes, list_classes(records)),
        "confusion": (_draw_confusion, list_confusion(records)),
    }
    files = []
    for name, (draw, values) in drawings.items():
        figure = _figure_class()(figsize=(7, 6), layout="constrained")
        axes = figure.subplots()
        draw(axes, records)
        write_text(axes.set_title(title), title)
        for suffix in FORMATS:
            # Without a date, so that equal values give equal files.
            metadata = {"Date": None} if suffix == "svg" else {}
            files.append(folder / f"{name}.{suffix}")
            figure.savefig(files[-1], dpi=150, metadata=metadata)
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return files


def _figure_class() -> Any:
    # Not pyplot, which would look for a display and keep every figure.
    return require("matplotlib.figure", asked="plots", extra="explain").Figure


def _draw_reliability(axes: Any, records: Records) -> None:
    bins = list_reliability(records)
    width, num = 1 / len(bins), sum(one["num_images"] for one in bins)
    filled = [one for one in bins if one["num_images"]]
    shares = [one["num_images"] / num for one in filled]
    means = [[one[key] for one in filled] for key in ("confidence", "accuracy")]
    left = [one["from"] for one in filled]
    axes.bar(left, shares, width, align="edge", color=_SECOND, alpha=0.35, label="fraction of images")
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="perfectly calibrated")
    axes.plot(*means, "o-", color=_COLOUR, label="accuracy in the bin")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the prediction", ylabel="accuracy")
    axes.legend()


def _draw_classes(axes: Any, records: Records) -> None:
    classes = sorted(list_classes(records), key=lambda one: (one["accuracy"], one["index"]))
    classes = [one for one in classes if one["num_images"]]
    places = range(len(classes))
    axes.barh(places, [100 * one["accuracy"] for one in classes], color=_COLOUR)
    axes.set(xlabel="recall (%)", xlim=(0, 100), ylim=(-0.5, len(classes) - 0.5))
    if len(classes) <= _MAX_NAMES:
        name_ticks(axes.yaxis, [f"{shorten(one['class'], 24)} ({one['num_images']})" for one in classes])
    else:
        axes.set_ylabel(f"{len(classes):,} classes, sorted by recall")


def _draw_confusion(axes: Any, records: Records) -> None:
    """Only classes that occur, of many those with most errors; rows are fractions of the images with that label."""
    classes = per_class(records)
    used = (classes.support_K + classes.answered_K).nonzero().flatten().tolist()
    names = ("answer", "label")
    if len(used) > _MAX_CLASSES:
        used = sorted(most_errors(classes, _MAX_CLASSES))
        names = tuple(f"{name}, of the {len(used):,} classes with most errors" for name in names)
    shares_UU = confusion(records, used).double() / classes.support_K[used].clamp(min=1)[:, None]
    image = axes.imshow(shares_UU.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="fraction of the images with this label")
    axes.set(xlabel=names[0], ylabel=names[1])
    if len(used) <= _MAX_NAMES:
        names = [records.class_name(index) for index in used]
        name_ticks(axes.xaxis, names, rotation=90)
        name_ticks(axes.yaxis, names)
