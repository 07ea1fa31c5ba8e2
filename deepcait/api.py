"""Training from Python: the same code path and run folder as the command, bit-identical for equal settings."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deepcait import display
from deepcait.classifier import Classifier, load
from deepcait.errors import ConfigError, RunError, Stopped
from deepcait.parts import Part, is_part, is_plain, part_of
from deepcait.report import write_at_end
from deepcait.training.best import best_row
from deepcait.training.journal import read_metrics, read_state
from deepcait.training.own import with_parts
from deepcait.training.prolong import is_longer
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.resume import resumed_recipe
from deepcait.training.run import train as train_recipe

if TYPE_CHECKING:
    from deepcait.training.events import Callback

_logger = logging.getLogger(__name__)


def train(
    data: Any,
    out: str | os.PathLike[str],
    *,
    model: Any = None,
    recipe: str | os.PathLike[str] = "finetune",
    teacher: Any = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a model and return its run, as `deepcait train` does.

    Args:
        data: labelled images, the DATA of the command; or your own dataset, or a dictionary of them by split.
            None with `resume` means the run's own.
        out: folder of the run; must not hold one yet, unless `resume` or it has neither checkpoint nor model.
        model: to start from: a name, a model or run folder, a weights file, `builtin:nano`; None means the recipe's
            (`cait_xxs24_224` for finetune). Or your own network.
        recipe: name of a recipe, or path of a .yaml file.
        teacher: for distillation: any model, or `timm:NAME`.
        resume: resume the run in `out`, or start it if there is none; a finished one is returned as it is, unless
            `settings` prolong it ({"epochs": N}), which constant and warmup_stable_decay schedules allow.
        settings: values that override the recipe, by dotted name (`{"optimizer.lr": 1e-4}`) or nested
            (`{"optimizer": {"lr": 1e-4}}`); `deepcait.recipe_keys()` lists them. `loss` and `augment.transform` take
            your own parts: an object, a class, or (factory, keyword arguments), as do the arguments above.
        callbacks: called as `callback(event)` in the main process; see `deepcait.training.events.Event`. An exception
            in one ends the training.

    Raises:
        DeepcaitError: what the user can correct, before anything is written where possible.
        Stopped: SIGTERM or Ctrl-C; the run is saved. If a callback stopped it, the run is returned instead.
    """
    folder = Path(out)
    plain, parts = split_parts(settings or {})
    assignments = assignments_of(plain)
    data, model, teacher = (_named(value) for value in (data, model, teacher))
    chosen = choose_recipe(
        folder,
        recipe=os.fspath(recipe) if not resume or recipe != "finetune" else None,
        assignments=assignments,
        data=data,
        model=model,
        teacher=teacher,
        resume=resume,
    )
    given = {"data.source": data, "model": model, "teacher.spec": teacher}
    chosen = with_parts(chosen, parts | {key: part for key, part in given.items() if isinstance(part, Part)})
    stopping = _Stopping()
    try:
        return run_recipe(chosen, folder, resume=resume, callbacks=[stopping.watch(one) for one in callbacks])
    except Stopped:
        if stopping.asked:
            return Run(folder, model=chosen.model)
        raise


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Return a run, finished or not.

    Raises:
        RunError: the folder is not a run.
    """
    path = Path(folder)
    if not (path / "config.yaml").is_file():
        raise RunError(
            f"{path} is not a run: it has no config.yaml.",
            remedy="Give the folder of a run (--out of `deepcait train`).",
        )
    return Run(path)


class Rows(list[dict[str, Any]]):
    """Rows of metrics; a list of dictionaries."""

    def _repr_html_(self) -> str:
        """Shown in a notebook."""
        columns = list(dict.fromkeys(key for row in self for key in row))
        rows = [
            [f"{one:.4g}" if isinstance(one := row.get(key, ""), float) else one for key in columns] for row in self
        ]
        return display.table(columns, rows)

    def to_pandas(self) -> Any:
        """Return the rows as a pandas.DataFrame.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            return importlib.import_module("pandas").DataFrame(self)
        except ImportError as error:
            raise ConfigError("to_pandas needs the package pandas.", remedy="Install it: pip install pandas") from error


