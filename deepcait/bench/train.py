"""Benchmark a training step against timm's: time measured; saved activations, operators, bytes moved counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.bench.clock import Lane, ratio, set_up, take_turns
from deepcait.bench.inference import SEED, build_pair
from deepcait.bench.page import conditions, markdown_table
from deepcait.bench.work import Work
from deepcait.errors import ConfigError
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.networks import require_cait
from deepcait.runtime.device import autocast
from deepcait.training.compute import set_compute
from deepcait.training.footprint import kept_bytes
from deepcait.training.settings import Compute

# Settings of the memory allocators; all contestants run in one process, so under the same.
_ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_", "THP_MEM_ALLOC_ENABLE")
_LR = 1e-4


@dataclass(frozen=True)
class Contestant:
    """One implementation of the training step.

    Args:
        name: its name in the results.
        net: computes logits (B, K).
        model: the model whose parameters it trains.
        compute: deepcait's training settings; None for timm's model.
        compiled: whether it runs through `torch.compile`.
    """

    name: str
    net: nn.Module
    model: nn.Module
    compute: Compute | None
    compiled: bool

    def prepare(self) -> None:
        """Apply the settings; contestants of one side share the model."""
        if self.compute is not None:
            set_compute(require_cait(self.model), self.compute)


def compare_training(
    spec: str,
    *,
    batch: int = 16,
    rounds: int = 20,
    threads: int | None = None,
    precision: str = "fp32",
    compiled: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time a training step of a model and of timm's with the same weights, images and optimizer, in turns.

    A step is forward, cross-entropy, backward and AdamW, with the model's stochastic depth.

    Args:
        spec: a MODEL; a model name gets random weights.
        batch: images per step.
        rounds: timed rounds.
        threads: None keeps PyTorch's number.
        precision: fp32, or bf16 with autocast.
        compiled: include timm's model through `torch.compile`.
        progress: called with the rounds done and the rounds in total.

    Returns:
        For every contestant in `steps`: seconds, speedup over timm (and over timm compiled), bytes of saved
        activations, operators and bytes moved (not counted for compiled ones). `train_ratio` compares deepcait's
        default with timm eager, `train_ratio_compiled` with timm compiled.

    Raises:
        ConfigError: a number is out of range, timm does not have the model, it has no classifier, or no compiler.
    """
    threads = set_up(rounds, [batch], threads)
    ours, peer = build_pair(spec)
    require_classes(ours.config)
    contestants = _contestants(ours.train(), peer.train(), Compute(precision=precision), compiled)
    images_BCHW = torch.randn(batch, ours.config.in_chans, *ours.config.img_size)
    labels_B = torch.randint(0, ours.num_classes, (batch,))
    optimizers = {id(model): torch.optim.AdamW(model.parameters(), lr=_LR, fused=True) for model in (ours, peer)}
    lanes, counts = {}, {}
    for one in contestants:
        step = build_step(one, optimizers[id(one.model)], images_BCHW, labels_B, precision)
        lanes[one.name] = Lane(one.name, step)
        counts[one.name] = _count(one, step, images_BCHW, labels_B, precision)
    take_turns(list(lanes.values()), rounds, progress, warm=False)
    steps = {name: _figures(name, lanes, counts, batch) for name in lanes}
    return {
        "model": spec,
        "batch": batch,
        "precision": precision,
        "threads": threads,
        "rounds": rounds,
        "train_ratio": steps["ours"]["times_timm"]["ratio"],
        "train_ratio_compiled": steps["ours"]["times_timm_compiled"]["ratio"] if compiled else None,
        "steps": steps,
        **conditions(),
        "allocator": {key: value for key, value in os.environ.items() if key.startswith(_ALLOCATOR)},
    }


def require_classes(config: CaiTConfig) -> None:
    """Raise unless the model has a classifier.

    Raises:
        ConfigError: the model returns features.
    """
    if config.num_classes < 1:
        raise ConfigError(
            "a training step: the model has no classifier; it returns features.",
            remedy="Run bench without --train and --cost, or load the model with num_classes.",
        )


