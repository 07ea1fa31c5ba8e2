"""Which way to fine-tune for how many images: full, head alone, LoRA, and from scratch; writes finetuning.json and .md.

    python docs/results/finetuning.py --images ROOT/test --out FOLDER [METHOD ...]

ROOT/test: CIFAR-10's 10,000 test images in class folders, on which builtin:nano was not trained: half of each class is
to learn from, half is the test. The ten classes are put together in five arbitrary pairs, so that the model's own
classes are not the solution. It was trained on images of the same kind, so its features fit better than yours will.
METHOD: some of full, head, lora, scratch; without any, all. Rows that finetuning.json has are not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

import deepcait
from deepcait.runtime.environment import processor

RESULTS = Path(__file__).parent
GROUPS = {"airplane": "a", "cat": "a", "automobile": "b", "frog": "b", "bird": "c", "truck": "c"}
GROUPS |= {"deer": "d", "ship": "d", "dog": "e", "horse": "e"}
# Images to learn from: epochs.
SIZES = {50: 60, 200: 40, 1000: 16, 5000: 6}
SEEDS = (0, 1, 2)
ALWAYS = {"data.validate_on": "none", "data.num_workers": 0, "keep.patience_epochs": 0, "augment.rand_augment": ""}
SCRATCH = {"start": "random", "head_warmup_epochs": 0, "optimizer.lr": 1e-3, "optimizer.layer_decay": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"model": "builtin:nano", "recipe": "finetune", "settings": ALWAYS},
    "head": {"model": "builtin:nano", "recipe": "linear_probe", "settings": ALWAYS},
    "lora": {"model": "builtin:nano", "recipe": "lora", "settings": ALWAYS},
    "scratch": {"model": "cait_nano_32", "recipe": "finetune", "settings": ALWAYS | SCRATCH},
}
TITLES = {"full": "all weights", "head": "head alone", "lora": "LoRA", "scratch": "from scratch"}


def draw(images: Path, num_images: int, seed: int, out: Path) -> Path:
    """Write a manifest: as many images of each of the ten classes to learn from, and the 5,000 of the test."""
    rows = []
    for name, group in GROUPS.items():
        files = sorted((images / name).iterdir())
        random.Random(0).shuffle(files)  # which half is the test never changes
        learned, test = files[: len(files) // 2], files[len(files) // 2 :]
        random.Random(seed).shuffle(learned)
        rows += [(str(file), group, "train") for file in learned[: num_images // len(GROUPS)]]
        rows += [(str(file), group, "test") for file in test]
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return out


def measure(method: str, num_images: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once, and evaluate the last weights on the test images."""
    folder = args.out / f"{method}-{num_images}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = draw(args.images, num_images, seed, folder / "images.csv")
    choice = METHODS[method]
    settings = choice["settings"] | {"epochs": SIZES[num_images], "seed": seed}
    began = time.perf_counter()
    run = deepcait.train(
        str(data), folder / "run", model=choice["model"], recipe=choice["recipe"], resume=True, settings=settings
    )
    seconds = time.perf_counter() - began
    metrics = deepcait.evaluate(run.last, str(data), split="test").to_dict()
    counts = {key: metrics[key] for key in ("num_images", "correct1", "top1")}
    return {"method": method, "images": num_images, "seed": seed, **counts, "training_s": round(seconds, 1)}


def table(rows: list[dict[str, Any]]) -> str:
    """The mean and the standard deviation of the accuracy over the seeds, as a table in Markdown."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    lines = [
        "| images (epochs) | " + " | ".join(TITLES[method] for method in methods) + " |",
        "| --- |" + " ---: |" * len(methods),
    ]
    for num_images, epochs in SIZES.items():
        cells = []
        for method in methods:
            found = [100 * row["top1"] for row in rows if (row["method"], row["images"]) == (method, num_images)]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "")
        lines.append(f"| {num_images:,} ({epochs}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, smallest first, and write both files after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    path = RESULTS / "finetuning.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    done = {(row["method"], row["images"], row["seed"]) for row in rows}
    for num_images in SIZES:
        for seed in SEEDS:
            for method in args.methods:
                if (method, num_images, seed) in done:
                    continue
                rows.append(measure(method, num_images, seed, args))
                print(rows[-1], flush=True)
                facts = {"command": "python docs/results/finetuning.py --images ROOT/test --out FOLDER"}
                facts |= {"date": str(date.today()), "torch": torch.__version__, "processor": processor()}
                facts |= {"pairs": GROUPS, "rows": rows}
                path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
                (RESULTS / "finetuning.md").write_text(page(rows), encoding="utf-8")


def page(rows: list[dict[str, Any]]) -> str:
    """The page of docs/results."""
    missing = len(SIZES) * len(SEEDS) * len(METHODS) - len(rows)
    note = f"\n{missing} trainings of the table are missing so far; the command above resumes.\n" if missing else ""
    return f"""# Fine-tuning for few images

    python docs/results/finetuning.py --images ROOT/test --out FOLDER

Test accuracy in percent, mean ± standard deviation of {len(SEEDS)} seeds (which images, their order, the first weights
of the head). `builtin:nano` of 2026-11-29 (1.8 M parameters, 32 px, 82.73 % of CIFAR-10's test images), the recipes
`finetune`, `linear_probe` and `lora` with the number of epochs in brackets, the last epoch; from scratch with
`optimizer.lr=1e-3`. The 5,000 test images chose nothing. Five classes, each an arbitrary pair of CIFAR-10's, from its
test images, on which the model was not trained; it was trained on images of the same kind, which favours the columns
that start from it.

{table(rows)}
{note}
[Figures](finetuning.json), [script](finetuning.py).
"""


if __name__ == "__main__":
    main()
