"""Benchmark inference, training and data loading against timm on this machine.

Examples:
    deepcait bench cait_xxs24_224 --json                 every engine, deepcait against timm
    deepcait bench cait_xxs24_224 --engine eager,openvino --batch 1,8 --out docs/results
    deepcait bench cait_xxs24_224 --device cuda          eager and compiled, on a GPU
    deepcait bench cait_xxs24_224 --train --compiled    a training step, with the memory of activations
    deepcait bench cait_xxs24_224 --cost --rounds 5     time and memory by batch size, tokens and depth
    deepcait bench runs/pets --autotune                  the fastest engine, threads and batch size; stored
    deepcait bench runs/pets --data pets --precision all  predictions and speed in each precision
    deepcait bench --data photos                        images per second of the data loaders
    deepcait bench --data photos --workers 8 --json
    deepcait bench --data photos --out docs/results     also writes data_loader.json and .md
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deepcait.cli.console import Console
from deepcait.cli.options import whole_numbers
from deepcait.errors import ConfigError

# Benchmark -> its options, apart from --rounds, --out and --json, which all have.
_ENGINES = "the benchmark of engines"
_USES = {
    "--data": {"workers", "batch_size"},
    _ENGINES: {"engine", "batch", "threads", "precision", "device"},
    "--autotune": {"engine", "batch", "threads", "precision", "tolerance"},
    "--train": {"batch", "threads", "compiled", "precision"},
    "--cost": {"threads"},
}


@dataclass(frozen=True)
class Args:
    """Options of `deepcait bench`."""

    specs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL ...]", help_behavior_hint="(optional)")
    ] = ()
    """Models to benchmark; a model name gets random weights."""
    against: Literal["timm"] = "timm"
    """Baseline of the comparison."""
    engine: str | None = None
    """Engines, separated by commas (default: eager,compile,onnx,openvino; on a GPU eager,compile)."""
    device: str = "cpu"
    """Device of the engines: cpu, cuda, or auto (a GPU if there is one). For a training step on a GPU: python -m
    deepcait.bench.gpu --part train."""
    autotune: bool = False
    """Find the fastest engine and settings; other commands use them from tuned.json in the model's folder or --out."""
    train: bool = False
    """Benchmark a training step instead of inference."""
    compiled: bool = False
    """For --train: include timm's model through torch.compile."""
    precision: str = "auto"
    """Precisions, separated by commas (fp32,bf16,int8), or all that the engines offer. auto is fp32, and for engines
    also OpenVINO's default. timm has no int8. With --train: one of fp32 and bf16 (autocast)."""
    tolerance: float | None = None
    """For --autotune: fraction of images whose top-1 class may differ from the model's, for precisions below fp32."""
    cost: bool = False
    """Measure how time and memory grow with batch size, tokens and depth instead."""
    batch: str = ""
    """Images per call, separated by commas (default: 1,8); with --train one number (default: 16)."""
    threads: int | None = None
    """Threads of every engine (default: PyTorch's choice)."""
    data: str = ""
    """Benchmark the data loader on these images: a folder of images, or another DATA."""
    out: Path | None = None
    """Also write the results to this folder, as JSON and Markdown."""
    rounds: int = 20
    """Number of timed rounds; every engine runs once per round."""
    workers: int = 2
    """For --data: worker processes of each loader."""
    batch_size: int = 32
    """For --data: images per batch."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> None:
    """Run the benchmarks."""
    from deepcait.runtime.files import require_folder

    if not args.data and not args.specs:
        raise ConfigError(
            "bench: neither a model nor --data was given.",
            remedy="Try deepcait bench cait_xxs24_224, or deepcait bench --data FOLDER.",
        )
    _refuse_contradictions(args)
    if args.out is not None:
        # Before the measurement, which takes minutes.
        require_folder(args.out, "--out")
        args.out.mkdir(parents=True, exist_ok=True)
    console = Console(json=args.json)
    result = {}
    if _compares_precisions(args):
        result["precisions"] = [_measure_precisions(spec, args, console) for spec in args.specs]
        console.result(result)
        return
    if args.data:
        result |= _measure_data(args, console)
    if args.specs and args.autotune:
        result["tuned"] = [_tune(spec, args, console) for spec in args.specs]
    elif args.specs:
        measure = _measure_cost if args.cost else _measure_training if args.train else _measure_engines
        result["models"] = [measure(spec, args, console) for spec in args.specs]
    console.result(result)


def _refuse_contradictions(args: Args) -> None:
    """Raise for options that the requested benchmark would not use."""
    ways = [f"--{name}" for name in ("autotune", "train", "cost") if getattr(args, name)]
    if len(ways) > 1:
        raise ConfigError(
            f"{' and '.join(ways)} can't be combined.",
            remedy="Run one of them, then the other.",
        )
    if ways and not args.specs:
        raise ConfigError(f"{ways[0]}: no model was given.", remedy=f"Use deepcait bench MODEL {ways[0]}.")
    asked = (ways or [_ENGINES] if args.specs else []) + (["--data"] if args.data else [])
    used = set().union(*(_USES[what] for what in asked))
    if _compares_precisions(args):
        used -= _USES["--data"] | {"device"}
    for name in sorted(set().union(*_USES.values()) - used):
        if getattr(args, name) != getattr(Args, name):
            option, users = f"--{name.replace('_', '-')}", [what for what in _USES if name in _USES[what]]
            if users == [_ENGINES] and ways:
                other = f", or {ways[0]}"
            elif len(users) == 1 and users != [_ENGINES]:
                other = f", or add {users[0]}"
            else:
                other = "" if args.specs else ", or name a model"
            raise ConfigError(
                f"{option} is not used by {' and '.join(asked)}.",
                remedy=f"Omit {option}{other}.",
            )


def _measure_engines(spec: str, args: Args, console: Console) -> dict:
    from deepcait.bench.engine_page import COLUMNS, fallbacks, markdown, summary, table
    from deepcait.bench.inference import compare_engines
    from deepcait.bench.plots import draw_engines
    from deepcait.runtime.device import choose_device

    device = choose_device(args.device)
    engines = _engines(args, device.type)
    with console.progress("measuring") as progress:
        result = compare_engines(
            spec,
            engines=engines,
            precisions=_precisions(args, device.type),
            batches=whole_numbers(args.batch or "1,8", "--batch"),
            rounds=args.rounds,
            threads=args.threads,
            device=str(device),
            progress=progress,
        )
    for row in result["batches"]:
        console.say(f"{spec}, batch {row['batch']}, {result['threads']} threads, {args.rounds} rounds")
        console.table(COLUMNS, table(row))
        for line in summary(row):
            console.say(line)
    for line in fallbacks(result):
        console.say(line)
    batch_names = "_".join(f"b{row['batch']}" for row in result["batches"])
    name = f"bench_{_file_name(spec)}_{batch_names}"
    command = f"deepcait bench {shlex.quote(spec)} --engine {','.join(engines)} --batch {args.batch or '1,8'}"
    command += f" --device {args.device}" if args.device != "cpu" else ""
    command += f" --rounds {args.rounds}" + (f" --threads {args.threads}" if args.threads else "")
    command += f" --precision {args.precision}" if args.precision != "auto" else ""
    _write(args.out, name, command, result, markdown(result, command), console)
    if args.out is not None and find_spec("matplotlib"):
        draw_engines(result, args.out / f"{name}.png")
        console.say(f"wrote  {args.out / name}.png")
    return result


def _compares_precisions(args: Args) -> bool:
    """Whether a model's precisions are compared on labelled images."""
    return bool(args.data and args.specs and args.precision != "auto" and not (args.train or args.autotune))


