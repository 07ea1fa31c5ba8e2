"""Run a short example, offline: predict, explain, fine-tune and compare with training from scratch, export.

Examples:
    deepcait demo
    deepcait demo --out my-first-run
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcait.cli.console import Console, percent

if TYPE_CHECKING:
    from deepcait.classifier import Classifier
    from deepcait.data.source import Source

_SHOWN = 6
# The task of the fine-tuning: another grouping of the same images.
_VEHICLES = ("airplane", "automobile", "ship", "truck")
_HELD_OUT_EVERY = 10  # of the training images, for validation; test images are only evaluated at the end


@dataclass(frozen=True)
class Args:
    """Options of `deepcait demo`."""

    out: Path | None = None
    """Folder for all results (default: deepcait-demo, or the next free deepcait-demo-N)."""
    json: bool = False
    """Print one JSON object at the end and nothing else."""


def run(args: Args) -> int | None:
    """Predict, explain, fine-tune, compare with training from scratch, export."""
    from deepcait.classifier import load
    from deepcait.data import open_source
    from deepcait.training.run_folder import require_startable

    began = time.monotonic()
    console = Console(json=args.json, narrates=True)
    folder = args.out or _free_folder()
    require_startable(folder, resume=False)
    nano, test = load("builtin:nano", device="cpu"), open_source("builtin:demo", "test")
    console.say(f"1. Predict with the model in the package ({nano.model.config.num_params():,} parameters)")
    measured = _measure(nano, test)
    console.say(f"evaluated      top-1 {percent(measured['top1'])} on {len(test)} test images (chance: 10.00 %)")
    shown = _classify(nano, test, console)
    page = _explain(nano, shown, folder / "explanation", console)
    run_folder = folder / "run"
    found = _fine_tune(nano, test, folder, console)
    proof = _export(run_folder, folder / "model.pt2", console)
    report = run_folder / "report.html"
    places = {"run": str(run_folder), "model": str(run_folder / "best"), "page": str(page)}
    places |= {"report": str(report) if report.is_file() else None}
    _say_where(run_folder, folder, page, time.monotonic() - began, console)
    facts = {"top1": found["after"]["top1"], **found, "nano": measured, "proof": proof}
    console.result({**places, **facts, "chance": 0.5, "pictures": shown})


def _classify(classifier: Classifier, test: Source, console: Console) -> list[dict[str, Any]]:
    """Predict a few test images."""
    # Files are in order of class: show different classes.
    paths = [Path(test.locate(round(i * len(test) / _SHOWN))) for i in range(_SHOWN)]
    shown = []
    for path, (best, *_) in zip(paths, classifier.predict(paths, topk=1), strict=True):
        console.say(f"  {path.parent.name:<12} -> {best.label:<12} {100 * best.probability:5.1f} %   {path}")
        shown.append(
            {"file": str(path), "class": path.parent.name, "label": best.label, "probability": best.probability}
        )
    return shown


def _explain(classifier: Classifier, shown: Sequence[dict[str, Any]], out: Path, console: Console) -> Path:
    """Write a page with the attention maps of these images."""
    from deepcait.explain.writer import write_gallery

    console.say("\n2. Explain these predictions by attention maps")
    paths = [Path(one["file"]) for one in shown]
    with console.progress("explaining") as progress:
        write_gallery(classifier, paths, out, name="builtin:nano", steps=8, progress=progress)
    console.say(f"page           {out / 'index.html'}")
    return out / "index.html"


def _fine_tune(nano: Classifier, test: Source, folder: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Fine-tune to animal or vehicle, train the same from scratch, and evaluate both on the test images."""
    from deepcait.classifier import load
    from deepcait.data import open_source
    from deepcait.report import write_at_end
    from deepcait.training.recipe import load_recipe
    from deepcait.training.run import train

    console.say("\n3. Fine-tune to another task, animal or vehicle, and train the same from scratch")
    groups = folder / "animal-or-vehicle.csv"
    _write_groups(groups)
    found = {"before": _grouped(nano, test)}
    for key, name, start in (("after", "run", []), ("scratch", "scratch", ["start=random", "model=cait_nano_32"])):
        recipe = load_recipe("demo", [f"data.source=csv:{groups}", *start])
        console.say(f"training       {recipe.epochs} epochs {'from random' if start else 'from the trained'} weights")
        train(recipe, folder / name)
        found[key] = _measure(load(folder / name, device="cpu"), open_source(f"csv:{groups}", "test"))
    write_at_end(folder / "run")
    console.say(f"\ntop-1 on {len(test)} test images, which no training used (chance: 50.00 %, always animal: 60.00 %)")
    for name, key in (("fine-tuned", "after"), ("from scratch", "scratch")):
        console.say(f"{name:<15}{percent(found[key]['top1'])}")
    reference = "the ten-class model, trained on 47,500 images, its probabilities summed per group"
    console.say(f"for reference  {percent(found['before']['top1'])} ({reference})")
    return found


