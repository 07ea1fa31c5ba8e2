"""Export a model for an engine, and verify that the engine computes the same logits for real images."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from deepcait.data import Preprocessing, open_image, open_source
from deepcait.errors import ConfigError, WeightsError
from deepcait.inference.engines import open_onnx, open_openvino
from deepcait.inference.fold import FoldedCaiT, fold
from deepcait.inference.graph import INPUT, OUTPUT, opsets, require_packages, to_openvino, to_program, write_onnx
from deepcait.model.mode import evaluation_mode
from deepcait.optional import require
from deepcait.runtime.files import move_file, require_file
from deepcait.weights.verification import Verification, compare_logits

Form: TypeAlias = Literal["onnx", "openvino", "pt2"]
Runner: TypeAlias = Callable[[Tensor], Tensor]
SUFFIXES: dict[Form, str] = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
# Largest difference of logits, in units of their standard deviation. Engines in float32 agree within a few 1e-6; a
# tenth of this limit is the effect of changing one weight of a small model by a thousandth of its value.
MAX_DRIFT = 5e-5
# Of weights that are stored in 16 bits, which makes some 1e-3.
_MAX_DRIFT_FP16 = 2e-2
BATCHES = (1, 3, 8)
CODE_SUFFIX = ".py"  # of the preprocessing in numpy and Pillow, next to an exported file


def export_file(
    model: nn.Module,
    form: Form,
    out: Path,
    images_BCHW: Tensor,
    about: dict[str, Any],
    *,
    precision: str = "auto",
    tolerance: float = 0.0,
    opset: int | None = None,
    code: str = "",
) -> tuple[Verification, list[Path]]:
    """Write a model for an engine, with a JSON description, if the verification succeeds.

    The files get their names after the verification; if it fails, existing files are kept.

    Args:
        model: a CaiT.
        form: what to write.
        out: the file, .onnx, .xml (OpenVINO; with a .bin in the same folder) or .pt2; the JSON is `pets.onnx.json`, so
            that other models can be exported to the same folder in other formats.
        images_BCHW: real images, preprocessed, at least 8.
        about: goes into the JSON: preprocessing, classes and the like.
        precision: of the weights in the file: auto, which is fp32, or fp16 for OpenVINO.
        tolerance: with fp16, the share of images whose best class may differ.
        opset: ONNX operator set of the file; None is PyTorch's choice.
        code: written to the same folder as `pets.onnx.py`: how an image becomes the input; empty for no such file.

    Returns:
        The verification, and the files written (none if it does not hold).

    Raises:
        ConfigError: another suffix, no folder to write in, a missing package, another network than a CaiT.
        WeightsError: the place can't be written to.
    """
    require_out(form, out)
    short = require_stored(form, precision) == "fp16"
    require_packages(form)
    require_opset(form, opset)
    folded = fold(model)
    aside = out.parent / f".{out.name}.{secrets.token_hex(4)}.new"
    try:
        aside.mkdir()
        write_graph(folded, form, aside / out.name, fp16=short, opset=opset)
        verification = verify_graph(
            model,
            form,
            aside / out.name,
            images_BCHW,
            batches=(*BATCHES[:-1], len(images_BCHW)) if short else BATCHES,
            max_drift=_MAX_DRIFT_FP16 if short else MAX_DRIFT,
            tolerance=tolerance if short else 0.0,
        )
        if not verification.holds:
            return verification, []
        text = json.dumps(describe(folded, form, out, verification) | about, indent=2) + "\n"
        (aside / f"{out.name}.json").write_text(text, encoding="utf-8")
        if code:
            (aside / f"{out.name}{CODE_SUFFIX}").write_text(code, encoding="utf-8")
        # The graph itself comes last: whoever finds it finds the rest.
        files = sorted(aside.iterdir(), key=lambda path: (path.name == out.name, path.name))
        for path in files:
            move_file(path, out.parent / path.name)
        return verification, [out.parent / path.name for path in files]
    except OSError as error:
        raise WeightsError(
            f"{out}: cannot write: {error.strerror or error}.",
            remedy="Choose a path that can be written to, with free space; existing files were not changed.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sample_images(preprocessing: Preprocessing, count: int = max(BATCHES)) -> Tensor:
    """Real images of the package, preprocessed: (count, C, H, W)."""
    source = open_source("builtin:demo", "test")
    indices = range(0, len(source), len(source) // count)[:count]
    return torch.stack([preprocessing(open_image(source.read(index).data)) for index in indices])


def require_stored(form: str, precision: str) -> str:
    """Return the precision of the weights in a file: fp32 or fp16.

    Raises:
        ConfigError: the format of the file does not support this precision.
    """
    if precision in ("auto", "fp32", "fp32-strict"):
        return "fp32"
    if (form, precision) == ("openvino", "fp16"):
        return "fp16"
    remedy = "Leave --precision out. "
    if precision == "int8":
        remedy += "int8 is for deepcait's engines eager and compile: predict, eval or serve with --precision int8."
    else:
        remedy += (
            "The program that opens the file chooses the precision; OpenVINO computes in bfloat16 by default if the "
            "processor supports it."
        )
    raise ConfigError(
        f"export: {form} files are not written in {precision}; they store weights in float32"
        + (", or in fp16." if form == "openvino" else "."),
        remedy=remedy,
    )


def require_opset(form: str, opset: int | None) -> None:
    """Raise unless a file can be written in this operator set.

    Raises:
        ConfigError: the format has no operator sets, or the packages do not know this one.
    """
    if opset is None:
        return
    if form != "onnx":
        raise ConfigError(f"--opset: {form} has no ONNX operator set.", remedy="Leave --opset out, or use --to onnx.")
    oldest, newest = opsets()
    if not oldest <= opset <= newest:
        raise ConfigError(
            f"--opset: expected {oldest} to {newest}, got {opset}.",
            remedy="Choose the newest that the program which opens the file supports; leave it out if in doubt.",
        )


def write_graph(model: FoldedCaiT, form: Form, path: Path, *, fp16: bool = False, opset: int | None = None) -> None:
    """Write the graph alone; `fp16` is for OpenVINO (weights in 16 bits), `opset` for ONNX."""
    if form == "onnx":
        write_onnx(model, path, opset)
    elif form == "openvino":
        openvino = require("openvino", asked="openvino", extra="openvino")
        openvino.save_model(to_openvino(model), str(path), compress_to_fp16=fp16)
    else:
        torch.export.save(to_program(model), path)


def open_graph(form: Form, path: Path) -> tuple[Runner, str]:
    """Open a file in the engine it is for; nothing of the model it was made from is used.

    Returns:
        What runs it, and the engine's name with its version.
    """
    if form == "onnx":
        session = open_onnx(path, None)
        version = require("onnxruntime", asked="onnx", extra="export").__version__
        return lambda images: torch.from_numpy(
            session.run([OUTPUT], {INPUT: images.numpy()})[0]
        ), f"ONNX Runtime {version}"
    if form == "openvino":
        openvino = require("openvino", asked="openvino", extra="openvino")
        compiled = open_openvino(str(path), None)
        version = openvino.__version__.partition("-")[0]
        return lambda images: torch.from_numpy(compiled({INPUT: images.numpy()})[OUTPUT]), f"OpenVINO {version}"
    return torch.export.load(path).module(), f"torch.export {torch.__version__}"


def verify_graph(
    model: nn.Module,
    form: Form,
    path: Path,
    images_BCHW: Tensor,
    *,
    batches: Sequence[int] = BATCHES,
    max_drift: float = MAX_DRIFT,
    tolerance: float = 0.0,
) -> Verification:
    """Compare the logits of an exported file with those of its model, for the same images.

    Args:
        model: the model, not folded, so that the fold is verified too. It computes in evaluation mode and keeps its
            own mode afterwards.
        form: of the file.
        path: of the file.
        images_BCHW: preprocessed; as many as the largest batch.
        batches: numbers of images per call.
        max_drift, tolerance: of the `Verification`.

    Raises:
        ConfigError: fewer images than the largest batch.
    """
    if len(images_BCHW) < max(batches):
        raise ConfigError(
            f"images: expected {max(batches)} or more, got {len(images_BCHW)}.", remedy="Give more images."
        )
    run, engine = open_graph(form, path)
    images_BCHW = images_BCHW.cpu().float().contiguous()
    parts = [images_BCHW[:count] for count in batches]
    with evaluation_mode(model):
        expected_BK = torch.cat([model(part.to(_device(model))).cpu() for part in parts])
        got_BK = torch.cat([run(part.contiguous()) for part in parts])
    # Logits within float32 rounding count as equal.
    compared = compare_logits(expected_BK, got_BK, MAX_DRIFT)
    return Verification(reader=engine, max_drift=max_drift, tolerance=tolerance, batches=tuple(batches), **compared)


def describe(model: FoldedCaiT, form: Form, out: Path, verification: Verification) -> dict[str, Any]:
    """The description that a program needs to use the file."""
    return {
        "file": out.name,
        "form": form,
        "input": {"name": INPUT, "shape": ["batch", model.config.in_chans, *model.config.img_size], "dtype": "float32"},
        "output": {"name": OUTPUT, "shape": ["batch", model.num_classes or model.num_features], "dtype": "float32"},
        "proof": verification.facts(),
    }


def require_out(form: Form, out: Path) -> None:
    """Check the path before any work is done.

    Raises:
        ConfigError: another suffix than the form's, a folder, or no folder to write in.
    """
    if out.suffix != SUFFIXES[form]:
        raise ConfigError(
            f"--out: a file for {form} must end in {SUFFIXES[form]} (got {out}).",
            remedy=f"Use {out.with_suffix(SUFFIXES[form]) if out.name else f'model{SUFFIXES[form]}'}.",
        )
    require_file(out, (), "--out")


def _device(model: nn.Module) -> torch.device:
    return cast("torch.device", next((tensor.device for tensor in model.parameters()), torch.device("cpu")))
