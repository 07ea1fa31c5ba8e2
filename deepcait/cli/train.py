"""Train a model: from scratch, from trained weights on your own images, or with a teacher.

Examples:
    deepcait train --data photos --out runs/photos                    fine-tune released weights on a folder
    deepcait train --data photos --out runs/photos --model builtin:nano
    deepcait train --data photos --out runs/photos --resume           go on where it stopped
    deepcait train --data photos --out runs/photos --dry-run          what it would do; touches nothing
    deepcait train --data imagenet:ROOT --out runs/s24 --recipe distill --model cait_s24_224
    deepcait train --data photos --out runs/t --teacher runs/photos --set epochs=10 mix.mixup=0.2
    torchrun --nproc-per-node 8 -m deepcait train --data imagenet:ROOT --out runs/xxs24 --recipe pretrain

`deepcait recipes` lists recipes and every key; `config.yaml` of a run holds each key with its value.
The run ends with its report, RUN/report.html: one page that needs no network.
Stopped by Ctrl-C or SIGTERM it finishes the step, saves, and exits with 75; --resume then goes on to the same bits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from deepcait.cli.console import Console
from deepcait.cli.options import settings

if TYPE_CHECKING:
    from deepcait.training.recipe import Recipe


@dataclass(frozen=True)
class Args:
    """Options of `deepcait train`."""

    out: Path
    """Folder of the run; what is measured and saved goes there."""
    data: str | None = None
    """Labelled images: a folder of class folders, a .csv, .parquet, .tar or .zip, imagenet:ROOT, builtin:demo, ..."""
    recipe: str | None = None
    """Name of a recipe or path of a .yaml file; without it: finetune."""
    model: str | None = None
    """Model to start from: a name, a model or run folder, a weights file, builtin:nano; without it the recipe's."""
    teacher: str | None = None
    """Teacher for distillation: any model SPEC, timm:NAME[,weights=PATH], python:package.module:factory."""
    engine: Literal["eager", "compile"] | None = None
    """How steps are computed; compile needs a C++ compiler."""
    resume: bool = False
    """Go on with the run in --out, or start it where there is none."""
    dry_run: bool = False
    """Print steps, batch, learning rates and memory; touch nothing."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Settings that win over the recipe, as key=value: --set epochs=10 optimizer.lr=1e-4."""
    json: bool = False
    """Print one JSON object at the end and nothing else."""


def run(args: Args) -> int | None:
    """Train, and say what came of it."""
    from deepcait.report import write_at_end
    from deepcait.training.journal import read_state
    from deepcait.training.resume import resumed_recipe
    from deepcait.training.trainer import train

    console = Console(json=args.json, narrates=True)
    goes_on = args.resume and (args.out / "config.yaml").exists()
    recipe = resumed_recipe(args.out, _given(args, args.out / "config.yaml")) if goes_on else _recipe(args)
    if args.dry_run:
        from deepcait.training.plan import plan

        facts = plan(recipe)
        console.result(facts)
        return
    if goes_on and read_state(args.out).get("state") == "finished":
        console.say(f"{args.out}: finished already; its best model is {args.out / 'best'}")
        if not (args.out / "report.html").exists():  # it ended before the page was written
            write_at_end(args.out, device=recipe.compute.device)
        console.result(_facts(args.out))
        return
    outcome = train(recipe, args.out, resume=args.resume)
    measured = f"best top-1 {outcome.best_top1:.2%} in" if outcome.best_top1 is not None else "the model is that of"
    console.say(f"done: {measured} epoch {outcome.best_epoch}")
    console.say(f"model:     {args.out / 'best'}")
    write_at_end(args.out, device=recipe.compute.device)
    console.say(f"next:      deepcait predict {args.out} PICTURE")
    console.result(_facts(args.out))


def _recipe(args: Args) -> Recipe:
    from deepcait.training.recipe import load_recipe

    return _lay_over(load_recipe(args.recipe or "finetune", settings(args.set)), args)


def _given(args: Args, own: Path) -> Recipe | None:
    """The settings given beside --resume, laid over the run's own; None where there are none."""
    from deepcait.training.recipe import load_recipe

    if not (args.recipe or args.data or args.model or args.teacher or args.engine or args.set):
        return None
    config = str(own.resolve())
    recipe = load_recipe(args.recipe or config, settings(args.set), version=load_recipe(config).version)
    return _lay_over(recipe, args)


def _lay_over(recipe: Recipe, args: Args) -> Recipe:
    if args.data is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=args.data))
    if args.model is not None:
        recipe = dataclasses.replace(recipe, model=args.model)
    if args.teacher is not None:
        recipe = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, spec=args.teacher))
    if args.engine is not None:
        compute = dataclasses.replace(recipe.compute, compile=args.engine == "compile")
        recipe = dataclasses.replace(recipe, compute=compute)
    return recipe


def _facts(folder: Path) -> dict:
    from deepcait.training.journal import read_metrics

    rows = [row for row in read_metrics(folder) if row["kind"] == "eval"]
    best = max(rows, key=lambda row: row["top1"], default={})
    report = folder / "report.html"
    return {
        "run": str(folder),
        "model": str(folder / "best"),
        "report": str(report) if report.exists() else None,
        "best": best,
        "evaluations": len(rows),
    }
