"""Precisions on a CPU: deepcait's engine `eager` and timm's network in OpenVINO, in turns, and the products alone.

    python docs/results/precisions.py MODEL --images FOLDER --batch 1,8 --threads 2 --rounds 20 --out FILE.json

Weights are random with LayerScale of order 1. Errors are those of the logits on 64 images of the folder, against the
network itself in float32, over their standard deviation. int8 in OpenVINO needs nncf, which sees 32 of the images,
mirrored. The files bf16_*.json are of an earlier version of this script, without int8.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcait.bench.clock import Lane, ratio, take_turns
from deepcait.bench.inference import Peer, build_pair, logit_error
from deepcait.bench.limit import count_products, product_lanes
from deepcait.data import Preprocessing
from deepcait.inference.engines import KINDS, build_engine, openvino_default
from deepcait.runtime.environment import environment, processor, version

HERE = Path(__file__).parent
OWN = ("int8", "bf16", "fp32")
NUM_IMAGES = 64


def build(ours: Any, peer: Any, images: Tensor, threads: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what is measured, by name."""
    from int8_libraries import quantize_openvino

    wrapped = Peer(peer, ours.config)
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        f"deepcait {precision}": build_engine("eager", ours, threads=threads, precision=precision) for precision in OWN
    }
    runs["OpenVINO default"] = KINDS["openvino"](wrapped, threads, None)
    runs["OpenVINO fp32"] = KINDS["openvino"](wrapped, threads, "fp32")
    runs["OpenVINO int8, NNCF"] = quantize_openvino(wrapped, images, threads)
    return runs


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Build the contestants, count their errors, and time them at each batch."""
    from int8_libraries import read_images

    torch.set_num_threads(args.threads)
    ours, peer = build_pair(args.model)
    images, _ = read_images(args.images, Preprocessing.from_pretrained_cfg(ours.pretrained_cfg), NUM_IMAGES)
    runs = build(ours, peer, images[::2].flip(-1).contiguous(), args.threads)
    with torch.inference_mode():
        answers = {
            name: torch.cat([run(part).clone() for part in images.split(8)])
            for name, run in {"network": ours, **runs}.items()
        }
    expected = answers.pop("network")
    errors = {
        name: logit_error(found, expected) | {"same_top1": int((found.argmax(1) == expected.argmax(1)).sum())}
        for name, found in answers.items()
    }
    batches = [int(text) for text in args.batch.split(",")]
    return {
        "model": args.model,
        "threads": args.threads,
        "rounds": args.rounds,
        "openvino_default": openvino_default(),
        "num_images": len(images),
        "errors": errors,
        "batches": [time_batch(ours, runs, images[:batch], args) for batch in batches],
        "cpu": processor(),
        "environment": environment() | {"openvino": version("openvino"), "nncf": version("nncf")},
    }


def time_batch(ours: Any, runs: dict[str, Callable], images: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Time all contestants and the products alone in float32, in turns."""
    batch = len(images)
    lanes = {name: Lane(name, lambda run=run: run(images)) for name, run in runs.items()}
    products = product_lanes(ours.config, batch, openvino=True, threads=args.threads)
    limits = {name: Lane(f"products in fp32, {name}", run) for name, run in products.items()}
    with torch.inference_mode():
        take_turns([*lanes.values(), *limits.values()], args.rounds, warm=batch == 1)
    limit = min(limits.values(), key=lambda lane: lane.median_s)
    return {
        "batch": batch,
        "rows": {
            name: {"median_s": lane.median_s, "p95_s": lane.p95_s, "images_per_s": batch / lane.median_s}
            for name, lane in lanes.items()
        },
        "ratios": {
            "int8": ratio(lanes["deepcait int8"], lanes["OpenVINO int8, NNCF"]),
            "bf16": ratio(lanes["deepcait bf16"], lanes["OpenVINO default"]),
            "fp32": ratio(lanes["deepcait fp32"], lanes["OpenVINO fp32"]),
        },
        "limit": {
            "library": limit.name,
            "median_s": limit.median_s,
            "gflops": 2e-9 * count_products(ours.config) * batch / limit.median_s,
        },
        "of_limit": limit.median_s / lanes["deepcait fp32"].median_s,
    }


