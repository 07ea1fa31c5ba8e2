"""Our engines against timm on the same engines: latency, images per second, memory, distance from the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.bench.clock import Lane, ratio, set_up, take_turns
from deepcait.bench.limit import count_products, product_lanes
from deepcait.bench.memory import first_call_bytes, live_bytes
from deepcait.bench.page import conditions, markdown_table
from deepcait.errors import ConfigError
from deepcait.inference.engines import ENGINES, KINDS, build_engine
from deepcait.inference.fold import fold
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.networks import require_cait
from deepcait.runtime.environment import version
from deepcait.weights import resolve
from deepcait.weights.create import create_model
from deepcait.weights.registry import list_models
from deepcait.weights.timm_layout import model_args, nearest_architecture, require_known_to_timm

SEED = 0
_EACH = ("p95", "images/s", "MiB")
COLUMNS = ("engine", "ours, ms", *_EACH, "timm, ms", *_EACH, "ratio", "quartiles", "of the limit")


def compare_engines(
    spec: str,
    *,
    engines: Sequence[str] = ENGINES,
    batches: Sequence[int] = (1, 8),
    rounds: int = 20,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time one model on each engine beside timm's on the same engine, all in turns.

    Args:
        spec: a model; of a name alone the weights are random, since speed does not depend on them.
        engines: of `ENGINES`.
        batches: images a call.
        rounds: counted rounds.
        threads: of every engine; None takes PyTorch's.
        progress: called with rounds done and to do, of all batches together.

    Returns:
        `model`, and for each batch a row of `batches`: for each engine ours and timm's median and p95 in seconds,
        images per second, memory and their ratio; the limit of the matrix products; `best_ratio` (our best engine
        against timm's best) and `of_limit` (our best engine against the limit).

    Raises:
        ConfigError: numbers that make no sense, a model that timm doesn't have, an engine that can't run here.
    """
    require_engines(engines)
    threads = set_up(rounds, batches, threads)
    ours, peer = build_pair(spec)
    runs = build_contestants(ours, peer, engines, threads)
    rows = []
    for number, batch in enumerate(batches):
        images_BCHW = torch.randn(batch, ours.config.in_chans, *ours.config.img_size)

        def so_far(done: int, total: int, number: int = number) -> None:
            progress(number * (total + 1) + done, len(batches) * (total + 1))

        rows.append(_measure(ours, runs, images_BCHW, engines, rounds, threads, so_far))
    measured_on = conditions()
    measured_on["environment"]["engines"] = _engine_versions(engines)
    return {
        "model": spec,
        "img_size": list(ours.config.img_size),
        "engines": list(engines),
        "threads": threads,
        "rounds": rounds,
        "batches": rows,
        "memory_bytes": compare_memory(ours, peer, max(batches)),
        **measured_on,
    }


def require_engines(engines: Sequence[str]) -> None:
    """Pass for engines that we have, one or more.

    Raises:
        ConfigError: none, or an unknown one.
    """
    for name in engines or [""]:
        if name not in ENGINES:
            raise ConfigError(
                f"--engine: expected some of {', '.join(ENGINES)}, got {name or 'none'}.",
                remedy=f"--engine {','.join(ENGINES)}",
            )


def build_pair(spec: str) -> tuple[CaiT, nn.Module]:
    """Return a model and timm's with the same weights, in evaluation mode.

    Raises:
        ConfigError: timm has no such network.
    """
    ours = open_model(spec)
    peer = build_peer(ours.config).eval()
    peer.load_state_dict(ours.state_dict())
    return ours, peer


def open_model(spec: str) -> CaiT:
    """Return a model in evaluation mode; of a name alone the weights are random, with LayerScale of order 1.

    Raises:
        ConfigError, WeightsError: the SPEC leads nowhere.
    """
    if spec not in list_models():
        return require_cait(resolve(spec).model).eval()
    torch.manual_seed(SEED)
    model = create_model(spec).eval()
    with torch.no_grad():  # every branch counts when logits are compared
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.uniform_(0.5, 1.0)
    return model


def build_peer(config: CaiTConfig) -> nn.Module:
    """Return timm's network of these sizes, freshly drawn.

    Raises:
        ConfigError: timm has no such network.
    """
    import timm

    require_known_to_timm(config)
    sizes = model_args(config) | {"drop_path_rate": config.drop_path_rate}
    return timm.create_model(nearest_architecture(config), num_classes=config.num_classes, **sizes)


def build_contestants(
    ours: CaiT, peer: nn.Module, engines: Sequence[str], threads: int
) -> dict[tuple[str, str], Callable[[Tensor], Tensor]]:
    """Return what runs (engine, "ours" or "timm"): every engine runs both through the same door."""
    runs: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    for engine in engines:
        runs[engine, "ours"] = build_engine(engine, ours, threads=threads)
        # torch.compile is asked for what is fastest for the peer: a program for each batch size.
        runs[engine, "timm"] = (
            _compiled(peer) if engine == "compile" else KINDS[engine](Peer(peer, ours.config), threads)
        )
    return runs


