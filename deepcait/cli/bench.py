"""Ours against peers, on this machine.

Examples:
    deepcait bench cait_xxs24_224 --json                 our engines against timm's network on the same engines
    deepcait bench cait_xxs24_224 --engine eager,openvino --batch 1,8 --out docs/results
    deepcait bench runs/pets --autotune                  the fastest engine, threads and batch here; kept with it
    deepcait bench --data photos                        how many images per second the loader delivers, against timm's
    deepcait bench --data photos --workers 8 --json
    deepcait bench --data photos --out docs/results     data_loader.json and data_loader.md there
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
from deepcait.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Options of `deepcait bench`."""

    specs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SPEC ...")] = ()
    """Models to time beside timm's, on every engine; of a name alone the weights are random."""
    against: Literal["timm"] = "timm"
    """The peer."""
    engine: str = "eager,compile,onnx,openvino"
    """Engines, with commas."""
    autotune: bool = False
    """Find what is the fastest for our model here; tuned.json goes into its folder, or to --out, for other verbs."""
    batch: str = "1,8"
    """Images a call, with commas."""
    threads: int | None = None
    """Threads of every engine (default: PyTorch's choice)."""
    data: str = ""
    """Measure the data loader on these images: a folder of pictures, or a data SPEC."""
    out: Path | None = None
    """Write the figures there too, as JSON and as a page."""
    rounds: int = 20
    """Counted rounds; the loaders take turns in each."""
    workers: int = 2
    """Processes that decode, of each loader."""
    batch_size: int = 32
    """Images a batch."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Measure what was asked for."""
    if not args.data and not args.specs:
        raise ConfigError(
            "bench: expected something to measure, got nothing.",
            remedy="deepcait bench cait_xxs24_224, or deepcait bench --data FOLDER",
        )
    console = Console(json=args.json)
    result = {}
    if args.data:
        result |= _measure_data(args, console)
    if args.specs and args.autotune:
        result["tuned"] = [_tune(spec, args, console) for spec in args.specs]
    elif args.specs:
        result["models"] = [_measure_engines(spec, args, console) for spec in args.specs]
    console.result(result)


def _measure_engines(spec: str, args: Args, console: Console) -> dict:
    from deepcait.bench.bars import draw_engines
    from deepcait.bench.inference import COLUMNS, compare_engines, markdown, table

    with console.progress("measuring") as progress:
        result = compare_engines(
            spec,
            engines=[name for name in args.engine.split(",") if name],
            batches=_numbers(args.batch),
            rounds=args.rounds,
            threads=args.threads,
            progress=progress,
        )
    for row in result["batches"]:
        console.say(f"{spec}, batch {row['batch']}, {result['threads']} threads, {args.rounds} rounds")
        console.table(COLUMNS, table(row))
        console.say(
            f"best: {row['best_ours']}, {row['best_ratio']:.2f} times {row['best_peer']}, {row['of_limit']:.2f} of the "
            f"limit of the matrix products ({row['limit']['library']})"
        )
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        batches = "_".join(f"b{row['batch']}" for row in result["batches"])
        path = args.out / f"bench_{spec.strip('/').replace('/', '_').replace(':', '_')}_{batches}.json"
        command = f"deepcait bench {spec} --engine {args.engine} --batch {args.batch} --rounds {args.rounds}"
        path.write_text(json.dumps({"command": command, **result}, indent=2) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(markdown(result, command), encoding="utf-8")
        written = [path, path.with_suffix(".md").name]
        if find_spec("matplotlib"):
            draw_engines(result, path.with_suffix(".png"))
            written.append(path.with_suffix(".png").name)
        console.say(f"wrote  {', '.join(map(str, written))}")
    return result


def _tune(spec: str, args: Args, console: Console) -> dict:
    from deepcait.bench.tune import keep, table, tune

    with console.progress("measuring") as progress:
        result = tune(
            spec,
            engines=[name for name in args.engine.split(",") if name],
            threads=[] if args.threads is None else [args.threads],
            batches=_numbers(args.batch),
            rounds=args.rounds,
            progress=progress,
        )
    console.table(*table(result))
    for engine, why in result["left_out"].items():
        console.say(f"left out: {engine}: {why}")
    choice = result["choice"]
    console.say(
        f"fastest: {choice['engine']}, {choice['threads']} threads, {choice['batch']} images a call: "
        f"{result['images_per_s']:.1f} images/s"
    )
    folder = args.out or (Path(spec) if Path(spec).is_dir() else None)
    if folder is None:
        console.say(f"not kept: {spec} is no folder; --out FOLDER keeps it there")
        return result
    folder.mkdir(parents=True, exist_ok=True)
    console.say(f"wrote  {keep(result, folder)}")
    return result


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f"--batch: expected numbers such as 1,8, got {text!r}.", remedy="Mend it.")
    return [int(part) for part in parts]


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
    console.table(["loader", "ours, images/s", "timm, images/s", "ratio", "quartiles"], rows)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        command = f"deepcait bench --data DATA --rounds {args.rounds} --workers {args.workers}"
        command += f" --batch-size {args.batch_size} --out {shlex.quote(args.out.name)}"
        content = {"what": "our data loader against timm's", "command": command, **result}
        (args.out / "data_loader.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (args.out / "data_loader.md").write_text(markdown(result, command), encoding="utf-8")
        console.say(f"wrote  {args.out / 'data_loader.json'}, {args.out / 'data_loader.md'}")
    return result


def _range(quartiles: list[float]) -> str:
    return f"{quartiles[0]:.2f} to {quartiles[2]:.2f}"
