# ruff: noqa: E501 (the card is prose)
"""Put a trained run into the package as builtin:nano, measured on the test images; writes nano.json, nano.csv, its card.

    python docs/results/nano.py RUN [RUN ...] --teacher TEACHER_RUN --plain PLAIN_RUN --data parquet:ROOT

RUN: what `deepcait train --recipe nano_32` made; of several, each started from the one before. The best model of the
last one is taken, finished or not; the card says which epoch.
PLAIN_RUN: the first stage again without a teacher, all else the same.
ROOT: CIFAR-10's test images, in parquet; any data SPEC goes.
"""

from __future__ import annotations

import argparse
import csv
import json
from datetime import date
from pathlib import Path
from typing import Any

import deepcait
from deepcait.evaluation import summarise
from deepcait.training.recipe import load_recipe
from deepcait.weights.registry import BUILTIN_NANO

RESULTS = Path(__file__).parent
COMMAND = "deepcait train --recipe nano_32 --data folder:ROOT --teacher TEACHER --out RUN --resume"
PLAIN_COMMAND = "deepcait train --recipe nano_32 --data folder:ROOT --out RUN --resume"
# What a later stage may set other than the recipe; all else is the recipe's.
SET = ("epochs", "seed", "optimizer.lr", "schedule.warmup_epochs")
TEACHER_COMMAND = "deepcait train --recipe teacher_32 --data folder:ROOT --out TEACHER"
CARD = """# cait_nano_32

The small model in the package: `builtin:nano`. {params:,} parameters, {megabytes:.1f} MB, 32 x 32 pixels, the ten classes of CIFAR-10.

Top-1 {top1:.2%} ({correct1:,} of the 10,000 test images of CIFAR-10; 95 %: {low:.2%} to {high:.2%}), top-5 {top5:.2%}. It is good enough to try every command offline and to start a fine-tuning on small images; it predicts only these ten classes.

| | |
| --- | --- |
| measured with | `deepcait eval builtin:nano --data parquet:ROOT` |
| weights | {weights} after {step:,} of {steps:,} steps, {epoch} of {epochs} epochs of the 50,000 training images, of the last stage |
{stages}
| with | {versions}; {threads} thread of {processor} |
| teacher | a small convolutional network, {teacher_top1:.2%} of the same test images; `{teacher_command}` |
| distillation | {distillation} |
| without it | {plain_epochs} epochs with labels only, `{plain_command}`: {plain_top1:.2%} while the same epochs with the teacher, stage 1, end at {stage1_top1:.2%}; one seed each, and twice the sampling error is about 1.1 points |
| curve | docs/results/nano.csv; data: docs/results/nano.json |

The same commands at these commits, with these versions and one thread, reproduce the rows of the curve exactly. The best epoch was selected on the test images, because CIFAR-10 has no validation images; the last epoch has {last_top1:.2%}.

Data: CIFAR-10, Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Licence of the weights: Apache-2.0.
"""