def speed_table(pattern: str = "precisions_cait_*_t*.json") -> list[str]:
    """The lines of a table in docs/concepts/speed.md, from the results beside this file."""
    names = ("deepcait int8", "deepcait bf16", "deepcait fp32")
    names += ("OpenVINO int8, NNCF", "OpenVINO default", "OpenVINO fp32")
    head = ["model, batch", "threads", *names, "ratio in int8", "ratio in bf16", "ratio in fp32"]
    lines = ["| " + " | ".join(head).replace("default", "bf16") + " |", "|" + " --- |" * len(head)]
    for path in sorted(HERE.glob(pattern), key=_order):
        facts = json.loads(path.read_text(encoding="utf-8"))
        for row in facts["batches"]:
            speeds = [f"{row['rows'][name]['images_per_s']:.1f}" for name in names]
            ratios = [_ratio(row["ratios"][name]) for name in ("int8", "bf16", "fp32")]
            lines.append("| " + " | ".join([_model(facts, path, row), str(facts["threads"]), *speeds, *ratios]) + " |")
    return lines


def error_table(pattern: str = "precisions_cait_*_t1.json") -> list[str]:
    """The lines of the table of errors in docs/concepts/speed.md."""
    names = ("deepcait int8", "OpenVINO int8, NNCF", "OpenVINO default")
    lines = ["| model | " + " | ".join(names).replace("default", "bf16") + " |", "| --- |" + " ---: |" * len(names)]
    for path in sorted(HERE.glob(pattern), key=_order):
        facts = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            f"{facts['errors'][name]['rms']:.1e}, {facts['errors'][name]['same_top1']} of {facts['num_images']}"
            for name in names
        ]
        lines.append(
            f"| [{facts['model'].split('_')[1].upper()}](../results/{path.name}) | " + " | ".join(cells) + " |"
        )
    return lines


def bf16_table() -> list[str]:
    """The lines of the table of the processor whose bf16 is faster than fp32."""
    names = ("eager bf16, ours", "eager fp32, ours", "openvino default, timm", "openvino fp32, timm")
    head = "model, batch | threads | deepcait, bf16 | deepcait, fp32 | OpenVINO, bf16 | OpenVINO, fp32 | ratio in bf16"
    head += " | ratio in fp32 | fraction of the speed of matrix products"
    lines = [f"| {head} |", "|" + " --- |" * 9]
    for path in sorted(HERE.glob("bf16_cait_*_t*.json"), key=_order):
        facts = json.loads(path.read_text(encoding="utf-8"))
        for row in facts["batches"]:
            speeds = [f"{row['rows'][name]['images_per_s']:.1f}" for name in names]
            ratios = [_ratio(row[name]) for name in ("bf16_against_openvino_default", "fp32_against_openvino_fp32")]
            cells = [_model(facts, path, row), str(facts["threads"]), *speeds, *ratios, f"{row['of_limit']:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _model(facts: dict[str, Any], path: Path, row: dict[str, Any]) -> str:
    return f"[{facts['model'].split('_')[1].upper()}](../results/{path.name}), {row['batch']}"


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
    parser.add_argument("--images", required=True)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    command = f"python docs/results/precisions.py {args.model} --images FOLDER --batch {args.batch}"
    result = {"command": f"{command} --threads {args.threads} --rounds {args.rounds}", **measure(args)}
    for name, found in result["errors"].items():
        print(f"{name}: rms {found['rms']:.1e}, same top-1 {found['same_top1']} of {result['num_images']}")
    for row in result["batches"]:
        print(f"batch {row['batch']}: fp32 at {row['of_limit']:.2f} of {row['limit']['library']}")
        for name, found in row["rows"].items():
            print(f"  {name}: {found['images_per_s']:.1f} images/s")
        for name, found in row["ratios"].items():
            print(f"  ratio in {name}: {_ratio(found)}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
