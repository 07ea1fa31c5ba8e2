"""Extra loggers of metrics: TensorBoard, wandb and trackio."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from deepcait.errors import ConfigError
from deepcait.optional import require
from deepcait.training.settings import Keep

TRACKERS = ("wandb", "trackio")


def open_trackers(keep: Keep, folder: Path) -> list[Callable[[dict], None]]:
    """Return the loggers of a recipe; each is called with every row of `metrics.jsonl`."""
    trackers: list[Callable[[dict], None]] = []
    if keep.tracker:
        trackers.append(_tracker(keep.tracker, folder))
    if keep.tensorboard:
        trackers.append(_tensorboard(folder))
    return trackers


def _numbers(row: dict) -> dict[str, float]:
    return {f"{row['kind']}/{key}": v for key, v in row.items() if key != "step" and isinstance(v, int | float)}


def _tracker(name: str, folder: Path) -> Callable[[dict], None]:
    # By name only: a recipe from somewhere else must not choose which code runs.
    if name not in TRACKERS:
        raise ConfigError(f"keep.tracker: expected {' or '.join(TRACKERS)}, got {name!r}.", remedy="Choose one.")
    try:
        run = importlib.import_module(name).init(project="deepcait", name=folder.name)
    except ImportError:
        raise ConfigError(
            f"keep.tracker: expected the package {name}, got none.", remedy=f"pip install {name}"
        ) from None
    return lambda row: run.log(_numbers(row), step=row["step"])


def _tensorboard(folder: Path) -> Callable[[dict], None]:
    tensorboard = require("torch.utils.tensorboard", asked="keep.tensorboard", extra="track")
    writer = tensorboard.SummaryWriter(str(folder / "tensorboard"))

    def write(row: dict) -> None:
        for name, value in _numbers(row).items():
            writer.add_scalar(name, value, row["step"])
        writer.flush()

    return write
