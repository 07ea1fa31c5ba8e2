"""All explained pictures on one page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deepcait.explain import picture
from deepcait.explain.explanation import Explanation, Map
from deepcait.explain.markup import (
    Markup,
    bars,
    colour_legend,
    element,
    figure,
    join,
    page,
    picture_element,
    scroll,
    table,
)

_MAP_PX, _HEAD_PX = 320, 160


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture of the gallery.

    name: of its file, as it is shown. folder: where its PNGs lie, as it is shown.
    predictions: (class index, label, probability), the most probable first.
    """

    name: str
    folder: str
    explanation: Explanation
    predictions: list[tuple[int, str, float]]


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A figure of the model itself: an image and the words below it."""

    title: str
    caption: str
    image: Image.Image


def gallery(model_name: str, facts: str, entries: Sequence[Entry], plates: Sequence[Plate] = ()) -> str:
    """Return the page.

    Args:
        model_name: the SPEC, as it was given.
        facts: one sentence about the model.
        entries: explained pictures.
        plates: figures of the model, if any.
    """
    header = join(
        element("p", "deepcait explain", class_="kicker"),
        element("h1", model_name),
        element("p", facts, class_="lead"),
        _contents(entries, plates),
    )
    articles = [_article(entry, number) for number, entry in enumerate(entries)]
    footer = (
        "Made by deepcait explain. This page is one file: it holds its pictures and asks no other host for anything."
    )
    return page(f"{model_name}: what it looks at", header, join(_reading(), *articles, _plates(plates)), footer)


def _contents(entries: Sequence[Entry], plates: Sequence[Plate]) -> Markup:
    links = [element("a", entry.name, href=f"#picture-{number}") for number, entry in enumerate(entries)]
    links += [element("a", "The model's layers", href="#figures")] if plates else []
    return element("nav", element("ul", *(element("li", link) for link in links)), aria_label="Pictures")


def _reading() -> Markup:
    text = (
        "A map shows where the model read, not why it decided. The scores say how much: patches are covered in the "
        "order of a map, and the area under the class's probability is compared with orders drawn by lot. A map that "
        "is true to the model has a lower deletion and a higher insertion than lots."
    )
    return element("section", element("h2", "How to read this"), element("p", text), colour_legend())


def _article(entry: Entry, number: int) -> Markup:
    found = entry.explanation
    frame = picture_element(picture.enlarge(found.frame), f"{entry.name} as the model saw it", class_="pixels")
    size = f"{found.frame.height} x {found.frame.width} px"
    seen = join(element("strong", "What the model saw"), f"{size}, after resizing and cropping.")
    panels = [
        figure(_map_element(found, made, entry.name), join(element("strong", made.title), made.caption))
        for made in found.maps.values()
    ]
    answer = join(
        element("h3", "Answer"),
        bars(entry.predictions, target=found.target),
        element(
            "p", f'The maps that ask about a class ask about "{found.label}" ({found.probability:.1%}).', class_="soft"
        ),
    )
    return element(
        "article",
        element("h2", entry.name),
        element("p", "PNG files and every number (maps.npz): ", element("code", entry.folder), class_="soft"),
        element("div", figure(frame, seen), *panels[:1], element("div", answer), class_="grid"),
        element("h3", "Every head", style="margin-top: 20px"),
        _heads(found, entry.name),
        element("h3", "Other maps", style="margin-top: 20px") if panels[1:] else None,
        element("div", *panels[1:], class_="grid") if panels[1:] else None,
        _scores(list(found.maps.values())),
        id=f"picture-{number}",
    )


def _heads(found: Explanation, name: str) -> Markup:
    """A row of panels for each class block: the mean of its heads, then every head."""
    rows = []
    for block, heads in enumerate(found.heads):
        maps = [("mean", heads.mean(0)), *((f"head {number}", values) for number, values in enumerate(heads))]
        for title, values in maps:
            shown = picture.overlay(picture.fit(found.frame, _HEAD_PX), values)
            alt = f"{name}: class attention, block {block}, {title}, {_peak(values)}"
            caption = join(f"block {block}, {title}", element("br"), f"max {values.max():.3f}")
            rows.append(figure(picture_element(shown, alt), caption))
    columns = f"grid-template-columns: repeat({1 + found.heads.shape[1]}, minmax(92px, 1fr))"
    grid = element("div", *rows, class_="heads", style=columns)
    return join(element("p", found.heads_caption, class_="soft"), scroll(f"Heads of {name}", grid))


def _peak(values: np.ndarray) -> str:
    rows, columns = values.shape
    row, column = divmod(int(values.argmax()), columns)
    return f"largest in row {row + 1} of {rows}, column {column + 1} of {columns}"


def _map_element(found: Explanation, made: Map, name: str) -> Markup:
    shown = picture.overlay(picture.enlarge(found.frame, _MAP_PX), made.values, lowest=made.lowest)
    return picture_element(shown, f"{made.title} of {name}: {_peak(made.grid)}")


def _scores(maps: list[Map]) -> Markup | None:
    measured = [(made.title, made.faithfulness) for made in maps if made.faithfulness is not None]
    if not measured:
        return None
    rows = [[title, f"{score.deletion:.3f}", f"{score.insertion:.3f}"] for title, score in measured]
    first = measured[0][1]
    lots = [f"Orders drawn by lot, mean of {first.num_random}", f"{first.random_deletion:.3f}"]
    rows.append([*lots, f"{first.random_insertion:.3f}"])
    caption = (
        f"Area under the target's probability, {len(first.deletion_curve) - 1} steps, patches covered by the mean "
        "colour. One picture says little: compare over many."
    )
    return element(
        "details",
        element("summary", "How true are the maps to the model?"),
        table("Scores", ["map", "deletion (low is good)", "insertion (high is good)"], rows, caption=caption),
    )


def _plates(plates: Sequence[Plate]) -> Markup | None:
    if not plates:
        return None
    figures = [
        figure(picture_element(plate.image, plate.title), join(element("strong", plate.title), plate.caption))
        for plate in plates
    ]
    return element(
        "section", element("h2", "The model's layers"), element("div", *figures, class_="grid wide"), id="figures"
    )
