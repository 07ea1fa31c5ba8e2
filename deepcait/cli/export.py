"""Write a model in the form that others read, and prove it: it is read back there and compared.

Examples:
    deepcait export runs/pets --to timm --out pets          a folder that timm loads as local-dir:pets
    deepcait export runs/pets --to official --out pets.pth  a plain state dict, as the authors publish theirs
    deepcait export runs/pets --to onnx --out pets.onnx     a graph for ONNX Runtime (also: openvino, pt2)
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deepcait.cli.console import Console
from deepcait.cli.exits import Refused
from deepcait.errors import ConfigError

if TYPE_CHECKING:
    from deepcait.weights import Resolved


@dataclass(frozen=True)
class Args:
    """Options of `deepcait export`."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """The model: a name, hf-hub:owner/name, a model or run folder, a weights file."""
    to: Literal["onnx", "openvino", "pt2", "timm", "official"]
    """The form: graphs for an engine, timm's model folder, or the authors' checkpoint (.pth or .safetensors)."""
    out: Path
    """Where to; an older export there is replaced."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(args: Args) -> int | None:
    """Write, read back, and print what was found."""
    from deepcait.weights import resolve

    console = Console(json=args.json)
    found = resolve(args.spec)
    if args.to in ("timm", "official"):
        return _export_weights(args, found, console)
    return _export_graph(args, found, console)


def _export_weights(args: Args, found: Resolved, console: Console) -> None:
    """Tensors for other programs of the same network."""
    from deepcait.weights.outgoing import prove_official, prove_timm, write_official, write_timm
    from deepcait.weights.timm_layout import require_known_to_timm

    require_known_to_timm(found.model.config)  # before anything is written
    if args.to == "timm":
        write_timm(found, args.out)
        proof = prove_timm(found, args.out)
    else:
        write_official(found, args.out)
        proof = prove_official(found, args.out)
    console.say(f"wrote {args.out}: {proof}")
    if args.to == "timm":
        console.say(f'try:  timm.create_model("local-dir:{args.out}", pretrained=True)')
    facts: dict[str, Any] = {"reader": proof.reader, "num_tensors": proof.num_tensors, "drift": proof.drift}
    console.result({"spec": args.spec, "to": args.to, "out": str(args.out), "holds": proof.holds, "proof": facts})
    if not proof.holds:
        raise Refused(f"{args.out}: what was written is not the model; do not use it ({proof}).")


def _export_graph(args: Args, found: Resolved, console: Console) -> int | None:
    """A graph for an engine."""
    try:
        export_model = importlib.import_module("deepcait.inference.export").export_model
    except ModuleNotFoundError as error:
        if error.name != "deepcait.inference.export":
            raise
        raise ConfigError(
            f"--to {args.to}: expected a form that this version writes, got one that is to come.",
            remedy="It writes timm and official.",
        ) from error
    return export_model(found, args.to, args.out, console)
