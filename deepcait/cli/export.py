"""Export a model for other programs, and verify it: the export is read back and its logits are compared.

Examples:
    deepcait export runs/pets --to timm --out pets          a folder that timm loads as local-dir:pets
    deepcait export runs/pets --to official --out pets.pth  a plain state dict in the authors' layout
    deepcait export runs/pets --to onnx --out pets.onnx     a graph for ONNX Runtime (also: openvino, pt2)
    deepcait export runs/pets --to onnx --out pets.onnx --opset 17      for older programs
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import tyro

from deepcait.cli.console import Console
from deepcait.cli.exits import Refused
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    from deepcait.inference.export import Form
    from deepcait.weights import Resolved


@dataclass(frozen=True)
class Args:
    """Options of `deepcait export`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    to: Literal["onnx", "openvino", "pt2", "timm", "official"]
    """Format: a graph for an engine, timm's model folder, or the authors' checkpoint (.pth or .safetensors)."""
    out: Path
    """File or folder to write; an existing export is replaced."""
    precision: Literal["auto", "fp32", "fp32-strict", "bf16", "fp16", "int8"] = "auto"
    """Precision of the weights in the file: fp32 (auto), or fp16 with --to openvino."""
    opset: int | None = None
    """ONNX operator set, 17 or newer, for programs that do not read the newest (default: PyTorch's choice)."""
    tolerance: float = 0.0
    """For fp16: fraction of images whose top-1 class may differ from the model's."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Export, verify, and print the verification."""
    from deepcait.inference.export import require_opset, require_stored
    from deepcait.runtime.claim import hold
    from deepcait.weights import resolve

    console = Console(json=args.json)
    if not 0 <= args.tolerance < 1:
        raise ConfigError(f"--tolerance: expected 0 to 1, got {args.tolerance}.", remedy="0.01 allows 1 image in 100.")
    require_stored(args.to, args.precision)
    require_opset(args.to, args.opset)
    _require_place(args)
    found = resolve(args.spec)
    export = _export_weights if args.to in ("timm", "official") else _export_graph
    with hold(args.out):
        export(args, found, console)


def _require_place(args: Args) -> None:
    """Raise for a bad --out, before the model is loaded or downloaded."""
    from deepcait.inference.export import require_out
    from deepcait.weights.outgoing import require_official, require_timm

    if args.to == "timm":
        require_timm(args.out)
    elif args.to == "official":
        require_official(args.out)
    else:
        require_out(args.to, args.out)


def _code(args: Args, found: Resolved) -> str:
    """The preprocessing of the model, for programs without deepcait."""
    from deepcait.classifier import trained_options
    from deepcait.data import Preprocessing
    from deepcait.data.snippet import snippet

    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    return snippet(preprocessing, args.out.name, max_value=trained_options(found.section).max_value)


def _export_weights(args: Args, found: Resolved, console: Console) -> None:
    """Tensors for other programs of the same network."""
    from deepcait.inference.export import CODE_SUFFIX
    from deepcait.runtime.files import write_bytes
    from deepcait.weights.outgoing import verify_official, verify_timm, write_official, write_timm
    from deepcait.weights.timm_layout import require_known_to_timm

    require_known_to_timm(found.model.config)  # before anything is written
    if args.to == "timm":
        write_timm(found, args.out)
        verification = verify_timm(found, args.out)
    else:
        write_official(found, args.out)
        verification = verify_official(found, args.out)
    console.say(f"wrote {args.out}: {verification}")
    code = args.out / f"preprocessing{CODE_SUFFIX}" if args.to == "timm" else Path(f"{args.out}{CODE_SUFFIX}")
    write_bytes(code, _code(args, found).encode())
    console.say(f"wrote {code}: the preprocessing in numpy and Pillow")
    if args.to == "timm":
        console.say(f'try:  timm.create_model("local-dir:{args.out}", pretrained=True)')
    else:
        console.say("this format has only tensors, not class names (--to timm has all)")
    facts = {"holds": verification.holds, "proof": verification.facts()}
    console.result(
        {"spec": args.spec, "to": args.to, "out": str(args.out), "files": [str(args.out), str(code)], **facts}
    )
    if not verification.holds:
        raise Refused(f"{args.out}: verification failed, do not use this export ({verification}).")


def _export_graph(args: Args, found: Resolved, console: Console) -> None:
    """A graph for an engine."""
    from deepcait.data import Preprocessing
    from deepcait.inference.export import BATCHES, export_file, sample_images

    form = cast("Form", args.to)
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    images_BCHW = sample_images(preprocessing, 100 if args.precision == "fp16" else max(BATCHES))
    about = {"model": found.name, "classes": found.classes, "preprocessing": preprocessing.to_pretrained_cfg()}
    verification, files = export_file(
        found.model,
        form,
        args.out,
        images_BCHW,
        about,
        precision=args.precision,
        tolerance=args.tolerance,
        opset=args.opset,
        code=_code(args, found),
    )
    for path in files:
        console.say(f"wrote {path}")
    console.say(f"verified by {verification}")
    console.result(
        {
            "spec": args.spec,
            "to": args.to,
            "out": str(args.out),
            "files": [str(path) for path in files],
            "holds": verification.holds,
            "precision": args.precision,
            "proof": verification.facts(),
        }
    )
    if not verification.holds:
        raise Refused(f"{args.out}: verification failed, nothing was written ({verification}).")
