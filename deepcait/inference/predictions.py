"""Predictions: named tuples in lists that show themselves in a notebook."""

from __future__ import annotations

from typing import NamedTuple

from deepcait import display


class Prediction(NamedTuple):
    """A prediction: class index, class name, and probability."""

    index: int
    label: str
    probability: float


class Ranked(list[Prediction]):
    """The predictions for one image, the most probable first."""

    def _repr_html_(self) -> str:
        return display.bars([(one.label, one.probability) for one in self])


class Predictions(list[Ranked]):
    """The predictions for several images."""

    def _repr_html_(self) -> str:
        return display.several([display.block(f"image {n}", row._repr_html_()) for n, row in enumerate(self)], "images")
