"""Measure models on labelled images: top-1, top-5 and loss, exact for any batch size and number of processes.

Examples:
    deepcait eval runs/pets --data photos             test, else val, else all of class folders
    deepcait eval runs/pets --data photos --split val --json
    deepcait eval runs/a runs/b --data builtin:demo   two models on the same images
    torchrun --nproc-per-node 2 -m deepcait eval cait_s24_224 --data imagenet/val
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from deepcait.cli.console import Console, percent
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from deepcait.data import Source
    from deepcait.evaluation import Metrics
    from deepcait.weights import Resolved


@dataclass(frozen=True)
class Args:
    """Options of `deepcait eval`."""

    specs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SPEC ...")]
    """One model or several: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    data: str
    """Labelled images: a folder of class folders, a .csv, .parquet, .tar or .zip, imagenet:ROOT, builtin:demo, ..."""
    split: Literal["train", "val", "test", "all"] | None = None
    """Which part of the data; without it test, else val, else all."""
    protocol: Literal["folder", "imagenet", "real", "v2"] = "folder"
    """How labels are read and counted."""
    batch_size: int = 32
    """Images a step; changes no result."""
    workers: int = 0
    """Processes that decode images; changes no result."""
    device: str = "auto"
    """Where the model computes: auto, cpu, cuda, cuda:1."""
    json: bool = False
    """Print one JSON object (a list of them for several models) and nothing else."""


def run(args: Args) -> int | None:
    """Measure each model and print its figures."""
    from deepcait.evaluation import require_protocol
    from deepcait.train.processes import choose_device, join_processes, leave_processes

    if not args.specs:
        raise ConfigError("eval: expected a model, got none.", remedy="deepcait eval SPEC --data FOLDER")
    require_protocol(args.protocol)
    processes = join_processes()
    try:
        device = choose_device(args.device, processes.local_rank)
        console = Console(json=args.json)
        results = []
        for spec in args.specs:
            if results:
                console.say()
            results.append(_measure(spec, args, device, console))
    finally:
        leave_processes()
    console.result(results[0] if len(results) == 1 else results)


def _measure(spec: str, args: Args, device: torch.device, console: Console) -> dict:
    from deepcait.data import Preprocessing
    from deepcait.evaluation import evaluate, open_for
    from deepcait.weights import resolve

    source = open_for(args.data, split=args.split)
    found = resolve(spec)
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    _print_setup(console, spec, source, found, preprocessing)
    with console.progress("evaluating") as progress:
        metrics = evaluate(
            found.model,
            source,
            protocol=args.protocol,
            preprocessing=preprocessing,
            batch_size=args.batch_size,
            num_workers=args.workers,
            classes=found.classes,
            device=device,
            progress=progress,
        )
    _print_metrics(console, metrics)
    return {"model": spec, "data": args.data, "split": source.split, "protocol": args.protocol, **metrics.to_dict()}


def _print_setup(console: Console, spec: str, source: Source, found: Resolved, preprocessing: object) -> None:
    from deepcait.data import describe
    from deepcait.evaluation import describe_mapping

    console.say(f"model          {spec}")
    console.say(f"data           {describe(source)}")
    console.say(f"classes        {describe_mapping(source, found.classes)}")
    console.say(f"preprocessing  {preprocessing}")


def _print_metrics(console: Console, metrics: Metrics) -> None:
    num = metrics.num_images
    console.say(f"top-1          {percent(metrics.top1)}  ({metrics.correct1:,} of {num:,})")
    console.say(f"top-5          {percent(metrics.top5)}  ({metrics.correct5:,} of {num:,})")
    console.say(f"loss           {metrics.loss:.6f} nats an image")
