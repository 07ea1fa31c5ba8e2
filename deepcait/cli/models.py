"""List every model: parameters, multiply-adds of one image, published accuracy, released or not.

Examples:
    deepcait models                  all of them
    deepcait models --json           the same for programs
    deepcait models --peers          CaiT and its baselines, counted the same way
    deepcait models --teachers regnet    timm's classifiers that can teach, by a part of their name; alone: all
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from deepcait.cli.console import Console, percent
from deepcait.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Options of `deepcait models`."""

    peers: bool = False
    """Also count baselines of other families (through timm, nothing is downloaded), with reported accuracies."""
    teachers: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[FILTER]")] = None
    """List what can teach instead: timm's classifiers with weights, by a part of their name or a pattern with *."""
    table: Path | None = None
    """With --teachers: timm's results-imagenet.csv, for accuracies; without it the one that timm is installed with."""
    json: bool = False
    """Print one JSON list and nothing else."""


def run(args: Args) -> int | None:
    """Print the table, or two of them."""
    from deepcait.weights import describe_models

    console = Console(json=args.json)
    if args.teachers is not None:
        _list_teachers(console, args.teachers, args.table)
        return
    if args.table is not None:
        raise ConfigError("--table: expected it with --teachers, got it alone.", remedy="Add --teachers.")
    models = describe_models()
    peers = _count_peers() if args.peers else []
    if args.json:
        console.result(models + [_as_model(row) for row in peers if row["family"] == "baseline"])
        return
    _print_models(console, models)
    if peers:
        console.say()
        _print_peers(console, peers)


def _count_peers() -> list[dict]:
    from deepcait.bench.peers import compare_peers

    return compare_peers()


def _list_teachers(console: Console, filters: tuple[str, ...], table: Path | None) -> None:
    from deepcait.weights.teachers import find_table, list_teachers

    teachers = list_teachers(filters, table=table)
    console.result(teachers)
    if console.json:
        return
    columns = ("teacher", "params M", "image px", "classes", "top-1", "licence")
    rows = [
        (
            row["spec"],
            "" if row["params"] is None else _number(row["params"] / 1e6, 1),
            row["img_size"],
            row["num_classes"],
            percent(row["top1"]),
            row["licence"],
        )
        for row in teachers
    ]
    console.table(columns, rows)
    console.say(f"\n{len(teachers):,} classifiers. Use one: deepcait train ... --teacher {teachers[0]['spec']}")
    if table is None and find_table() is None:
        console.say("Accuracies are in timm's results-imagenet.csv, which its package does not hold: --table FILE.")
    console.say("A teacher needs the student's classes: most know the 1000 of ImageNet.")


def _as_model(row: dict) -> dict:
    """A baseline with the keys of a model; whether others released it is not ours to say."""
    return {**row, "released": None, "real": None, "v2": None}


def _print_models(console: Console, models: list[dict]) -> None:
    columns = ("model", "params M", "GMACs", "image px", "released", "top-1", "ReaL", "V2")
    rows = [
        (
            model["name"],
            _number(model["params"] / 1e6, 2),
            _number(model["gmacs"], 2),
            model["img_size"],
            "yes" if model["released"] else "no",
            *(percent(model[key]) for key in ("top1", "real", "v2")),
        )
        for model in models
    ]
    console.table(columns, rows)
    console.say("\nAccuracy: released weights as re-evaluated by timm; the others as the paper reports them, without")
    console.say("a teacher where it has that. Blank: nobody reports one.")


def _print_peers(console: Console, peers: list[dict]) -> None:
    columns = ("model", "params M", "GMACs", "image px", "reported", "re-evaluated", "reported by")
    rows = [
        (
            row["name"],
            _number(row["params"] / 1e6, 1),
            _number(row["gmacs"], 1),
            row["img_size"],
            percent(row["reported"]),
            percent(row["top1"]),
            row["reported_by"],
        )
        for row in peers
    ]
    console.table(columns, rows)
    console.say(
        "\nOne counter for all: matrix products and convolutions that run, on the meta device. Re-evaluated: by"
    )
    console.say("timm (results/results-imagenet.csv), same weights, same image size. Blank: no source that we know.")


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"
