"""Run one of the paper's experiments again at a small scale: a grid of trainings, counted, the paper's figures beside.

Examples:
    deepcait study layerscale --data folder:cifar10 --out studies/layerscale --budget 2
    deepcait study layerscale --data folder:cifar10 --out studies/rezero --only rezero,layerscale --budget 1
    deepcait study distillation --data folder:cifar10 --out studies/distil --teacher runs/teacher --budget 1
    deepcait study heads --data folder:cifar10 --out studies/heads --budget 1 --dry-run     what it would do
    deepcait study drop-path --out studies/try --epochs 1   on the 1,000 photographs of the package, to see how it goes

Stopped by Ctrl-C or SIGTERM it saves the run at hand and exits with 75; the same command continues to the same table.
Several machines that share --out take different cells: give each the same command.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from deepcait.cli.console import Console
from deepcait.cli.options import settings
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    from deepcait.study.grid import Grid
    from deepcait.study.plan import StudyPlan


@dataclass(frozen=True)
class Args:
    """Options of `deepcait study`."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """layerscale, class-token, heads, talking-heads, drop-path, resolution, distillation or augmentation."""
    out: Path
    """Folder of the study; what is trained, counted and drawn goes there."""
    data: str = "builtin:demo"
    """Labelled images, small ones: folder:cifar10, parquet:ROOT, ...; without it the photographs of the package."""
    budget: float | None = None
    """Hours of this machine for all cells: epochs and images are scaled so that it fits."""
    seeds: int = 2
    """Trainings of each cell that differ by their seed alone."""
    epochs: int | None = None
    """Epochs of a cell, instead of --budget."""
    images: int | None = None
    """Training images, drawn class by class and always the same; 0 takes all."""
    data_name: str = ""
    """What the data is called in tables; without it the last part of its SPEC."""
    val_images: int = 0
    """Validation images, drawn in the same way; 0 takes all."""
    only: str = ""
    """Some rows or columns, by name, with commas between; the reference stays."""
    teacher: str = ""
    """Teacher of `distillation`: a run folder, any model SPEC, timm:NAME, python:package.module:factory."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Settings of every cell that win over the study's, as key=value; what has an option of its own is left out."""
    results: Path | None = None
    """Write page, JSON and plot to this folder too, as study_NAME.*, when the study is done."""
    dry_run: bool = False
    """Print the cells and, with --budget, what fits; touch nothing."""
    json: bool = False
    """Print one JSON object at the end and nothing else."""


def run(args: Args) -> int | None:
    """Run the study, and print its table."""
    from deepcait.study.grid import load_grid
    from deepcait.study.run import run_study, start_study
    from deepcait.study.table import markdown

    console = Console(json=args.json, narrates=True)
    only = tuple(name.strip() for name in args.only.split(",") if name.strip())
    grid = load_grid(args.name).only(only)
    wished = _wished(args, grid, only)
    if args.dry_run:
        _dry_run(args, grid, wished, console)
        return
    fixed = {"epochs": args.epochs, "images": args.images, "val_images": args.val_images or None}
    plan = start_study(args.out, wished, fixed, lambda: _plan(args, grid, wished, console))
    console.say(f"{grid.title}: {len(grid.rows)} x {len(grid.columns)} cells, {plan.seeds} seeds, {plan.epochs} epochs")
    found = run_study(args.out, grid, plan)
    console.say(f"\n{markdown(found, grid)}")
    console.say(f"page           {args.out / 'table.md'}")
    console.say(f"raw            {args.out / 'results.json'}")
    if args.results:
        _publish(args.results, args.out, found, grid)
        console.say(f"copied to      {args.results}")
    console.result(found)


