"""Which measure of few validation images chooses the best epoch; writes best_by.json and best_by.md.

    python docs/results/best_by.py --photos PHOTOS --out FOLDER

PHOTOS: the photographs that walk/photographs.csv lists. FOLDER: where runs are kept; what is done is not done again.
Three small sets, drawn again for each of five seeds, on which `builtin:nano` is fine-tuned with the recipe `finetune`
without early stopping. After every epoch the model is measured on the validation images and on test images that
choose nothing. Then each measure chooses its epoch from the same rows: of all epochs, and with early stopping.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import deepcait
from deepcait.evaluation import summarise
from deepcait.runtime.environment import environment
from deepcait.training.best import MEASURES, is_better, score_of

RESULTS = Path(__file__).parent
DEMO = Path(deepcait.__file__).parent / "assets" / "demo" / "test"  # builtin:nano was not trained on these
PAIRS = {"airplane": "a", "cat": "a", "automobile": "b", "frog": "b", "bird": "c", "truck": "c"}
PAIRS |= {"deer": "d", "ship": "d", "dog": "e", "horse": "e"}
SEEDS, EPOCHS, PATIENCE = range(5), 16, 6
SETTINGS = {"epochs": EPOCHS, "keep.patience_epochs": 0, "ema.decay": 0, "data.num_workers": 0, "global_batch_size": 16}
# Set -> images of a class for training and validation; the rest is the test, at most TEST of each class.
SETS = {
    "pairs of CIFAR-10's classes": [(20, 6)] * 5,
    "the same, unbalanced": [(40, 12), (24, 7), (14, 4), (8, 2), (5, 2)],
    "photographs, seven groups": [(0.5, 0.12)] * 7,
}
TEST = 40


def groups(name: str, photos: Path) -> dict[str, list[Path]]:
    """The files of each class of a set."""
    found: dict[str, list[Path]] = {}
    if name.startswith("photographs"):
        with (RESULTS / "walk" / "photographs.csv").open(encoding="utf-8") as listed:
            for row in csv.DictReader(listed):
                found.setdefault(row["class"], []).append(photos / row["file"])
    else:
        for original, group in PAIRS.items():
            found.setdefault(group, []).extend(sorted((DEMO / original).iterdir()))
    return found


def draw(name: str, seed: int, photos: Path, out: Path) -> Path:
    """Write a manifest of one draw of a set."""
    rows = []
    for (label, files), (train, val) in zip(sorted(groups(name, photos).items()), SETS[name], strict=True):
        random.Random(f"{seed} {label}").shuffle(files)
        numbers = [count if count >= 1 else max(1, round(count * len(files))) for count in (train, val)]
        parts = ["train"] * numbers[0] + ["val"] * numbers[1] + ["test"] * TEST
        rows += [(str(file.resolve()), label, part) for file, part in zip(files, parts, strict=False)]
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return out


def measure(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once, and measure the model of every epoch on the validation and on the test images."""
    folder = args.out / f"{list(SETS).index(name)}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data, rows = draw(name, seed, args.photos, folder / "images.csv"), []

    def each_epoch(event: Any) -> None:
        if event.kind == "evaluation":
            model = deepcait.load(event.folder / "last", device="cpu")
            val, test = (deepcait.evaluate(model, str(data), split=split) for split in ("val", "test"))
            more = {key: summarise(val)[key] for key in ("balanced_accuracy", "macro_f1")}
            facts = {"test_balanced": summarise(test)["balanced_accuracy"], "test_top1": test.top1}
            rows.append(val.to_dict() | more | facts | {"num_test": test.num_images})

    settings = SETTINGS | {"seed": seed}
    deepcait.train(
        str(data), folder / "run", model="builtin:nano", recipe="finetune", settings=settings, callbacks=[each_epoch]
    )
    return {"set": name, "seed": seed, "epochs": rows}


def chosen(rows: list[dict[str, Any]], measure: str, patience: int) -> int:
    """The index of the epoch that a run keeps as its best."""
    best, score = 0, None
    for number, row in enumerate(rows):
        now = score_of(row, measure)
        if number == 0 or is_better(now, score):
            best, score = number, now
        if patience and number - best >= patience:
            break
    return best


