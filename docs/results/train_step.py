"""A training step of CaiT-XXS24 beside timm's in one alternating run, and the bytes kept for backward, counted.

    OMP_NUM_THREADS=2 python docs/results/train_step.py [--rounds 20] [--batch 16]

Writes train_step.json. A step: forward, cross-entropy, backward, AdamW; float32, the same images. The bytes: every
storage that autograd keeps, once, parameters left out. timm compiled by inductor is a contestant with --compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from deepcait.model import CaiT
from deepcait.model.variants import variant_config
from deepcait.train.journal import environment

NAME = "cait_xxs24_224"


def ours(change: Callable[[CaiT], None] | None = None) -> CaiT:
    """Our network, in training mode, after a setting."""
    model = CaiT(variant_config(NAME)).train()
    if change:
        change(model)
    return model


def contestants(compiled: bool) -> dict[str, nn.Module]:
    """Everybody, by name; the drop-path rate is the paper's for all."""
    theirs = timm.create_model(NAME, drop_path_rate=0.05).train()
    found: dict[str, nn.Module] = {"timm": theirs}
    if compiled:
        found["timm compiled"] = torch.compile(timm.create_model(NAME, drop_path_rate=0.05).train())
    found["ours"] = ours()
    found["ours, memory small"] = ours(CaiT.set_small_memory)
    found["ours, checkpointing"] = ours(CaiT.set_grad_checkpointing)
    found["ours, plain attention"] = ours(lambda model: model.set_lean_attention(False))
    return found


def kept_bytes(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Bytes kept for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nn.functional.cross_entropy(model(images), labels)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in storages.items() if place not in own)


def main() -> None:
    """Count, then measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = torch.randn(args.batch, 3, 224, 224), torch.randint(0, 1000, (args.batch,))
    models = contestants(args.compiled)
    counted = {name: kept_bytes(model, images, labels) for name, model in models.items() if "compiled" not in name}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for name, model in models.items()}

    def step(name: str) -> float:
        began = time.perf_counter()
        nn.functional.cross_entropy(models[name](images), labels).backward()
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)
        return time.perf_counter() - began

    for name in models:
        step(name)
    seconds = {name: [] for name in models}
    for _ in range(args.rounds):
        for name in models:
            seconds[name].append(step(name))
    rows = {
        name: {
            "median_s": statistics.median(taken),
            "quartiles_s": statistics.quantiles(taken, n=4)[::2],
            "times_timm": statistics.median(a / b for a, b in zip(seconds["timm"], taken, strict=True)),
            "kept_bytes": counted.get(name),
            "kept_of_timm": counted[name] / counted["timm"] if name in counted else None,
        }
        for name, taken in seconds.items()
    }
    found = {
        "what": f"a training step of {NAME}, batch {args.batch}, float32, {args.rounds} alternating rounds",
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python docs/results/train_step.py "
        f"--rounds {args.rounds} --batch {args.batch}{' --compiled' if args.compiled else ''}",
        "date": str(date.today()),
        "environment": environment(),
        "result": rows,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(f"{name:<24}{row['median_s']:.3f} s  {row['times_timm']:.2f} times timm  {row['kept_of_timm']}")


if __name__ == "__main__":
    main()