def _wished(args: Args, grid: Grid, only: tuple[str, ...]) -> StudyPlan:
    """The plan that was asked for, with the recipe's own epochs and images where none were."""
    from deepcait.study.plan import StudyPlan
    from deepcait.training.recipe import load_recipe

    if args.seeds < 1 or (args.epochs is not None and args.epochs < 1) or (args.images or 0) < 0 or args.val_images < 0:
        raise ConfigError(
            f"expected --seeds and --epochs of 1 or more and --images and --val-images of 0 or more, got {args.seeds}, "
            f"{args.epochs}, {args.images} and {args.val_images}.",
            remedy="Mend the options.",
        )
    if args.budget is not None and (args.epochs is not None or not 0 < args.budget < math.inf):
        raise ConfigError(
            f"--budget: expected hours above 0 and no --epochs beside, got {args.budget:g} and {args.epochs}.",
            remedy="Give one of the two: hours to fit into, or epochs.",
        )
    if grid.needs_teacher and not args.teacher:
        raise ConfigError(
            f"study {grid.name}: expected --teacher, got none.",
            remedy="Train one with `deepcait train --recipe teacher_32 --data DATA --out RUN`, and give RUN.",
        )
    if args.teacher and not grid.needs_teacher:
        raise ConfigError(
            f"study {grid.name}: expected no --teacher, since no cell that was asked for learns from one, got "
            f"{args.teacher!r}.",
            remedy="Leave it out.",
        )
    if args.results is not None and args.results.exists() and not args.results.is_dir():
        raise ConfigError(f"--results: expected a folder, got the file {args.results}.", remedy="Give another place.")
    recipe = load_recipe(grid.recipe)
    return StudyPlan(
        study=args.name,
        data=args.data,
        data_name=args.data_name or args.data.rstrip("/").rpartition("/")[2],
        seeds=args.seeds,
        epochs=args.epochs or recipe.epochs,
        images=recipe.data.limit if args.images is None else args.images,
        val_images=args.val_images,
        teacher=args.teacher,
        only=only,
        set=tuple(settings(args.set)),
    )


def _plan(args: Args, grid: Grid, wished: StudyPlan, console: Console) -> tuple[StudyPlan, dict]:
    from deepcait.study.plan import check_cells, fit_to_budget

    check_cells(grid, wished)
    if args.budget is None:
        return wished, {}
    plan, measured = fit_to_budget(grid, wished, args.budget)
    console.say(
        f"fits {args.budget:g} hours: {plan.epochs} epochs of {plan.images:,} images, {plan.val_images:,} for "
        f"validation, {measured['expected_hours']:.2g} hours expected"
    )
    return plan, measured


def _dry_run(args: Args, grid: Grid, wished: StudyPlan, console: Console) -> None:
    from deepcait.data import open_split
    from deepcait.data.split import limited
    from deepcait.study.grid import cells_of
    from deepcait.study.plan import cell_config

    plan, measured = _plan(args, grid, wished, console)
    samples = limited(open_split(plan.data, "train"), plan.images)
    facts, rows = [], []
    for cell in cells_of(grid, 1):
        config = cell_config(grid, plan, cell, args.out / "cells", len(samples.classes))
        epochs = max(1, round(plan.epochs * cell.row.epochs))
        rows.append(
            (cell.row.title, cell.column.title, f"{config.num_params():,}", f"{config.macs() / 1e6:.1f}", epochs)
        )
        facts.append({"row": cell.row.id, "column": cell.column.id, "params": config.num_params(), "epochs": epochs})
    console.table(("row", "column", "parameters", "MMACs", "epochs"), rows)
    runs = f"{len(rows) * plan.seeds} runs = {len(rows)} cells of {plan.seeds} seeds"
    console.say(f"{runs}, on {len(samples):,} images of {plan.data}")
    head = {"study": grid.name, "seeds": plan.seeds, "epochs": plan.epochs, "images": len(samples)}
    console.result(head | {"cells": facts} | measured)


def _publish(folder: Path, out: Path, found: dict, grid: Grid) -> None:
    import shutil

    from deepcait.study.table import write_reports

    folder.mkdir(parents=True, exist_ok=True)
    name = f"study_{grid.name.replace('-', '_')}"
    write_reports(folder, found, grid, name=name)
    if (out / "plot.png").exists():
        shutil.copyfile(out / "plot.png", folder / f"{name}.png")