def main() -> None:
    """Copy the model, measure it, write its facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--plain", type=Path, required=True)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    model = deepcait.load(args.runs[-1])
    made = {"started_from": "cait_nano_32", "start": "random", "teacher": "convnet_32"}
    model.metadata["provenance"] = made | {"trained_on": "CIFAR-10", "licence": "apache-2.0"}
    model.metadata["recipe"]["teacher"]["spec"] = "TEACHER"
    if len(args.runs) > 1:
        model.metadata["recipe"]["model"] = "RUN_BEFORE"
    model.save(BUILTIN_NANO)
    shipped = deepcait.load("builtin:nano")
    metrics = deepcait.evaluate(shipped.model, args.data, preprocessing=shipped.preprocessing, classes=shipped.classes)
    facts = describe(args.runs, args.teacher) | {
        "without_distillation": stage(args.plain, first=True) | {"command": PLAIN_COMMAND},
        "params": shipped.model.config.num_params(),
        "bytes": (BUILTIN_NANO / "model.safetensors").stat().st_size,
    }
    found: dict[str, Any] = {
        "what": "builtin:nano on the 10,000 test images of CIFAR-10",
        "command": "deepcait eval builtin:nano --data parquet:ROOT --json",
        "date": str(date.today()),
        "result": {"split": "test"} | metrics.to_dict() | summarise(metrics),
        "training": facts,
    }
    (RESULTS / "nano.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_curve(args.runs, RESULTS / "nano.csv")
    (BUILTIN_NANO / "README.md").write_text(card(found), encoding="utf-8")


def rows_of(run: Path) -> list[dict[str, Any]]:
    """What a run wrote about its steps and evaluations."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def stage(run: Path, first: bool) -> dict[str, Any]:
    """One training: its command, where it ran, what it came to."""
    own, plain = load_recipe(str((run / "config.yaml").resolve())), load_recipe("nano_32")
    differs = [f"{name}={setting(own, name):g}" for name in SET if setting(own, name) != setting(plain, name)]
    start = "" if first else " --model RUN_BEFORE"
    best = json.loads((run / "best" / "config.json").read_text(encoding="utf-8"))["deepcait"]["metrics"]
    evaluations = [row for row in rows_of(run) if row["kind"] == "eval"]
    return {
        "command": COMMAND + start + (f" --set {' '.join(differs)}" if differs else ""),
        "environment": json.loads((run / "environment.json").read_text(encoding="utf-8")),
        "epochs": own.epochs,
        "steps": 50_000 // own.global_batch_size * own.epochs,
        "best": best,
        "after_each_evaluated_epoch": {row["epoch"]: [row["top1"], row.get("raw_top1")] for row in evaluations},
        "distillation": f"{own.teacher.kind}, alpha {own.teacher.alpha:g}" if own.teacher.spec else "none",
    }


def setting(recipe: Any, name: str) -> Any:
    """The value behind a dotted name."""
    for part in name.split("."):
        recipe = getattr(recipe, part)
    return recipe


def describe(runs: list[Path], teacher: Path) -> dict[str, Any]:
    """Facts of the training."""
    of_teacher = [row for row in rows_of(teacher) if row["kind"] == "eval"]
    return {
        "stages": [stage(run, first=number == 0) for number, run in enumerate(runs)],
        "teacher": {
            "command": TEACHER_COMMAND,
            "environment": json.loads((teacher / "environment.json").read_text(encoding="utf-8")),
            "top1_after_each_epoch": [row["top1"] for row in of_teacher],
            "correct1": of_teacher[-1]["correct1"],
            "top1": of_teacher[-1]["top1"],
        },
    }


def write_curve(runs: list[Path], path: Path) -> None:
    """Write the rows of the runs as CSV."""
    rows = [{"stage": number + 1} | row for number, run in enumerate(runs) for row in rows_of(run)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def last_top1(made: dict[str, Any]) -> float:
    """The accuracy after the last epoch of a stage, of the weights that are evaluated."""
    return list(made["after_each_evaluated_epoch"].values())[-1][0]


def card(found: dict[str, Any]) -> str:
    """Return the text of README.md beside the weights."""
    result, training = found["result"], found["training"]
    final = training["stages"][-1]
    best, where = final["best"], final["environment"]
    low, high = result["intervals"]["top1"]
    last, plain, first = (last_top1(made) for made in (final, training["without_distillation"], training["stages"][0]))
    stages = [
        f"| stage {number + 1} | `{made['command']}`, at {made['environment']['commit'][:7]}: {made['best']['top1']:.2%} |"
        for number, made in enumerate(training["stages"])
    ]
    return CARD.format(
        params=training["params"],
        megabytes=training["bytes"] / 1e6,
        low=low,
        high=high,
        weights="averaged weights" if best.get("weights") == "ema" else "raw weights",
        step=best["step"],
        epoch=best["epoch"],
        last_top1=last,
        plain_top1=plain,
        stage1_top1=first,
        plain_command=training["without_distillation"]["command"],
        plain_epochs=training["without_distillation"]["epochs"],
        stages="\n".join(stages),
        versions=", ".join(f"{name} {where['versions'][name]}" for name in ("torch", "torchvision", "numpy", "pillow")),
        threads=where["threads"],
        processor=f"an {where['processor']} processor with AVX512 and bf16 products",
        teacher_top1=training["teacher"]["top1"],
        teacher_command=training["teacher"]["command"],
        **{name: result[name] for name in ("top1", "top5", "correct1")},
        **{name: final[name] for name in ("epochs", "steps", "distillation")},
    )


if __name__ == "__main__":
    main()