def _measure_precisions(spec: str, args: Args, console: Console) -> dict:
    from deepcait.bench.engine_page import fallbacks
    from deepcait.bench.precisions import COLUMNS, compare_precisions, markdown, table

    (batch, *others) = whole_numbers(args.batch or "8", "--batch")
    if others:
        raise ConfigError(f"--batch: expected one number with --data, got {args.batch!r}.", remedy="Use --batch 8.")
    with console.progress("measuring") as progress:
        result = compare_precisions(
            spec,
            args.data,
            engines=_engines(args),
            precisions=_precisions(args),
            batch=batch,
            rounds=args.rounds,
            threads=args.threads,
            progress=progress,
        )
    console.say(f"{spec} on {result['num_images']:,} images, {result['threads']} threads")
    console.table(COLUMNS, table(result))
    for engine, missing in result["not_offered"].items():
        console.say(f"not offered by {engine}: {', '.join(missing)}")
    for line in fallbacks(result):
        console.say(line)
    command = f"deepcait bench {shlex.quote(spec)} --data DATA --engine {','.join(_engines(args))}"
    command += f" --precision {args.precision} --batch {batch} --rounds {args.rounds} --threads {result['threads']}"
    result["data"] = Path(args.data).name
    _write(args.out, f"precision_{_file_name(spec)}", command, result, markdown(result, command), console)
    return result


