"""Which evaluation of a run is the best: the measure, its words, and the comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

MEASURES = {
    "loss": "validation loss",
    "top1": "validation top-1",
    "balanced_accuracy": "validation balanced accuracy",
    "macro_f1": "validation macro F1",
}
"""The values of `keep.best_by` other than auto, and their names in messages."""
# Below it, one image moves top-1 by more than 0.2 points: epochs differ by less. docs/results/best_by.md
MANY_IMAGES = 500


def chosen_measure(best_by: str, num_images: int) -> str:
    """Return the measure that chooses the best epoch of a run.

    >>> chosen_measure("auto", 120), chosen_measure("auto", 500), chosen_measure("macro_f1", 120)
    ('loss', 'top1', 'macro_f1')

    Args:
        best_by: the recipe's `keep.best_by`.
        num_images: of the validation.
    """
    if best_by != "auto":
        return best_by
    return "loss" if num_images < MANY_IMAGES else "top1"


def score_of(row: Mapping[str, Any], measure: str) -> float | None:
    """Return an evaluation's value of a measure, its sign such that more is better; None if it is not a number."""
    value = row.get(measure)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return -float(value) if measure == "loss" else float(value)


def is_better(score: float | None, best: float | None) -> bool:
    """Whether an evaluation is better than the best one before; the first of equal ones stays the best."""
    return best is None or (score is not None and score > best)


def best_row(rows: Iterable[dict[str, Any]], best_by: str) -> dict[str, Any]:
    """Return the evaluation whose model a run saved as its best; empty without one.

    Args:
        rows: the evaluations in order, with `num_images`.
        best_by: the recipe's `keep.best_by`.
    """
    best: dict[str, Any] = {}
    score = None
    for row in rows:
        now = score_of(row, chosen_measure(best_by, row.get("num_images") or 0))
        if not best or is_better(now, score):
            best, score = row, now
    return best


def describe_choice(best_by: str, num_images: int) -> str:
    """Return in one sentence how the best epoch is chosen.

    >>> describe_choice("auto", 120)
    'the best epoch is chosen by validation loss (cross-entropy): 120 validation images'
    """
    measure = chosen_measure(best_by, num_images)
    images = f"{num_images:,} validation image{'s' * (num_images != 1)}"
    # Validation computes cross-entropy, whatever loss trains.
    which = " (cross-entropy)" if measure == "loss" else ""
    return f"the best epoch is chosen by {MEASURES[measure]}{which}: {images}"
