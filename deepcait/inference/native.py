"""The patch stage as machine code, compiled by this machine's compiler at first use; optional.

Without a compiler, for sizes that the code does not support, or if its results differ from PyTorch's, `fold.py`
computes the same in PyTorch. DEEPCAIT_NATIVE=0 disables it; DEEPCAIT_NATIVE=fp32 disables bfloat16 and int8.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcait.backends.native import HEADERS
from deepcait.inference.blocks import attend_blocks
from deepcait.runtime import device
from deepcait.runtime.compiler import FLAGS, compile_library

SOURCES = (Path(__file__).with_name("patch_stage.cpp"), *HEADERS)
# Number formats of the products, and numbers per 4 bytes.
_CELLS = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}
# Largest accepted difference from PyTorch's result, in units of its standard deviation: rounding causes 1.6e-2 in the
# two small blocks that are compared in bfloat16, and 6.3e-2 in int8.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.int8: 0.12}
# Heads, channels of a head and hidden channels of the blocks with which the code is checked and timed; their epsilon.
_SAMPLE, _EPS = (4, 48, 208), 1e-6


def pack_blocks(
    blocks: Sequence[Sequence[Tensor]], num_heads: int, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    """Return the weights of all blocks in the order of the machine code, (L, floats).

    Args:
        blocks: of each block weight and bias of qkv, proj, fc1 and fc2; then the mixing before the softmax, the mixing
            after it, and its bias.
        num_heads: A.
        dtype: of the products, float32, bfloat16 or int8: weights and the activations that are multiplied. Everything
            else is float32. With int8 the products of the attention are in float32, on processors with AMX in bfloat16.

    Returns:
        A tensor of that dtype; None if the code does not support the model or is not available. It supports float32 on
        a CPU, at most 16 heads, and widths of heads and hidden layer that are multiples of 16 (of 8 without AVX512).
        bfloat16 needs AVX512_BF16 and a width that is a multiple of 32, int8 needs AVX512_VNNI. Both use AMX where the
        processor has it; there int8 needs a width that is a multiple of 32, too.
    """
    tensors = [tensor for block in blocks for tensor in block]
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in tensors):
        return None
    code = library()
    if code is None or not has_format(dtype):
        return None
    return _pack(code, blocks, num_heads, dtype)


def run_blocks(tokens_BND: Tensor, packed: Tensor, num_heads: int, hidden_dim: int, eps: float) -> Tensor:
    """Return patch tokens (B, N, D) after all blocks, without gradients. A result depends only on its image.

    Args:
        tokens_BND: float32, on the CPU.
        packed: the result of `pack_blocks`.
        num_heads, hidden_dim: A, and the width of the MLP's hidden layer.
        eps: of LayerNorm.
    """
    return _run(_required(), tokens_BND, packed, num_heads, hidden_dim, eps, torch.get_num_threads())


# For graphs: one opaque node. Eager calls use the function itself, so that its memory is counted.
@torch.library.custom_op("deepcait::patch_stage", mutates_args=(), device_types="cpu")
def patch_stage(tokens_BND: Tensor, packed: Tensor, num_heads: int, hidden_dim: int, eps: float) -> Tensor:
    """`run_blocks` as an operator of PyTorch."""
    return run_blocks(tokens_BND, packed, num_heads, hidden_dim, eps)


@patch_stage.register_fake
def _(tokens_BND: Tensor, packed: Tensor, num_heads: int, hidden_dim: int, eps: float) -> Tensor:
    return tokens_BND.new_empty(tokens_BND.shape)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the machine code; None if it is not available."""
    if os.environ.get("DEEPCAIT_NATIVE", "1") == "0":
        return None
    try:
        code = _declared(ctypes.CDLL(str(compiled())))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None
    return code if _agrees(code) else None


@functools.cache
def has_format(dtype: torch.dtype) -> bool:
    """Whether the code multiplies in a format: the processor has the instruction, and its results are correct."""
    code = library()
    if code is None or dtype == torch.float32:
        return code is not None
    return os.environ.get("DEEPCAIT_NATIVE") != "fp32" and _agrees(code, dtype)


@functools.cache
def is_faster(dtype: torch.dtype) -> bool:
    """Whether products in a format are faster than in float32 on this processor, measured once in a process.

    Intel's Emerald Rapids without AMX multiplies bfloat16 at half the rate of float32 (docs/dev/log.md).
    """
    code, blocks = _required(), _sample_blocks()
    tokens_BND = torch.zeros(1, 64, _SAMPLE[0] * _SAMPLE[1], dtype=torch.float32)
    packed = {each: cast("Tensor", _pack(code, blocks, _SAMPLE[0], each)) for each in (torch.float32, dtype)}
    short, wide = (
        functools.partial(_run, code, tokens_BND, packed[each], _SAMPLE[0], _SAMPLE[2], _EPS, threads=1)
        for each in (dtype, torch.float32)
    )
    return device.is_faster(short, wide)


