"""See it work: use the model in the package, look into it, teach it something else, prove it, ship it; offline.

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
# Another grouping of the same photographs: what the fine-tuning learns.
_VEHICLES = ("airplane", "automobile", "ship", "truck")
_HELD_OUT_EVERY = 10  # of the training photographs, to validate on: the test ones are for the end


@dataclass(frozen=True)
class Args:
    """Options of `deepcait demo`."""

    out: Path | None = None
    """Folder for everything that it makes; without it deepcait-demo, or the next free deepcait-demo-N."""
    json: bool = False
    """Print one JSON object at the end and nothing else."""


def run(args: Args) -> int | None:
    """Classify, explain, fine-tune, evaluate before and after, export with proof, report."""
    from deepcait.classifier import load
    from deepcait.data import open_source
    from deepcait.training.run_folder import require_startable

    began = time.monotonic()
    console = Console(json=args.json, narrates=True)
    folder = args.out or _free_folder()
    require_startable(folder, resume=False)
    nano, test = load("builtin:nano", device="cpu"), open_source("builtin:demo", "test")
    console.say(f"1. The model in the package, {nano.model.config.num_params():,} parameters, on real photographs")
    measured = _measure(nano, test)
    console.say(f"measured       top-1 {percent(measured['top1'])} of {len(test)} test photographs (chance: 10.00 %)")
    pictures = _classify(nano, test, console)
    page = _explain(nano, pictures, folder / "looks", console)
    before, after, run_folder = _fine_tune(nano, test, folder, console)
    proof = _export(run_folder, folder / "model.pt2", console)
    report = run_folder / "report.html"
    places = {"run": str(run_folder), "model": str(run_folder / "best"), "page": str(page)}
    places |= {"report": str(report) if report.is_file() else None}
    _say_where(run_folder, folder, page, time.monotonic() - began, console)
    facts = {"top1": after["top1"], "before": before, "after": after, "nano": measured, "proof": proof}
    console.result({**places, **facts, "chance": 0.5, "pictures": pictures})


def _classify(classifier: Classifier, test: Source, console: Console) -> list[dict[str, Any]]:
    """Let the model name a few test photographs."""
    # Every class once, as far as they are shown: files are in order of class.
    paths = [Path(test.locate(round(i * len(test) / _SHOWN))) for i in range(_SHOWN)]
    shown = []
    for path, (best, *_) in zip(paths, classifier.predict(paths, topk=1), strict=True):
        console.say(f"  {path.parent.name:<12} -> {best.label:<12} {best.probability:6.1%}   {path}")
        shown.append(
            {"file": str(path), "class": path.parent.name, "label": best.label, "probability": best.probability}
        )
    return shown


def _explain(classifier: Classifier, pictures: Sequence[dict[str, Any]], out: Path, console: Console) -> Path:
    """Write where the class token looked in these photographs."""
    from deepcait.explain.writer import write_gallery

    console.say("\n2. Where its class token looks")
    paths = [Path(picture["file"]) for picture in pictures]
    with console.progress("explaining") as progress:
        write_gallery(classifier, paths, out, name="builtin:nano", steps=8, progress=progress)
    console.say(f"page           {out / 'index.html'}")
    return out / "index.html"


def _fine_tune(
    nano: Classifier, test: Source, folder: Path, console: Console
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Teach it animal or vehicle; return what it answered before and after, and the run."""
    from deepcait.classifier import load
    from deepcait.data import open_source
    from deepcait.report import write_at_end
    from deepcait.training.recipe import load_recipe
    from deepcait.training.run import train

    console.say("\n3. Fine-tuned to another grouping of the same photographs: animal or vehicle")
    groups = folder / "animal-or-vehicle.csv"
    run_folder = folder / "run"
    _write_groups(groups)
    recipe = load_recipe("demo", [f"data.source=csv:{groups}"])
    console.say(f"recipe         demo: {recipe.epochs} epochs; the list of photographs: {groups}")
    before = _grouped(nano, test)
    train(recipe, run_folder)
    after = _measure(load(run_folder, device="cpu"), open_source(f"csv:{groups}", "test"))
    for when, found in (("before", before), ("after", after)):
        console.say(
            f"{when:<15}{percent(found['top1'])} ({found['correct1']} of {found['num_images']} test photographs)"
        )
    console.say("(before: the ten answers of the model in the package, added up to the two groups; chance: 60.00 %)")
    write_at_end(run_folder)
    return before, after, run_folder


def _write_groups(path: Path) -> None:
    """Write the demo's photographs with their group as a CSV: train, val and test."""
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

    with warnings.catch_warnings(action="ignore", category=EvaluationWarning):  # chance is printed with each figure
        metrics = evaluate(classifier, source, batch_size=50, device="cpu")
    facts = metrics.to_dict()
    return {key: facts[key] for key in ("num_images", "correct1", "top1")}


def _grouped(nano: Classifier, test: Source) -> dict[str, Any]:
    """What the ten-class model knows of the groups: the larger of its two sums of probabilities."""
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

    console.say("\n4. Exported for a program without deepcait, and proven")
    found = resolve(str(run_folder))
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    about = {"model": found.name, "classes": found.classes, "preprocessing": preprocessing.to_pretrained_cfg()}
    verification, _ = export_file(found.model, "pt2", out, sample_images(preprocessing), about)
    console.say(f"verified by    {verification}")
    if not verification.holds:
        raise Refused(f"{out}: the exported program does not compute what the model does; nothing was written.")
    return verification.facts()


def _say_where(run_folder: Path, folder: Path, page: Path, seconds: float, console: Console) -> None:
    console.say("\n5. Where everything is")
    for what, where in (
        ("what it sees", page),
        ("the model", run_folder / "best"),
        ("its report", run_folder / "report.html"),
        ("its curves", run_folder / "metrics.csv"),
        ("the program", folder / "model.pt2"),
        ("try", f"deepcait predict {run_folder} PICTURE"),
        ("or", f"deepcait serve {run_folder}"),
    ):
        console.say(f"{what:<15}{where}")
    console.say(f"took           {seconds:.0f} s")


def _free_folder() -> Path:
    folder, number = Path("deepcait-demo"), 1
    while folder.exists():
        number += 1
        folder = Path(f"deepcait-demo-{number}")
    return folder
