"""See it work: train a small CaiT on real photographs, measure it, and use it; minutes on two cores, offline.

Examples:
    deepcait demo
    deepcait demo --out my-first-run
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from deepcait.cli.console import Console, percent
from deepcait.cli.report import write_at_end

_SHOWN = 6


@dataclass(frozen=True)
class Args:
    """Options of `deepcait demo`."""

    out: Path | None = None
    """Folder for the run; without it deepcait-demo, or the next free deepcait-demo-N."""
    json: bool = False
    """Print one JSON object at the end and nothing else."""


def run(args: Args) -> int | None:
    """Train, evaluate, classify held-out pictures, and say where everything is."""
    from deepcait.cli.train import _evaluate
    from deepcait.train.recipe import load_recipe
    from deepcait.train.run import train

    began = time.monotonic()
    console = Console(json=args.json)
    folder = args.out or _free_folder()
    console.say("Training a small CaiT on 1,000 real photographs (CIFAR-10, ten classes), 50 a class held out.")
    outcome = train(load_recipe("demo"), folder, evaluate=_evaluate, say=console.say)
    chance = 1 / len(outcome.classes)
    console.say(
        f"\nmeasured       top-1 {percent(outcome.best_top1)} of 500 held-out pictures (chance: {percent(chance)})"
    )
    pictures = _classify(folder, console)
    console.say(f"\nmodel          {folder / 'best'}")
    console.say(f"curves         {folder / 'metrics.csv'}")
    report = write_at_end(folder, console)
    console.say(f"try            deepcait predict {folder} PICTURE")
    console.say(f"took           {time.monotonic() - began:.0f} s")
    facts = {"run": str(folder), "model": str(folder / "best"), "top1": outcome.best_top1, "chance": chance}
    console.result({**facts, "report": str(report) if report else None, "pictures": pictures})


def _classify(folder: Path, console: Console) -> list[dict]:
    """Let the trained model name a few pictures that it was not trained on."""
    from deepcait.classifier import load
    from deepcait.data import open_source

    held_out = open_source("builtin:demo", "test")
    # Every class once, as far as they are shown: files are in order of class.
    indices = [round(i * len(held_out) / _SHOWN) for i in range(_SHOWN)]
    paths = [Path(held_out.locate(index)) for index in indices]
    answers = load(folder).predict(paths, topk=1)
    console.say("\nheld-out pictures:")
    shown = []
    for path, (best, *_) in zip(paths, answers, strict=True):
        console.say(f"  {path.parent.name:<12} -> {best.label:<12} {best.probability:6.1%}   {path}")
        shown.append(
            {"file": str(path), "class": path.parent.name, "label": best.label, "probability": best.probability}
        )
    return shown


def _free_folder() -> Path:
    folder, number = Path("deepcait-demo"), 1
    while folder.exists():
        number += 1
        folder = Path(f"deepcait-demo-{number}")
    return folder
