"""Reproduce one of the paper's ablations at small scale: a grid of trainings, compared with the paper's results.

Examples:
    deepcait study layerscale --data folder:cifar10 --out studies/layerscale --budget 2
    deepcait study layerscale --data folder:cifar10 --out studies/rezero --only rezero,layerscale --budget 1
    deepcait study distillation --data folder:cifar10 --out studies/distil --teacher runs/teacher --budget 1
    deepcait study heads --data folder:cifar10 --out studies/heads --budget 1 --dry-run     print the plan
    deepcait study drop-path --out studies/try --epochs 1   a quick try, on the images of the package

Ctrl-C or SIGTERM saves the current run and exits with code 75; the same command resumes the study, with the same
result. Several machines that share --out train different cells: start the same command on each.
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
    """layerscale, deep-layerscale, class-token, heads, talking-heads, drop-path, resolution, distillation or
    augmentation."""
    out: Path
    """Folder of the study, for runs, results and plots."""
    data: str = "builtin:demo"
    """DATA with small images: folder:cifar10, parquet:ROOT, ...; builtin:demo has the images of the package."""
    budget: float | None = None
    """Compute budget in hours on this machine for all cells; epochs, and then images, are reduced to fit."""
    seeds: int = 2
    """Number of seeds per cell."""
    epochs: int | None = None
    """Epochs per cell, instead of --budget."""
    images: int | None = None
    """Number of training images, a fixed stratified sample (default: the recipe's); 0 means all."""
    data_name: str = ""
    """Name of the data in tables (default: the last part of --data)."""
    val_images: int = 0
    """Number of validation images, sampled in the same way; 0 means all."""
    only: str = ""
    """Rows or columns to train, by name, separated by commas; the reference is always included."""
    teacher: str = ""
    """Teacher for `distillation`: any MODEL such as a run folder, timm:NAME, python:package.module:factory."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Settings of every cell as key=value; they override those of the study; keys with their own option are errors."""
    results: Path | None = None
    """Also write the page, JSON and plot to this folder, as study_NAME.*, when the study is done."""
    dry_run: bool = False
    """Print the cells and, with --budget, the scaled epochs and images; write nothing."""
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
    requested = _requested(args, grid, only)
    if args.dry_run:
        _dry_run(args, grid, requested, console)
        return
    fixed = {"epochs": args.epochs, "images": args.images, "val_images": args.val_images or None}
    plan = start_study(args.out, requested, fixed, lambda: _plan(args, grid, requested, console))
    console.say(f"{grid.title}: {len(grid.rows)} x {len(grid.columns)} cells, {plan.seeds} seeds, {plan.epochs} epochs")
    found = run_study(args.out, grid, plan)
    console.say(f"\n{markdown(found, grid)}")
    console.say(f"page           {args.out / 'table.md'}")
    console.say(f"raw            {args.out / 'results.json'}")
    if args.results:
        _publish(args.results, args.out, found, grid)
        console.say(f"copied to      {args.results}")
    console.result(found)


def _requested(args: Args, grid: Grid, only: tuple[str, ...]) -> StudyPlan:
    """The plan of the options, with the recipe's epochs and images by default."""
    from deepcait.runtime.files import require_folder
    from deepcait.study.plan import StudyPlan
    from deepcait.training.recipe import load_recipe

    least = {"seeds": 1, "epochs": 1, "images": 0, "val_images": 0}
    for name, smallest in least.items():
        given = getattr(args, name)
        if given is not None and given < smallest:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} must be at least {smallest} (got {given}).", remedy=f"Use {option} {smallest}."
            )
    if args.budget is not None and (args.epochs is not None or not 0 < args.budget < math.inf):
        raise ConfigError(
            f"--budget must be hours above 0, without --epochs (got {args.budget:g} and {args.epochs}).",
            remedy="Use either --budget or --epochs.",
        )
    if grid.needs_teacher and not args.teacher:
        raise ConfigError(
            f"study {grid.name} needs a teacher: --teacher is missing.",
            remedy="Train one with `deepcait train --recipe teacher_32 --data DATA --out RUN`, then add --teacher RUN.",
        )
    if args.teacher and not grid.needs_teacher:
        raise ConfigError(
            f"--teacher: no cell of study {grid.name} uses a teacher.",
            remedy="Omit --teacher, or choose other cells with --only.",
        )
    if args.results is not None:
        require_folder(args.results, "--results")
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


def _plan(args: Args, grid: Grid, requested: StudyPlan, console: Console) -> tuple[StudyPlan, dict]:
    from deepcait.study.plan import check_cells, fit_to_budget

    check_cells(grid, requested)
    if args.budget is None:
        return requested, {}
    plan, measured = fit_to_budget(grid, requested, args.budget)
    console.say(
        f"fits {args.budget:g} hours: {plan.epochs} epochs of {plan.images:,} images, {plan.val_images:,} for "
        f"validation, {measured['expected_hours']:.2g} hours expected"
    )
    return plan, measured


def _dry_run(args: Args, grid: Grid, requested: StudyPlan, console: Console) -> None:
    from deepcait.data import open_split
    from deepcait.data.split import limited
    from deepcait.study.grid import cells_of
    from deepcait.study.plan import cell_config

    plan, measured = _plan(args, grid, requested, console)
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