def _contestants(ours: CaiT, peer: nn.Module, compute: Compute, compiled: bool) -> list[Contestant]:
    found = [
        Contestant("timm", peer, peer, None, False),
        Contestant("ours", ours, ours, compute, False),
        Contestant("ours, memory small", ours, ours, replace(compute, memory="small"), False),
        Contestant("ours, checkpointing", ours, ours, replace(compute, grad_checkpointing=True), False),
    ]
    if compiled:
        # Compiled for this batch size alone, which is fastest. deepcait's step is a few operators already.
        found.append(
            Contestant("timm, compiled", cast("nn.Module", torch.compile(peer, dynamic=False)), peer, None, True)
        )
    return found


def build_step(
    one: Contestant, optimizer: torch.optim.Optimizer, images_BCHW: Tensor, labels_B: Tensor, precision: str
) -> Callable[[], None]:
    """Return a callable that runs one step of a contestant."""

    def step() -> None:
        one.prepare()
        _loss(one, images_BCHW, labels_B, precision).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _loss(one: Contestant, images_BCHW: Tensor, labels_B: Tensor, precision: str) -> Tensor:
    with autocast(precision):
        return F.cross_entropy(one.net(images_BCHW), labels_B)


def _count(
    one: Contestant, step: Callable[[], None], images_BCHW: Tensor, labels_B: Tensor, precision: str
) -> dict[str, int | None]:
    """Bytes saved by the forward pass, and the operations of a step."""
    one.prepare()
    torch.manual_seed(SEED)
    step()  # compiles now, and creates the optimizer's state
    if one.compiled:  # hooks and counters would make PyTorch run it uncompiled
        return dict.fromkeys(("kept_bytes", "operators", "moved_bytes", "flops"))
    kept = kept_bytes(one.model, lambda: _loss(one, images_BCHW, labels_B, precision))
    with Work() as work:
        step()
    return {
        "kept_bytes": kept,
        "operators": work.operators,
        "moved_bytes": work.moved_bytes,
        "flops": work.flops,
    }


def _figures(name: str, lanes: dict[str, Lane], counts: dict[str, dict], batch: int) -> dict[str, Any]:
    lane, theirs = lanes[name], counts["timm"]
    peers = {"times_timm": "timm", "times_timm_compiled": "timm, compiled"}
    return {
        "median_s": lane.median_s,
        "quartiles_s": lane.quartiles_s,
        "images_per_s": batch / lane.median_s,
        **{key: ratio(lane, lanes[peer]) for key, peer in peers.items() if peer in lanes},
        **counts[name],
        **{f"{key}_of_timm": _share(value, theirs[key]) for key, value in counts[name].items()},
    }


def _share(value: int | None, of: int) -> float | None:
    return None if value is None else value / of


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table's head and rows, as text."""
    head = ["step", "s", "quartiles", "times timm", "quartiles", "times timm compiled", "quartiles"]
    head += ["saved, MiB", "of timm", "operators", "moved, GiB"]
    lines = []
    for name, found in result["steps"].items():
        low, _, high = found["quartiles_s"]
        cells = [name.replace("ours", "deepcait"), f"{found['median_s']:.3f}", f"{low:.3f} to {high:.3f}"]
        for key in ("times_timm", "times_timm_compiled"):
            cells += _ratio_cells(found.get(key))
        if found["operators"] is None:
            cells += [""] * 4
        else:
            cells += [f"{found['kept_bytes'] / 2**20:.1f}", f"{found['kept_bytes_of_timm']:.3f}"]
            cells += [f"{found['operators']:,}", f"{found['moved_bytes'] / 2**30:.2f}"]
        lines.append(cells)
    return head, lines


def _ratio_cells(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", ""]
    low, _, high = found["quartiles"]
    return [f"{found['ratio']:.2f}", f"{low:.2f} to {high:.2f}"]


def markdown(result: dict[str, Any], command: str) -> str:
    """The results as a page."""
    return "\n".join(
        [
            f"# A training step: {result['model']} against timm",
            "",
            f"    {command}",
            "",
            f"Batch {result['batch']}, {result['precision']}, {result['threads']} threads, medians of "
            f"{result['rounds']} alternating rounds; {result['cpu']}; commit {result['environment']['commit']}. A step "
            "is forward, cross-entropy, backward and AdamW, with the same weights, images and stochastic depth. "
            "Saved: bytes of activations for the backward pass, without parameters, each storage once. Operators: "
            "those that compute or copy in a step; moved: their inputs and outputs. These are counted, not measured.",
            "",
            *markdown_table(*table(result)),
        ]
    ) + "\n"  # fmt: skip
