"""Classify images: the most probable classes of each, printed or written to a file.

Examples:
    deepcait predict runs/pets cat.jpg                    five classes with their probabilities
    deepcait predict runs/pets photos/ --topk 1           every image below a folder
    deepcait predict runs/pets "photos/**/*.jpg" names.txt https://example.org/cat.jpg     patterns, lists, URLs
    find photos -name "*.jpg" | deepcait predict runs/pets -      paths, or one image, from standard input
    deepcait predict runs/pets photos/ --out predictions.csv  one row per prediction; .jsonl: one line per image
    deepcait predict runs/pets photos/ --min-probability 0.5      images without such a class have no prediction
    deepcait predict runs/pets photos/ --engine eager     the same predictions, faster for many images
    deepcait predict runs/pets photos/ --embeddings features.npz    one row per image
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

from deepcait.cli import exits
from deepcait.cli.console import Console
from deepcait.cli.engine import choose_engine
from deepcait.cli.images import ImageArgs, image_options
from deepcait.cli.places import Given, find_images
from deepcait.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from deepcait.classifier import Classifier

_OUT_SUFFIXES = (".csv", ".jsonl")
_NAMED_ERRORS = 5


@dataclass(frozen=True)
class Args(ImageArgs):
    """Options of `deepcait predict`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...", help_behavior_hint="(required)")
    ]
    """Images, folders with images below them, patterns in quotes, lists (.txt), URLs, - for standard input."""
    topk: int = 5
    """Predictions per image (as many as there are classes if they are fewer)."""
    min_probability: float = 0.0
    """Omit classes with a lower probability; an image may then have no prediction."""
    tta: Literal["flip"] | None = None
    """Test-time augmentation: flip averages the probabilities of the image and its mirror image."""
    on_error: Literal["skip", "stop"] | None = None
    """Images that can't be read: skip reports the error in their place and exits with 3 at the end, stop ends there
    (default: skip for folders, patterns and lists, stop for images given by name)."""
    out: str | None = None
    """Write to this file, .csv or .jsonl, instead of printing."""
    embeddings: Path | None = None
    """Write the features that the classifier's head reads to this .npz: arrays `files` (N) and `embeddings` (N, D)."""
    batch_size: int | None = None
    """Images per forward pass (default: 32, or what `bench --autotune` stored)."""
    engine: Literal["eager", "compile", "onnx", "openvino"] | None = None
    """Inference engine (default: the one that `bench --autotune` stored in the model's folder, else PyTorch)."""
    precision: Literal["auto", "fp32", "fp32-strict", "bf16", "fp16", "int8"] = "auto"
    """Number format of matrix products; auto is fp32. bf16 or int8 without --engine uses the engine eager."""
    device: str | None = None
    """Device, for example cpu or cuda:0 (default: a GPU if there is one)."""
    json: bool = False
    """Print one JSON list and nothing else."""


def run(args: Args) -> int | None:
    """Classify every image and print or write the predictions."""
    import torch

    from deepcait.classifier import load
    from deepcait.data import ImageOptions
    from deepcait.inference.tuned import Choice

    _require_sound(args)
    console = Console(json=args.json)
    places = find_images(args.paths, ImageOptions.max_bytes if args.max_bytes is None else args.max_bytes)
    for text in places.left_out:
        console.note(text)
    skip = not places.only_files if args.on_error is None else args.on_error == "skip"
    chosen = Choice()
    if args.embeddings is None:
        chosen = choose_engine(args.spec, args.engine, console, precision=args.precision, device=args.device)
    elif args.engine is not None or args.precision != "auto":
        option = "--precision" if args.engine is None else "--engine"
        console.note(f"{option}: unused, the network itself computes embeddings and, in the same pass, predictions")
    results: list[dict[str, Any]] = []
    names: list[str] = []
    with _writer(args.out) as write, console.progress("predicting") as progress:
        classifier = load(
            args.spec,
            device=args.device,
            engine=chosen.engine,
            precision=chosen.precision,
            threads=chosen.threads,
            tta=args.tta,
        )
        classifier.image_options = image_options(args, classifier.image_options)
        features = [] if args.embeddings is None else [torch.empty(0, classifier.cait.num_features)]
        batch_size = args.batch_size or chosen.batch or 32
        for start in range(0, len(places.images), batch_size):
            part = _predict(classifier, places.images[start : start + batch_size], args, skip, features)
            for result in part:
                write(result)
                if args.out is None and args.embeddings is None and not args.json:
                    _print(console, result)
            results += part if args.json else [result for result in part if "error" in result]
            names += [result["file"] for result in part if "error" not in result]
            progress(start + len(part), len(places.images))
    errors = [result for result in results if "error" in result]
    if args.embeddings is not None:
        _write_embeddings(args.embeddings, names, features)
        console.say(f"{len(names):,} images embedded; features in {args.embeddings}")
    if args.out is not None:
        console.say(f"{len(names):,} images classified; predictions in {args.out}")
    console.result(results)
    return _report_errors(errors, len(places.images), console)


