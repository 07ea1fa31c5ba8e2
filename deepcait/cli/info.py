"""Describe one model: sizes, cost, preprocessing, classes, provenance. Never downloads.

Examples:
    deepcait info cait_s24_224             a model of the paper
    deepcait info runs/pets                the best model of a run
    deepcait info model.safetensors        a weights file; sizes are inferred from its tensors
    deepcait info cait_s24_224 --img-size 224,384,448 --batch 1,64       activation memory
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from deepcait.cli.console import Console, percent
from deepcait.cli.options import whole_numbers

if TYPE_CHECKING:
    from deepcait.model.network import NetworkConfig

_NUM_SHOWN = 10


@dataclass(frozen=True)
class Args:
    """Options of `deepcait info`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model: a name, hf-hub:owner/name (if cached), a model or run folder, a weights file."""
    img_size: str = ""
    """Print activation memory for these image sides in pixels, separated by commas (with --batch: the model's)."""
    batch: str = ""
    """Print activation memory for these batch sizes, separated by commas (with --img-size: 1,8,64)."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Print what is known about the model."""
    from deepcait.model.networks import config_of
    from deepcait.weights import describe

    console = Console(json=args.json)
    batches = whole_numbers(args.batch or "1,8,64", "--batch")
    sizes = [(side, side) for side in whole_numbers(args.img_size, "--img-size")] if args.img_size else []
    facts = describe(args.spec)
    config = config_of(facts["config"])
    facts["backend"] = _backend(config)
    if args.batch or args.img_size:
        from deepcait.bench.activations import count_activations  # runs the model, which takes seconds

        facts["activations"] = count_activations(config, sizes or [config.img_size], batches)
    if args.json:
        console.result(facts)
        return
    for label, text in _lines(facts):
        console.say(f"{label.ljust(14)}{text}")
    if "activations" not in facts:
        console.say("activations   printed with --batch 1,8,64")
        return
    console.say("")
    console.say(
        "Activation memory in MiB, float32, without weights: the peak in inference; in training, saved for the backward"
    )
    console.say("pass by default, with compute.memory=small, and with compute.grad_checkpointing=true.")
    console.table(["image", "batch", "inference", "training", "memory=small", "checkpointing"], _activations(facts))


def _lines(facts: dict) -> list[tuple[str, str]]:
    from deepcait.data import Preprocessing

    accuracies = {"top-1": facts["top1"], "ReaL": facts["real"], "V2": facts["v2"]}
    size = facts["img_size"]
    lines = [
        ("model", facts["name"] or "none of the named models"),
        ("parameters", f"{facts['params']:,}"),
        ("multiply-adds", f"{facts['gmacs']:.2f} G per image"),
        ("image", f"{size} x {size} px" if isinstance(size, int) else " x ".join(map(str, size)) + " px"),
        ("released", "yes" if facts["released"] else "no"),
        ("published", ", ".join(f"{key} {percent(value)}" for key, value in accuracies.items() if value is not None)),
        ("preprocessing", str(Preprocessing.from_pretrained_cfg(facts["preprocessing"]))),
        ("backend", facts["backend"]),
        ("classes", _classes(facts["classes"], facts["preprocessing"].get("num_classes"))),
    ]
    for key in ("provenance", "metrics"):
        texts = [_fact(name, value) for name, value in (facts.get(key) or {}).items() if _is_short(value)]
        lines.append((key, ", ".join(texts)))
    return [(label, text) for label, text in lines if text]


def _backend(config: NetworkConfig) -> str | None:
    """The backend of the patch blocks, by device; None for a network without them."""
    import torch

    from deepcait.model.cait import CaiT
    from deepcait.model.networks import build_model

    with torch.device("meta"):
        model = build_model(config)
    if not isinstance(model, CaiT):
        return None
    return "; ".join(f"{device}: {model.describe_backend(device)}" for device in ("cpu", "cuda"))


def _activations(facts: dict) -> list[list[str]]:
    return [
        [" x ".join(map(str, row["img_size"])), str(row["batch"])]
        + [f"{value / 2**20:.1f}" for name, value in row.items() if name.endswith("_bytes")]
        for row in facts["activations"]
    ]


def _classes(names: list[str] | None, num_classes: int | None) -> str:
    if not names:
        return f"{num_classes:,}, without names" if num_classes else ""
    from deepcait.weights.imagenet import readable

    # Of the synonyms of an ImageNet class, the first.
    shown = [readable(name).partition(", ")[0] if readable(name) != name else name for name in names[:_NUM_SHOWN]]
    return f"{len(names):,}: {', '.join(shown)}" + (" ..." if len(names) > _NUM_SHOWN else "")


def _fact(name: str, value: object) -> str:
    """Return one fact as text: accuracies in percent, counts with commas, other numbers with four digits."""
    if isinstance(value, float):
        is_accuracy = name.endswith(("top1", "top5", "_accuracy", "_f1"))
        value = percent(value) if is_accuracy else f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    return f"{name.replace('_', ' ')} {value}"


def _is_short(value: object) -> bool:
    return value is not None and not isinstance(value, dict | list)
