"""Ours against peers, on this machine.

Examples:
    deepcait bench                                      XXS24 at 224 px on each engine, against timm on the same engine
    deepcait bench cait_s24_224 --engine eager,openvino --batch 8 --out docs/results
    deepcait bench --data photos                        how many images per second the loader delivers, against timm's
    deepcait bench --data photos --workers 8 --json
    deepcait bench --data photos --out docs/results     data_loader.json and data_loader.md there
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from deepcait.cli.console import Console
from deepcait.errors import ConfigError

DEFAULT_MODEL = "cait_xxs24_224"


@dataclass(frozen=True)
class Args:
    """Options of `deepcait bench`."""

    specs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SPEC ...")] = ()
    """Measure inference of these models; of a name alone the weights are random. Default: cait_xxs24_224."""
    against: Literal["timm"] = "timm"
    """The peer."""
    engine: str = "eager,compile,onnx,openvino"
    """Engines, both ours and the peer's."""
    batch: str = "1,8"
    """Images a call."""
    data: str = ""
    """Measure the data loader on these images: a folder of pictures, or a data SPEC."""
    out: Path | None = None
    """Write the figures there too, as JSON and as a page."""
    rounds: int = 20
    """Counted rounds; ours and the peer take turns in each."""
    workers: int = 2
    """Processes that decode, of each loader."""
    batch_size: int = 32
    """Images a batch."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Measure what was asked for."""
    console = Console(json=args.json)
    result: dict[str, Any] = {}
    if args.data:
        result |= _measure_data(args, console)
    if args.specs or not args.data:
        result["models"] = [_measure_model(spec, args, console) for spec in args.specs or (DEFAULT_MODEL,)]
    console.result(result)


def _measure_model(spec: str, args: Args, console: Console) -> dict:
    """One model on each engine."""
    from deepcait.bench.inference import compare_engines, markdown, table

    engines = tuple(word.strip() for word in args.engine.split(","))
    with console.progress("measuring") as progress:
        result = compare_engines(
            spec, engines=engines, batches=_numbers(args.batch), rounds=args.rounds, progress=progress
        )
    head = ["engine", "ours, ms", "p95", "images/s", "timm, ms", "p95", "images/s", "ratio", "quartiles"]
    for row in result["batches"]:
        console.say(f"{spec}, batch {row['batch']}, {result['threads']} threads, {args.rounds} rounds")
        console.table(head, table(row))
        console.say(
            f"best   {row['best_ratio']:.2f} times timm's best ({row['best_ours']} against {row['best_peer']}), "
            f"{row['of_limit']:.2f} of the limit of the matrix products ({row['limit']['gflops']:.0f} GFLOPS)"
        )
    if args.out is not None:
        command = (
            f"deepcait bench {shlex.quote(spec)} --engine {args.engine} --batch {args.batch} --rounds {args.rounds}"
        )
        name = f"bench_{Path(spec).name}_{'_'.join(engines)}_b{'_'.join(map(str, _numbers(args.batch)))}"
        args.out.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"what": "inference against timm", "command": command, **result}, indent=2)
        (args.out / f"{name}.json").write_text(content + "\n", encoding="utf-8")
        (args.out / f"{name}.md").write_text(markdown(result, command), encoding="utf-8")
        console.say(f"wrote  {args.out / name}.json, .md")
    return result


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"--batch: expected numbers, got {text!r}.", remedy="--batch 1,8") from None


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
