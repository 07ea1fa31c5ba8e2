"""Measure what the page on scaling is computed from; writes scaling.json.

    python docs/results/scaling.py

Two processes on this machine, one thread each, take turns: one of them computes a whole step of CaiT-XXS24 alone; both
compute half a step beside each other without exchanging anything; both exchange gradients without computing; both do a
step together, as training does. If steps are compute plus exchange, the last is the sum of the two before.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import deepcait
from deepcait.model.variants import variant_config
from deepcait.runtime.environment import environment

NAME, GLOBAL_BATCH, PROCESSES = "cait_xxs24_224", 16, 2
PAPER_BATCH, LATENCY_S = 1024, 50e-6


def exchange_s(num_params: int, processes: int, gbit_per_s: float) -> float:
    """Seconds of a ring all-reduce of float32 gradients: each process sends and receives 2 (n - 1) / n of them."""
    seconds = 2 * (processes - 1) / processes * 4 * num_params * 8 / (gbit_per_s * 1e9)
    return seconds + 2 * (processes - 1) * LATENCY_S


def machines_table(images_per_s: float) -> list[str]:
    """Rows: one step of the paper's batch on machines of the measured speed, over networks of three bandwidths."""
    num_params = variant_config(NAME).num_params()
    rows = []
    for processes in (1, 2, 8, 64, 256, 1024):
        compute = PAPER_BATCH / processes / images_per_s
        cells = []
        for gbit_per_s in (1, 10, 100):
            step = compute + exchange_s(num_params, processes, gbit_per_s)
            cells.append(f"{step:.3g} s, {PAPER_BATCH / images_per_s / step / processes:.0%}")
        rows.append(f"| {processes} | {PAPER_BATCH / processes:g} | {compute:.3g} s | " + " | ".join(cells) + " |")
    return rows


def speed_table() -> list[str]:
    """Rows: how fast a process of 8 must compute before exchanging takes a tenth of its step."""
    rows = []
    for name in ("cait_xxs24_224", "cait_s24_224", "cait_m36_224"):
        num_params = variant_config(name).num_params()
        speeds = [PAPER_BATCH / 8 / (9 * exchange_s(num_params, 8, gbit_per_s)) for gbit_per_s in (1, 10, 100, 1000)]
        rows.append(f"| `{name}` | {4 * num_params / 1e6:.0f} MB | " + " | ".join(f"{v:,.0f}" for v in speeds) + " |")
    return rows


def step_of(net: nn.Module, batch: int) -> Callable[[], None]:
    """One step of training on `batch` images: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    images_BCHW, labels_B = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(images_BCHW), labels_B).backward()
        optimizer.step()

    return step


def timed_s(work: Callable[[], None] | None) -> float:
    """The time until both processes are through, seconds; None waits for the other."""
    dist.barrier()
    began = time.perf_counter()
    if work is not None:
        work()
    dist.barrier()
    return time.perf_counter() - began


def process(rank: int, rounds: int, store: str, out: str) -> None:
    """One of the two processes; the first writes the times of all rounds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    model = deepcait.create_model(NAME).train()
    whole, half = step_of(model, GLOBAL_BATCH), step_of(model, GLOBAL_BATCH // PROCESSES)
    together = step_of(DistributedDataParallel(deepcait.create_model(NAME).train()), GLOBAL_BATCH // PROCESSES)
    gradients = torch.randn(sum(parameter.numel() for parameter in model.parameters()))
    works: dict[str, Callable[[], None] | None] = {
        "alone": whole if rank == 0 else None,
        "beside": half,
        "exchange": lambda: dist.all_reduce(gradients),
        "together": together,
    }
    for work in works.values():
        timed_s(work)
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(timed_s(work))
    if rank == 0:
        Path(out).write_text(json.dumps(times), encoding="utf-8")
    dist.destroy_process_group()


def main(rounds: int) -> None:
    """Measure, and write medians and quartiles."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        arguments = (rounds, str(Path(folder) / "store"), str(Path(folder) / "times.json"))
        torch.multiprocessing.spawn(process, arguments, nprocs=PROCESSES)
        times = json.loads(Path(arguments[2]).read_text(encoding="utf-8"))
    median_s = {name: round(statistics.median(values), 4) for name, values in times.items()}
    computed_s = median_s["beside"] + median_s["exchange"]
    facts = {
        "what": f"one training step of {NAME}, {GLOBAL_BATCH} images: by one process, and shared by two; fp32",
        "command": "python docs/results/scaling.py",
        "date": str(date.today()),
        **environment(),
        "rounds": rounds,
        "median_s": median_s,
        "quartiles_s": {name: [round(q, 4) for q in statistics.quantiles(values)] for name, values in times.items()},
        "computed_together_s": round(computed_s, 4),
        "measured_over_computed": round(median_s["together"] / computed_s, 4),
        "images_per_s_alone": round(GLOBAL_BATCH / median_s["alone"], 2),
    }
    text = json.dumps(facts, indent=1)
    (Path(__file__).parent / "scaling.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
