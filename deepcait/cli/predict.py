"""Classify pictures: the most probable classes of each, printed or written to a file.

Examples:
    deepcait predict runs/pets cat.jpg                    five answers with their probabilities
    deepcait predict runs/pets photos/ --topk 1           every picture below a folder
    deepcait predict runs/pets photos/ --out answers.csv  one row an answer; .jsonl: one line a picture
    deepcait predict runs/pets photos/ --engine openvino  the same answers, sooner where there are many pictures
    deepcait predict runs/pets photos/ --embeddings features.npz    a row a picture
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import tyro

from deepcait.cli.console import Console
from deepcait.cli.engine import choose_engine
from deepcait.cli.images import ImageArgs, image_options
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from deepcait.classifier import Prediction

_OUT_SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Args(ImageArgs):
    """Options of `deepcait predict`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """The model: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...", help_behavior_hint="(required)")
    ]
    """Pictures, or folders with pictures below them."""
    topk: int = 5
    """Answers a picture (as many as there are classes, where they are fewer)."""
    out: str | None = None
    """Write to this file, .csv or .jsonl, instead of printing."""
    embeddings: Path | None = None
    """Write the features that the classifier's head reads to this .npz: arrays `files` (N) and `embeddings` (N, D)."""
    batch_size: int | None = None
    """Pictures that pass through the network at once (default: 32, or what was measured with the engine)."""
    engine: Literal["eager", "compile", "onnx", "openvino"] | None = None
    """What computes the answers; without it what `bench --autotune` left beside the model, else the network itself."""
    precision: Literal["auto", "fp32", "fp32-strict", "bf16", "fp16", "int8"] = "auto"
    """In which the engine computes products; auto is fp32. bf16 without an engine takes the engine eager."""
    json: bool = False
    """Print one JSON list and nothing else."""


def run(args: Args) -> int | None:
    """Classify every picture and print or write the answers."""
    from deepcait.classifier import load
    from deepcait.data import list_images
    from deepcait.inference.tuned import Choice
    from deepcait.runtime.files import require_file

    if not args.paths:
        raise ConfigError("predict: expected a picture, got none.", remedy="deepcait predict SPEC picture.jpg")
    for option, value in (("--topk", args.topk), ("--batch-size", args.batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: expected 1 or more, got {value}.", remedy="Give 1, or more.")
    console = Console(json=args.json)
    paths = [path for place in args.paths for path in list_images(place)]
    if args.embeddings is not None:
        require_file(args.embeddings, (".npz",), "--embeddings")
        if args.engine is not None or args.precision != "auto":
            option = "--precision" if args.engine is None else "--engine"
            console.note(f"{option}: unused, the network itself computes embeddings and, in the same pass, predictions")
        chosen = Choice()
    else:
        chosen = choose_engine(args.spec, args.engine, console, precision=args.precision)
    batch_size = args.batch_size or chosen.batch or 32
    with _writer(args.out) as write, console.progress("predicting") as progress:
        classifier = load(args.spec, engine=chosen.engine, precision=chosen.precision, threads=chosen.threads)
        classifier.image_options = image_options(args, classifier.image_options)
        results, features = [], []
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            if args.embeddings is None:
                answers = classifier.predict(part, topk=args.topk, batch_size=batch_size)
            else:
                answers, features_BD = classifier.predict_and_embed(part, topk=args.topk, batch_size=batch_size)
                features.append(features_BD)
            for path, predictions in zip(part, answers, strict=True):
                result = _as_result(path, predictions)
                write(result)
                if args.json:
                    results.append(result)
                elif args.out is None and args.embeddings is None:
                    _print(console, result)
            progress(start + len(part), len(paths))
    if args.embeddings is not None:
        _write_embeddings(args.embeddings, paths, features)
        console.say(f"{len(paths):,} pictures embedded; features in {args.embeddings}")
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
    from deepcait.runtime.files import replacing, require_file

    if out is None:
        yield lambda result: None
        return
    path = Path(out)
    require_file(path, _OUT_SUFFIXES, "--out")
    # Bytes of a file name that are not UTF-8 are escaped, as in JSON and on stdout.
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield _csv_rows(file) if path.suffix == ".csv" else _json_lines(file)


def _write_embeddings(path: Path, paths: Sequence[Path], features: Sequence[Tensor]) -> None:
    import numpy as np
    import torch

    from deepcait.runtime.files import write_bytes

    content = io.BytesIO()
    np.savez(content, files=np.array([str(name) for name in paths]), embeddings=torch.cat(list(features)).numpy())
    write_bytes(path, content.getvalue())


def _csv_rows(file: TextIO) -> Any:
    rows = csv.writer(file)
    rows.writerow(("file", "rank", "index", "label", "probability"))

    def write(result: dict[str, Any]) -> None:
        for rank, answer in enumerate(result["predictions"], start=1):
            rows.writerow((result["file"], rank, answer["index"], answer["label"], answer["probability"]))

    return write


def _json_lines(file: TextIO) -> Any:
    return lambda result: file.write(json.dumps(result) + "\n")
