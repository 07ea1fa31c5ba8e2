"""Classify pictures: the most probable classes of each, printed or written to a file.

Examples:
    deepcait predict runs/pets cat.jpg                    five answers with their probabilities
    deepcait predict runs/pets photos/ --topk 1           every picture below a folder
    deepcait predict runs/pets photos/ --out answers.csv  one row an answer; .jsonl: one line a picture
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro

from deepcait.cli.console import Console
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    from deepcait.classifier import Prediction

_OUT_SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Args:
    """Options of `deepcait predict`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """The model: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")]
    """Pictures, or folders with pictures below them."""
    topk: int = 5
    """Answers a picture (as many as there are classes, where they are fewer)."""
    out: str | None = None
    """Write to this file, .csv or .jsonl, instead of printing."""
    batch_size: int = 32
    """Pictures that pass through the network at once."""
    json: bool = False
    """Print one JSON list and nothing else."""


def run(args: Args) -> int | None:
    """Classify every picture and print or write the answers."""
    from deepcait.classifier import load
    from deepcait.data import list_images

    if not args.paths:
        raise ConfigError("predict: expected a picture, got none.", remedy="deepcait predict SPEC picture.jpg")
    for name in ("topk", "batch_size"):
        if getattr(args, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option}: expected 1 or more, got {getattr(args, name)}.", remedy="Give 1, or more.")
    console = Console(json=args.json)
    paths = [path for place in args.paths for path in list_images(place)]
    with _writer(args.out) as write, console.progress("predicting") as progress:
        classifier = load(args.spec)
        results = []
        for start in range(0, len(paths), args.batch_size):
            part = paths[start : start + args.batch_size]
            answers = classifier.predict(part, topk=args.topk, batch_size=args.batch_size)
            for path, predictions in zip(part, answers, strict=True):
                result = _as_result(path, predictions)
                write(result)
                if args.json:
                    results.append(result)
                elif args.out is None:
                    _print(console, result)
            progress(start + len(part), len(paths))
    if args.out is not None:
        console.say(f"{len(paths):,} pictures classified; answers in {args.out}")
    console.result(results)


def _as_result(path: Path, predictions: list[Prediction]) -> dict[str, Any]:
    return {"file": str(path), "predictions": [prediction._asdict() for prediction in predictions]}


def _print(console: Console, result: dict[str, Any]) -> None:
    console.say(result["file"])
    for answer in result["predictions"]:
        console.say(f"  {100 * answer['probability']:6.2f} %  {answer['label']}")


@contextmanager
def _writer(out: str | None) -> Iterator[Any]:
    """Yield what writes one result to the file; nothing happens without a file.

    A wrong path is told before any work is done. The file is there when it is whole; until then, and after a
    mistake, what lay there before stays as it was.
    """
    if out is None:
        yield lambda result: None
        return
    path = Path(out)
    if path.suffix not in _OUT_SUFFIXES:
        raise ConfigError(
            f"--out: expected a file that ends in {' or '.join(_OUT_SUFFIXES)}, got {out!r}.",
            remedy="The ending says which form is written.",
        )
    if path.is_dir() or not path.parent.is_dir():
        got = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise ConfigError(f"--out: expected a file in a folder that exists, got {got}.", remedy="Create the folder.")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "w", newline="", encoding="utf-8") as file:
            yield _csv_rows(file) if path.suffix == ".csv" else _json_lines(file)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _csv_rows(file: TextIO) -> Any:
    rows = csv.writer(file)
    rows.writerow(("file", "rank", "index", "label", "probability"))

    def write(result: dict[str, Any]) -> None:
        for rank, answer in enumerate(result["predictions"], start=1):
            rows.writerow((result["file"], rank, answer["index"], answer["label"], answer["probability"]))

    return write


def _json_lines(file: TextIO) -> Any:
    return lambda result: file.write(json.dumps(result) + "\n")
