"""Benchmark inference against timm on the same engines: latency, throughput, memory, and an upper bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.bench.clock import Lane, ratio, set_up, take_turns, waited_for
from deepcait.bench.limit import describe_limit, limit_lanes
from deepcait.bench.memory import first_call_bytes, live_bytes
from deepcait.bench.page import conditions
from deepcait.errors import ConfigError
from deepcait.inference.engines import ENGINES, KINDS, TORCH_ENGINES, Engine, build_engine, openvino_default
from deepcait.inference.fold import fold
from deepcait.inference.precision import offered_by, require_offered
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.networks import require_cait
from deepcait.runtime.device import autocast, choose_device, has_bf16
from deepcait.runtime.environment import version
from deepcait.weights import resolve
from deepcait.weights.create import create_model
from deepcait.weights.registry import list_models
from deepcait.weights.timm_layout import model_args, nearest_architecture, require_known_to_timm

SEED = 0
# Errors below this are float32 rounding: of two such results neither is more exact.
_SAME_ERROR = 1e-5
# Precisions of deepcait in which timm's network can't be run as it is: its int8 needs a quantizer.
_NOT_TIMM = ("int8",)
_NO_RATIO = {"ratio": None, "quartiles": None}
_CPU = torch.device("cpu")


def compare_engines(
    spec: str,
    *,
    engines: Sequence[str] = ENGINES,
    precisions: Sequence[str] = (),
    batches: Sequence[int] = (1, 8),
    rounds: int = 20,
    threads: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time a model and timm's on each engine in the same precision, in turns.

    Args:
        spec: a MODEL; a model name gets random weights, since speed does not depend on them.
        engines: some of `ENGINES`; on a GPU some of `TORCH_ENGINES`.
        precisions: fp32, bf16, int8; empty means fp32, and OpenVINO's default on this processor; on a GPU fp32, and
            bf16 or fp16. In int8 only deepcait is timed, so another precision is needed for timm.
        batches: images per call.
        rounds: timed rounds.
        threads: threads of every engine; None keeps PyTorch's number.
        device: cpu, or cuda, on which only PyTorch's engines compute.
        progress: called with the rounds done and the rounds in total, over all batch sizes.

    Returns:
        `model`, and in `batches` one row per batch size. For each engine and precision ("openvino bf16"), for "ours"
        and "timm": median and p95 in seconds, images per second, memory, and the error of the logits (`rms`, and
        `drift`, the largest, both divided by the standard deviation); the ratio of times. For int8, "timm" and the
        ratio are None. `best`: per precision timm's fastest, deepcait's fastest whose error is no larger, and the limit
        of the matrix products; in int8 the baseline is timm's fastest in any precision. If all of deepcait's errors are
        larger, its most exact engine is compared, and `less_exact` is True. `best_ratio`: the same over all precisions;
        `of_limit`: the limit in its precision divided by its time. `limit` and `of_limit` are None if the products
        can't be computed in that precision. `in_fp32`: engines in a shorter format ("eager bf16") in whose place
        deepcait computes in fp32; none of these is the best over all precisions.

    Raises:
        ConfigError: a number is out of range, timm does not have the model or none of the precisions, or an engine or
            the device is missing.
    """
    place = choose_device(device)
    require_engines(engines, place)
    require_baseline(precisions)
    threads = set_up(rounds, batches, threads)
    ours, peer = (cast("CaiT", model.to(place)) for model in build_pair(spec))
    runs = build_contestants(ours, peer, engines, threads, list(precisions) or default_precisions(engines, place))
    rows = []
    for number, batch in enumerate(batches):
        images_BCHW = torch.randn(batch, ours.config.in_chans, *ours.config.img_size).to(place)

        def so_far(done: int, total: int, number: int = number) -> None:
            progress(number * (total + 1) + done, len(batches) * (total + 1))

        rows.append(_measure(ours, runs, images_BCHW, rounds, threads, so_far))
    measured_on = conditions(place)
    measured_on["environment"]["engines"] = _engine_versions(engines)
    return {
        "model": spec,
        "img_size": list(ours.config.img_size),
        "engines": list(dict.fromkeys(name for name, _ in runs)),
        "in_fp32": _in_fp32(runs),
        "openvino_default": openvino_default() if "openvino" in engines else None,
        "threads": threads,
        "rounds": rounds,
        "batches": rows,
        "memory_bytes": compare_memory(ours, peer, max(batches)),
        **measured_on,
    }


def _in_fp32(runs: Mapping[tuple[str, str], Callable]) -> list[str]:
    """The names of engines in a shorter format in whose place deepcait computes in fp32."""
    ours = {name: run for (name, who), run in runs.items() if who == "ours" and isinstance(run, Engine)}
    return [name for name, run in ours.items() if run.computed_in != run.precision]


