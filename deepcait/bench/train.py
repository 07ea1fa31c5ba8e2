"""A training step of ours beside timm's: seconds in turns, bytes kept, operators and bytes moved counted."""

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
from deepcait.training.compute import autocast, set_compute
from deepcait.training.footprint import kept_bytes
from deepcait.training.settings import Compute

# What decides how memory is asked for; everybody here runs in one process, so under the same.
_ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_", "THP_MEM_ALLOC_ENABLE")
_LR = 1e-4


@dataclass(frozen=True)
class Contestant:
    """One way to take the same step.

    Args:
        name: in the results.
        net: computes logits (B, K).
        model: whose parameters it trains.
        compute: how ours shall train; None for timm's.
        compiled: whether PyTorch's compiler has it.
    """

    name: str
    net: nn.Module
    model: nn.Module
    compute: Compute | None
    compiled: bool

    def prepare(self) -> None:
        """Make the model train this way; contestants of one side share it."""
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
    """Time a training step of a model beside timm's with the same weights, images and optimizer, all in turns.

    A step is forward, cross-entropy, backward and AdamW, with the model's stochastic depth.

    Args:
        spec: a model; of a name alone the weights are random.
        batch: images a step.
        rounds: counted rounds.
        threads: None takes PyTorch's.
        precision: fp32, or bf16 by autocast.
        compiled: timm's through `torch.compile` too.
        progress: called with rounds done and to do.

    Returns:
        For every contestant in `steps`: seconds, how many times faster than timm (and than timm compiled), bytes kept
        for the backward pass, operators and bytes moved; these are not counted of compiled ones. `train_ratio` is
        ours by default against timm eager, `train_ratio_compiled` against timm compiled.

    Raises:
        ConfigError: numbers that make no sense, a model that timm doesn't have or without classes, no compiler.
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
    """Pass for a model that can be trained.

    Raises:
        ConfigError: one that gives features.
    """
    if config.num_classes < 1:
        raise ConfigError(
            "a training step: expected a model with classes, got one that gives features.",
            remedy="Measure it without --train and --cost, or give the model a head.",
        )


def _contestants(ours: CaiT, peer: nn.Module, compute: Compute, compiled: bool) -> list[Contestant]:
    found = [
        Contestant("timm", peer, peer, None, False),
        Contestant("ours", ours, ours, compute, False),
        Contestant("ours, memory small", ours, ours, replace(compute, memory="small"), False),
        Contestant("ours, checkpointing", ours, ours, replace(compute, grad_checkpointing=True), False),
    ]
    if compiled:
        # A program for this batch size alone: what is fastest. Ours is made of a few operators: nothing to compile.
        found.append(
            Contestant("timm, compiled", cast("nn.Module", torch.compile(peer, dynamic=False)), peer, None, True)
        )
    return found


def build_step(
    one: Contestant, optimizer: torch.optim.Optimizer, images_BCHW: Tensor, labels_B: Tensor, precision: str
) -> Callable[[], None]:
    """Return what takes a step of a contestant."""

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
    """Bytes kept by the forward pass, and the work of a whole step."""
    one.prepare()
    torch.manual_seed(SEED)
    step()  # the compiler works now; the optimizer makes its moments
    if one.compiled:  # under hooks and counters PyTorch would run it uncompiled
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
    """Head and lines of the table, as text."""
    head = ["step", "s", "quartiles", "times timm", "quartiles", "times timm compiled", "quartiles"]
    head += ["kept, MiB", "of timm", "operators", "moved, GiB"]
    lines = []
    for name, found in result["steps"].items():
        low, _, high = found["quartiles_s"]
        cells = [name, f"{found['median_s']:.3f}", f"{low:.3f} to {high:.3f}"]
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
    """The figures as a page."""
    return "\n".join(
        [
            f"# A training step: {result['model']} against timm",
            "",
            f"    {command}",
            "",
            f"Batch {result['batch']}, {result['precision']}, {result['threads']} threads, medians of "
            f"{result['rounds']} alternating rounds; {result['cpu']}; commit {result['environment']['commit']}. A step "
            "is forward, cross-entropy, backward and AdamW, with the same weights, images and stochastic depth. "
            "Kept: bytes for the backward pass, parameters left out, each storage once. Operators: those that compute "
            "or copy, in a whole step; moved: their inputs and outputs. These are counted, not measured.",
            "",
            *markdown_table(*table(result)),
        ]
    ) + "\n"  # fmt: skip
