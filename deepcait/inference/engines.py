"""Engines run the folded model by PyTorch, torch.compile, ONNX Runtime or OpenVINO.

An engine is a module in evaluation mode: images (B, C, H, W) in, logits (B, K) out. Any B works on every engine.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.errors import ConfigError
from deepcait.inference.fold import FoldedCaiT, fold, refuse_training
from deepcait.inference.graph import INPUT, OUTPUT, require_packages, to_openvino, write_onnx
from deepcait.inference.precision import choose_precision
from deepcait.model import CaiTConfig
from deepcait.model.embedding import require_images
from deepcait.optional import require
from deepcait.runtime.device import autocast
from deepcait.runtime.state import undisturbed

_log = logging.getLogger(__name__)

ENGINES = ("eager", "compile", "onnx", "openvino")
# Those that compute on a GPU too.
TORCH_ENGINES = ("eager", "compile")


@undisturbed()
def build_engine(name: str, model: nn.Module, *, threads: int | None = None, precision: str = "auto") -> Engine:
    """Return an engine for a model; the model itself is not changed.

    Args:
        name: one of `ENGINES`.
        model: a CaiT, or a folded one.
        threads: threads per call; None means the engine's default. PyTorch's threads ("eager", "compile") are those of
            the whole process.
        precision: of the products; see `choose_precision`.

    Raises:
        ConfigError: the engine is unknown, its packages or compiler are missing, the network is not a CaiT, threads is
            below 1, or the engine does not offer the precision.
    """
    if threads is not None and threads < 1:
        raise ConfigError(
            f"threads: expected 1 or more, got {threads}.", remedy="Use threads=1 or more, or None for the default."
        )
    if name not in ENGINES:
        raise ConfigError(
            f"engine: expected one of {', '.join(ENGINES)}, got {name!r}.", remedy="Use eager if in doubt."
        )
    require_packages(name)
    precision = choose_precision(precision, name, _device_type(model))
    # On a CPU the folded model itself has the format of its products; graphs are written from float32.
    in_model = name in TORCH_ENGINES and _device_type(model) == "cpu"
    return KINDS[name](fold(model, precision if in_model else "fp32"), threads, precision)


class Engine(nn.Module):
    """Base class of engines. An engine may be called from many threads.

    Args:
        model: the network with a `config`: a folded CaiT (benchmarks pass others).
        threads: threads per call; None means the engine's default.
        precision: of the products: fp32, bf16, fp16 or int8.
    """

    name: str
    # Whether calls from several threads wait for each other, since the program computes one batch at a time.
    takes_turns = False

    def __init__(self, model: nn.Module, threads: int | None, precision: str = "fp32") -> None:
        super().__init__()
        self.precision = precision
        self.config = cast("CaiTConfig", model.config)
        self.num_classes = self.config.num_classes
        self.pretrained_cfg = getattr(model, "pretrained_cfg", {})
        self.threads = threads
        self._enter_process()
        super().train(False)

    @property
    def computed_in(self) -> str:
        """The precision in which products are computed: fp32 where that of the engine is not available, or slower."""
        return self.precision

    @undisturbed()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K). The program's inference mode and autocast change nothing.

        Raises:
            ConfigError: this process was forked from the one that built the engine, or the images are not float32.
            ShapeError: the images' size or number of channels is not the model's.
        """
        if self._pid != os.getpid():
            raise ConfigError(
                f"engine {self.name}: it was built before this process was forked, and its threads are not in a fork.",
                remedy="Load the model in each process, after the fork (gunicorn: without --preload). More: `deepcait "
                "help forked-process`.",
            )
        with self._turn if self.takes_turns else contextlib.nullcontext():
            return self._compute(images_BCHW)

    def _compute(self, images_BCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def train(self, mode: bool = True) -> Engine:
        """Stay in evaluation mode.

        Raises:
            ConfigError: `mode` is True.
        """
        if mode:
            refuse_training()
        return super().train(False)

    def _enter_process(self) -> None:
        """Set what belongs to this process; called again in a copy."""
        self._pid, self._turn = os.getpid(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pid", "_turn")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._enter_process()


def _as_array(images_BCHW: Tensor, config: CaiTConfig) -> Any:
    """Convert images for a program outside PyTorch.

    Raises:
        ShapeError: the images' size or number of channels is not the model's.
        ConfigError: the images are not float32.
    """
    require_images(images_BCHW, config.in_chans, config.img_size)
    if images_BCHW.dtype != torch.float32:
        raise ConfigError(f"images: expected float32, got {images_BCHW.dtype}.", remedy="Pass images.float().")
    return images_BCHW.detach().cpu().contiguous().numpy()


class Eager(Engine):
    """PyTorch, operator by operator; see `fold`."""

    name = "eager"

    def __init__(self, model: nn.Module, threads: int | None, precision: str = "fp32") -> None:
        super().__init__(model, threads, precision)
        self.model = model
        if threads is not None:
            torch.set_num_threads(threads)

    @property
    def computed_in(self) -> str:
        """As `Engine.computed_in`; the first call prepares the weights."""
        return self.model.computed_in() if isinstance(self.model, FoldedCaiT) else self.precision

    def _compute(self, images_BCHW: Tensor) -> Tensor:
        with torch.inference_mode(), _autocast(images_BCHW.device.type, self.precision):
            return self.model(images_BCHW).float()


class Compiled(Eager):
    """PyTorch through torch.compile: one program for any batch size, compiled at the first call (about a minute).

    Raises:
        ConfigError: there is no C++ compiler (not needed for a GPU).
    """

    name = "compile"
    takes_turns = True

    def __init__(self, model: nn.Module, threads: int | None, precision: str = "fp32") -> None:
        super().__init__(model, threads, precision)
        if _device_type(model) == "cpu":
            require_compiler()
        self._prepare()

    def _prepare(self) -> None:
        if isinstance(self.model, FoldedCaiT):
            self.model.pack()  # its patch stage is one operator of the program
        self._run = torch.compile(self.model, dynamic=True)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        # The program is compiled again from the model.
        return state | {"_modules": {name: part for name, part in state["_modules"].items() if name != "_run"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def _compute(self, images_BCHW: Tensor) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException

        try:
            with torch.inference_mode(), _autocast(images_BCHW.device.type, self.precision):
                return self._run(images_BCHW).float()
        except TorchDynamoException as error:
            raise ConfigError(
                f"compile: the C++ compiler failed: {_first_line(error)}",
                remedy="Check the compiler and its headers and Python's, or choose another engine.",
            ) from error


class _Foreign(Engine):
    """A program outside PyTorch, which can't be copied."""

    def __getstate__(self) -> dict[str, Any]:
        raise ConfigError(
            f"engine {self.name}: its program can't be copied or pickled.",
            remedy=f"Copy or pickle the model itself, and load it with engine={self.name!r} where it is used.",
        )


class OnnxRuntime(_Foreign):
    """ONNX Runtime on the CPU."""

    name = "onnx"

    def __init__(self, model: nn.Module, threads: int | None, precision: str = "fp32") -> None:
        super().__init__(model, threads, precision)
        with tempfile.TemporaryDirectory(prefix="deepcait-") as folder:
            path = Path(folder, "model.onnx")
            write_onnx(model, path)
            self._session = open_onnx(path, threads)

    def _compute(self, images_BCHW: Tensor) -> Tensor:
        array = _as_array(images_BCHW, self.config)
        if not len(array):  # ONNX Runtime 1.31 divides by the number of images, which crashes the process
            return torch.zeros(0, self.num_classes, dtype=torch.float32)
        (logits_BK,) = self._session.run([OUTPUT], {INPUT: array})
        return torch.from_numpy(logits_BK)


class OpenVino(_Foreign):
    """OpenVINO on the CPU."""

    name = "openvino"
    takes_turns = True  # a request that is running refuses another batch

    def __init__(self, model: nn.Module, threads: int | None, precision: str = "fp32") -> None:
        super().__init__(model, threads, precision)
        self._request = open_openvino(to_openvino(model), threads, precision).create_infer_request()

    @property
    def computed_in(self) -> str:
        """As `Engine.computed_in`."""
        return "fp32" if self.precision == "bf16" and openvino_default() != "bf16" else self.precision

    def _compute(self, images_BCHW: Tensor) -> Tensor:
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


def open_openvino(graph: Any, threads: int | None, precision: str | None = "fp32") -> Any:
    """Compile an `openvino.Model`, or the file of one, for the CPU.

    Args:
        graph: the model, or its file.
        threads: threads per call; None means OpenVINO's default.
        precision: fp32 or bf16; None means OpenVINO's default: bf16 if the processor has it.

    Raises:
        ConfigError: the package is missing.
    """
    openvino = require("openvino", asked="openvino", extra="openvino")
    core = _openvino_core(openvino)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if precision == "bf16" and openvino_default() != "bf16":
        _log.warning("bf16: OpenVINO has no bfloat16 on this processor; it computes in fp32.")
        precision = "fp32"
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return core.compile_model(graph, "CPU", settings)


def openvino_default() -> str:
    """Return OpenVINO's default precision on this processor: bf16 or fp32."""
    openvino = require("openvino", asked="openvino", extra="openvino")
    return "bf16" if "BF16" in _openvino_core(openvino).get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"


@functools.cache
def _openvino_core(openvino: Any) -> Any:
    """The single OpenVINO core of the process, kept until its end.

    OpenVINO's CPU plugin installs a signal stack and restores the former one when the core is deleted. With two cores,
    the second one restores the first one's, which is unmapped by then: the next signal crashes the process.
    """
    return openvino.Core()


def require_compiler() -> None:
    """Raise if there is no C++ compiler, before torch.compile looks for it.

    Raises:
        ConfigError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compile: no C++ compiler was found (tried CXX, then g++).",
            remedy="Install one (Debian: apt install g++), or choose the engine eager, onnx or openvino.",
        ) from error


def _autocast(device_type: str, precision: str) -> contextlib.AbstractContextManager:
    """PyTorch's own lower precisions, for GPUs; on a CPU the folded model implements its precision."""
    return autocast("fp32" if device_type == "cpu" else precision, device_type)


def _device_type(model: nn.Module) -> str:
    return next((tensor.device.type for tensor in model.state_dict().values()), "cpu")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
