"""Keep a trained teacher of the small CaiT, measured once on the test images; writes teacher_32.json and teacher_32/.

    python docs/results/teacher.py RUN --data parquet:ROOT

RUN: what `deepcait train --recipe teacher_32 --data folder:ROOT/train --set data.val_fraction=0.05` made: its best
model by the 2,500 training images held out. ROOT: CIFAR-10's test images; any DATA goes.
teacher_32/ is a model folder of half-precision weights, to be given as `--teacher`; the command by which the small
model was trained names it.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import torch

import deepcait
from deepcait.evaluation import summarise
from deepcait.training.recipe import load_recipe

RESULTS = Path(__file__).parent
PLACE = RESULTS / "teacher_32"
COMMAND = "deepcait train --recipe teacher_32 --data folder:ROOT/train --out TEACHER --set data.val_fraction=0.05"


def keep(run: Path) -> None:
    """Write the run's best model with weights of half the size; what it was made from goes without paths."""
    model = deepcait.load(run)
    model.metadata["provenance"] = {"start": "random", "trained_on": "CIFAR-10", "licence": "apache-2.0"}
    model.model.to(torch.float16)
    model.save(PLACE)


def history(run: Path) -> dict[str, Any]:
    """What the run wrote: its settings, where it ran, accuracy of the held-out images after each epoch, speed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    recipe = load_recipe(str((run / "config.yaml").resolve()))
    return {
        "epochs": recipe.epochs,
        "environment": json.loads((run / "environment.json").read_text(encoding="utf-8")),
        "hours_on_a_shared_machine": round(sum(row.get("seconds", 0.0) for row in times) / 3600, 2),
        "val_top1_after_epoch": {row["epoch"]: row["top1"] for row in evaluations},
        "raw_val_top1_after_epoch": {row["epoch"]: row["raw_top1"] for row in evaluations},
        "val_images": evaluations[-1]["num_images"],
    }


def main() -> None:
    """Copy the model, measure it, write its facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    keep(args.run)
    kept = deepcait.load(PLACE)
    metrics = deepcait.evaluate(kept.model, args.data, preprocessing=kept.preprocessing, classes=kept.classes)
    found = {
        "what": "the teacher of the small CaiT on the 10,000 test images of CIFAR-10, looked at once",
        "command": COMMAND,
        "kept": "docs/results/teacher_32, half precision; the command of the small model names it",
        "date": str(date.today()),
        "params": kept.model.config.num_params(),
        "bytes": (PLACE / "model.safetensors").stat().st_size,
        "result": {"split": "test"} | metrics.to_dict() | summarise(metrics),
        "training": history(args.run),
    }
    (RESULTS / "teacher_32.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{metrics.to_dict()['top1']:.2%} of the test images; {found['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