def require_engines(engines: Sequence[str], device: torch.device = _CPU) -> None:
    """Raise unless there is at least one engine, and all are known and compute on the device.

    Raises:
        ConfigError: an engine is unknown, does not compute on the device, or there is none.
    """
    able = ENGINES if device.type == "cpu" else TORCH_ENGINES
    for name in engines or [""]:
        if name in able:
            continue
        if name in ENGINES:
            raise ConfigError(
                f"--engine: {name} computes on the CPU only.",
                remedy=f"On a GPU, use --engine {','.join(able)}, or omit --device.",
            )
        raise ConfigError(
            f"--engine: expected one or more of {', '.join(able)}, got {name or 'none'}.",
            remedy=f"For all of them: --engine {','.join(able)}",
        )


def require_baseline(precisions: Sequence[str]) -> None:
    """Raise if timm computes in none of the precisions; none at all means the defaults.

    Raises:
        ConfigError: there would be nothing to compare with.
    """
    if precisions and all(name in _NOT_TIMM for name in precisions):
        names = ",".join(dict.fromkeys(precisions))
        raise ConfigError(
            f"--precision: timm's network does not compute in {names}, so there is nothing to compare with.",
            remedy=f"Add a precision of timm: --precision fp32,{names}.",
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
    """Return a model in evaluation mode; a model name gets random weights, with LayerScale of order 1.

    Raises:
        ConfigError, WeightsError: MODEL can't be resolved.
    """
    if spec not in list_models():
        return require_cait(resolve(spec).model).eval()
    torch.manual_seed(SEED)
    model = create_model(spec).eval()
    with torch.no_grad():  # every branch then influences the logits that are compared
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.uniform_(0.5, 1.0)
    return model


def build_peer(config: CaiTConfig) -> nn.Module:
    """Return timm's network of this configuration with random weights.

    Raises:
        ConfigError: timm has no such network.
    """
    import timm

    require_known_to_timm(config)
    sizes = model_args(config) | {"drop_path_rate": config.drop_path_rate}
    return timm.create_model(nearest_architecture(config), num_classes=config.num_classes, **sizes)


def default_precisions(engines: Sequence[str], device: torch.device = _CPU) -> list[str]:
    """Return fp32, and OpenVINO's default precision on this processor, or the half precision of a GPU."""
    if device.type == "cuda":
        return ["fp32", "bf16" if has_bf16(device) else "fp16"]
    return list(dict.fromkeys(("fp32", openvino_default() if "openvino" in engines else "fp32")))


def build_contestants(
    ours: CaiT, peer: nn.Module, engines: Sequence[str], threads: int, precisions: Sequence[str] = ("fp32",)
) -> dict[tuple[str, str], Callable[[Tensor], Tensor]]:
    """Return a callable for every (name, "ours" or "timm"): each engine runs both in each precision it offers.

    The name is the engine, followed by the precision unless that is fp32: ("openvino bf16", "timm"). In int8 there is
    "ours" only.

    Raises:
        ConfigError: none of the engines offers a precision.
    """
    runs: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    device_type = next(ours.parameters()).device.type
    require_offered(engines, precisions, device_type)
    for precision in precisions:
        for engine in (name for name in engines if precision in offered_by(name, device_type)):
            name = engine if precision == "fp32" else f"{engine} {precision}"
            runs[name, "ours"] = build_engine(engine, ours, threads=threads, precision=precision)
            if precision not in _NOT_TIMM:
                runs[name, "timm"] = _build_peer_engine(engine, peer, ours.config, threads, precision)
    return runs


def _build_peer_engine(
    engine: str, peer: nn.Module, config: CaiTConfig, threads: int, precision: str
) -> Callable[[Tensor], Tensor]:
    if engine == "compile":
        # Static shapes are fastest for timm's model: one compilation per batch size.
        return _compiled(peer, precision)
    on_cpu = next(peer.parameters()).device.type == "cpu"  # on a GPU, the engine itself uses autocast
    wrapped = Peer(peer, config, autocast=on_cpu and engine == "eager" and precision == "bf16")
    return KINDS[engine](wrapped, threads, precision)


class Peer(nn.Module):
    """Another library's network of the same configuration, with the attributes that engines need.

    Args:
        model: the network.
        config: deepcait's configuration of it.
        autocast: run under PyTorch's autocast in bfloat16.
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
        with torch.inference_mode(), autocast(precision, images_BCHW.device.type):
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
    """Measure one batch size: every engine, both models, and the limit."""
    batch, device = len(images_BCHW), images_BCHW.device
    with torch.inference_mode():
        expected_BK = ours(images_BCHW).cpu()
    lanes, memory, errors = {}, {}, {}
    for key, run in runs.items():
        if key[0].startswith("compile"):
            run(images_BCHW)  # compiles now: outside the rounds, and its memory is not counted
        logits_BK, memory[key] = first_call_bytes(lambda run=run: run(images_BCHW), device)
        errors[key] = logit_error(logits_BK.cpu(), expected_BK)
        lanes[key] = Lane(" ".join(key), waited_for(lambda run=run: run(images_BCHW), device))
    openvino = any("openvino" in name for name, _ in runs)
    limits = {
        precision: limit_lanes(ours.config, batch, precision, openvino, threads, device)
        for precision in dict.fromkeys(_precision(name) for name, _ in runs)
    }
    every = [*lanes.values(), *(lane for some in limits.values() for lane in some)]
    with torch.inference_mode():
        take_turns(every, rounds, progress)
    fastest = {precision: min(some, key=lambda lane: lane.median_s, default=None) for precision, some in limits.items()}
    figures = {
        name: {
            who: _figures(lanes[name, who], batch, memory[name, who], fastest[_precision(name)]) | errors[name, who]
            if (name, who) in lanes
            else None
            for who in ("ours", "timm")
        }
        | (ratio(lanes[name, "ours"], lanes[name, "timm"]) if (name, "timm") in lanes else _NO_RATIO)
        for name in dict.fromkeys(name for name, _ in runs)
    }
    best = {
        precision: _best(_contenders(lanes, precision), errors, limit)
        | {"limit": limit and describe_limit(limits[precision], limit, ours.config, batch, precision)}
        for precision, limit in fastest.items()
    }
    substituted = {(name, "ours") for name in _in_fp32(runs)}
    own = {key: lane for key, lane in lanes.items() if key not in substituted}
    overall = _best(own if any(who == "ours" for _, who in own) else lanes, errors, None)
    limit = fastest[_precision(overall["ours"])]
    near = ratio(lanes[overall["ours"], "ours"], limit) if limit else _NO_RATIO
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
    """Error of logits, divided by the standard deviation of the expected: root mean square and largest.

    Raises:
        ConfigError: they contain NaN or infinity.
    """
    if not (logits_BK.isfinite().all() and expected_BK.isfinite().all()):
        raise ConfigError(
            "bench: the model's logits contain NaN or infinity.",
            remedy="Use weights whose logits are finite. In fp16 they may overflow: use --precision fp32,bf16.",
        )
    difference_BK, std = (logits_BK - expected_BK).double(), expected_BK.double().std()
    return {
        "rms": (difference_BK.square().mean().sqrt() / std).item(),
        "drift": (difference_BK.abs().max() / std).item(),
    }


def _precision(name: str) -> str:
    return name.partition(" ")[2] or "fp32"


def _contenders(lanes: dict[tuple[str, str], Lane], precision: str) -> dict[tuple[str, str], Lane]:
    """The lanes of one precision. In int8 they are deepcait's, and all of timm, which has no int8."""
    return {
        key: lane
        for key, lane in lanes.items()
        if _precision(key[0]) == precision or (precision in _NOT_TIMM and key[1] == "timm")
    }


def _best(
    lanes: dict[tuple[str, str], Lane], errors: dict[tuple[str, str], dict[str, float]], limit: Lane | None
) -> dict[str, Any]:
    """timm's fastest, and deepcait's fastest whose error is no larger.

    If all of deepcait's have a larger error, the most exact of them is compared, and `less_exact` is True.
    """
    peer = min((key for key in lanes if key[1] == "timm"), key=lambda key: lanes[key].median_s)
    allowed = max(errors[peer]["rms"], _SAME_ERROR)
    mine = [key for key in lanes if key[1] == "ours"]
    exact = [key for key in mine if errors[key]["rms"] <= allowed]
    own = min(exact, key=lambda key: lanes[key].median_s) if exact else min(mine, key=lambda key: errors[key]["rms"])
    return {
        "ours": own[0],
        "timm": peer[0],
        "rms": {"ours": errors[own]["rms"], "timm": errors[peer]["rms"]},
        "less_exact": not exact,
        **ratio(lanes[own], lanes[peer]),
        "of_limit": ratio(lanes[own], limit)["ratio"] if limit else None,
    }


def _figures(lane: Lane, batch: int, memory: int, limit: Lane | None) -> dict[str, Any]:
    return {
        "median_s": lane.median_s,
        "p95_s": lane.p95_s,
        "images_per_s": batch / lane.median_s,
        "calls": len(lane.calls_s),
        "first_call_bytes": memory,
        "of_limit": limit and limit.median_s / lane.median_s,
    }


def compare_memory(ours: CaiT, peer: nn.Module, batch: int) -> dict[str, Any]:
    """Peak activation memory in PyTorch in bytes, without weights, counted."""
    device = next(ours.parameters()).device
    images_BCHW = torch.zeros(batch, ours.config.in_chans, *ours.config.img_size, device=device)
    own, theirs = (live_bytes(cast("nn.Module", model), images_BCHW) for model in (fold(ours), peer))
    return {"batch": batch, "ours": own, "timm": theirs, "ratio": own / theirs}


def _engine_versions(engines: Sequence[str]) -> dict[str, str]:
    names = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
    packages = [package for engine in engines for package in names.get(engine, ())]
    return {package: version(package) or "?" for package in packages}