def _engines(args: Args, device_type: str = "cpu") -> list[str]:
    """The values of --engine; without it, all engines of the device. Raises ConfigError if one is unknown there."""
    import torch

    from deepcait.bench.inference import require_engines
    from deepcait.inference.engines import ENGINES, TORCH_ENGINES

    if args.engine is None:
        return list(ENGINES if device_type == "cpu" else TORCH_ENGINES)
    names = [name for name in args.engine.split(",") if name]
    require_engines(names, torch.device(device_type))
    return names


def _precisions(args: Args, device_type: str = "cpu") -> list[str]:
    """The values of --precision; empty for auto. `all` is every precision that one of the engines offers."""
    from deepcait.inference.precision import MEASURED, ON_GPU, offered_by

    if args.precision == "auto":
        return []
    known = MEASURED if device_type == "cpu" else ON_GPU
    if args.precision == "all":
        offers = {name for engine in _engines(args, device_type) for name in offered_by(engine, device_type)}
        return [name for name in known if name in offers]
    names = [name for name in args.precision.split(",") if name]
    for name in names or [""]:
        if name not in known:
            raise ConfigError(
                f"--precision: expected one or more of {', '.join(known)}, or all, got {name or 'none'}.",
                remedy=f"For all of them: --precision {','.join(known)}.",
            )
    return names


def _tune(spec: str, args: Args, console: Console) -> dict:
    from deepcait.bench.tune import keep, table, tune
    from deepcait.parts import path_of

    with console.progress("measuring") as progress:
        result = tune(
            spec,
            engines=_engines(args),
            precisions=_precisions(args),
            tolerance=args.tolerance or 0.0,
            threads=[] if args.threads is None else [args.threads],
            batches=whole_numbers(args.batch or "1,8", "--batch"),
            rounds=args.rounds,
            progress=progress,
        )
    console.table(*table(result))
    for engine, why in result["left_out"].items():
        console.say(f"left out: {engine}: {why}")
    choice = result["choice"]
    console.say(
        f"fastest: {choice['engine']}, {choice['precision']}, {choice['threads']} threads, {choice['batch']} images "
        f"per call: {result['images_per_s']:.1f} images/s"
    )
    place = path_of(spec)
    folder = args.out or (place if place.is_dir() else None)
    if folder is None:
        console.say(f"not stored: {spec} is not a folder; use --out FOLDER")
        return result
    console.say(f"wrote  {keep(result, folder)}")
    return result


