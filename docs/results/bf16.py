"""bf16 on a CPU: our patch stage against OpenVINO's default, both also in fp32, and the products alone.

    python docs/results/bf16.py MODEL --batch 1,8 --threads 2 --rounds 20 --out FILE.json

All take turns in one run. Weights are random with LayerScale of order 1; errors are those of the logits of random
images against the network itself in fp32, over their standard deviation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcait.bench.clock import Lane, ratio, take_turns
from deepcait.bench.inference import Peer, build_pair, logit_error
from deepcait.bench.limit import count_products, product_lanes
from deepcait.inference.engines import KINDS, build_engine, openvino_default
from deepcait.runtime.environment import environment, processor, version


def measure(name: str, batches: list[int], threads: int, rounds: int) -> dict[str, Any]:
    """Build the contestants and time them at each batch."""
    torch.set_num_threads(threads)
    ours, peer = build_pair(name)
    wrapped = Peer(peer, ours.config)
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "eager bf16, ours": build_engine("eager", ours, threads=threads, precision="bf16"),
        "eager fp32, ours": build_engine("eager", ours, threads=threads),
        "openvino bf16, ours": build_engine("openvino", ours, threads=threads, precision="bf16"),
        "openvino default, timm": KINDS["openvino"](wrapped, threads, None),
        "openvino fp32, timm": KINDS["openvino"](wrapped, threads, "fp32"),
    }
    return {
        "model": name,
        "threads": threads,
        "rounds": rounds,
        "openvino_default": openvino_default(),
        "batches": [_measure(ours, runs, batch, threads, rounds) for batch in batches],
        "cpu": processor(),
        "environment": environment() | {"openvino": version("openvino")},
    }


def _measure(ours: Any, runs: dict[str, Callable], batch: int, threads: int, rounds: int) -> dict[str, Any]:
    images = torch.randn(batch, 3, *ours.config.img_size)
    lanes = {name: Lane(name, lambda run=run: run(images)) for name, run in runs.items()}
    products = product_lanes(ours.config, batch, openvino=True, threads=threads, precision="bf16")
    limits = {name: Lane(f"products in bf16, {name}", run) for name, run in products.items()}
    with torch.inference_mode():
        expected = ours(images)
        errors = {name: logit_error(run(images), expected) for name, run in runs.items()}
        take_turns([*lanes.values(), *limits.values()], rounds, warm=batch == 1)
    limit = min(limits.values(), key=lambda lane: lane.median_s)
    own = lanes["eager bf16, ours"]
    rows = {
        name: {"median_s": lane.median_s, "p95_s": lane.p95_s, "images_per_s": batch / lane.median_s, **errors[name]}
        for name, lane in lanes.items()
    }
    return {
        "batch": batch,
        "rows": rows,
        "bf16_against_openvino_default": ratio(own, lanes["openvino default, timm"]),
        "fp32_against_openvino_fp32": ratio(lanes["eager fp32, ours"], lanes["openvino fp32, timm"]),
        "limit": {
            "library": limit.name,
            "median_s": limit.median_s,
            "gflops": 2e-9 * count_products(ours.config) * batch / limit.median_s,
            "all_median_s": {lane.name: lane.median_s for lane in limits.values()},
        },
        "of_limit": limit.median_s / own.median_s,
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = measure(args.model, [int(text) for text in args.batch.split(",")], args.threads, args.rounds)
    command = f"python docs/results/bf16.py {args.model} --batch {args.batch} --threads {args.threads}"
    result = {"command": f"{command} --rounds {args.rounds}", **result}
    for row in result["batches"]:
        print(f"batch {row['batch']}: {row['of_limit']:.2f} of {row['limit']['library']}, {row['limit']['gflops']:.0f}")
        for name, found in row["rows"].items():
            print(f"  {name}: {found['images_per_s']:.1f} images/s, rms {found['rms']:.1e}, max {found['drift']:.1e}")
        for name in ("bf16_against_openvino_default", "fp32_against_openvino_fp32"):
            print(f"  {name}: {row[name]['ratio']:.2f} {row[name]['quartiles']}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
