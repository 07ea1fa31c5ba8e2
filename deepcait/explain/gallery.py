"""An HTML page with all explained images, in one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from deepcait.explain import drawing
from deepcait.explain.explanation import Explanation, Map
from deepcait.explain.markup import Bars, Table, render_page

_MAP_PX, _HEAD_PX = 320, 160


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image of the gallery.

    name: the displayed name of its file. folder: the displayed folder of its PNGs.
    predictions: (class index, label, probability), the most probable first.
    """

    name: str
    folder: str
    explanation: Explanation
    predictions: list[tuple[int, str, float]]


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A plot of the model: an image and its caption."""

    title: str
    caption: str
    image: Image.Image


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One image of the page with its captions. class_: its CSS class."""

    image: Image.Image
    alt: str
    title: str
    caption: str
    details: str = ""
    class_: str | None = None


def gallery(model_name: str, facts: str, entries: Sequence[Entry], plates: Sequence[Plate] = ()) -> str:
    """Return the page.

    Args:
        model_name: the MODEL argument.
        facts: one sentence about the model.
        entries: explained images.
        plates: plots of the model, if any.
    """
    articles = [_article(entry) for entry in entries]
    scored = any(article["scores"] for article in articles)
    return render_page(
        "gallery.html", model_name=model_name, facts=facts, articles=articles, plates=plates, scored=scored
    )


def _article(entry: Entry) -> dict[str, Any]:
    """The template's values for one image."""
    found = entry.explanation
    seen = _Panel(
        image=drawing.enlarge(found.frame),
        alt=f"{entry.name} as the model's input",
        title="Model input",
        caption=f"{found.frame.height} x {found.frame.width} px, after resizing and cropping.",
        class_="pixels",
    )
    return {
        "name": entry.name,
        "folder": entry.folder,
        "input": seen,
        "panels": [_map_panel(found, made, entry.name) for made in found.maps.values()],
        "bars": Bars(entry.predictions, target=found.target),
        "label": found.label,
        "probability": f"{100 * found.probability:.1f} %",
        "heads_caption": found.heads_caption,
        "heads_details": found.heads_details,
        "num_columns": 1 + found.heads.shape[1],
        "heads": _head_panels(found, entry.name),
        "scores": _scores(list(found.maps.values())),
    }


def _head_panels(found: Explanation, name: str) -> list[_Panel]:
    """One row of panels per class block: the mean of its heads, then every head."""
    panels = []
    shown = drawing.fit(found.frame, _HEAD_PX)
    for block, heads in enumerate(found.heads, 1):
        maps = [("mean", heads.mean(0)), *((f"head {number}", values) for number, values in enumerate(heads, 1))]
        panels += [
            _Panel(
                image=drawing.overlay(shown, values),
                alt=f"{name}: class attention, class block {block}, {title}, {_peak(values)}",
                title=f"class block {block}, {title}",
                caption=f"max {values.max():.3f}",
            )
            for title, values in maps
        ]
    return panels


def _map_panel(found: Explanation, made: Map, name: str) -> _Panel:
    return _Panel(
        image=drawing.overlay(drawing.enlarge(found.frame, _MAP_PX), made.values, lowest=made.lowest),
        alt=f"{made.title} of {name}: {_peak(made.grid)}",
        title=made.title,
        caption=made.caption,
        details=made.details,
    )


def _peak(values: np.ndarray) -> str:
    rows, columns = values.shape
    row, column = divmod(int(values.argmax()), columns)
    return f"largest in row {row + 1} of {rows}, column {column + 1} of {columns}"


def _scores(maps: list[Map]) -> Table | None:
    measured = [(made.title, made.faithfulness) for made in maps if made.faithfulness is not None]
    if not measured:
        return None
    rows = [[title, f"{score.deletion:.3f}", f"{score.insertion:.3f}"] for title, score in measured]
    first = measured[0][1]
    random = [f"Random orders, mean of {first.num_random}", f"{first.random_deletion:.3f}"]
    rows.append([*random, f"{first.random_insertion:.3f}"])
    caption = (
        f"Area under the curve of the target's probability, {len(first.deletion_curve) - 1} steps, patches covered by "
        "the mean colour. One image is not conclusive: compare over many."
    )
    return Table("Scores", ["map", "deletion (lower is better)", "insertion (higher is better)"], rows, caption)
