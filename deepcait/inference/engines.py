"""Engines: the same folded model, run by PyTorch, by code that torch.compile writes, by ONNX Runtime, by OpenVINO.

An engine is a module in evaluation mode: images (B, C, H, W) in, logits (B, K) out. Any B works on every engine.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.errors import ConfigError
from deepcait.inference.fold import FoldedCaiT, fold, refuse_training
from deepcait.inference.graph import INPUT, OUTPUT, require_packages, to_openvino, write_onnx
from deepcait.model import CaiTConfig
from deepcait.model.embedding import require_images
from deepcait.optional import require

ENGINES = ("eager", "compile", "onnx", "openvino")


def build_engine(name: str, model: nn.Module, *, threads: int | None = None) -> Engine:
    """Return an engine for a model; the model itself stays as it is.

    Args:
        name: one of `ENGINES`.
        model: a CaiT, or one folded already.
        threads: of one call; None leaves it to the engine. PyTorch's threads ("eager", "compile") are those of the
            whole process.

    Raises:
        ConfigError: an unknown engine, one whose packages are missing, another network than a CaiT, or no compiler
            for "compile"; fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise ConfigError(
            f"threads: expected 1 or more, got {threads}.", remedy="Give 1, or more; None is the default."
        )
    if name not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}.", remedy="Choose one.")
    require_packages(name)
    return KINDS[name](fold(model), threads)


class Engine(nn.Module):
    """What every engine has in common.

    Args:
        model: what is run, with a `config`: a folded CaiT (a benchmark gives others).
        threads: of one call; None leaves it to the engine.
    """

    name: str

    def __init__(self, model: nn.Module, threads: int | None) -> None:
        super().__init__()
        self.config = cast("CaiTConfig", model.config)
        self.num_classes = self.config.num_classes
        self.pretrained_cfg = getattr(model, "pretrained_cfg", {})
        self.threads = threads
        super().train(False)

    def train(self, mode: bool = True) -> Engine:
        """Stay in evaluation mode.

        Raises:
            ConfigError: asked to train.
        """
        if mode:
            refuse_training()
        return super().train(False)


def _as_array(images_BCHW: Tensor, config: CaiTConfig) -> Any:
    """Images for a program outside of PyTorch.

    Raises:
        ShapeError: images of another size or number of channels than the model's.
        ConfigError: another type than float32.
    """
    require_images(images_BCHW, config.in_chans, config.img_size)
    if images_BCHW.dtype != torch.float32:
        raise ConfigError(f"images: expected float32, got {images_BCHW.dtype}.", remedy="Give images.float().")
    return images_BCHW.detach().cpu().contiguous().numpy()


class Eager(Engine):
    """PyTorch, operator by operator; see `fold`."""

    name = "eager"

    def __init__(self, model: nn.Module, threads: int | None) -> None:
        super().__init__(model, threads)
        self.model = model
        if threads is not None:
            torch.set_num_threads(threads)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K)."""
        with torch.inference_mode():
            return self.model(images_BCHW)


class Compiled(Eager):
    """PyTorch through torch.compile: one program for any number of images, made at the first call, in a minute or so.

    Raises:
        ConfigError: no C++ compiler on this machine (a GPU needs none).
    """

    name = "compile"

    def __init__(self, model: nn.Module, threads: int | None) -> None:
        super().__init__(model, threads)
        if next(iter(model.state_dict().values())).device.type == "cpu":
            require_compiler()
        if isinstance(model, FoldedCaiT):
            model.pack()  # its patch stage becomes one operator of the program
        self._run = torch.compile(model, dynamic=True)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K)."""
        from torch._dynamo.exc import TorchDynamoException

        try:
            with torch.inference_mode():
                return self._run(images_BCHW)
        except TorchDynamoException as error:
            raise ConfigError(
                f"compile: expected code that this machine's compiler takes, got: {_first_line(error)}",
                remedy="Mend the compiler (its headers and Python's), or choose another engine.",
            ) from error


class OnnxRuntime(Engine):
    """ONNX Runtime on the CPU."""

    name = "onnx"

    def __init__(self, model: nn.Module, threads: int | None) -> None:
        super().__init__(model, threads)
        with tempfile.TemporaryDirectory(prefix="deepcait-") as folder:
            path = Path(folder, "model.onnx")
            write_onnx(model, path)
            self._session = open_onnx(path, threads)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K), on the CPU."""
        array = _as_array(images_BCHW, self.config)
        if not len(array):  # ONNX Runtime 1.31 divides by the number of images, which ends the process
            return torch.zeros(0, self.num_classes)
        (logits_BK,) = self._session.run([OUTPUT], {INPUT: array})
        return torch.from_numpy(logits_BK)


class OpenVino(Engine):
    """OpenVINO on the CPU, in float32."""

    name = "openvino"

    def __init__(self, model: nn.Module, threads: int | None) -> None:
        super().__init__(model, threads)
        self._request = open_openvino(to_openvino(model), threads).create_infer_request()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K), on the CPU."""
        found = self._request.infer({INPUT: _as_array(images_BCHW, self.config)}, share_inputs=True)
        return torch.from_numpy(found[OUTPUT])


KINDS: dict[str, type[Engine]] = {"eager": Eager, "compile": Compiled, "onnx": OnnxRuntime, "openvino": OpenVino}


def open_onnx(path: Path, threads: int | None) -> Any:
    """Open a file in ONNX Runtime. Raises ConfigError without the package."""
    runtime = require("onnxruntime", asked="onnx", extra="export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_openvino(graph: Any, threads: int | None) -> Any:
    """Compile an `openvino.Model`, or the file of one, for the CPU. Raises ConfigError without the package."""
    openvino = require("openvino", asked="openvino", extra="openvino")
    # Without the first, processors that know bfloat16 compute in it: logits of two or three right digits.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return _openvino_core(openvino).compile_model(graph, "CPU", settings)


@functools.cache
def _openvino_core(openvino: Any) -> Any:
    """The one core of the process, kept to its end.

    OpenVINO's CPU plugin gives the thread a signal stack of its own and puts the former one back when the core goes.
    Of two cores the second puts back the first one's, which is unmapped by then: the next signal ends the process.
    """
    return openvino.Core()


def require_compiler() -> None:
    """Tell of a missing C++ compiler before torch.compile looks for it.

    Raises:
        ConfigError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compile: expected a C++ compiler, got none (CXX, then g++, were tried).",
            remedy="Install one (Debian: apt install g++), or choose the engine eager, onnx or openvino.",
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
