"""How cost grows with batch size, tokens and depth: time is measured, memory counted, exponents fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from deepcait.bench.clock import Lane, set_up, take_turns
from deepcait.bench.inference import SEED, build_peer
from deepcait.bench.memory import live_bytes
from deepcait.bench.page import conditions, markdown_table
from deepcait.bench.train import Contestant, build_step, require_classes
from deepcait.inference.fold import fold
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.networks import config_of
from deepcait.training.footprint import kept_bytes, training_bytes
from deepcait.training.settings import Compute
from deepcait.weights.spec import describe
from deepcait.weights.timm_layout import require_known_to_timm

SIDES = ("ours", "timm")
# Measured and counted quantities with their units.
FIGURES = {"inference_s": "s", "training_s": "s", "inference_bytes": "bytes", "training_bytes": "bytes"}
_BATCHES = (1, 2, 4, 8, 16)
_SIZES = (112, 160, 224, 320, 448)
_DEPTHS = (6, 12, 24, 36)
# Images per call, except where the batch size is what grows.
_BATCH = 2
_LR = 1e-4


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Args:
        axis: the quantity that grows: batch, tokens or depth.
        x: its value; for tokens, the number of patches.
        config: the network's.
        batch: images per call.
    """

    axis: str
    x: int
    config: CaiTConfig
    batch: int


def grow(config: CaiTConfig, sides: Sequence[int] = _SIZES, depths: Sequence[int] = _DEPTHS) -> list[Point]:
    """Return the points of a network's three curves, from image sides in pixels and numbers of blocks."""
    points = [Point("batch", batch, config, batch) for batch in _BATCHES]
    for side in sides:
        larger = config.replace(img_size=side)
        points.append(Point("tokens", larger.num_patches, larger, _BATCH))
    return points + [Point("depth", depth, config.replace(depth=depth), _BATCH) for depth in depths]


