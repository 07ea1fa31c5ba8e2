# ruff: noqa: E501 (the card is prose)
"""Put a trained run into the package as builtin:nano, measured on the test images; writes nano.json, nano.csv, its card.

    python docs/results/nano.py RUN --data parquet:ROOT

RUN: what `deepcait train --recipe nano_32` made, finished; its best model by the training images held out is taken.
ROOT: CIFAR-10's test images, in parquet; any DATA goes. They are measured here, once, after the choice.
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
COMMAND = (
    "deepcait train --recipe nano_32 --data folder:ROOT/train --teacher docs/results/teacher_32 --out RUN"
    " --set data.val_fraction=0.05"
)
# What a run may set other than the recipe; all else is the recipe's.
SET = ("epochs", "seed", "optimizer.lr", "schedule.decay_epochs")
CARD = """# cait_nano_32

The small model in the package: `builtin:nano`. {params:,} parameters, {megabytes:.1f} MB, 32 x 32 pixels, the ten classes of CIFAR-10.

Top-1 {top1:.2%} ({correct1:,} of the 10,000 test images of CIFAR-10; 95 %: {low:.2%} to {high:.2%}), top-5 {top5:.2%}. It is good enough to try every command offline and to start a fine-tuning on small images; it predicts only these ten classes.

| | |
| --- | --- |
| measured with | `deepcait eval builtin:nano --data parquet:ROOT` |
| trained with | `{command}` |
| weights | {weights} after {step:,} of {steps:,} steps, {epoch} of {epochs} epochs of {images:,} training images; the epoch was chosen by {val_images:,} other training images ({val_top1:.2%}), and the test images were evaluated only afterwards |
| cost | {hours:.1f} hours with {processes} {process_word} of one thread each; {versions}; {processor} |
| teacher | a convolutional network of two million parameters (recipe `teacher_32`), {teacher_top1:.2%} of the same test images |
| distillation | {distillation} |
| curve | docs/results/nano.csv; data: docs/results/nano.json |

The same command with these versions on the same kind of processor reproduces the rows of the curve exactly, with one process or two; this was checked for the first 100 steps.

Data: CIFAR-10, Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Licence of the weights: Apache-2.0.
"""


def main() -> None:
    """Copy the model, measure it, write its facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    model = deepcait.load(args.run)
    metrics = deepcait.evaluate(model.model, args.data, preprocessing=model.preprocessing, classes=model.classes)
    facts = describe(args.run) | {"params": model.model.config.num_params()}
    pack(model, facts["best"], metrics)
    found: dict[str, Any] = {
        "what": "builtin:nano on the 10,000 test images of CIFAR-10",
        "command": "deepcait eval builtin:nano --data parquet:ROOT --json",
        "date": str(date.today()),
        "result": {"split": "test"} | metrics.to_dict() | summarise(metrics),
        "training": facts | {"bytes": (BUILTIN_NANO / "model.safetensors").stat().st_size},
    }
    (RESULTS / "nano.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_curve(args.run, RESULTS / "nano.csv")
    (BUILTIN_NANO / "README.md").write_text(card(found), encoding="utf-8")


def pack(model: deepcait.Classifier, best: dict[str, Any], metrics: Any) -> None:
    """Save the model in the package; what it was made from goes without paths, and its metrics are those of the test."""
    made = {"started_from": "cait_nano_32", "start": "random", "teacher": "quicknet_32"}
    model.metadata["provenance"] = made | {"trained_on": "CIFAR-10", "licence": "apache-2.0"}
    model.metadata["recipe"]["teacher"]["spec"] = "TEACHER"
    test = {key: metrics.to_dict()[key] for key in ("num_images", "correct1", "correct5", "top1", "top5", "loss")}
    model.metadata["metrics"] = {key: best[key] for key in ("step", "epoch", "weights")} | {"split": "test"} | test
    model.save(BUILTIN_NANO)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe(run: Path) -> dict[str, Any]:
    """Facts of the training: its command, where it ran, what it came to."""
    own, plain = load_recipe(str((run / "config.yaml").resolve())), load_recipe("nano_32")
    differs = [f"{name}={setting(own, name):g}" for name in SET if setting(own, name) != setting(plain, name)]
    evaluations = [row for row in rows_of(run / "metrics.jsonl") if row["kind"] == "eval"]
    times = rows_of(run / "timing.jsonl")
    return {
        "command": " ".join([COMMAND, *differs]),
        "environment": json.loads((run / "environment.json").read_text(encoding="utf-8")),
        "epochs": own.epochs,
        "steps": evaluations[-1]["step"],
        "images_of_an_epoch": evaluations[-1]["step"] // own.epochs * own.global_batch_size,
        "hours": round(sum(row.get("seconds", 0.0) for row in times) / 3600, 2),
        "processes": times[-1]["processes"],
        "best": json.loads((run / "best" / "config.json").read_text(encoding="utf-8"))["deepcait"]["metrics"],
        "val_top1_after_epoch": {row["epoch"]: [row["top1"], row.get("raw_top1")] for row in evaluations},
        "distillation": distillation(own.teacher),
        "teacher": json.loads((RESULTS / "teacher_32.json").read_text(encoding="utf-8"))["result"],
    }


def distillation(teacher: Any) -> str:
    """How the teacher's answers enter the loss, in words."""
    rest = f", temperature {teacher.tau:g}" if teacher.kind == "soft" else ""
    return f"{teacher.kind}, with a share of {teacher.alpha:g} in the loss{rest}"


def setting(recipe: Any, name: str) -> Any:
    """The value behind a dotted name."""
    for part in name.split("."):
        recipe = getattr(recipe, part)
    return recipe


def write_curve(run: Path, path: Path) -> None:
    """Write the rows of the run as CSV."""
    rows = rows_of(run / "metrics.jsonl")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def card(found: dict[str, Any]) -> str:
    """Return the text of README.md beside the weights."""
    result, training = found["result"], found["training"]
    best, where = training["best"], training["environment"]
    low, high = result["intervals"]["top1"]
    processes = training["processes"]
    return CARD.format(
        params=training["params"],
        megabytes=training["bytes"] / 1e6,
        low=low,
        high=high,
        weights="averaged weights" if best.get("weights") == "ema" else "raw weights",
        step=best["step"],
        epoch=best["epoch"],
        val_images=best["num_images"],
        val_top1=best["top1"],
        images=training["images_of_an_epoch"],
        processes=processes,
        process_word="process" if processes == 1 else "processes",
        versions=", ".join(f"{name} {where['versions'][name]}" for name in ("torch", "torchvision", "timm", "numpy")),
        processor=f"an {where['processor'].replace('(R)', '').removesuffix(' Processor')} processor with bf16 products",
        teacher_top1=training["teacher"]["top1"],
        **{name: result[name] for name in ("top1", "top5", "correct1")},
        **{name: training[name] for name in ("command", "epochs", "steps", "hours", "distillation")},
    )


if __name__ == "__main__":
    main()
