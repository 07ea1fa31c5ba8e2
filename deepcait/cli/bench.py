"""Ours against peers, on this machine.

Examples:
    deepcait bench --data photos                        how many images per second the loader delivers, against timm's
    deepcait bench --data photos --workers 8 --json
    deepcait bench --data photos --out docs/results     data_loader.json and data_loader.md there
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from deepcait.cli.console import Console
from deepcait.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Options of `deepcait bench`."""

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
    if not args.data:
        raise ConfigError("bench: expected something to measure, got nothing.", remedy="deepcait bench --data FOLDER")
    console = Console(json=args.json)
    result = {}
    if args.data:
        result |= _measure_data(args, console)
    console.result(result)


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