class Run:
    """A training's folder: its models, metrics, settings and report.

    Args:
        folder: of the run.
        model: what it was trained from, if that is a user-defined network, whose code a folder does not contain.
    """

    def __init__(self, folder: str | os.PathLike[str], *, model: str = "") -> None:
        self.folder = Path(folder)
        self._model = model

    @cached_property
    def classifier(self) -> Classifier:
        """The best model."""
        return self._load("best")

    @cached_property
    def last(self) -> Classifier:
        """The model of the last evaluation."""
        return self._load("last")

    def _load(self, name: str) -> Classifier:
        if is_part(self._model):
            return load(self._model, weights=self.folder / name)
        return load(self.folder / name)

    @property
    def metrics(self) -> Rows:
        """The rows of `metrics.jsonl`: `kind` is "train" or "eval"."""
        return Rows(read_metrics(self.folder))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `config.yaml`, nested."""
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))

    @property
    def state(self) -> str:
        """running, stopped, failed or finished; "" before the first step."""
        return str(read_state(self.folder).get("state", ""))

    @property
    def report(self) -> Path | None:
        """The report, one HTML file; None if it was not written."""
        path = self.folder / "report.html"
        return path if path.is_file() else None

    @property
    def best(self) -> dict[str, Any]:
        """The best evaluation's row of metrics, by the run's `keep.best_by`; empty before the first."""
        rows = [row for row in self.metrics if row["kind"] == "eval"]
        if not rows:
            return {}
        return best_row(rows, load_recipe(str((self.folder / "config.yaml").resolve())).keep.best_by)

    def __repr__(self) -> str:
        best = f", top-1 {100 * self.best['top1']:.2f} % in its best epoch" if self.best else ""
        return f"Run({self.folder}: {self.state or 'not started'}{best})"

    def _repr_html_(self) -> str:
        """Shown in a notebook."""
        rows = [row for row in self.metrics if row["kind"] == "eval"]
        cells = [(row["epoch"], f"{100 * row['top1']:.2f} %", _number(row["loss"])) for row in rows]
        table = display.table(("epoch", "validation top-1", "loss"), cells)
        return display.block(repr(self), table, display.text(f"report: {self.report}") if self.report else "")


def choose_recipe(
    folder: Path,
    *,
    recipe: str | None = None,
    assignments: Sequence[str] = (),
    data: str | None = None,
    model: str | None = None,
    teacher: str | None = None,
    resume: bool = False,
) -> Recipe:
    """Return the recipe of a new run, or a resumed run's own recipe with the given settings applied.

    Raises:
        ConfigError: a key or value is not valid, or can't be changed on resume.
    """
    own = folder / "config.yaml"
    if not (resume and own.exists()):
        return _with_arguments(load_recipe(recipe or "finetune", assignments), data, model, teacher)
    if not (recipe or data or model or teacher or assignments):
        return resumed_recipe(folder, None)
    config = str(own.resolve())
    given = load_recipe(recipe or config, assignments, version=load_recipe(config).version)
    return resumed_recipe(folder, _with_arguments(given, data, model, teacher))


def run_recipe(recipe: Recipe, folder: Path, *, resume: bool = False, callbacks: Sequence[Callback] = ()) -> Run:
    """Train by a recipe and write the report; a finished run that is resumed is returned unchanged.

    Raises:
        DeepcaitError, Stopped: as `deepcait.training.run.train`.
    """
    run = Run(folder, model=recipe.model)
    if resume and run.state == "finished" and not is_longer(folder, recipe):
        _logger.info("%s is already finished; its best model is %s", folder, folder / "best")
        if run.report is not None:
            return run
    else:
        train_recipe(recipe, folder, resume=resume, callbacks=callbacks)
    write_at_end(folder, device=recipe.compute.device, recipe=recipe)
    return run


def assignments_of(settings: Mapping[str, Any], path: str = "") -> list[str]:
    """Return nested or dotted settings in the command's form: key=value, the value as YAML.

    >>> assignments_of({"epochs": 3, "optimizer": {"lr": 1e-4}, "keep.tracker": ""})
    ['epochs=3', 'optimizer.lr=0.0001', 'keep.tracker=""']
    """
    found = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += assignments_of(value, f"{path}{key}.")
        else:
            found.append(f"{path}{key}={json.dumps(value)}")
    return found


def split_parts(settings: Mapping[str, Any], path: str = "") -> tuple[dict[str, Any], dict[str, Part]]:
    """Return settings with the names of parts in place of objects, and the parts by dotted name.

    >>> split_parts({"epochs": 3, "loss": (dict, {"gamma": 2.0})})
    ({'epochs': 3, 'loss': 'python:builtins:dict(gamma=2.0)'}, {'loss': 'python:builtins:dict(gamma=2.0)'})
    """
    plain: dict[str, Any] = {}
    parts: dict[str, Part] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            plain[key], inner = split_parts(value, f"{path}{key}.")
            parts |= inner
        else:
            if not is_plain(value) or isinstance(value, Part):
                value = parts[f"{path}{key}"] = part_of(value)
            plain[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return plain, parts


def _named(value: Any) -> str | None:
    """An argument as a recipe names it: a text or path as it is, anything else as a part."""
    if value is None or isinstance(value, str | os.PathLike):
        return None if value is None else os.fspath(value)
    return part_of(value, factory=True)


def _with_arguments(recipe: Recipe, data: str | None, model: str | None, teacher: str | None) -> Recipe:
    if data is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=data))
    if model is not None:
        recipe = dataclasses.replace(recipe, model=model)
    if teacher is not None:
        recipe = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, spec=teacher))
    return recipe


class _Stopping:
    """Whether a callback requested a stop."""

    def __init__(self) -> None:
        self.asked = False

    def watch(self, callback: Callback) -> Callback:
        def call(event: Any) -> None:
            before = event.request.asked
            callback(event)
            self.asked |= event.request.asked and not before

        return call


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
