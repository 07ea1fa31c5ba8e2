"""Our engines against timm on the same engines: latency, images per second, memory, distance from the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.bench.clock import Lane, ratio, set_up, take_turns
from deepcait.bench.limit import count_products, product_lanes
from deepcait.bench.memory import first_call_bytes, live_bytes
from deepcait.bench.page import conditions
from deepcait.errors import ConfigError
from deepcait.inference.engines import ENGINES, KINDS, build_engine, openvino_default
from deepcait.inference.fold import fold
from deepcait.inference.precision import ON_CPU, choose_precision
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.networks import require_cait
from deepcait.runtime.environment import version
from deepcait.weights import resolve
from deepcait.weights.create import create_model
from deepcait.weights.registry import list_models
from deepcait.weights.timm_layout import model_args, nearest_architecture, require_known_to_timm

SEED = 0
# Errors below this are rounding in float32: none of two such results is more exact than the other.
_SAME_ERROR = 1e-5


def compare_engines(
    spec: str,
    *,
    engines: Sequence[str] = ENGINES,
    precisions: Sequence[str] = (),
    batches: Sequence[int] = (1, 8),
    rounds: int = 20,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time one model on each engine beside timm's on the same engine and in the same precision, all in turns.

    Args:
        spec: a model; of a name alone the weights are random, since speed does not depend on them.
        engines: of `ENGINES`.
        precisions: fp32, bf16; empty takes fp32, and what OpenVINO takes on this processor unless it is told.
        batches: images a call.
        rounds: counted rounds.
        threads: of every engine; None takes PyTorch's.
        progress: called with rounds done and to do, of all batches together.

    Returns:
        `model`, and for each batch a row of `batches`: for each engine and precision ("openvino bf16") ours and
        timm's median and p95 in seconds, images per second, memory, error of the logits (`rms` and `drift`, the
        largest, over the standard deviation) and the ratio of times; `best`, for each precision the fastest of both
        and the limit of the matrix products; `best_ratio`, timm's fastest against our fastest whose error is no
        larger, and `of_limit`, the limit in its precision against it.

    Raises:
        ConfigError: numbers that make no sense, a model that timm doesn't have, an engine that can't run here.
    """
    require_engines(engines)
    threads = set_up(rounds, batches, threads)
    ours, peer = build_pair(spec)
    runs = build_contestants(ours, peer, engines, threads, list(precisions) or default_precisions(engines))
    rows = []
    for number, batch in enumerate(batches):
        images_BCHW = torch.randn(batch, ours.config.in_chans, *ours.config.img_size)

        def so_far(done: int, total: int, number: int = number) -> None:
            progress(number * (total + 1) + done, len(batches) * (total + 1))

        rows.append(_measure(ours, runs, images_BCHW, rounds, threads, so_far))
    measured_on = conditions()
    measured_on["environment"]["engines"] = _engine_versions(engines)
    return {
        "model": spec,
        "img_size": list(ours.config.img_size),
        "engines": list(dict.fromkeys(name for name, _ in runs)),
        "openvino_default": openvino_default() if "openvino" in engines else None,
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


def default_precisions(engines: Sequence[str]) -> list[str]:
    """Return fp32, and the precision that OpenVINO takes on this processor unless it is told."""
    return list(dict.fromkeys(("fp32", openvino_default() if "openvino" in engines else "fp32")))


def build_contestants(
    ours: CaiT, peer: nn.Module, engines: Sequence[str], threads: int, precisions: Sequence[str] = ("fp32",)
) -> dict[tuple[str, str], Callable[[Tensor], Tensor]]:
    """Return what runs (name, "ours" or "timm"): every engine runs both, in each precision that it offers.

    A name is the engine's, followed by the precision unless that is fp32: ("openvino bf16", "timm").

    Raises:
        ConfigError: a precision that none of the engines offers.
    """
    runs: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    for precision in precisions:
        offering = [engine for engine in engines if precision in ON_CPU[engine]]
        if not offering:
            choose_precision(precision, engines[0])
        for engine in offering:
            name = engine if precision == "fp32" else f"{engine} {precision}"
            runs[name, "ours"] = build_engine(engine, ours, threads=threads, precision=precision)
            runs[name, "timm"] = _build_peer_engine(engine, peer, ours.config, threads, precision)
    return runs


def _build_peer_engine(
    engine: str, peer: nn.Module, config: CaiTConfig, threads: int, precision: str
) -> Callable[[Tensor], Tensor]:
    if engine == "compile":
        # torch.compile is asked for what is fastest for the peer: a program for each batch size.
        return _compiled(peer, precision)
    return KINDS[engine](Peer(peer, config, autocast=engine == "eager" and precision == "bf16"), threads, precision)


class Peer(nn.Module):
    """A foreign network with the sizes of ours, as engines want it.

    Args:
        model: the network.
        config: of ours.
        autocast: let PyTorch compute in bfloat16 what it thinks fit.
    """

    def __init__(self, model: nn.Module, config: CaiTConfig, *, autocast: bool = False) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.autocast = autocast

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K)."""
        if not self.autocast:
            return self.model(images_BCHW)
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(images_BCHW)


def _compiled(peer: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    run = torch.compile(peer, dynamic=False)

    def forward(images_BCHW: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return run(images_BCHW).float()

    return forward


def _measure(
    ours: CaiT,
    runs: dict[tuple[str, str], Callable[[Tensor], Tensor]],
    images_BCHW: Tensor,
    rounds: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """One batch size: every engine, ours and timm's, and the limit."""
    batch = len(images_BCHW)
    with torch.inference_mode():
        expected_BK = ours(images_BCHW)
    lanes, memory, errors = {}, {}, {}
    for key, run in runs.items():
        if key[0].startswith("compile"):
            run(images_BCHW)  # the compiler works now: outside of the rounds, and its memory is not the model's
        logits_BK, memory[key] = first_call_bytes(lambda run=run: run(images_BCHW))
        errors[key] = logit_error(logits_BK, expected_BK)
        lanes[key] = Lane(" ".join(key), lambda run=run: run(images_BCHW))
    limits = {
        precision: _limit_lanes(ours.config, batch, precision, any("openvino" in name for name, _ in runs), threads)
        for precision in dict.fromkeys(_precision(name) for name, _ in runs)
    }
    every = [*lanes.values(), *(lane for some in limits.values() for lane in some)]
    with torch.inference_mode():
        take_turns(every, rounds, progress)
    fastest_limit = {precision: min(some, key=lambda lane: lane.median_s) for precision, some in limits.items()}
    figures = {
        name: {
            who: _figures(lanes[name, who], batch, memory[name, who], fastest_limit[_precision(name)])
            | errors[name, who]
            for who in ("ours", "timm")
        }
        | ratio(lanes[name, "ours"], lanes[name, "timm"])
        for name in dict.fromkeys(name for name, _ in runs)
    }
    best = {
        precision: _best({key: lane for key, lane in lanes.items() if _precision(key[0]) == precision}, errors, limit)
        | _describe_limit(limits[precision], limit, ours.config, batch)
        for precision, limit in fastest_limit.items()
    }
    overall = _best(lanes, errors, None)
    near = ratio(lanes[overall["ours"], "ours"], fastest_limit[_precision(overall["ours"])])
    return {
        "batch": batch,
        "engines": figures,
        "best": best,
        "best_ours": f"{overall['ours']} ours",
        "best_peer": f"{overall['timm']} timm",
        "best_ratio": overall["ratio"],
        "best_quartiles": overall["quartiles"],
        "limit": best[_precision(overall["ours"])]["limit"],
        "of_limit": near["ratio"],
        "of_limit_quartiles": near["quartiles"],
    }


