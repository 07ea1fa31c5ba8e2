"""Train a model: from scratch, from trained weights on your own images, or with a teacher.

Examples:
    deepcait train --data photos --out runs/photos                    fine-tune released weights on a folder
    deepcait train --data photos --out runs/photos --model builtin:nano
    deepcait train --data photos --out runs/photos --resume           continue where it stopped
    deepcait train --data photos --out runs/photos --dry-run          print the plan; write nothing
    deepcait train --data imagenet:ROOT --out runs/s24 --recipe distill --model cait_s24_224
    deepcait train --data photos --out runs/t --teacher runs/photos --set epochs=10 mix.mixup=0.2
    torchrun --nproc-per-node 8 -m deepcait train --data imagenet:ROOT --out runs/xxs24 --recipe pretrain

`deepcait recipes` lists the recipes and all settings; config.yaml of a run contains the values of all settings.
At the end, the report is written to RUN/report.html, one self-contained page.
Ctrl-C or SIGTERM stops a run after the current step and saves it (exit code 75); --resume continues bit-exactly.
In Python: deepcait.train(data, out, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from deepcait.cli.console import Console, percent
from deepcait.cli.options import settings

if TYPE_CHECKING:
    from deepcait.training.recipe import Recipe


@dataclass(frozen=True)
class Args:
    """Options of `deepcait train`."""

    out: Path
    """Run folder: metrics, checkpoints, models and the report are written to it."""
    data: str | None = None
    """Labelled images: a folder of class folders, a .csv, .parquet, .tar or .zip, imagenet:ROOT, builtin:demo, ..."""
    recipe: str | None = None
    """Name of a recipe, or path of a .yaml file (default: finetune)."""
    model: str | None = None
    """Model to start from: a name, a model or run folder, a weights file, builtin:nano (default: the recipe's)."""
    teacher: str | None = None
    """Teacher for distillation: any MODEL, timm:NAME[,weights=PATH], python:package.module:factory."""
    device: str | None = None
    """Device: auto, cpu, cuda, cuda:1 or mps (default: the recipe's compute.device)."""
    engine: Literal["eager", "compile"] | None = None
    """How steps are computed: eager, or compile (torch.compile, which needs a C++ compiler; default: the recipe's
    compute.compile)."""
    resume: bool = False
    """Resume the run in --out, or start it if it does not exist."""
    dry_run: bool = False
    """Print the plan (steps, learning rates, memory, disk, an estimate of the time) and write nothing."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Settings that override the recipe, as key=value: --set epochs=10 optimizer.lr=1e-4."""
    json: bool = False
    """Print one JSON object at the end and nothing else."""


def run(args: Args) -> int | None:
    """Train, and print the result."""
    from deepcait.api import choose_recipe, run_recipe
    from deepcait.parts import model_in

    console = Console(json=args.json, narrates=True)
    assignments = settings(args.set)
    if args.device is not None:
        assignments.append(f"compute.device={args.device}")
    if args.engine is not None:
        assignments.append(f"compute.compile={str(args.engine == 'compile').lower()}")
    recipe = choose_recipe(
        args.out,
        recipe=args.recipe,
        assignments=assignments,
        data=args.data,
        model=args.model,
        teacher=args.teacher,
        resume=args.resume,
    )
    if args.dry_run:
        from deepcait.training.plan import plan

        console.result(plan(recipe, args.out, resume=args.resume))
        return
    trained = run_recipe(recipe, args.out, resume=args.resume)
    best = trained.best
    console.say(f"done: {_describe_best(best, recipe)}")
    console.say(f"model:     {args.out / 'best'}")
    console.say(f"next:      deepcait predict {model_in(args.out, recipe.model)} IMAGE")
    console.result(
        {
            "run": str(args.out),
            "model": str(args.out / "best"),
            "report": str(trained.report) if trained.report else None,
            "best": best,
            "evaluations": sum(row["kind"] == "eval" for row in trained.metrics),
        }
    )


def _describe_best(best: Mapping[str, Any], recipe: Recipe) -> str:
    from deepcait.training.best import MEASURES, chosen_measure

    if not best:
        return "the model is the last epoch's"
    measure = chosen_measure(recipe.keep.best_by, best["num_images"])
    value = "not finite" if best[measure] is None else f"{best[measure]:.4f}"
    reason = "" if measure == "top1" else f" by {MEASURES[measure]} ({value})"
    return f"epoch {best['epoch']} is the best{reason}: top-1 {percent(best['top1'])}"
