"""Write a table of the images with their splits or folds: a .csv that every command takes as DATA.

Examples:
    deepcait split --data photos --out photos.csv --val 0.1 --test 0.2
    deepcait split --data photos --out folds.csv --folds 5           then: deepcait train ... --set data.fold=0
    deepcait split --data visits.csv --out split.csv --test 0.2 --group patient    no patient in two splits
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepcait.cli.console import Console


@dataclass(frozen=True)
class Args:
    """Options of `deepcait split`."""

    data: str
    """Images that are files: a folder of class folders, or a table (.csv, .jsonl, .parquet)."""
    out: Path
    """Table to write (.csv)."""
    val: float = 0.0
    """Fraction of every class for the split val; 0 draws none."""
    test: float = 0.0
    """Fraction of every class for the split test, drawn first and independent of the seed; 0 draws none."""
    folds: int = 0
    """Number of folds for cross-validation, in the column fold; 0 makes none."""
    group: str = ""
    """Column of the data, such as patient or video: images with the same value are never in two splits or folds."""
    seed: int = 0
    """Seed of val and of the folds."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Write the table, and print the number of images of each part."""
    from deepcait.data.writing import write_split

    console = Console(json=args.json)
    facts = write_split(
        args.data, args.out, val=args.val, test=args.test, folds=args.folds, group=args.group, seed=args.seed
    )
    parts = ", ".join(f"{split} {facts[split]:,}" for split in ("train", "val", "test") if split in facts)
    groups = f"; {facts['groups']:,} groups in {args.group}, each in one part" if args.group else ""
    console.say(f"images     {parts}; {facts['classes']:,} classes{groups}")
    if args.folds:
        console.say(f"folds      {', '.join(f'{fold}: {num:,}' for fold, num in enumerate(facts['folds']))}")
    console.say(f"table      {args.out}")
    setting = " --set data.fold=0" if args.folds else ""
    console.say(f"next       deepcait train --data {args.out} --out RUN{setting}")
    console.result({"out": str(args.out), **facts})
