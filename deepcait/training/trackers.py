"""Trackers: what is called with every row of metrics.jsonl, for TensorBoard, wandb, trackio, or one's own.

A tracker is a callable of a row, a dictionary with `kind` ("train" or "eval"), `step` and numbers; if it has a method
`close`, that is called at the end. Your own is named like every part, `python:package.module:factory`; the factory
may take `folder`, that of the run, and `config`, its settings as a nested dictionary. A tracker that can't be opened
is an error before the first step; one that fails later does not end the training.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, DeepcaitError
from deepcait.optional import require
from deepcait.parts import blamed, build, is_part, source_digest, split_call, takes
from deepcait.training.journal import replace_text
from deepcait.training.recipe import Recipe
from deepcait.training.settings import Keep

TRACKERS = ("wandb", "trackio")
IDS_FILE = "tracker.json"
FILES = ("tensorboard", "wandb", IDS_FILE, f".{IDS_FILE}.*.new")
"""Names of what trackers write into the folder of a run, as patterns."""
_logger = logging.getLogger(__name__)
_PROJECT = "deepcait"
_ASKED = "keep.tracker"


class Tracker:
    """An open tracker. If it fails, its first failure is logged and the training continues.

    Args:
        name: for that message, with the setting that asks for it.
        log: called with a row.
        end: called once at the end, whatever ends the training.
    """

    def __init__(self, name: str, log: Callable[[dict], Any], end: Callable[[], Any] = lambda: None) -> None:
        self.name, self._log, self._end = name, log, end
        self._failed = False

    def __call__(self, row: dict) -> None:
        """Log a row."""
        self._attempt(self._log, dict(row))

    def close(self) -> None:
        """End the tracker."""
        self._attempt(self._end)

    def _attempt(self, work: Callable[..., Any], *args: Any) -> None:
        try:
            with blamed(self.name):
                work(*args)
        except DeepcaitError as error:
            if not self._failed:
                _logger.warning("%s The training continues; further failures are not logged.", error.problem)
            self._failed = True


def open_trackers(recipe: Recipe, folder: Path) -> list[Tracker]:
    """Return the trackers that a recipe asks for, open; they may write into the folder of the run, which exists.

    Raises:
        ConfigError: an unknown tracker, a package that is missing, or a tracker that fails to start.
    """
    keep, trackers = recipe.keep, []
    if is_part(keep.tracker):
        trackers.append(_own(keep.tracker, recipe, folder))
    elif keep.tracker:
        trackers.append(_service(keep.tracker, recipe, folder))
    if keep.tensorboard:
        trackers.append(_tensorboard(folder))
    return trackers


def require_trackers(keep: Keep) -> None:
    """Pass if the trackers of a recipe are there; starts none.

    Raises:
        ConfigError: an unknown tracker, or a package that is missing.
    """
    if is_part(keep.tracker):
        source_digest(keep.tracker, _ASKED)
    elif keep.tracker:
        _find_service(keep.tracker)
    if keep.tensorboard:
        _import_tensorboard()


def _numbers(row: dict) -> dict[str, float]:
    return {f"{row['kind']}/{key}": v for key, v in row.items() if key != "step" and isinstance(v, int | float)}


def _own(name: str, recipe: Recipe, folder: Path) -> Tracker:
    facts = {"folder": folder, "config": _settings(recipe)}
    tracker = build(name, _ASKED, **{key: value for key, value in facts.items() if takes(name, _ASKED, key)})
    if not callable(tracker):
        problem = f"{_ASKED}: expected a callable of a row, got {type(tracker).__name__} from {name}."
        raise ConfigError(problem, remedy="Give it a method __call__(row), or return a function.")

    return Tracker(f"{_ASKED}: {name}", tracker, getattr(tracker, "close", lambda: None))


def _find_service(text: str) -> tuple[str, Any, dict[str, Any]]:
    """Name, module and arguments of a service."""
    name, arguments = split_call(text, _ASKED)
    # By name only: other code is named as a part.
    if name not in TRACKERS:
        raise ConfigError(
            f"{_ASKED}: expected {', '.join(TRACKERS)} or python:package.module:factory, got {name!r}.",
            remedy='Choose one; for example \'wandb(project="pets", entity="team")\'.',
        )
    return name, _import(name), arguments


def _service(text: str, recipe: Recipe, folder: Path) -> Tracker:
    name, module, arguments = _find_service(text)
    arguments = {"project": _PROJECT, "name": folder.name, "config": _settings(recipe), **arguments}
    known = _read_ids(folder).get(name)
    if name == "wandb":
        arguments = {"id": known, "resume": "allow", "dir": str(folder), **arguments}
    elif known:  # trackio finds a run by its name
        arguments |= {"name": known, "resume": "allow"}
    with blamed(f"{_ASKED}: {name}.init"):
        run = module.init(**arguments)
        found = run.id if name == "wandb" else run.name
    replace_text(folder / IDS_FILE, json.dumps(_read_ids(folder) | {name: found}) + "\n")
    return Tracker(f"{_ASKED}: {name}", lambda row: run.log(_numbers(row), step=row["step"]), run.finish)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name == name:
            raise ConfigError(f"{_ASKED}: the package {name} is not installed.", remedy=f"pip install {name}") from None
        raise ConfigError(
            f"{_ASKED}: the package {name} is installed but can't be imported: {error}.",
            remedy=f"Repair it: pip install --force-reinstall {name}",
        ) from error


def _read_ids(folder: Path) -> dict[str, str]:
    """What services call this run, kept so that a resumed run continues there."""
    try:
        ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values."""
    return _plain(dataclasses.asdict(recipe))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, str) else value


def _import_tensorboard() -> Any:
    return require("torch.utils.tensorboard", asked="keep.tensorboard", extra="track")


def _tensorboard(folder: Path) -> Tracker:
    writer = _import_tensorboard().SummaryWriter(str(folder / "tensorboard"))

    def write(row: dict) -> None:
        for name, value in _numbers(row).items():
            writer.add_scalar(name, value, row["step"])
        writer.flush()

    return Tracker("keep.tensorboard", write, writer.close)
