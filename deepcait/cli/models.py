"""List every model: parameters, multiply-adds of one image, published accuracy, released or not.

Examples:
    deepcait models                  all of them
    deepcait models xxs              by a part of the name, or a pattern with *
    deepcait models --json           the same for programs
    deepcait models --peers          CaiT and the models that the paper compares with
    deepcait models --teachers regnet    timm's classifiers, as teachers, by a part of their name
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

    filter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[FILTER]")] = ""
    """A part of the name, or a pattern with *; without it, all are listed."""
    peers: bool = False
    """Add the models that the paper compares with, with reported accuracies (uses timm; nothing is downloaded)."""
    teachers: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[FILTER]")] = None
    """List teachers instead: timm's classifiers with weights; filter by a part of the name or a pattern with *."""
    table: Path | None = None
    """For --teachers: path of timm's results-imagenet.csv with accuracies (default: the installed timm's, else
    the package's)."""
    json: bool = False
    """Print one JSON list and nothing else."""


def run(args: Args) -> int | None:
    """Print the table, or two of them."""
    from deepcait.weights import describe_models
    from deepcait.weights.registry import matches

    console = Console(json=args.json)
    if args.teachers is not None:
        _list_teachers(console, (*args.teachers, *([args.filter] if args.filter else [])), args.table)
        return
    if args.table is not None:
        raise ConfigError("--table is only used with --teachers.", remedy="Add --teachers, or omit --table.")
    models = [model for model in describe_models() if matches(model["name"], args.filter)]
    peers = [row for row in _count_peers() if matches(row["name"], args.filter)] if args.peers else []
    if not models and not peers:
        raise ConfigError(f"no model matches {args.filter!r}.", remedy="`deepcait models` lists all of them.")
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
    from deepcait.weights.teachers import list_teachers

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
            # Some tables have the accuracy at another image size only.
            percent(row["top1"])
            + (f" at {at} px" if (at := row["top1_img_size"]) not in (None, row["img_size"]) else ""),
            row["licence"],
        )
        for row in teachers
    ]
    console.table(columns, rows)
    console.say(f"\n{len(teachers):,} classifiers. To use one: deepcait train ... --teacher {teachers[0]['spec']}")
    console.say("Accuracy: timm's evaluation (results/results-imagenet.csv); blank: not evaluated there. --table FILE")
    console.say("takes a newer one.")
    console.say("A teacher needs the classes of the student; most have the 1000 classes of ImageNet.")


def _as_model(row: dict) -> dict:
    """A baseline with the keys of a model."""
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
    console.say(
        "\nAccuracy: timm's evaluation of the released weights; of other models, the authors' reported value, without"
    )
    console.say("a teacher if there is one. Blank: no value was read in a source.")


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
        "\nGMACs of all models are counted in the same way: matrix products and convolutions. Re-evaluated: by timm"
    )
    console.say("(results/results-imagenet.csv), same weights and image size. Blank: no value was read in a source.")


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"
