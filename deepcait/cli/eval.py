"""Evaluate models on labelled images: top-1, top-5 and loss, exact for any batch size and number of processes.

Examples:
    deepcait eval runs/pets --data photos             the test images, else those that the run did not train on
    deepcait eval runs/pets --data photos --split val --json
    deepcait eval runs/a runs/b --data builtin:demo --out table.md    two models on the same images
    deepcait eval cait_s24_224 --data imagenet:ROOT --protocol imagenet    ImageNet's validation images
    deepcait eval cait_s24_224 --data imagenet:ROOT --protocol real        with ReaL labels; v2: ImageNet-V2
    deepcait eval cait_s24_224 --data imagenet-a --class-mask data    only its 200 classes can be predicted
    deepcait eval cait_s24_224 --data photos --img-size 224,288,320   several resolutions
    deepcait eval runs/pets --data photos --per-image per_image.csv --plots figures
    torchrun --nproc-per-node 2 -m deepcait eval cait_s24_224 --data imagenet:ROOT --protocol imagenet
"""

from __future__ import annotations

import datetime
import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deepcait.cli.console import Console, percent
from deepcait.cli.engine import choose_engine
from deepcait.cli.images import ImageArgs, image_options
from deepcait.cli.options import image_size
from deepcait.cli.tables import TableArgs, table_columns
from deepcait.errors import ConfigError, EvaluationWarning
from deepcait.runtime.messages import is_main_process

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deepcait.data import Source
    from deepcait.data.roles import Roles
    from deepcait.evaluation import Expected, Metrics, Records
    from deepcait.inference.tuned import Choice
    from deepcait.weights import Resolved

    Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class Args(TableArgs, ImageArgs):
    """Options of `deepcait eval`."""

    specs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL ...", help_behavior_hint="(required)")
    ]
    """One model or several: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    data: str
    """Labelled images: a folder of class folders, a .csv, .parquet, .tar or .zip, imagenet:ROOT, builtin:demo, ..."""
    split: Literal["train", "val", "test", "all"] | None = None
    """Part of the data, or of the run's own split (default: test, else val, else all). For a run, the default never
    includes images that it was trained on."""
    protocol: Literal["folder", "imagenet", "real", "v2"] = "folder"
    """Evaluation protocol: folder (labels of the data), imagenet (ImageNet's validation), real (its ReaL labels), or v2
    (ImageNet-V2)."""
    real_labels: Path | None = None
    """For --protocol real: file of labels (default: the published one, from timm's package)."""
    class_mask: str | None = None
    """Restrict predictions to these classes: `data` for those of the data (ImageNet-A, -R), or a file of classes."""
    img_size: str | None = None
    """Input sizes in pixels, separated by commas: 224,288 or HEIGHTxWIDTH as 224x320 (default: the model's)."""
    batch_size: int | None = None
    """Images per forward pass; does not change the result (default: 32, or what `bench --autotune` stored)."""
    workers: int = 0
    """Worker processes that decode images; does not change the result."""
    engine: Literal["eager", "compile", "onnx", "openvino"] | None = None
    """Inference engine (default: the one that `bench --autotune` stored in the model's folder, else PyTorch)."""
    precision: Literal["auto", "fp32", "fp32-strict", "bf16", "fp16", "int8"] = "auto"
    """Number format of matrix products; auto is fp32. bf16 or int8 without --engine uses the engine eager."""
    tta: Literal["flip"] | None = None
    """Test-time augmentation: flip averages the probabilities of the image and its mirror image."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1."""
    per_image: Path | None = None
    """Write one row per image to this .csv: labels, most probable classes, probabilities."""
    plots: Path | None = None
    """Plot reliability, accuracy per class and confusion into this folder, as PNG, SVG and JSON (needs matplotlib)."""
    out: Path | None = None
    """Write the table of results to this file: .md, .csv, or .json (with every class and the confusion matrix)."""
    json: bool = False
    """Print one JSON object (a list of them for several models or sizes) and nothing else."""


def run(args: Args) -> int | None:
    """Evaluate each model and print its metrics."""
    from deepcait.evaluation.tables import pair_rows
    from deepcait.runtime.device import choose_device
    from deepcait.runtime.processes import join_processes, leave_processes

    _require_sound(args)
    join_processes()
    try:
        device = choose_device(args.device)
        console = Console(json=args.json)
        rows: list[dict[str, Any]] = []
        records: list[Records] = []
        for spec, (source, roles) in zip(args.specs, _open(args), strict=True):
            for img_size in _sizes(args.img_size):
                if rows:
                    console.say()
                row, own = _measure(spec, source, roles, img_size, args, device, console)
                rows.append(row)
                records.append(own)
    finally:
        leave_processes()
    pair_rows(rows, records)
    _print_pairs(console, rows)
    if is_main_process():
        _write(args, rows, records, console)
    console.result(rows[0] if len(rows) == 1 else rows)


def _require_sound(args: Args) -> None:
    """Raise for options that cannot work, before anything is read."""
    from deepcait.evaluation import require_protocol
    from deepcait.evaluation.plots import require_matplotlib
    from deepcait.evaluation.tables import TABLE_SUFFIXES
    from deepcait.runtime.files import require_file, require_folder

    if not args.specs:
        raise ConfigError("eval: no model was given.", remedy="Use deepcait eval MODEL --data FOLDER.")
    require_protocol(args.protocol)
    _sizes(args.img_size)
    for option, count, least in (("--batch-size", args.batch_size, 1), ("--workers", args.workers, 0)):
        if count is not None and count < least:
            raise ConfigError(f"{option}: expected {least} or more, got {count}.", remedy="Leave it out.")
    if args.out is not None:
        require_file(args.out, TABLE_SUFFIXES, "--out")
    if args.per_image is not None:
        require_file(args.per_image, (".csv",), "--per-image")
    if args.plots is not None:
        require_matplotlib()
        require_folder(args.plots, "--plots")


def _sizes(text: str | None) -> list[Size]:
    """Read --img-size: sizes with commas, each a side or height x width."""
    return [image_size(part, "--img-size") for part in text.split(",")] if text is not None else [None]


def _open(args: Args) -> list[tuple[Source, Roles | None]]:
    """The images for each model, the same for all, so that they can be compared; and what they were to its run.

    Of a run they are those that it has not trained on; other models take the same.
    """
    from deepcait.data.record import columns_for, find_record
    from deepcait.evaluation import open_for, open_with_roles

    given, records = table_columns(args), [find_record(spec) for spec in args.specs]
    columns = {spec: columns_for(spec, args.data, given) for spec in args.specs}
    how = {"split": args.split, "protocol": args.protocol}
    opened = {
        spec: open_with_roles(args.data, record, columns=columns[spec], **how)
        for spec, record in zip(args.specs, records, strict=True)
        if record is not None
    }
    others = {
        spec: (next(iter(opened.values()))[0] if opened else open_for(args.data, columns=columns[spec], **how), None)
        for spec in args.specs
        if spec not in opened
    }
    if len({tuple(source.names) for source, _ in (opened | others).values()}) > 1:
        raise ConfigError(
            f"eval: the runs held out different images ({', '.join(args.specs)}).",
            remedy="Evaluate each run alone, or all with --split all or on images that none was trained on.",
        )
    return [(opened | others)[spec] for spec in args.specs]


def _measure(
    spec: str,
    source: Source,
    roles: Roles | None,
    img_size: Size,
    args: Args,
    device: torch.device,
    console: Console,
) -> tuple[dict[str, Any], Records]:
    from deepcait.classifier import trained_options
    from deepcait.data import Preprocessing
    from deepcait.data.source import with_options
    from deepcait.evaluation import evaluate, expected_accuracy, read_mask
    from deepcait.evaluation.safeguards import seen_in_training
    from deepcait.inference import augmented, build_engine
    from deepcait.weights import resolve

    found = resolve(spec, img_size=img_size)
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    class_mask = None if args.class_mask is None else read_mask(args.class_mask)
    chosen = choose_engine(spec, args.engine, console, precision=args.precision, device=device.type, img_size=img_size)
    network: nn.Module = found.model
    if chosen.engine is not None:
        network = build_engine(
            chosen.engine, found.model.to(device), threads=chosen.threads, precision=chosen.precision
        )
    network = augmented(network, args.tta)
    with_options(source, image_options(args, trained_options(found.section)))
    _print_setup(console, args, spec, source, roles, found, preprocessing)
    ignored = warnings.catch_warnings(
        action="ignore", category=EvaluationWarning
    )  # printed below, as part of the result
    with console.progress("evaluating") as progress, ignored:
        metrics = evaluate(
            network,
            source,
            protocol=args.protocol,
            preprocessing=preprocessing,
            batch_size=(chosen.batch or 32) if args.batch_size is None else args.batch_size,
            num_workers=args.workers,
            classes=found.classes,
            class_mask=class_mask,
            real_labels=args.real_labels,
            device=device,
            progress=progress,
        )
    # The values of a release are those of its own resolution, without augmentation.
    released = img_size is None and args.tta is None
    expected = expected_accuracy(found, args.protocol, source, class_mask) if released else None
    texts = [*metrics.warnings, *_more_warnings(metrics, expected, source, args)]
    texts += seen_in_training(roles) if roles is not None else _perhaps_seen(found, source, args)
    _print_metrics(console, metrics, expected)
    for text in texts:
        console.note(f"warning: {text}")
    row = _row(spec, args, chosen, source, found, preprocessing, metrics, expected, texts)
    return row | {"images_of_run": None if roles is None else roles.to_dict()}, metrics.records


def _chosen_by(spec: str) -> str:
    """What chose the best epoch of a run; "" for any other model."""
    from deepcait.data.record import run_around
    from deepcait.parts import path_of
    from deepcait.training.best import MEASURES
    from deepcait.training.journal import read_state

    run = run_around(spec)
    if run is None or (run / "last") in (place := path_of(spec).absolute(), *place.parents):
        return ""
    return MEASURES.get(str(read_state(run).get("best_by")), "")


def _more_warnings(metrics: Metrics, expected: Expected | None, source: Source, args: Args) -> list[str]:
    from deepcait.evaluation.expected import differs
    from deepcait.weights.imagenet import subset_name

    warnings = []
    # A warning already reports that only a part of the images is evaluated.
    if expected is not None and not any("not comparable" in text for text in metrics.warnings):
        text = differs(expected, metrics.top1)
        warnings += [text] if text else []
    subset = subset_name(source.classes) if args.class_mask is None else None
    if subset is not None:
        warnings.append(
            f"class mask: the data has the 200 classes of {subset}, and published accuracies restrict predictions to "
            f"these; here all {metrics.records.num_classes:,} classes can be predicted. Add --class-mask data."
        )
    return warnings


def _perhaps_seen(found: Resolved, source: Source, args: Args) -> list[str]:
    """A warning if it is unknown which of the images a run trained on."""
    if found.kind != "run" or source.split != "all" or args.split is not None:
        return []
    return [
        "data: the run has no split.json, which lists its training images, and the data has no split val or test. All "
        "images are evaluated, also training images."
    ]


def _row(
    spec: str,
    args: Args,
    chosen: Choice,
    source: Source,
    found: Resolved,
    preprocessing: Any,
    metrics: Metrics,
    expected: Expected | None,
    warnings: list[str],
) -> dict[str, Any]:
    """What --json prints of one measurement."""
    from deepcait.evaluation import summarise
    from deepcait.weights.spec import describe_config

    facts = describe_config(found.model.config)
    return {
        "model": spec,
        "data": args.data,
        "split": source.split,
        "protocol": args.protocol,
        "engine": chosen.engine,
        "precision": chosen.precision,
        "tta": args.tta,
        "img_size": facts["img_size"],
        "params": facts["params"],
        "gmacs": facts["gmacs"],
        **metrics.to_dict(),
        "num_skipped": metrics.num_skipped,
        "class_mask": args.class_mask,
        "num_possible": metrics.records.num_possible,
        **summarise(metrics),
        "expected": None if expected is None else {"top1": expected.top1, "top5": expected.top5},
        "preprocessing": preprocessing.to_pretrained_cfg(),
        "proposed_order": metrics.proposed_order,
        "warnings": warnings,
    }


def _write(args: Args, rows: list[dict[str, Any]], records: list[Records], console: Console) -> None:
    from deepcait.evaluation.plots import write_plots
    from deepcait.evaluation.tables import pixels, write_images, write_table
    from deepcait.runtime.environment import environment

    if args.per_image is not None:
        write_images(args.per_image, list(zip(rows, records, strict=True)))
        console.say(f"images         {args.per_image}")
    if args.plots is not None:
        for number, (row, own) in enumerate(zip(rows, records, strict=True), start=1):
            folder = args.plots if len(rows) == 1 else args.plots / str(number)
            write_plots(folder, own, f"{row['model']}, {pixels(row['img_size'])} px")
            console.say(f"plots          {folder}")
    if args.out is not None:
        command = "deepcait " + " ".join(shlex.quote(word) for word in sys.argv[1:])
        stamp = {"command": command, "date": datetime.date.today().isoformat(), **environment()}
        write_table(args.out, rows, records, stamp)
        console.say(f"table          {args.out}")


def _print_setup(
    console: Console,
    args: Args,
    spec: str,
    source: Source,
    roles: Roles | None,
    found: Resolved,
    preprocessing: object,
) -> None:
    from deepcait.data import describe
    from deepcait.data.roles import describe_of_run
    from deepcait.evaluation import class_names, describe_mapping

    of_file = args.protocol == "real"
    names = class_names(source, found.classes, found.model.num_classes)
    classes = "class indices of the ReaL labels" if of_file else describe_mapping(source, names)
    console.say(f"data           {describe(source) if roles is None else describe_of_run(source, roles)}")
    console.say(f"model          {spec}")
    if measure := _chosen_by(spec):
        console.say(f"best epoch     chosen by {measure}")
    console.say(f"protocol       {args.protocol}")
    console.say(f"classes        {classes}")
    console.say(f"preprocessing  {preprocessing}" + (", mean with the mirror image" if args.tta else ""))


def _print_metrics(console: Console, metrics: Metrics, expected: Expected | None) -> None:
    from deepcait.evaluation import summarise

    num, facts = metrics.num_images, summarise(metrics)
    known = (None, None) if expected is None else (expected.top1, expected.top5)
    beside = ["" if one is None else f"  expected {percent(one)}" for one in known]
    if metrics.num_skipped:
        console.say(f"skipped        {metrics.num_skipped:,} images without a label")
    low, high = facts["intervals"]["top1"]
    console.say(
        f"top-1          {percent(metrics.top1)}  ({metrics.correct1:,} of {num:,})  95 %: {percent(low)} to "
        f"{percent(high)}{beside[0]}"
    )
    if metrics.records.num_possible > 5:  # as top5_of
        console.say(f"top-5          {percent(metrics.top5)}  ({metrics.correct5:,} of {num:,}){beside[1]}")
    console.say(f"loss           {metrics.loss:.6f} nats per image")
    console.say(
        f"balanced       {percent(facts['balanced_accuracy'])}  (mean over classes), F1 {facts['macro_f1']:.4f}"
    )
    if facts["ece"] is not None:
        console.say(f"calibration    expected error {percent(facts['ece'])}")


def _print_pairs(console: Console, rows: list[dict[str, Any]]) -> None:
    from deepcait.evaluation.tables import pixels, top5_of

    if len(rows) < 2:
        return
    console.say()
    top5 = [percent(top5_of(row)) for row in rows]
    table = []
    for row, own_top5 in zip(rows, top5, strict=True):
        against = row["paired"][0]
        cells = (against["only_this"], against["only_other"], f"{against['p_value']:.3g}")
        accuracies = [percent(row["top1"])] + [own_top5] * any(top5)
        table.append((row["model"], pixels(row["img_size"]), *accuracies, *(cells if row is not rows[0] else [""] * 3)))
    columns = ["model", "px", "top-1"] + ["top-5"] * any(top5)
    console.table((*columns, "only this right", "only the first right", "p (McNemar)"), table)