def accuracies(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[float]]]:
    """Each way to choose and the test accuracy of what it chose, one per run."""
    for patience in (PATIENCE, 0):
        for key, words in MEASURES.items():
            text = words.removeprefix("validation ") + (
                f", stops after {patience} epochs without a better one" * bool(patience)
            )
            yield text, [run["epochs"][chosen(run["epochs"], key, patience)]["test_balanced"] for run in rows]
    yield "the last epoch", [run["epochs"][-1]["test_balanced"] for run in rows]
    yield "the best on the test images (a bound)", [max(row["test_balanced"] for row in run["epochs"]) for run in rows]


def page(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The page of docs/results."""
    by_set = {name: [run for run in rows if run["set"] == name] for name in SETS}
    names = [name for name in SETS if len(by_set[name]) > 1]
    missing = [f"{name}: {len(by_set[name])} of {len(SEEDS)} seeds" for name in SETS if len(by_set[name]) < len(SEEDS)]
    columns = [f"{name} ({len(by_set[name])} seeds)" for name in names]
    table = ["| chosen by | " + " | ".join(columns) + " | all |", "| --- |" + " ---: |" * (len(names) + 1)]
    for text, every in accuracies(rows):
        cells = []
        for name in names:
            found = [100 * value for value in dict(accuracies(by_set[name]))[text]]
            cells.append(f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}")
        table.append(f"| {text} | " + " | ".join(cells) + f" | {100 * statistics.mean(every):.1f} |")
    sizes = []
    for name in names:
        first = by_set[name][0]["epochs"][0]
        sizes.append(f"{name}: {first['num_images']} validation and {first['num_test']} test images")
    software = facts["environment"]
    versions = ", ".join(f"{key} {value}" for key, value in software["versions"].items())
    return f"""# What chooses the best epoch of a small set

    {facts["command"]}

Balanced accuracy on the test images, in percent, of the epoch that each measure of the validation images chooses: mean
± standard deviation of the seeds (which images, their order, the first weights of the head). `builtin:nano`
fine-tuned by the recipe `finetune` for {EPOCHS} epochs in steps of 16 images. All rows choose from the same
{len(rows)} trainings. Images: {"; ".join(sizes)}.{" Not complete: " + "; ".join(missing) + "." if missing else ""}

{chr(10).join(table)}

{verdict(rows)}

{software["processor"]}, {software["cpus"]} processors, {software["threads"]} thread; {versions};
commit {software["commit"]}; {facts["date"]}. [Every epoch](best_by.json), [script](best_by.py).
"""


def verdict(rows: list[dict[str, Any]]) -> str:
    """The paired differences of the loss from top-1, in words."""
    lines = []
    for patience, words in ((PATIENCE, f"With early stopping after {PATIENCE} epochs"), (0, "Without early stopping")):
        pairs = [
            [run["epochs"][chosen(run["epochs"], key, patience)]["test_balanced"] for key in ("loss", "top1")]
            for run in rows
        ]
        points = [100 * (loss - top1) for loss, top1 in pairs]
        error = statistics.stdev(points) / len(points) ** 0.5
        better, worse = sum(point > 0 for point in points), sum(point < 0 for point in points)
        last = sum(chosen(run["epochs"], "loss", patience) == len(run["epochs"]) - 1 for run in rows)
        lines.append(
            f"{words} the epoch that the loss chooses is {statistics.mean(points):+.2f} ± {error:.2f} points better "
            f"than that of top-1 (mean and its standard error): better in {better}, worse in {worse} of "
            f"{len(points)} runs. The loss chose the last epoch in {last} of them."
        )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=len(SETS) * len(SEEDS), help="trainings now; the rest another time")
    args = parser.parse_args()
    rows = []
    for name in SETS:
        for seed in SEEDS:
            kept = args.out / f"{list(SETS).index(name)}-{seed}.json"
            if not kept.exists():
                if not args.most:
                    continue
                args.most -= 1
                kept.write_text(json.dumps(measure(name, seed, args)), encoding="utf-8")
            rows.append(json.loads(kept.read_text(encoding="utf-8")))
            print(name, seed, flush=True)
    facts = {"command": "python docs/results/best_by.py --photos PHOTOS --out FOLDER", "date": str(date.today())}
    facts |= {"environment": environment(), "settings": SETTINGS}
    (RESULTS / "best_by.json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "best_by.md").write_text(page(rows, facts), encoding="utf-8")


if __name__ == "__main__":
    main()