def _require_sound(args: Args) -> None:
    """Raise for what can't work before any work is done."""
    from deepcait.runtime.files import require_file

    if not args.paths:
        raise ConfigError("predict: no image was given.", remedy="Use deepcait predict MODEL image.jpg.")
    for option, value in (("--topk", args.topk), ("--batch-size", args.batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: expected 1 or more, got {value}.", remedy="Give 1, or more.")
    if not 0 <= args.min_probability <= 1:
        raise ConfigError(
            f"--min-probability: expected 0 to 1, got {args.min_probability}.", remedy="0.5 is 50 %, 0 keeps all."
        )
    if args.out is not None:
        require_file(Path(args.out), _OUT_SUFFIXES, "--out")
    if args.embeddings is not None:
        require_file(args.embeddings, (".npz",), "--embeddings")
        if args.tta is not None:
            raise ConfigError("--tta: not with --embeddings, which take one pass.", remedy="Leave one of them out.")


def _predict(
    classifier: Classifier, images: Sequence[Given], args: Args, skip: bool, features: list[Tensor]
) -> list[dict[str, Any]]:
    """The results of one batch, one per image in their order; features are appended if they are requested."""
    import torch

    results: list[dict[str, Any]] = []
    opened = []
    for image in images:
        result: dict[str, Any] = {"file": image.name}
        try:
            content = image.load(classifier.image_options.max_bytes)
            opened.append((result, classifier.preprocessing(classifier.open(content))))
        except ImageError as error:
            if not skip:
                raise
            result["error"] = error.problem
        results.append(result)
    if opened:
        images_BCHW = torch.stack([image_CHW for _, image_CHW in opened])
        if args.embeddings is None:
            logits_BK = classifier.logits(images_BCHW)
        else:
            logits_BK, features_BD = classifier.logits_and_features(images_BCHW)
            features.append(features_BD)
        ranked = classifier.rank(logits_BK, args.topk, args.min_probability)
        for (result, _), predictions in zip(opened, ranked, strict=True):
            result["predictions"] = [prediction._asdict() for prediction in predictions]
    return results


def _print(console: Console, result: dict[str, Any]) -> None:
    console.say(result["file"])
    if "error" in result:
        console.say(f"  error: {result['error']}")
    for one in result.get("predictions", ()):
        console.say(f"  {100 * one['probability']:6.2f} %  {one['label']}")


def _report_errors(errors: list[dict[str, Any]], num_images: int, console: Console) -> int | None:
    """Print which files were skipped; return the exit code."""
    if not errors:
        return None
    console.note(f"skipped {len(errors):,} of {num_images:,} images that can't be read (--on-error stop ends there):")
    for result in errors[:_NAMED_ERRORS]:
        console.note(f"  {result['error']}")
    if len(errors) > _NAMED_ERRORS:
        console.note(f"  and {len(errors) - _NAMED_ERRORS:,} more")
    return exits.REFUSED


@contextmanager
def _writer(out: str | None) -> Iterator[Any]:
    """Yield what writes one result to the file; nothing happens without a file.

    The file appears when it is complete; until then, and after an
    error, an older file stays as it was.
    """
    from deepcait.runtime.files import replacing

    if out is None:
        yield lambda result: None
        return
    path = Path(out)
    # Bytes of a file name that are not UTF-8 are escaped, as in JSON and on stdout.
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield _csv_rows(file) if path.suffix == ".csv" else _json_lines(file)


def _write_embeddings(path: Path, names: Sequence[str], features: Sequence[Tensor]) -> None:
    import numpy as np
    import torch

    from deepcait.runtime.files import write_bytes

    content = io.BytesIO()
    np.savez(content, files=np.array(names), embeddings=torch.cat(list(features)).numpy())
    write_bytes(path, content.getvalue())


def _csv_rows(file: TextIO) -> Any:
    """A row per prediction; an image that has none, or an error, has one row all the same."""
    rows = csv.writer(file)
    rows.writerow(("file", "rank", "index", "label", "probability", "error"))

    def write(result: dict[str, Any]) -> None:
        for rank, one in enumerate(result.get("predictions", ()), start=1):
            rows.writerow((result["file"], rank, one["index"], one["label"], one["probability"], ""))
        if not result.get("predictions"):
            rows.writerow((result["file"], "", "", "", "", result.get("error", "")))

    return write


def _json_lines(file: TextIO) -> Any:
    return lambda result: file.write(json.dumps(result) + "\n")
