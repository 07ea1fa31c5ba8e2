"""bf16 on a CPU: our patch stage against OpenVINO's default, both also in fp32, and the products alone.

    python docs/results/bf16.py MODEL --batch 1,8 --threads 2 --rounds 20 --out FILE.json
    python docs/results/bf16.py MODEL --images FOLDER --out FILE.json

All of the first command take turns in one run. The second one counts, on 64 images of a folder, what bf16 does to the
logits. Weights are random with LayerScale of order 1; errors are those of the logits (random images in the first
command) against the network itself in fp32, over their standard deviation.
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
from deepcait.data import Preprocessing, list_images, open_image
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


def count_errors(name: str, folder: str) -> dict[str, Any]:
    """Errors of the logits and equal best classes, on 64 images that lie evenly in the folder's list."""
    ours, peer = build_pair(name)
    preprocessing = Preprocessing.from_pretrained_cfg(ours.pretrained_cfg)
    paths = list_images(folder)
    paths = paths[:: max(1, len(paths) // 64)][:64]
    parts = torch.stack([preprocessing(open_image(path)) for path in paths]).split(8)
    threads = torch.get_num_threads()
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "eager bf16, ours": build_engine("eager", ours, threads=threads, precision="bf16"),
        "openvino default, timm": KINDS["openvino"](Peer(peer, ours.config), threads, None),
    }
    with torch.inference_mode():
        expected = torch.cat([ours(part) for part in parts])
        answers = {key: torch.cat([run(part).clone() for part in parts]) for key, run in runs.items()}
    rows = {
        key: {**logit_error(found, expected), "same_top1": int((found.argmax(1) == expected.argmax(1)).sum())}
        for key, found in answers.items()
    }
    facts = {"model": name, "num_images": len(paths), "openvino_default": openvino_default(), "rows": rows}
    return {**facts, "cpu": processor(), "environment": environment() | {"openvino": version("openvino")}}


def speed_table() -> list[str]:
    """The lines of the table in docs/concepts/speed.md, from the results beside this file."""
    head = "model, batch | threads | deepcait, bf16 | deepcait, fp32 | OpenVINO, bf16 | OpenVINO, fp32 | ratio in bf16"
    head += " | ratio in fp32 | fraction of the speed of matrix products"
    lines = [f"| {head} |", "|" + " --- |" * 9]
    for path in sorted(Path(__file__).parent.glob("bf16_cait_*_t*.json"), key=_order):
        facts = json.loads(path.read_text(encoding="utf-8"))
        for row in facts["batches"]:
            speeds = [
                f"{row['rows'][name]['images_per_s']:.1f}"
                for name in (
                    "eager bf16, ours",
                    "eager fp32, ours",
                    "openvino default, timm",
                    "openvino fp32, timm",
                )
            ]
            ratios = [
                _ratio(row[f"{name}"]) for name in ("bf16_against_openvino_default", "fp32_against_openvino_fp32")
            ]
            model = f"[{facts['model'].split('_')[1].upper()}](../results/{path.name}), {row['batch']}"
            cells = [model, str(facts["threads"]), *speeds, *ratios, f"{row['of_limit']:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ratio(found: dict[str, Any]) -> str:
    # Of the ratios per round: the ratio of the two medians can lie outside their quartiles.
    low, middle, high = found["quartiles"]
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _order(path: Path) -> tuple[bool, str]:
    return "_s24_" in path.name, path.stem[::-1]


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.images:
        result = {"command": f"python docs/results/bf16.py {args.model} --images FOLDER"}
        result |= count_errors(args.model, args.images)
        print(json.dumps(result["rows"], indent=2))
        if args.out:
            args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return
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