def compare_cost(
    spec: str,
    *,
    rounds: int = 5,
    threads: int | None = None,
    points: Sequence[Point] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure inference and a training step of deepcait and timm while one quantity grows at a time.

    Inference is eager (deepcait's model is folded), training uses default settings; float32, random weights.

    Args:
        spec: a MODEL; only its configuration is used.
        rounds: timed rounds per point.
        threads: None keeps PyTorch's number.
        points: None takes those of `grow`.
        progress: called with the points done and the points in total.

    Returns:
        `points`: for each point the four `FIGURES` of both sides. Bytes are peak activation memory (inference) and
        activations saved for the backward pass (training); weights are not included. `exponents`: for every axis,
        quantity and side the slope of the least-squares line through the logarithms, the range of x, and the smallest
        and largest slope between neighbouring points.

    Raises:
        ConfigError: fewer than 2 rounds; a model that timm does not have, or one without a classifier.
    """
    threads = set_up(rounds, threads=threads)
    config = require_known_to_timm(config_of(describe(spec)["config"]))
    require_classes(config)
    points = grow(config) if points is None else points
    rows = []
    for number, point in enumerate(points):
        rows.append(_measure(point, rounds))
        progress(number + 1, len(points))
    return {
        "model": spec,
        "threads": threads,
        "rounds": rounds,
        "points": rows,
        "exponents": _exponents(rows),
        **conditions(),
    }


def _measure(point: Point, rounds: int) -> dict[str, Any]:
    torch.manual_seed(SEED)
    config, batch = point.config, point.batch
    ours, peer = CaiT(config), build_peer(config)
    folded, still = fold(ours), build_peer(config).eval()
    images_BCHW = torch.randn(batch, config.in_chans, *config.img_size)
    labels_B = torch.randint(0, config.num_classes, (batch,))
    lanes = {}
    for side, model, trained, compute in (("ours", folded, ours, Compute()), ("timm", still, peer, None)):
        one = Contestant(side, trained.train(), trained, compute, compiled=False)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=_LR, fused=True)
        step = build_step(one, optimizer, images_BCHW, labels_B, "fp32")
        lanes["inference_s", side] = Lane(f"{side} inference", lambda model=model: model(images_BCHW))
        lanes["training_s", side] = Lane(f"{side} training", step)
    with torch.no_grad():
        take_turns([lanes["inference_s", side] for side in SIDES], rounds)
    take_turns([lanes["training_s", side] for side in SIDES], rounds)
    found: dict[str, Any] = {key: {} for key in FIGURES}
    for (key, side), lane in lanes.items():
        found[key][side] = lane.median_s
    for side, model in (("ours", folded), ("timm", still)):
        found["inference_bytes"][side] = live_bytes(cast("nn.Module", model), images_BCHW)
    found["training_bytes"] = {"ours": training_bytes(config, Compute(), batch), "timm": _kept_by_timm(config, batch)}
    return {"axis": point.axis, "x": point.x, "batch": batch, "img_size": list(config.img_size), **found}


def _kept_by_timm(config: CaiTConfig, batch: int) -> int:
    with torch.device("meta"):
        peer = build_peer(config).train()
        images_BCHW = torch.empty(batch, config.in_chans, *config.img_size)
    return kept_bytes(peer, lambda: peer(images_BCHW))


def _exponents(rows: list[dict]) -> dict[str, dict[str, dict[str, dict]]]:
    found: dict[str, Any] = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        on_axis = [row for row in rows if row["axis"] == axis]
        xs = [row["x"] for row in on_axis]
        found[axis] = {key: {side: fit(xs, [row[key][side] for row in on_axis]) for side in SIDES} for key in FIGURES}
    return found


def fit(xs: Sequence[float], ys: Sequence[float]) -> dict[str, Any]:
    """Fit y = c x^p by least squares on the logarithms.

    Returns:
        exponent: p. from, to: the range of x. slopes: the smallest and the largest between neighbours.
    """
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)
    slopes = [(v[i + 1] - v[i]) / (u[i + 1] - u[i]) for i in range(len(u) - 1)]
    return {"exponent": slope, "from": min(xs), "to": max(xs), "slopes": [min(slopes), max(slopes)]}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of exponents: head and rows, as text."""
    head = ["grows", "from", "to", "cost", "deepcait", "between neighbours", "timm", "between neighbours"]
    lines = []
    for axis, of_axis in result["exponents"].items():
        for key, of_key in of_axis.items():
            cells = [axis, str(of_key["ours"]["from"]), str(of_key["ours"]["to"]), name_of(key)]
            for side in SIDES:
                low, high = of_key[side]["slopes"]
                cells += [f"{of_key[side]['exponent']:.2f}", f"{low:.2f} to {high:.2f}"]
            lines.append(cells)
    return head, lines


def name_of(figure: str) -> str:
    """The printed name of a quantity."""
    return figure.replace("_s", ", time").replace("_bytes", ", memory")


def markdown(result: dict[str, Any], command: str, plot: str) -> str:
    """The results as a page."""
    names = ["grows", "x", *(f"{name_of(key)}, {side}" for key in FIGURES for side in ("deepcait", "timm"))]
    points = markdown_table(names, [_cells(row) for row in result["points"]])
    first = result["points"][0]
    return "\n\n".join(
        [
            f"# Cost as work grows: {result['model']} against timm",
            f"    {command}",
            f"float32, {result['threads']} threads, medians of {result['rounds']} alternating rounds; {result['cpu']}; "
            f"commit {result['environment']['commit']}. Images are {first['img_size'][0]} px unless tokens grow, and "
            f"{_BATCH} per call unless the batch grows. Inference is eager, with deepcait's model folded. Memory is "
            "counted without weights: peak activation memory in inference, activations saved for the backward pass in "
            "training.",
            f"![Time and memory against batch, tokens and depth]({plot})",
            "Exponents are slopes of least-squares lines through the logarithms.",
            "\n".join(markdown_table(*table(result))),
            "Times are in milliseconds, memory in MiB.",
            "\n".join(points),
        ]
    ) + "\n"  # fmt: skip


def _cells(row: dict[str, Any]) -> list[str]:
    scales = {"s": 1e3, "bytes": 2.0**-20}
    return [row["axis"], str(row["x"])] + [
        f"{row[key][side] * scales[unit]:.1f}" for key, unit in FIGURES.items() for side in SIDES
    ]
