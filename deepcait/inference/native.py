"""The block kernel as machine code: compiled by this machine's own compiler at first use, never needed.

Without a compiler, on a processor that the kernel is not for, or where it does not give what PyTorch gives, `attend`
is None and `blocks.py` does the same in PyTorch. DEEPCAIT_NATIVE=0 asks for that too.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from deepcait.inference.blocks import attend_blocks

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

SOURCE = Path(__file__).with_name("talking_heads.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-shared")
_COMPILE_TIMEOUT_S = 120
_MAX_HEADS, _VECTOR, _MAX_HEAD_WIDTH = 16, 16, 64
# Largest difference from PyTorch's own answer, in units of its spread, for the kernel to be trusted.
_TOLERANCE = 1e-5


def fits(qkv_BND3: Tensor, num_heads: int) -> bool:
    """Whether the kernel is for such tensors: float32 on a CPU, heads of 16, 32, 48 or 64 channels, at most 16."""
    head_width = qkv_BND3.shape[-1] // (3 * num_heads)
    return (
        qkv_BND3.dtype == torch.float32
        and qkv_BND3.device.type == "cpu"
        and num_heads <= _MAX_HEADS
        and head_width <= _MAX_HEAD_WIDTH
        and head_width % _VECTOR == 0
    )


def attend(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> Tensor:
    """`attend_blocks` in the fastest way that there is on this machine."""
    kernel = native_attend() if fits(qkv_BND3, len(bias_w_A)) else None
    return (kernel or attend_blocks)(qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)


@functools.cache
def native_attend() -> Attend | None:
    """Return the kernel, with the arguments of `attend_blocks`; None where there is none to trust."""
    if os.environ.get("DEEPCAIT_NATIVE", "1") == "0":
        return None
    try:
        library = ctypes.CDLL(str(compiled()))
    except (OSError, subprocess.SubprocessError):
        return None
    kernel = _binding(library)
    return kernel if _agrees(kernel) else None


def compiled() -> Path:
    """Return the shared library, made anew where source, compiler, flags or processor are others than before.

    Raises:
        OSError: no compiler, or no place to write to.
        subprocess.SubprocessError: it does not compile.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    what = [SOURCE.read_bytes(), " ".join((os.path.realpath(compiler), *FLAGS)).encode(), _processor().encode()]
    name = f"talking_heads-{hashlib.sha256(b'|'.join(what)).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepcait"
    library = folder / name
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside, name)
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_TIMEOUT_S)
            made.replace(library)
    return library


def _binding(library: ctypes.CDLL) -> Attend:
    call, num_keys, num_maps = library.talking_heads, library.talking_heads_keys, library.talking_heads_maps
    call.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 5
    call.restype = None
    for function, count in ((num_keys, 4), (num_maps, 2)):
        function.argtypes, function.restype = [ctypes.c_int64] * count, ctypes.c_int64

    def kernel(qkv_BND3: Tensor, mix_l_AA: Tensor, mix_w_AA: Tensor, bias_w_A: Tensor) -> Tensor:
        B, N, width = qkv_BND3.shape
        A, threads = len(bias_w_A), torch.get_num_threads()
        E = width // (3 * A)
        inputs = [tensor.contiguous() for tensor in (qkv_BND3, mix_l_AA, mix_w_AA, bias_w_A)]
        out_BND = qkv_BND3.new_empty(B, N, A * E)
        keys = qkv_BND3.new_empty(num_keys(B, N, A, E))
        maps = qkv_BND3.new_empty(threads * num_maps(N, A))
        call(*(tensor.data_ptr() for tensor in (*inputs, out_BND, keys, maps)), B, N, A, E, threads)
        return out_BND

    return kernel


def _agrees(kernel: Attend) -> bool:
    """Whether the kernel gives what PyTorch gives: a compiler, too, can be wrong."""
    generator = torch.Generator().manual_seed(0)
    A, E = 4, 48
    for N in (21, 40):
        sizes = ((2, N, 3 * A * E), (A, A), (A, A), (A,))
        inputs = [torch.randn(size, generator=generator) for size in sizes]
        inputs[0] *= E**-0.25
        expected = attend_blocks(*inputs)
        if not (kernel(*inputs) - expected).abs().max() <= _TOLERANCE * expected.std():
            return False
    return True


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "|".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags"))
    except OSError:
        return platform.machine() + platform.processor()