class Peer(nn.Module):
    """A foreign network with the sizes of ours, as engines want it."""

    def __init__(self, model: nn.Module, config: CaiTConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.model(images_BCHW)


def _compiled(peer: nn.Module) -> Callable[[Tensor], Tensor]:
    run = torch.compile(peer, dynamic=False)

    def forward(images_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            return run(images_BCHW)

    return forward


def _measure(
    ours: CaiT,
    runs: dict[tuple[str, str], Callable[[Tensor], Tensor]],
    images_BCHW: Tensor,
    engines: Sequence[str],
    rounds: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """One batch size: every engine, ours and timm's, and the limit."""
    batch = len(images_BCHW)
    with torch.inference_mode():
        expected_BK = ours(images_BCHW)
    lanes, memory, drift = {}, {}, {}
    for key, run in runs.items():
        if key[0] == "compile":
            run(images_BCHW)  # the compiler works now: outside of the rounds, and its memory is not the model's
        logits_BK, memory[key] = first_call_bytes(lambda run=run: run(images_BCHW))
        drift[key] = ((logits_BK - expected_BK).abs().max() / expected_BK.std()).item()
        lanes[key] = Lane(" ".join(key), lambda run=run: run(images_BCHW))
    products = product_lanes(ours.config, batch, openvino="openvino" in engines, threads=threads)
    limits = [Lane(name, run) for name, run in products.items()]
    with torch.inference_mode():
        take_turns([*lanes.values(), *limits], rounds, progress)
    best = {who: min((lanes[e, who] for e in engines), key=lambda lane: lane.median_s) for who in ("ours", "timm")}
    limit = min(limits, key=lambda lane: lane.median_s)
    figures = {
        engine: {
            who: _figures(lanes[engine, who], batch, memory[engine, who], drift[engine, who], limit)
            for who in ("ours", "timm")
        }
        | ratio(lanes[engine, "ours"], lanes[engine, "timm"])
        for engine in engines
    }
    against = ratio(best["ours"], best["timm"])
    near = ratio(best["ours"], limit)
    return {
        "batch": batch,
        "engines": figures,
        "best_ours": best["ours"].name,
        "best_peer": best["timm"].name,
        "best_ratio": against["ratio"],
        "best_quartiles": against["quartiles"],
        "limit": {
            "library": limit.name,
            "median_s": limit.median_s,
            "all_median_s": {lane.name: lane.median_s for lane in limits},
            "gflops": 2e-9 * count_products(ours.config) * batch / limit.median_s,
        },
        "of_limit": near["ratio"],
        "of_limit_quartiles": near["quartiles"],
    }


def markdown(result: dict[str, Any], command: str) -> str:
    """The figures as a page."""
    lines = [
        f"# Inference: {result['model']} against timm",
        "",
        f"    {command}",
        "",
        f"float32, {result['threads']} threads, medians of {result['rounds']} alternating rounds; {result['cpu']}; "
        f"commit {result['environment']['commit']}.",
    ]
    for row in result["batches"]:
        limit, low, high = row["limit"], row["best_quartiles"][0], row["best_quartiles"][2]
        lines += [
            "",
            f"Batch {row['batch']}: our best ({row['best_ours']}) is {row['best_ratio']:.2f} times the best of timm "
            f"({row['best_peer']}; quartiles {low:.2f} to {high:.2f}), and {row['of_limit']:.2f} of the limit: the "
            f"model's matrix products alone ({limit['library']}, {1e3 * limit['median_s']:.1f} ms, "
            f"{limit['gflops']:.0f} GFLOPS).",
            "",
            *markdown_table(COLUMNS, table(row)),
        ]
    memory = result["memory_bytes"]
    lines += [
        "",
        "MiB: how much the process grew at its peak in the first call of this size; engines keep such memory. Of the "
        "limit: the time of the matrix products alone, by ours.",
        "",
        f"Activations alive at once in PyTorch, batch {memory['batch']}, counted: {memory['ours'] / 2**20:.1f} MiB of "
        f"ours, {memory['timm'] / 2**20:.1f} MiB of timm's ({memory['ratio']:.2f}).",
    ]
    return "\n".join(lines) + "\n"


def table(row: dict[str, Any]) -> list[list[str]]:
    """One line of text cells an engine, below `COLUMNS`."""
    lines = []
    for engine, found in row["engines"].items():
        cells = [
            text
            for who in ("ours", "timm")
            for text in (
                f"{1e3 * found[who]['median_s']:.1f}",
                f"{1e3 * found[who]['p95_s']:.1f}",
                f"{found[who]['images_per_s']:.1f}",
                f"{found[who]['first_call_bytes'] / 2**20:.0f}",
            )
        ]
        spread = found["quartiles"]
        shares = (f"{found['ratio']:.2f}", f"{spread[0]:.2f} to {spread[2]:.2f}", f"{found['ours']['of_limit']:.2f}")
        lines.append([engine, *cells, *shares])
    return lines


def _figures(lane: Lane, batch: int, memory: int, drift: float, limit: Lane) -> dict[str, float]:
    return {
        "median_s": lane.median_s,
        "p95_s": lane.p95_s,
        "images_per_s": batch / lane.median_s,
        "calls": len(lane.calls_s),
        "first_call_bytes": memory,
        "drift": drift,
        "of_limit": limit.median_s / lane.median_s,
    }


def compare_memory(ours: CaiT, peer: nn.Module, batch: int) -> dict[str, Any]:
    """Bytes of activations alive at once in PyTorch, weights excluded, counted."""
    images_BCHW = torch.zeros(batch, ours.config.in_chans, *ours.config.img_size)
    own, theirs = (live_bytes(cast("nn.Module", model), images_BCHW) for model in (fold(ours), peer))
    return {"batch": batch, "ours": own, "timm": theirs, "ratio": own / theirs}


def _engine_versions(engines: Sequence[str]) -> dict[str, str]:
    names = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
    packages = [package for engine in engines for package in names.get(engine, ())]
    return {package: version(package) or "?" for package in packages}
