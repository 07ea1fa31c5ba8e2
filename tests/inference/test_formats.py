"""The patch stage with products in bfloat16 and int8: errors, bits, and what is used where they can't run."""

from __future__ import annotations

import copy
import ctypes
import logging
import os
import pickle
import types

import pytest
import torch
from torch.nn import functional as F

from deepcait.errors import ConfigError
from deepcait.inference import fold as fold_module
from deepcait.inference import native
from deepcait.inference.fold import FoldedCaiT, fold
from deepcait.runtime import device
from deepcait.runtime.environment import processor_flags
from tests.inference.test_native import SMALL, restored_threads, tokens  # noqa: F401
from tests.inference.tiny import scrambled

needs_bf16 = pytest.mark.skipif(not native.has_format(torch.bfloat16), reason="no AVX512_BF16, or no C++ compiler")
needs_int8 = pytest.mark.skipif(not native.has_format(torch.int8), reason="no AVX512_VNNI, or no C++ compiler")
formats = pytest.mark.parametrize(
    "precision", [pytest.param("bf16", marks=needs_bf16), pytest.param("int8", marks=needs_int8)]
)
FORMATS = {"bf16": torch.bfloat16, "int8": torch.int8}
HAS_TILES = "amx_bf16" in processor_flags().split()
ODD = SMALL | {"img_size": (24, 56)}  # 21 patches: the last row of values has no partner
SIZES = [
    (1, 32, 8, 4.0), (6, 16, (24, 72), 2.0), (4, 48, 112, 4.0), (6, 48, 56, 4.0), (8, 32, 40, 3.5), (16, 48, 32, 1.0)
]  # fmt: skip


@pytest.fixture(autouse=True)
def _faster(monkeypatch):
    """On every processor with the instructions, also where float32 is faster."""
    monkeypatch.setattr(fold_module, "is_faster", lambda dtype: True)