def _write_groups(path: Path) -> None:
    """Write the demo's images with their group as a CSV: train, val and test."""
    import csv
    import io

    from deepcait.data import open_source
    from deepcait.runtime.files import write_bytes

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split"))
    for split in ("train", "test"):
        source = open_source("builtin:demo", split)
        for index, label in enumerate(source.labels):
            part = "val" if split == "train" and index % _HELD_OUT_EVERY == 0 else split
            rows.writerow((source.locate(index), _group(source.classes[label or 0]), part))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.getvalue().encode())


def _group(name: str) -> str:
    return "vehicle" if name in _VEHICLES else "animal"


def _measure(classifier: Classifier, source: Source) -> dict[str, Any]:
    import warnings

    from deepcait.errors import EvaluationWarning
    from deepcait.evaluation import evaluate

    with warnings.catch_warnings(action="ignore", category=EvaluationWarning):  # chance is printed with each accuracy
        metrics = evaluate(classifier, source, batch_size=50, device="cpu")
    facts = metrics.to_dict()
    return {key: facts[key] for key in ("num_images", "correct1", "top1")}


def _grouped(nano: Classifier, test: Source) -> dict[str, Any]:
    """Evaluate the ten-class model on the groups, by its probabilities summed per group."""
    import torch

    from deepcait.data import open_image

    vehicle_K = torch.tensor([_group(nano.label(index)) == "vehicle" for index in range(nano.model.num_classes)])
    correct = 0
    for start in range(0, len(test), 50):
        indices = range(start, min(start + 50, len(test)))
        images = torch.stack([nano.preprocessing(open_image(test.read(index).data)) for index in indices])
        says_vehicle_B = nano.logits(images).softmax(-1)[:, vehicle_K].sum(-1) > 0.5
        truth_B = torch.tensor([_group(test.classes[test.labels[index] or 0]) == "vehicle" for index in indices])
        correct += int((says_vehicle_B == truth_B).sum())
    return {"num_images": len(test), "correct1": correct, "top1": correct / len(test)}


def _export(run_folder: Path, out: Path, console: Console) -> dict[str, Any]:
    """Export the fine-tuned model with torch.export, and verify it."""
    from deepcait.cli.exits import Refused
    from deepcait.data import Preprocessing
    from deepcait.inference.export import export_file, sample_images
    from deepcait.weights import resolve

    console.say("\n4. Export for programs without deepcait (torch.export)")
    found = resolve(str(run_folder))
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    about = {"model": found.name, "classes": found.classes, "preprocessing": preprocessing.to_pretrained_cfg()}
    verification, _ = export_file(found.model, "pt2", out, sample_images(preprocessing), about)
    console.say(f"verified by    {verification}")
    if not verification.holds:
        raise Refused(f"{out}: verification of the export failed; nothing was written.")
    return verification.facts()


def _say_where(run_folder: Path, folder: Path, page: Path, seconds: float, console: Console) -> None:
    console.say("\n5. Results, and what to try next")
    for what, where in (
        ("attention maps", page),
        ("the model", run_folder / "best"),
        ("its report", run_folder / "report.html"),
        ("its curves", run_folder / "metrics.csv"),
        ("the export", folder / "model.pt2"),
        ("try next", f"deepcait predict {run_folder} IMAGE"),
        ("", f"deepcait serve {run_folder}"),
        ("", "deepcait train --data FOLDER --out runs/mine      your images, one folder per class"),
    ):
        console.say(f"{what:<15}{where}")
    console.say(f"took           {seconds:.0f} s")


def _free_folder() -> Path:
    folder, number = Path("deepcait-demo"), 1
    while folder.exists():
        number += 1
        folder = Path(f"deepcait-demo-{number}")
    return folder
