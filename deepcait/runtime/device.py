"""Choose the device."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from deepcait.errors import ConfigError
from deepcait.runtime.processes import local_rank

# Compute capability of the oldest GPUs that Triton compiles for: Volta.
_TRITON_NEEDS = (7, 0)
# Of what one copy from a GPU takes along: it is in the GPU's memory twice meanwhile.
_STAGE_BYTES = 1 << 28
# Of the matrices whose products are timed; how often calls are timed.
_SIDE, _TURNS = 384, 7


def device_type(wanted: str) -> str:
    """Return the type of the device that `choose_device` returns, such as cuda; reserves no device."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted.partition(":")[0]


def choose_device(wanted: str) -> torch.device:
    """Return the device that a process computes on: each process of a machine has a GPU of its own.

    Args:
        wanted: auto (a GPU of NVIDIA if there is one, else the CPU), cpu, cuda, cuda:1, mps, ...

    Raises:
        ConfigError: the device is not available.
    """
    wanted = device_type(wanted) if wanted == "auto" else wanted
    _require_gpu(wanted)
    try:
        device = torch.device(wanted)
    except RuntimeError:
        problem = f"device {wanted!r} is not available: there is no device of this name."
        raise ConfigError(problem, remedy="Use auto, cpu, cuda, or cuda:1 for the second GPU.") from None
    try:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank())
        torch.zeros(1, device=device).item()  # the device `meta` exists, but computes nothing
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        # PyTorch continues with advice on operators and lists of its backends.
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        if reason.startswith(("Could not run", "No module named")):
            reason = f"this PyTorch ({torch.__version__}) finds no {device.type.upper()} device"
        remedy = "Use the device cpu, or install the driver and the PyTorch build for this device."
        raise ConfigError(f"device {wanted!r} is not available: {reason}.", remedy=remedy) from None
    return device


def _require_gpu(wanted: str) -> None:
    """Raise if a requested GPU is not found by PyTorch; its own messages are several sentences."""
    kind, _, index = wanted.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        why = "PyTorch finds no NVIDIA GPU" if torch.version.cuda else "this PyTorch is built without CUDA"
    elif kind == "cuda" and index.isdecimal() and int(index) >= torch.cuda.device_count():
        why = f"PyTorch finds {torch.cuda.device_count()} GPUs, counted from cuda:0"
    elif kind == "mps" and not torch.backends.mps.is_available():
        why = "PyTorch finds no GPU of Apple"
    else:
        return
    remedy = "Use the device cpu, or install the driver and the PyTorch build for this device."
    raise ConfigError(f"device {wanted!r} is not available: {why}.", remedy=remedy)


def why_not_compiled(device: torch.device) -> str:
    """Return why kernels for a GPU can't be compiled on this machine; empty if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "no C compiler"
    if torch.cuda.get_device_capability(device) < _TRITON_NEEDS:
        return "Triton needs a newer GPU"
    return ""


def has_bf16(device: torch.device) -> bool:
    """Whether a GPU or a processor multiplies bfloat16 numbers itself; older ones only emulate it.

    For a processor of which PyTorch does not know it the answer is True.
    """
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        if able.get("architecture") != "x86_64":
            return bool(able.get("bf16", True))
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(precision: str, device_type: str = "cpu") -> contextlib.AbstractContextManager:
    """Return the context in which PyTorch multiplies in this precision: fp32, fp32-strict, bf16 or fp16."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device_type, dtype) if dtype else contextlib.nullcontext()


@functools.cache
def bf16_is_faster() -> bool:
    """Whether PyTorch multiplies bfloat16 matrices on this processor faster than float32 ones, measured once.

    Having the instruction is not enough: Intel's Emerald Rapids without AMX needs nearly twice the time.
    """
    short, wide = (torch.ones(_SIDE, _SIDE, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    return is_faster(lambda: torch.mm(short, short), lambda: torch.mm(wide, wide))


def is_faster(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether the shortest of some calls of `one` takes less time than that of `other`; they are called in turns."""
    best = [math.inf, math.inf]
    for _ in range(_TURNS):
        for index, call in enumerate((one, other)):
            begun = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - begun)
    return best[0] < best[1]


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of a device, in which numbers are added up: mps has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors, contiguous and without gradients, in the CPU's memory; those on a CPU are not copied.

    From a GPU they come through page-locked memory, as many at once as fit: the host waits once for all of them and not
    for each.
    """
    found = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    for names in _groups({name: tensor for name, tensor in found.items() if tensor.is_cuda}):
        group = [found[name] for name in names]
        flat = torch.cat([tensor.flatten() for tensor in group]).to("cpu", non_blocking=True)
        torch.cuda.current_stream(group[0].device).synchronize()
        parts = flat.split([tensor.numel() for tensor in group])
        found |= {n: part.clone().view(t.shape) for n, t, part in zip(names, group, parts, strict=True)}
    return found


def _groups(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of tensors of one device and type, as many as a copy takes."""
    groups: list[list[str]] = []
    last: dict[tuple, tuple[list[str], int]] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.dtype)
        group, num_bytes = last.get(key, ([], _STAGE_BYTES))
        if num_bytes + tensor.nbytes > _STAGE_BYTES:
            groups.append(group := [])
            num_bytes = 0
        group.append(name)
        last[key] = group, num_bytes + tensor.nbytes
    return groups
