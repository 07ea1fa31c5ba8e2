"""Read a run folder: recipe, metrics, times, environment, data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcait.errors import RunError
from deepcait.training.best import MEASURES, best_row, chosen_measure
from deepcait.training.journal import read_metrics, read_state
from deepcait.training.recipe import Recipe, load_recipe


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run folder.

    train_rows, eval_rows: of `metrics.jsonl`. timing_rows: of `timing.jsonl`. Invalid values are left out: numbers are
        finite, proportions and counts possible.
    environment, data, state: as the run wrote them; empty if a file is missing or damaged.
    """

    folder: Path
    recipe: Recipe
    recipe_text: str
    train_rows: list[dict[str, Any]]
    eval_rows: list[dict[str, Any]]
    timing_rows: list[dict[str, Any]]
    environment: dict[str, Any]
    data: dict[str, Any]
    state: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def best(self) -> dict[str, Any]:
        """The best evaluation by the measure of the run, the one whose model is in `best/`; empty without one."""
        return best_row(self.eval_rows, self.recipe.keep.best_by)

    @property
    def best_by(self) -> str:
        """The words of that measure, such as "validation loss"."""
        return MEASURES[chosen_measure(self.recipe.keep.best_by, self.best.get("num_images") or 0)]

    @property
    def last(self) -> dict[str, Any]:
        """The last evaluation; empty without one."""
        return self.eval_rows[-1] if self.eval_rows else {}

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the data; None if the run did not store it."""
        classes = self.data.get("classes")
        return len(classes) if isinstance(classes, list) else None

    @property
    def has_top5(self) -> bool:
        """Whether top-5 is meaningful: with five classes or fewer it is always 1."""
        return self.num_classes is None or self.num_classes > 5

    @property
    def seconds(self) -> float:
        """Time of training steps in seconds, without evaluations."""
        return sum(row.get("seconds") or 0.0 for row in self.timing_rows)

    @property
    def images_per_s(self) -> float | None:
        """Training images per second over the whole run; None if no time was stored."""
        images = sum((row.get("images_per_s") or 0.0) * (row.get("seconds") or 0.0) for row in self.timing_rows)
        return images / self.seconds if self.seconds else None


def read_run(folder: str | Path) -> Record:
    """Read a run folder, finished or not.

    Raises:
        RunError: it is not a run.
        ConfigError: its `config.yaml` is broken.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise RunError(
            f"{folder}: {'the folder holds no run (config.yaml is missing)' if folder.is_dir() else 'no such folder'}.",
            remedy="Give the folder of a run, written by `deepcait train --out`.",
        )
    rows = read_metrics(folder)
    return Record(
        folder=folder,
        recipe=load_recipe(str(config.resolve())),
        recipe_text=config.read_text(encoding="utf-8"),
        train_rows=[_numbers(row) for row in rows if row["kind"] == "train"],
        eval_rows=[row for row in map(_evaluation, rows) if row],
        timing_rows=[_numbers(row) for row in _read_lines(folder / "timing.jsonl")],
        environment=_read_object(folder / "environment.json"),
        data=_read_object(folder / "data.json"),
        state=read_state(folder),
    )


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """The values of a row that are finite numbers."""
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _evaluation(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of `metrics.jsonl` as an evaluation, or None."""
    numbers = _numbers(row)
    if row["kind"] != "eval" or not 0 <= numbers.get("top1", -1) <= 1:
        return None
    total = numbers.get("num_images", 0)
    counts = [numbers.get(key, 0) for key in ("correct1", "correct5")]
    if not total or not all(isinstance(count, int) and 0 <= count <= total for count in (*counts, total)):
        for key in ("num_images", "correct1", "correct5"):
            numbers.pop(key, None)
    return numbers | {"weights": row.get("weights")}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a kill may have truncated the last one
        if isinstance(row, dict):
            rows.append(row)
    return rows