def relative_rms(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over the standard deviation."""
    return ((got.double() - expected.double()).square().mean().sqrt() / expected.double().std()).item()


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16().double()


def exact_blocks(folded: FoldedCaiT, tokens_BND: torch.Tensor, rounding=rounded) -> torch.Tensor:
    """The patch stage in float64, with factors of products rounded."""

    def normalized(x):
        return rounding(F.layer_norm(x, x.shape[-1:], eps=1e-6))

    x, A = tokens_BND.double(), folded.config.num_heads
    for block in folded.blocks:
        qkv_w, qkv_b, proj_w, proj_b, fc1_w, fc1_b, fc2_w, fc2_b, mix_l, mix_w, bias_w = (
            tensor.double() for tensor in block.tensors()
        )
        qkv = rounding(F.linear(normalized(x), rounding(qkv_w), qkv_b))
        q, k, v = qkv.unflatten(-1, (3, A, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.einsum("ba,namk->nbmk", mix_l, q @ k.transpose(-1, -2)).softmax(-1)
        mixed = rounding(torch.einsum("ba,namk->nbmk", mix_w, weights) + bias_w[:, None, None])
        read = rounding((mixed @ v).transpose(1, 2).flatten(2))
        x = x + F.linear(read, rounding(proj_w), proj_b)
        hidden = rounding(F.gelu(F.linear(normalized(x), rounding(fc1_w), fc1_b)))
        x = x + F.linear(hidden, rounding(fc2_w), fc2_b)
    return x


def model_of(heads: int, head_width: int, img_size, mlp_ratio: float):
    return scrambled(
        embed_dim=heads * head_width, depth=2, num_heads=heads, img_size=img_size, patch_size=8, mlp_ratio=mlp_ratio
    )


@needs_bf16
@pytest.mark.parametrize("sizes", SIZES)
def test_bf16_against_float64(sizes):
    """Within 1e-2 of the exact function, and within 1e-3 of one that rounds where the code does."""
    folded = fold(model_of(*sizes), "bf16")
    mine_BND = tokens(folded, 2)
    found = folded.run_blocks(mine_BND)
    assert folded._packed.dtype == torch.bfloat16
    assert relative_rms(found, exact_blocks(folded, mine_BND, rounding=unchanged)) < 1e-2
    assert relative_rms(found, exact_blocks(folded, mine_BND)) < 1e-3


def quantized_rows(rows: torch.Tensor) -> torch.Tensor:
    """Each row rounded to 256 steps from its least value to its largest, of which one is 0."""
    low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / 255
    zero = (-low / step).round()
    return step * ((rows / step + zero).round().clamp(0, 255) - zero)


def quantized_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A linear layer in int8, in float64."""
    step = weight.abs().amax(1, keepdim=True) / 127
    return F.linear(quantized_rows(rows), step * (weight / step).round(), bias)


def unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def int8_blocks(folded: FoldedCaiT, tokens_BND: torch.Tensor, rounding) -> torch.Tensor:
    """The patch stage in float64: inputs and weights of linear layers quantized, factors of the attention rounded."""
    x, A = tokens_BND.double(), folded.config.num_heads
    for block in folded.blocks:
        qkv_w, qkv_b, proj_w, proj_b, fc1_w, fc1_b, fc2_w, fc2_b, mix_l, mix_w, bias_w = (
            tensor.double() for tensor in block.tensors()
        )
        qkv = quantized_linear(F.layer_norm(x, x.shape[-1:], eps=1e-6), qkv_w, qkv_b)
        q, k, v = rounding(qkv).unflatten(-1, (3, A, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.einsum("ba,namk->nbmk", mix_l, q @ k.transpose(-1, -2)).softmax(-1)
        mixed = rounding(torch.einsum("ba,namk->nbmk", mix_w, weights) + bias_w[:, None, None])
        x = x + quantized_linear((mixed @ v).transpose(1, 2).flatten(2), proj_w, proj_b)
        hidden = F.gelu(quantized_linear(F.layer_norm(x, x.shape[-1:], eps=1e-6), fc1_w, fc1_b))
        x = x + quantized_linear(hidden, fc2_w, fc2_b)
    return x


@needs_int8
@pytest.mark.parametrize("sizes", SIZES)
def test_int8_against_float64(sizes):
    """Within 4e-2 of the exact function, and within 5e-3 of one that rounds where the code does.

    The attention's products are in bfloat16 on processors with tile registers, else in float32.
    """
    folded = fold(model_of(*sizes), "int8")
    mine_BND = tokens(folded, 2)
    found = folded.run_blocks(mine_BND)
    assert folded._packed.dtype == torch.int8
    assert relative_rms(found, exact_blocks(folded, mine_BND, rounding=unchanged)) < 4e-2
    rounding = rounded if HAS_TILES else unchanged
    assert relative_rms(found, int8_blocks(folded, mine_BND, rounding)) < 5e-3


@pytest.mark.skipif(not HAS_TILES, reason="no tile registers")
@formats
def test_the_same_without_tile_registers(precision, tmp_path, monkeypatch):
    """The code for processors without them, compiled on one that has them."""
    monkeypatch.setenv("CXX", f"{os.environ.get('CXX', 'g++')} -mno-amx-tile -mno-amx-bf16 -mno-amx-int8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = native._declared(ctypes.CDLL(str(native.compiled())))
    assert native._agrees(code, FORMATS[precision])
    mine_BND, packed = torch.randn(3, 21, 192), native._pack(code, native._sample_blocks(), 4, FORMATS[precision])
    with_tiles = native.pack_blocks(native._sample_blocks(), 4, FORMATS[precision])
    found = native._run(code, mine_BND, packed, 4, 208, 1e-6, 2)
    expected = native.run_blocks(mine_BND, with_tiles, 4, 208, 1e-6)
    assert not torch.equal(packed.view(torch.int32), with_tiles.view(torch.int32))  # panels of another width
    assert relative_rms(found, expected) < (1e-2 if precision == "int8" else 1e-3)


@needs_int8
def test_int8_of_rows_and_outputs_that_are_zero():
    """A row of zeros stays zero, an output without weights is its bias, and neither divides by zero."""
    model = scrambled(**SMALL)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.weight.zero_(), block.mlp.fc1.bias.fill_(-50.0)  # GELU: exactly 0
            block.attn.proj.weight[::2] = 0
    folded = fold(model, "int8")
    mine_BND = tokens(folded, 2)
    assert relative_rms(folded.run_blocks(mine_BND), exact_blocks(folded, mine_BND, rounding=lambda x: x)) < 4e-2


@formats
def test_logits_against_float64(precision):
    model = scrambled(**SMALL)
    images_BCHW = torch.randn(4, 3, *SMALL["img_size"])
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(images_BCHW.double())
        assert relative_rms(fold(model, precision)(images_BCHW), expected) < {"bf16": 1e-2, "int8": 4e-2}[precision]
        assert relative_rms(fold(model)(images_BCHW), expected) < 1e-5


@formats
@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("sizes", [SMALL, ODD])
def test_neither_batch_nor_threads_change_a_bit(sizes, precision):
    folded = fold(scrambled(**sizes), precision)
    all_BND = tokens(folded, 5)
    torch.set_num_threads(1)
    expected = torch.cat([folded.run_blocks(one_1ND) for one_1ND in all_BND.split(1)])
    for threads in (1, 2, 3, 40):
        torch.set_num_threads(threads)
        for batch in (1, 2, 3, 5):
            assert torch.equal(folded.run_blocks(all_BND[:batch]), expected[:batch]), (threads, batch)


@formats
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_image_spoils_itself_only(bad, precision):
    folded = fold(scrambled(**ODD), precision)
    images_BCHW = torch.randn(3, 3, *ODD["img_size"])
    with torch.no_grad():
        expected = folded(images_BCHW)
        images_BCHW[1, 2, 3, 11] = bad
        found = folded(images_BCHW)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])


@formats
def test_a_graph_and_a_copy_keep_the_precision(precision):
    folded = fold(scrambled(**SMALL), precision)
    images_BCHW = torch.randn(2, 3, *SMALL["img_size"])
    with torch.inference_mode():
        expected = folded(images_BCHW)
        assert torch.equal(torch.compile(folded, backend="eager", fullgraph=True)(images_BCHW), expected)
        assert torch.equal(pickle.loads(pickle.dumps(folded))(images_BCHW), expected)
        plain = fold(folded)
        assert plain.precision == "fp32"
        assert plain._packed is None
        assert folded.precision == precision
        assert not torch.equal(plain(images_BCHW), expected)
        assert torch.equal(fold(plain, precision)(images_BCHW), expected)


def require_fp32(precision: str, reason: str, caplog) -> None:
    """Check that float32 is computed instead of a precision, and that one line says why."""
    model = scrambled(**SMALL)
    folded, plain = fold(model, precision), fold(model)
    mine_BND = tokens(folded, 2)
    with caplog.at_level(logging.WARNING):
        found = folded.run_blocks(mine_BND)
        folded.run_blocks(mine_BND)
    assert torch.equal(found, plain.run_blocks(mine_BND))
    lines = [record.message for record in caplog.records if record.message.startswith(precision)]
    assert lines == [f"{precision}: {reason}; fp32 is used."]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fp32_is_used_without_the_instruction(precision, monkeypatch, caplog):
    """Switched off by the environment, as on a processor without the instructions."""
    monkeypatch.setenv("DEEPCAIT_NATIVE", "fp32")
    native.has_format.cache_clear()
    try:
        require_fp32(precision, "not available for this processor or model", caplog)
    finally:
        native.has_format.cache_clear()


@formats
def test_fp32_is_used_where_it_is_faster(precision, monkeypatch, caplog):
    monkeypatch.setattr(fold_module, "is_faster", lambda dtype: False)
    require_fp32(precision, "slower than fp32 on this processor", caplog)


@needs_bf16
@pytest.mark.usefixtures("restored_threads")
def test_the_faster_format_is_measured(monkeypatch):
    """A format that takes longer than float32 is recognised, whatever the number of threads."""
    torch.set_num_threads(2)
    assert native.library() is not None  # it compares results when it is loaded
    clock, seconds = [0.0], {torch.float32: 0.0, torch.bfloat16: 0.02}

    def run(code, tokens_BND, packed, *args, **kwargs):
        assert kwargs["threads"] == 1
        clock[0] += seconds[packed.dtype]

    monkeypatch.setattr(native, "_run", run)
    monkeypatch.setattr(device, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    assert not native.is_faster.__wrapped__(torch.bfloat16)
    seconds[torch.float32] = 0.04
    assert native.is_faster.__wrapped__(torch.bfloat16)


@needs_bf16
def test_sizes_that_the_format_is_not_for(caplog):
    folded = fold(scrambled(**SMALL | {"embed_dim": 48, "num_heads": 3}), "bf16")
    mine_BND = tokens(folded, 1)
    folded.run_blocks(mine_BND)
    assert folded._packed.dtype == torch.float32
    assert "not available for this processor or model" in caplog.text


def test_an_unknown_precision():
    with pytest.raises(ConfigError, match="precision: expected fp32, bf16 or int8, got 'fp8'"):
        fold(scrambled(**SMALL), "fp8")


@pytest.mark.parametrize(
    ("dtype", "file", "old", "new"),
    [
        pytest.param(torch.bfloat16, *change, marks=needs_bf16)
        for change in (
            ("arithmetic.h", "_mm512_slli_epi32(wide(rows + D + d), 16)", "_mm512_setzero_si512()"),
            ("arithmetic.h", "bits + 0x7fff", "bits + 0x1fffff"),
            ("patch_stage.cpp", "s.pairs(), what", "s.pairs() - 1, what"),
        )
    ]
    + [
        pytest.param(torch.int8, *change, marks=needs_int8)
        for change in (
            ("arithmetic.h", "zeros[m] = zero;", "zeros[m] = zero + 3;"),
            ("products.h", "scales[O + o] += *to", "scales[O + o] -= *to"),
            ("products.h", "-p.row_zeros[row]", "1.0f"),
            ("products.h", "p.row_scales[row]", "p.row_scales[0]"),
        )
    ],
)
def test_code_that_computes_something_else_is_not_trusted(tmp_path, monkeypatch, dtype, file, old, new):
    import ctypes

    for source in native.SOURCES:
        text = source.read_text(encoding="utf-8")
        if source.name == file:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / source.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(native, "SOURCES", tuple(tmp_path / source.name for source in native.SOURCES))
    monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not native._agrees(native._declared(ctypes.CDLL(str(native.compiled()))), dtype)
