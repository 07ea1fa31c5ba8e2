"""A model as a graph for other programs: an exported program, ONNX, OpenVINO; any number of images."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from deepcait.errors import ConfigError
from deepcait.optional import require

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from deepcait.model import CaiTConfig

INPUT, OUTPUT = "images", "logits"
# A protocol buffer file is limited to 2 GiB; larger weights are stored in a second file.
_MAX_ONNX_BYTES = 1_900_000_000
_OLDEST_OPSET, _NEWEST_OPSET = 17, 25


def to_program(model: nn.Module) -> ExportedProgram:
    """Return the graph of a model with a `config`, in PyTorch's operators, for any batch size.

    Raises:
        ConfigError: the weights are not float32.
    """
    config = cast("CaiTConfig", model.config)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ConfigError(f"graph: expected weights in float32, got {tensor.dtype}.", remedy="Pass model.float().")
    # Two images: with one, the batch size would be a constant of the graph.
    images_BCHW = torch.zeros(2, config.in_chans, *config.img_size, dtype=torch.float32)
    with torch.no_grad(), _quiet():
        return torch.export.export(model, (images_BCHW,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def opsets() -> tuple[int, int]:
    """Return the oldest and the newest ONNX operator set that a graph is written in, by the packages installed.

    Raises:
        ConfigError: a package of deepcait[export] is missing.
    """
    onnx = require("onnx", asked="onnx", extra="export")
    return _OLDEST_OPSET, min(_NEWEST_OPSET, onnx.defs.onnx_opset_version())


def write_onnx(model: nn.Module, path: Path, opset: int | None = None) -> None:
    """Write the graph as ONNX; weights above 2 GiB are stored in `path` + ".data".

    Args:
        model: with a `config`.
        path: of the file.
        opset: operator set, one of `opsets()`; None is PyTorch's choice.

    Raises:
        ConfigError: a package of deepcait[export] is missing, or the model can't be written in this operator set.
    """
    for module in ("onnx", "onnxscript"):
        require(module, asked="onnx", extra="export")
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            to_program(model),
            (),
            str(path),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
            external_data=num_bytes > _MAX_ONNX_BYTES,
            verbose=False,
        )
    if opset is not None:
        _require_written(path, opset)


def _require_written(path: Path, opset: int) -> None:
    """Raise if the exporter, which only warns then, could not convert a graph to the requested operator set."""
    onnx = require("onnx", asked="onnx", extra="export")
    found = {one.version for one in onnx.load(path, load_external_data=False).opset_import if not one.domain}
    if found != {opset}:
        raise ConfigError(
            f"--opset: PyTorch {torch.__version__} can't write this model in operator set {opset}.",
            remedy="Choose a newer one, or leave --opset out.",
        )


def to_openvino(model: nn.Module) -> Any:
    """Return the graph as an `openvino.Model`.

    Raises:
        ConfigError: the package of deepcait[openvino] is missing.
    """
    openvino = require("openvino", asked="openvino", extra="openvino")
    with torch.no_grad(), _quiet():
        graph = openvino.convert_model(to_program(model))
    graph.inputs[0].set_names({INPUT})
    graph.outputs[0].set_names({OUTPUT})
    return graph


def require_packages(form: str) -> None:
    """Raise if a package is missing, before any work is done.

    Raises:
        ConfigError: a package that this form ("onnx", "openvino", "pt2") needs is missing.
    """
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
    for module in needed.get(form, ()):
        require(module, asked=form, extra="openvino" if form == "openvino" else "export")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the converters' output; errors are exceptions."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
