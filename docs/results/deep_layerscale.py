"""What LayerScale changes in a deep, narrow network: losses by learning rate, strength of the branches, gammas.

    deepcait study deep-layerscale --data folder:cifar10 --data-name CIFAR-10 --out STUDY --seeds 3 --epochs 2
        --images 5000 --val-images 1000 --set compute.precision=fp32 keep.evaluate_every_epochs=2
    python docs/results/deep_layerscale.py STUDY --images FOLDER

STUDY: the study's folder with its runs. FOLDER: images in class folders that no run trained on; the first 20 of each
class are measured. Writes deep_layerscale.json and deep_layerscale.png. The strength of a branch is the 2-norm of what
it adds (with LayerScale) over that of the tokens it is added to, mean over tokens and images, as in the paper's Figure
3, whose way of averaging is not published.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcait.bench.inference import open_model
from deepcait.data import Preprocessing
from deepcait.data.image import open_image
from deepcait.data.listing import list_images
from deepcait.runtime.environment import environment

RESULTS = Path(__file__).parent
COLUMNS = {"baseline": "without LayerScale", "layerscale": "with LayerScale"}
TITLES = {"attention": "attention", "mlp": "MLP"}
PER_CLASS = 20


def losses(study: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Of each learning rate and column, by seed: validation loss and accuracy in percent after the last epoch."""
    found: dict[str, Any] = defaultdict(lambda: {name: {"loss": [], "top1_percent": []} for name in COLUMNS})
    for folder in sorted((study / "cells").iterdir()):
        row, column, _ = folder.name.split("--")
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = [entry for entry in map(json.loads, lines) if entry["kind"] == "eval"][-1]
        found[row][column]["loss"].append(round(last["loss"], 4))
        found[row][column]["top1_percent"].append(round(100 * last["top1"], 2))
    return dict(found)


@torch.inference_mode()
def strengths(model: nn.Module, images: Tensor) -> dict[str, list[float]]:
    """Of each block, for both branches: the mean over tokens of ||branch|| / ||tokens||."""
    found: dict[str, list[float]] = {"attention": [], "mlp": []}

    def measure(block: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        tokens = inputs[0]
        for name, norm, layer, gamma in (
            ("attention", block.norm1, block.attn, block.gamma_1),
            ("mlp", block.norm2, block.mlp, block.gamma_2),
        ):
            branch = layer(norm(tokens)) * (1.0 if gamma is None else gamma)
            found[name].append((branch.norm(dim=-1) / tokens.norm(dim=-1)).mean().item())
            tokens = tokens + branch

    handles = [block.register_forward_hook(measure) for block in model.blocks]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def measure(study: Path, images: Path, row: str) -> dict[str, Any]:
    """Strengths of both columns at a learning rate, mean over seeds, and all gammas of the runs with LayerScale."""
    found: dict[str, Any] = {}
    gammas: dict[str, list[Tensor]] = {"attention": [], "mlp": []}
    for column in COLUMNS:
        runs = sorted((study / "cells").glob(f"{row}--{column}--seed*"))
        by_run = []
        for run in runs:
            model = open_model(str(run / "last")).eval()
            by_run.append(strengths(model, read(images, model)))
            if column == "layerscale":
                for name, attribute in (("attention", "gamma_1"), ("mlp", "gamma_2")):
                    gammas[name] += [getattr(block, attribute).detach().abs() for block in model.blocks]
        found[column] = {
            name: [round(sum(values) / len(by_run), 5) for values in zip(*(one[name] for one in by_run), strict=True)]
            for name in ("attention", "mlp")
        }
    found["gammas"] = {name: histogram(torch.cat(values)) for name, values in gammas.items()}
    return found


def histogram(values: Tensor) -> dict[str, Any]:
    """How many values are in each of 60 equal steps up to the largest one, and the median."""
    counts, edges = torch.histogram(values, 60, range=(0.0, values.max().item()))
    return {
        "counts": [int(count) for count in counts],
        "edges": [round(edge, 6) for edge in edges.tolist()],
        "median": round(values.median().item(), 6),
    }


def read(folder: Path, model: Any) -> Tensor:
    """The first images of each class, preprocessed for the model."""
    preprocessing = Preprocessing.from_pretrained_cfg(model.pretrained_cfg)
    paths = [path for one in sorted(folder.iterdir()) for path in list_images(one)[:PER_CLASS]]
    return torch.stack([preprocessing(open_image(path)) for path in paths])


def plot(facts: dict[str, Any], path: Path) -> None:
    """Strength of the branches by block, and a histogram of the gammas."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    for column, colour in (("baseline", "#7a8290"), ("layerscale", "#24509e")):
        for name, style in (("attention", "-"), ("mlp", "--")):
            values = facts["strength"][column][name]
            left.plot(
                range(1, len(values) + 1), values, style, color=colour, label=f"{COLUMNS[column]}, {TITLES[name]}"
            )
    left.set(xlabel="block", ylabel="||branch|| / ||tokens||", yscale="log")
    left.legend(frameon=False, fontsize=8)
    for name, colour in (("attention", "#24509e"), ("mlp", "#c26a00")):
        gammas = facts["strength"]["gammas"][name]
        right.stairs(gammas["counts"], gammas["edges"], color=colour, label=TITLES[name])
    right.set(xlabel="|gamma|", ylabel="channels of all blocks and seeds")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def table(facts: dict[str, Any]) -> list[str]:
    """The losses, as lines of Markdown."""
    lines = ["| learning rate | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for row, columns in sorted(facts["losses"].items(), key=lambda one: rate(one[0])):
        cells = [", ".join(f"{loss:.2f}" for loss in columns[column]["loss"]) for column in COLUMNS]
        lines.append(f"| {rate(row):g} | " + " | ".join(cells) + " |")
    return lines


def rate(row: str) -> float:
    """The learning rate of a row, such as lr-4e-3."""
    return float(row.removeprefix("lr-"))


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--row", default="lr-4e-3", help="whose strengths and gammas are measured")
    args = parser.parse_args()
    facts = {
        "command": f"python docs/results/deep_layerscale.py STUDY --images FOLDER --row {args.row}",
        "losses": losses(args.study),
        "row": args.row,
        "num_images": 10 * PER_CLASS,
        "strength": measure(args.study, args.images, args.row),
        "environment": environment(),
    }
    (RESULTS / "deep_layerscale.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    plot(facts, RESULTS / "deep_layerscale.png")
    print("\n".join(table(facts)))


if __name__ == "__main__":
    main()
