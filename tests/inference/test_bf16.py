"""The patch stage with products in bfloat16: its error, its bits, and what takes its place where it can't run."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from torch.nn import functional as F

from deepcait.errors import ConfigError
from deepcait.inference import native
from deepcait.inference.fold import FoldedCaiT, fold
from tests.inference.test_native import SMALL, restored_threads, tokens  # noqa: F401
from tests.inference.tiny import scrambled

needs_bf16 = pytest.mark.skipif(not native.has_bfloat16(), reason="no AVX512_BF16, or no C++ compiler")
ODD = SMALL | {"img_size": (24, 56)}  # 21 patches: the last row of values has no partner


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


@needs_bf16
@pytest.mark.parametrize(
    ("heads", "head_width", "img_size", "mlp_ratio"),
    [(1, 32, 8, 4.0), (6, 16, (24, 72), 2.0), (4, 48, 112, 4.0), (6, 48, 56, 4.0), (8, 32, 40, 3.5), (16, 48, 32, 1.0)],
)
def test_against_float64(heads, head_width, img_size, mlp_ratio):
    """Within 1e-2 of the exact function, and within 1e-3 of one that rounds where the code does."""
    sizes = {"embed_dim": heads * head_width, "depth": 2, "num_heads": heads, "img_size": img_size, "patch_size": 8}
    folded = fold(scrambled(**sizes, mlp_ratio=mlp_ratio), "bf16")
    mine_BND = tokens(folded, 2)
    found = folded.run_blocks(mine_BND)
    assert folded._packed.dtype == torch.bfloat16
    assert relative_rms(found, exact_blocks(folded, mine_BND, rounding=lambda tensor: tensor)) < 1e-2
    assert relative_rms(found, exact_blocks(folded, mine_BND)) < 1e-3


@needs_bf16
def test_logits_against_float64():
    model = scrambled(**SMALL)
    images_BCHW = torch.randn(4, 3, *SMALL["img_size"])
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(images_BCHW.double())
        assert relative_rms(fold(model, "bf16")(images_BCHW), expected) < 1e-2
        assert relative_rms(fold(model)(images_BCHW), expected) < 1e-5


@needs_bf16
@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("sizes", [SMALL, ODD])
def test_neither_batch_nor_threads_change_a_bit(sizes):
    folded = fold(scrambled(**sizes), "bf16")
    all_BND = tokens(folded, 5)
    torch.set_num_threads(1)
    expected = torch.cat([folded.run_blocks(one_1ND) for one_1ND in all_BND.split(1)])
    for threads in (1, 2, 3, 40):
        torch.set_num_threads(threads)
        for batch in (1, 2, 3, 5):
            assert torch.equal(folded.run_blocks(all_BND[:batch]), expected[:batch]), (threads, batch)


@needs_bf16
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_image_spoils_itself_only(bad):
    folded = fold(scrambled(**ODD), "bf16")
    images_BCHW = torch.randn(3, 3, *ODD["img_size"])
    with torch.no_grad():
        expected = folded(images_BCHW)
        images_BCHW[1, 2, 3, 11] = bad
        found = folded(images_BCHW)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])


@needs_bf16
def test_a_graph_and_a_copy_keep_the_precision():
    folded = fold(scrambled(**SMALL), "bf16")
    images_BCHW = torch.randn(2, 3, *SMALL["img_size"])
    with torch.inference_mode():
        expected = folded(images_BCHW)
        assert torch.equal(torch.compile(folded, backend="eager", fullgraph=True)(images_BCHW), expected)
        assert torch.equal(pickle.loads(pickle.dumps(folded))(images_BCHW), expected)
        plain = fold(folded)
        assert plain.precision == "fp32"
        assert plain._packed is None
        assert folded.precision == "bf16"
        assert not torch.equal(plain(images_BCHW), expected)
        assert torch.equal(fold(plain, "bf16")(images_BCHW), expected)


def test_fp32_takes_its_place_where_the_processor_cannot(monkeypatch, caplog):
    """Switched off by the environment, as on a processor without the instructions; one line says so."""
    monkeypatch.setenv("DEEPCAIT_NATIVE", "fp32")
    native.has_bfloat16.cache_clear()
    try:
        model = scrambled(**SMALL)
        folded, plain = fold(model, "bf16"), fold(model)
        mine_BND = tokens(folded, 2)
        with caplog.at_level(logging.WARNING):
            found = folded.run_blocks(mine_BND)
            folded.run_blocks(mine_BND)
        assert torch.equal(found, plain.run_blocks(mine_BND))
        assert [record.message for record in caplog.records if record.message.startswith("bf16")] == [
            "bf16: this processor or model has no bfloat16 patch stage; it is computed in fp32."
        ]
    finally:
        native.has_bfloat16.cache_clear()


@needs_bf16
def test_sizes_that_the_format_is_not_for(caplog):
    folded = fold(scrambled(**SMALL | {"embed_dim": 48, "num_heads": 3}), "bf16")
    mine_BND = tokens(folded, 1)
    folded.run_blocks(mine_BND)
    assert folded._packed.dtype == torch.float32
    assert "computed in fp32" in caplog.text


def test_an_unknown_precision():
    with pytest.raises(ConfigError, match="precision: expected fp32 or bf16, got 'fp8'"):
        fold(scrambled(**SMALL), "fp8")


@needs_bf16
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("arithmetic.h", "_mm512_slli_epi32(wide(rows + D + d), 16)", "_mm512_setzero_si512()"),
        ("arithmetic.h", "bits + 0x7fff", "bits + 0x1fffff"),
        ("patch_stage.cpp", "s.pairs(), Out::cells", "s.pairs() - 1, Out::cells"),
    ],
)
def test_code_that_computes_something_else_is_not_trusted(tmp_path, monkeypatch, file, old, new):
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
    assert not native._agrees(native._declared(ctypes.CDLL(str(native.compiled()))), torch.bfloat16)