def compiled() -> Path:
    """Return the shared library; see `compile_library` for what is raised."""
    return compile_library("patch_stage", SOURCES[:1], SOURCES[1:], FLAGS)


def _required() -> ctypes.CDLL:
    code = library()
    if code is None:
        raise RuntimeError("patch stage: the machine code that packed these weights is not available")
    return code


def _declared(code: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for function, arguments, result in (
        (code.patch_stage_block, [size] * 4, size),
        (code.patch_stage_room, [size] * 7, size),
        (code.patch_stage_pack, [size] + [pointer] * 11 + [size] * 3 + [pointer], None),
        (code.patch_stage, [size] + [pointer] * 3 + [size] * 6 + [ctypes.c_float, size], None),
    ):
        function.argtypes, function.restype = arguments, result
    return code


def _pack(code: ctypes.CDLL, blocks: Sequence[Sequence[Tensor]], num_heads: int, dtype: torch.dtype) -> Tensor | None:
    proj, fc1 = blocks[0][2], blocks[0][4]
    sizes = (num_heads, len(proj) // num_heads, len(fc1))
    num_units = code.patch_stage_block(_CELLS[dtype], *sizes)
    if not num_units:
        return None
    packed = torch.zeros(len(blocks), num_units, dtype=torch.float32)
    for to, tensors in zip(packed, blocks, strict=True):
        kept = [tensor.detach().contiguous() for tensor in tensors]
        code.patch_stage_pack(_CELLS[dtype], *(tensor.data_ptr() for tensor in kept), *sizes, to.data_ptr())
    return packed.view(dtype)


def _run(
    code: ctypes.CDLL, tokens_BND: Tensor, packed: Tensor, num_heads: int, hidden_dim: int, eps: float, threads: int
) -> Tensor:
    (B, N, D), cells = tokens_BND.shape, _CELLS[packed.dtype]
    sizes = (B, N, num_heads, D // num_heads, hidden_dim)
    tokens_BND = tokens_BND.clone(memory_format=torch.contiguous_format)
    room = tokens_BND.new_empty(code.patch_stage_room(cells, *sizes, threads))
    pointers = (tensor.data_ptr() for tensor in (tokens_BND, packed, room))
    code.patch_stage(cells, *pointers, *sizes, len(packed), eps, threads)
    return tokens_BND


def _agrees(code: ctypes.CDLL, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the code's results equal PyTorch's, since compilers may have bugs."""
    A, E, H = _SAMPLE
    D, blocks = A * E, _sample_blocks()
    packed = _pack(code, blocks, A, dtype)
    if packed is None:
        return False
    generator = torch.Generator().manual_seed(1)
    for batch, num_patches in ((1, 21), (3, 40)):
        tokens_BND = torch.randn(batch, num_patches, D, generator=generator, dtype=torch.float32)
        expected = tokens_BND
        for qkv, qkv_bias, proj, proj_bias, fc1, fc1_bias, fc2, fc2_bias, *mixing in blocks:
            read = attend_blocks(F.linear(F.layer_norm(expected, (D,), eps=_EPS), qkv, qkv_bias), *mixing)
            expected = expected + F.linear(read, proj, proj_bias)
            hidden = F.gelu(F.linear(F.layer_norm(expected, (D,), eps=_EPS), fc1, fc1_bias))
            expected = expected + F.linear(hidden, fc2, fc2_bias)
        found = _run(code, tokens_BND, packed, A, H, _EPS, torch.get_num_threads())
        if not (found - expected).abs().max() <= _TOLERANCES[dtype] * expected.std():
            return False
    return True


def _sample_blocks() -> list[list[Tensor]]:
    """Seeded weights of two blocks, in the order of `pack_blocks`."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    A, E, H = _SAMPLE
    D = A * E
    shapes = ((3 * D, D), (3 * D,), (D, D), (D,), (H, D), (H,), (D, H), (D,), (A, A), (A, A), (A,))
    blocks = [[draw(*shape) / shape[-1] ** 0.5 for shape in shapes] for _ in range(2)]
    for tensors in blocks:
        tensors[1][D:] = 0
    return blocks
