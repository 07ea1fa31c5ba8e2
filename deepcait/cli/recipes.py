"""List the recipes, or the settings of one; every key with its default, type and meaning.

Examples:
    deepcait recipes                       the recipes of the package
    deepcait recipes finetune              what this recipe sets, and every other key with its default
    deepcait recipes slow.yaml             the same for your own file
    deepcait recipes finetune --filter lr  only the keys whose name contains "lr"
    deepcait recipes --json                recipes and keys, for programs
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import tyro

from deepcait.cli.console import Console


@dataclass(frozen=True)
class Args:
    """Options of `deepcait recipes`."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """Name of a recipe, or the path of a .yaml file; without it, the recipes are listed."""
    filter: str = ""
    """Show only the keys whose name contains this text."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Print recipes, or keys."""
    from deepcait.training.keys import list_recipes, recipe_keys, recipe_values

    console = Console(json=args.json)
    values = recipe_values(args.name) if args.name else {}
    keys = [row for row in recipe_keys() if args.filter in row.key]
    if args.json:
        shown = [dataclasses.asdict(row) | {"value": values.get(row.key, row.default)} for row in keys]
        console.result({"recipes": list_recipes(), "keys": shown})
        return
    if args.name is None and not args.filter:
        console.table(("recipe", "for"), [(row["name"], _first_sentence(row["summary"])) for row in list_recipes()])
        console.say("\n`deepcait recipes NAME` shows the settings of one; `deepcait train --recipe NAME` uses it.")
        return
    rows = [
        (row.key, values.get(row.key, row.default) + " *" * (row.key in values), row.type, row.meaning) for row in keys
    ]
    console.table(("key", "value", "type", "meaning"), rows)
    if values:
        console.say(f"\n* set by {args.name}; the other values are defaults. Change one with --set key=value.")


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")