def logit_error(logits_BK: Tensor, expected_BK: Tensor) -> dict[str, float]:
    """Difference from the expected logits over their standard deviation: root mean square, and the largest."""
    difference_BK, std = (logits_BK - expected_BK).double(), expected_BK.double().std()
    return {
        "rms": (difference_BK.square().mean().sqrt() / std).item(),
        "drift": (difference_BK.abs().max() / std).item(),
    }


def _precision(name: str) -> str:
    return name.partition(" ")[2] or "fp32"


def _best(
    lanes: dict[tuple[str, str], Lane], errors: dict[tuple[str, str], dict[str, float]], limit: Lane | None
) -> dict[str, Any]:
    """timm's fastest, and our fastest whose error is no larger than its; our most exact one if there is none."""
    peer = min((key for key in lanes if key[1] == "timm"), key=lambda key: lanes[key].median_s)
    allowed = max(errors[peer]["rms"], _SAME_ERROR)
    mine = [key for key in lanes if key[1] == "ours"]
    exact = [key for key in mine if errors[key]["rms"] <= allowed] or [min(mine, key=lambda key: errors[key]["rms"])]
    own = min(exact, key=lambda key: lanes[key].median_s)
    found = {"ours": own[0], "timm": peer[0], **ratio(lanes[own], lanes[peer])}
    return found if limit is None else found | {"of_limit": ratio(lanes[own], limit)["ratio"]}


def _limit_lanes(config: CaiTConfig, batch: int, precision: str, openvino: bool, threads: int) -> list[Lane]:
    products = product_lanes(config, batch, openvino=openvino, threads=threads, precision=precision)
    return [Lane(name, run) for name, run in products.items()]


def _describe_limit(lanes: list[Lane], limit: Lane, config: CaiTConfig, batch: int) -> dict[str, Any]:
    return {
        "limit": {
            "library": limit.name,
            "median_s": limit.median_s,
            "all_median_s": {lane.name: lane.median_s for lane in lanes},
            "gflops": 2e-9 * count_products(config) * batch / limit.median_s,
        }
    }


def _figures(lane: Lane, batch: int, memory: int, limit: Lane) -> dict[str, float]:
    return {
        "median_s": lane.median_s,
        "p95_s": lane.p95_s,
        "images_per_s": batch / lane.median_s,
        "calls": len(lane.calls_s),
        "first_call_bytes": memory,
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
