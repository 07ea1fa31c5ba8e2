"""Results of cells: mean and spread over seeds, and whether a difference is significant."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcait.errors import RunError
from deepcait.study.grid import Cell, Grid, cells_of
from deepcait.study.plan import StudyPlan
from deepcait.training.journal import read_metrics, read_state


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one cell.

    state: finished, failed (a loss was not finite, or the cell that it starts from failed), or open.
    metrics: of the last evaluation. reason: why it failed.
    """

    state: str
    metrics: dict[str, Any] | None = None
    reason: str = ""


def read_outcome(folder: Path, cell: Cell) -> Outcome:
    """Return the result of a cell so far.

    Args:
        folder: of the study.
        cell: one of its cells.

    Raises:
        RunError: the cell has ended, but its metrics are missing.
    """
    failed = failure_path(folder, cell)
    if failed.exists():
        return Outcome(state="failed", reason=json.loads(failed.read_text(encoding="utf-8"))["reason"])
    run = folder / "cells" / cell.name
    if read_state(run).get("state") != "finished":
        return Outcome(state="open")
    rows = [row for row in read_metrics(run) if row["kind"] == "eval"]
    if not rows:
        raise RunError(
            f"{run}: the cell is finished, but metrics.jsonl holds no evaluation.",
            remedy="Remove that folder and repeat the command: it trains the cell again.",
        )
    return Outcome(state="finished", metrics=rows[-1])


def failure_path(folder: Path, cell: Cell) -> Path:
    """Return the path of the file that marks a cell as failed."""
    return folder / "failed" / f"{cell.name}.json"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One cell of the table: all seeds of a row and a column.

    Args:
        row, column: ids. accuracies: top-1 of each finished seed, in order. failed, open: numbers of seeds.
        num_images: number of evaluated images per seed.
    """

    row: str
    column: str
    accuracies: tuple[float, ...]
    failed: int
    open: int
    num_images: int

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None if a seed failed or is not done."""
        return statistics.fmean(self.accuracies) if self.accuracies and not self.failed and not self.open else None

    @property
    def spread(self) -> float | None:
        """Best seed minus worst; None with fewer than two."""
        return max(self.accuracies) - min(self.accuracies) if len(self.accuracies) > 1 else None


def summarise(folder: Path, grid: Grid, plan: StudyPlan) -> list[Summary]:
    """Return every cell of the table, row by row."""
    found = {cell.name: read_outcome(folder, cell) for cell in cells_of(grid, plan.seeds)}
    places = []
    for row in grid.rows:
        for column in grid.columns:
            cells = [Cell(row=row, column=column, seed=seed) for seed in range(plan.seeds)]
            outcomes = [found[cell.name] for cell in cells]
            done = [outcome.metrics for outcome in outcomes if outcome.metrics is not None]
            places.append(
                Summary(
                    row=row.id,
                    column=column.id,
                    accuracies=tuple(metrics["top1"] for metrics in done),
                    failed=sum(outcome.state == "failed" for outcome in outcomes),
                    open=sum(outcome.state == "open" for outcome in outcomes),
                    num_images=done[0]["num_images"] if done else 0,
                )
            )
    return places


def reference_of(place: Summary, grid: Grid, places: Sequence[Summary]) -> Summary | None:
    """Return the cell that this one is compared with; None for the reference itself."""
    by_column = any(column.id == grid.reference for column in grid.columns)
    row, column = (place.row, grid.reference) if by_column else (grid.reference, place.column)
    other = next(p for p in places if (p.row, p.column) == (row, column))
    return None if other is place else other


def noise_of(one: Summary, other: Summary) -> float:
    """Return how large a difference by chance may be: the larger of seed spread and sampling error.

    The sampling error is twice the standard deviation of the difference of two means of binomial counts; with few seeds
    the spread alone is sometimes small by chance.
    """
    a, b = one.mean or 0.0, other.mean or 0.0
    variance = a * (1 - a) / (one.num_images * len(one.accuracies))
    variance += b * (1 - b) / (other.num_images * len(other.accuracies))
    return max(one.spread or 0.0, other.spread or 0.0, 2 * math.sqrt(variance))


def verdict(place: Summary, other: Summary | None) -> str:
    """Return how a cell differs from the one that it is compared with, in words.

    "n.s." if the difference is within seed spread or sampling error; "one seed" if the spread is unknown.
    """
    if other is None:
        return "reference"
    if place.failed or other.failed:
        return "failed" if place.failed else "the reference failed"
    if place.mean is None or other.mean is None:
        return "not done yet"
    difference = place.mean - other.mean
    points = f"{100 * difference:+.2f}"
    if place.spread is None or other.spread is None:
        return f"{points}, one seed: spread unknown"
    return f"n.s. ({points})" if abs(difference) <= noise_of(place, other) else points
