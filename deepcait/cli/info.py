"""Describe one model: sizes, cost, preprocessing, classes, where its weights come from. Never downloads.

Examples:
    deepcait info cait_s24_224             a model of the paper
    deepcait info runs/pets                the best model of a run
    deepcait info model.safetensors        a weights file: sizes are read off its tensors
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from deepcait.cli.console import Console, percent

_NUM_SHOWN = 10


@dataclass(frozen=True)
class Args:
    """Options of `deepcait info`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """The model: a name, hf-hub:owner/name (if it is in the cache), a folder, a run or a weights file."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Print what is known about the model."""
    from deepcait.weights import describe

    console = Console(json=args.json)
    facts = describe(args.spec)
    if args.json:
        console.result(facts)
        return
    for label, text in _lines(facts):
        console.say(f"{label.ljust(14)}{text}")


def _lines(facts: dict) -> list[tuple[str, str]]:
    from deepcait.data import Preprocessing

    accuracies = {"top-1": facts["top1"], "ReaL": facts["real"], "V2": facts["v2"]}
    size = facts["img_size"]
    lines = [
        ("model", facts["name"] or "not one of the paper's"),
        ("parameters", f"{facts['params']:,}"),
        ("multiply-adds", f"{facts['gmacs']:.2f} G for one image"),
        ("image", f"{size} x {size} px" if isinstance(size, int) else " x ".join(map(str, size)) + " px"),
        ("released", "yes" if facts["released"] else "no"),
        ("published", ", ".join(f"{key} {percent(value)}" for key, value in accuracies.items() if value is not None)),
        ("preprocessing", str(Preprocessing.from_pretrained_cfg(facts["preprocessing"]))),
        ("classes", _classes(facts["classes"], facts["preprocessing"].get("num_classes"))),
    ]
    for key in ("provenance", "metrics"):
        texts = [f"{name} {value}" for name, value in (facts.get(key) or {}).items() if _is_short(value)]
        lines.append((key, ", ".join(texts)))
    return [(label, text) for label, text in lines if text]


def _classes(names: list[str] | None, num_classes: int | None) -> str:
    if not names:
        return f"{num_classes:,}, without names" if num_classes else ""
    shown = ", ".join(names[:_NUM_SHOWN])
    return f"{len(names):,}: {shown}" + (" ..." if len(names) > _NUM_SHOWN else "")


def _is_short(value: object) -> bool:
    return value is not None and not isinstance(value, dict | list)
