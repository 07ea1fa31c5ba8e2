"""A study's folder: cells are trained one after another, on one or more machines; each is a resumable run.

study.json     the plan: everything that determines the table
speed.json     the speeds measured for --budget, and the machine
cells/NAME/    runs
locks/         which process trains which cell
failed/        cells whose losses became NaN or infinite
table.md, results.json, plot.png
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, DivergedError, RunError, Stopped
from deepcait.runtime.claim import claim, owner_of
from deepcait.runtime.environment import environment
from deepcait.runtime.files import require_folder, write_bytes
from deepcait.runtime.signals import STOP_SIGNALS
from deepcait.study.grid import Cell, Grid, cells_of
from deepcait.study.outcome import failure_path, read_outcome
from deepcait.study.plan import StudyPlan, cell_recipe, read_plan
from deepcait.study.plot import plot
from deepcait.study.table import results, write_reports
from deepcait.training.run import train

_logger = logging.getLogger(__name__)
PLAN_FILE = "study.json"
_FOLDERS = ("cells", "locks", "failed")
_WAIT_S = 2.0


def start_study(
    folder: Path, requested: StudyPlan, fixed: Mapping[str, int | None], make_plan: Callable[[], tuple[StudyPlan, dict]]
) -> StudyPlan:
    """Return the plan of the study in a folder; a new one is made and stored if there is none.

    Args:
        folder: of the study.
        requested: the plan of the options; a stored plan must agree with it.
        fixed: epochs, images and val_images if they were given (not left to a budget), else None.
        make_plan: returns the plan and the measured speeds; called by one machine only.

    Raises:
        ConfigError: the folder holds something else, or a study with other settings.
    """
    known = (PLAN_FILE, "speed.json", *_FOLDERS, "table.md", "results.json", "plot.png")
    require_folder(folder, "--out")
    others = [p.name for p in folder.iterdir() if p.name not in known and p.name[0] != "."] if folder.is_dir() else []
    if others and not (folder / PLAN_FILE).exists():
        raise ConfigError(f"{folder}: this folder holds no study.", remedy="Choose a new or empty folder for --out.")
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    while not (folder / PLAN_FILE).exists():
        with claim(folder / "locks" / "plan.lock") as ours:
            if ours and not (folder / PLAN_FILE).exists():
                plan, measured = make_plan()
                speed = {"measured": measured, "environment": environment()}
                write_bytes(folder / "speed.json", (json.dumps(speed, indent=1) + "\n").encode())
                write_bytes(folder / PLAN_FILE, plan.to_json().encode())
            elif not ours:
                time.sleep(_WAIT_S)  # another machine is measuring
    plan = read_plan(folder / PLAN_FILE)
    sizes: dict[str, Any] = {"epochs": plan.epochs, "images": plan.images, "val_images": plan.val_images}
    sizes |= {name: size for name, size in fixed.items() if size is not None}
    asked = dataclasses.replace(requested, **sizes)
    if asked != plan:
        names = [f.name for f in dataclasses.fields(plan) if getattr(plan, f.name) != getattr(asked, f.name)]
        raise ConfigError(
            f"{folder}: the study there was started with other settings for {', '.join(names)}.",
            remedy="Repeat its settings to resume it, or choose another --out.",
        )
    return plan


def run_study(
    folder: Path,
    grid: Grid,
    plan: StudyPlan,
) -> dict[str, Any]:
    """Train every cell that is not done, and return the study's results.

    Several processes, also on several machines that share the folder, train different cells.

    Args:
        folder: of the study. grid: the study. plan: from `start_study`.

    Raises:
        Stopped: one of `STOP_SIGNALS` was received; the same command resumes the study.
        DeepcaitError: what the user can fix; a cell whose loss is not finite is a result, not an error.
    """
    cells = cells_of(grid, plan.seeds)
    with _stopping():
        is_waiting = False
        while waiting := [cell for cell in cells if read_outcome(folder, cell).state == "open"]:
            did_something = False
            for cell in waiting:
                if _try(folder, grid, plan, cell):
                    did_something = True
                    _report(folder, grid, plan)
            if not did_something:
                if not is_waiting:
                    lock = folder / "locks" / f"{waiting[0].name}.lock"
                    _logger.info("waiting for %s", owner_of(lock))
                is_waiting = True
                time.sleep(_WAIT_S)
    found = _report(folder, grid, plan)
    try:
        plot(found, grid, folder / "plot.png")
    except ConfigError as error:
        _logger.info("no plot: %s %s", error.problem, error.remedy)
    return found


def _try(
    folder: Path,
    grid: Grid,
    plan: StudyPlan,
    cell: Cell,
) -> bool:
    """Train one cell; False if another process has it, or if the cell that it starts from is not done."""
    if cell.start is not None:
        before = dataclasses.replace(cell, row=next(row for row in grid.rows if row.id == cell.row.follows))
        state = read_outcome(folder, before).state
        if state == "failed":
            _fail(folder, cell, f"the cell that it starts from failed: {before.name}")
            return True
        if state == "open":
            return False
    with claim(folder / "locks" / f"{cell.name}.lock") as ours:
        if not ours or read_outcome(folder, cell).state != "open":
            return False
        all_cells = cells_of(grid, plan.seeds)
        done = sum(read_outcome(folder, other).state != "open" for other in all_cells)
        which = f"{cell.row.title}, {cell.column.title}, seed {cell.seed}"
        _logger.info("cell %d of %d: %s", done + 1, len(all_cells), which)
        recipe = cell_recipe(grid, plan, cell, folder / "cells")
        try:
            outcome = train(recipe, folder / "cells" / cell.name, resume=True)
            _logger.info("top-1 %.2f %%", 100 * (outcome.best_top1 or 0))
        except DivergedError as error:
            _fail(folder, cell, error.problem)
            _logger.info("failed: %s", error.problem)
    return True


def _fail(folder: Path, cell: Cell, reason: str) -> None:
    write_bytes(failure_path(folder, cell), (json.dumps({"reason": reason}) + "\n").encode())


def _report(folder: Path, grid: Grid, plan: StudyPlan) -> dict[str, Any]:
    try:
        machine = json.loads((folder / "speed.json").read_text(encoding="utf-8"))["environment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{folder / 'speed.json'}: the speeds measured at the start can't be read: {error}."
        raise RunError(problem, remedy="Start the study again with another --out.") from error
    found = results(folder, grid, plan, machine)
    write_reports(folder, found, grid)
    return found


@contextmanager
def _stopping() -> Iterator[None]:
    """Turn the signals that request a stop into `Stopped` between two runs; a run handles them itself and saves first.

    A signal that is ignored (`nohup`) stays ignored.
    """

    def stop(number: int, _: object) -> None:
        raise Stopped("stopped between two steps of the study; the same command resumes it")

    numbers = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