def _measure_training(spec: str, args: Args, console: Console) -> dict:
    from deepcait.bench.train import compare_training, markdown, table

    (batch, *others) = whole_numbers(args.batch or "16", "--batch")
    if others:
        raise ConfigError(f"--batch: expected one number with --train, got {args.batch!r}.", remedy="Use --batch 16.")
    precision = "fp32" if args.precision == "auto" else args.precision
    if precision not in ("fp32", "bf16"):
        raise ConfigError(
            f"--precision: expected fp32 or bf16 with --train, got {precision}.",
            remedy="Use --precision fp32 or --precision bf16.",
        )
    with console.progress("measuring") as progress:
        result = compare_training(
            spec,
            batch=batch,
            rounds=args.rounds,
            threads=args.threads,
            precision=precision,
            compiled=args.compiled,
            progress=progress,
        )
    console.say(f"{spec}, a training step of {batch} images, {precision}, {result['threads']} threads")
    console.table(*table(result))
    command = f"deepcait bench {shlex.quote(spec)} --train{' --compiled' if args.compiled else ''} --batch {batch}"
    command += f" --rounds {args.rounds} --threads {result['threads']} --precision {precision}"
    name = f"train_step_{_file_name(spec)}_{precision}"
    _write(args.out, name, command, result, markdown(result, command), console)
    return result


def _measure_cost(spec: str, args: Args, console: Console) -> dict:
    from deepcait.bench.cost import compare_cost, markdown, table
    from deepcait.bench.plots import draw_cost, require_matplotlib

    if args.out is not None:
        require_matplotlib()
    with console.progress("measuring") as progress:
        result = compare_cost(spec, rounds=args.rounds, threads=args.threads, progress=progress)
    console.say(f"{spec}: exponents of time and memory, {result['threads']} threads, {args.rounds} rounds")
    console.table(*table(result))
    name = f"cost_{_file_name(spec)}"
    command = f"deepcait bench {shlex.quote(spec)} --cost --rounds {args.rounds} --threads {result['threads']}"
    _write(args.out, name, command, result, markdown(result, command, f"{name}.png"), console)
    if args.out is not None:
        draw_cost(result, args.out / f"{name}.png")
    return result


def _write(out: Path | None, name: str, command: str, result: dict, page: str, console: Console) -> None:
    """Write results as JSON and Markdown, if a folder was given."""
    from deepcait.runtime.files import write_bytes

    if out is None:
        return
    content = json.dumps({"command": command, **result}, indent=2) + "\n"
    for suffix, text in (("json", content), ("md", page)):
        write_bytes(out / f"{name}.{suffix}", text.encode("utf-8"))
    console.say(f"wrote  {out / name}.json, {name}.md")


def _file_name(spec: str) -> str:
    return spec.strip("/").replace("/", "_").replace(":", "_")


def _measure_data(args: Args, console: Console) -> dict:
    from deepcait.bench.data import compare_loaders, markdown

    with console.progress("measuring") as progress:
        result = compare_loaders(
            args.data,
            rounds=args.rounds,
            num_workers=args.workers,
            batch_size=args.batch_size,
            progress=progress,
        )
    speed, spread = result["images_per_s"], result["quartiles"]
    rows = [
        [what, *(f"{value:.1f}" for value in (speed[ours], speed[peer])), f"{result[key]:.2f}", _range(spread[key])]
        for what, ours, peer, key in (
            ("training", "train", "timm_train", "data_ratio"),
            ("evaluation", "eval", "timm_eval", "data_eval_ratio"),
            ("evaluation, resampler torch", "eval_fast", "timm_eval", "data_eval_fast_ratio"),
        )
    ]
    console.say(f"data   {args.data}: {result['num_images']:,} images, {args.workers} workers, {args.rounds} rounds")
    console.table(["loader", "deepcait, images/s", "timm, images/s", "ratio", "quartiles"], rows)
    command = f"deepcait bench --data DATA --rounds {args.rounds} --workers {args.workers}"
    command += f" --batch-size {args.batch_size} --out {shlex.quote(args.out.name)}" if args.out else ""
    content = {"what": "deepcait's data loader against timm's", **result}
    _write(args.out, "data_loader", command, content, markdown(result, command), console)
    return result


def _range(quartiles: list[float]) -> str:
    return f"{quartiles[0]:.2f} to {quartiles[2]:.2f}"
