"""Numerics: the machine code of a training step computes what PyTorch computes, or is not used."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from deepcait.backends import heads, layers, native
from deepcait.model import CaiT
from deepcait.runtime.environment import processor_flags
from tests.model.wild import relative_error, some_images, tiny_config, wild_model

# Widths that are multiples of 16, as the code needs.
CONFIG = tiny_config(embed_dim=64, num_heads=4, drop_path_rate=0.4)
HAS_TILES = "amx_bf16" in processor_flags().split()
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def some_heads(B, N, A, E):
    """The gradient of an attention output, and the arguments of `read_heads`."""
    torch.manual_seed(1)
    D = A * E
    return torch.randn(B, N, D), torch.randn(B, N, 3 * D), torch.randn(A, A), torch.randn(A, A), torch.randn(A)


def doubles(*tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def step(model, images):
    """Logits and gradients of a training step with a fixed draw of stochastic depth."""
    torch.manual_seed(5)
    logits = model.train()(images)
    logits.square().sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 16), (3, 21, 4, 48), (1, 100, 4, 16), (2, 65, 6, 32), (2, 49, 16, 16), (4, 40, 3, 32), (1, 33, 8, 48)],
)
def test_attention_and_its_gradients_are_those_of_pytorch_in_float64(sizes, threads):
    torch.set_num_threads(threads)
    grad, *given = some_heads(*sizes)
    assert native.supports_heads(given[0], sizes[2])
    expected = heads._read_in_blocks(*doubles(*given)), *heads._backward_in_blocks(*doubles(grad, *given))
    found = heads.read_heads(*given), *heads.read_heads_backward(grad, *given)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 2e-5 * max(1.0, other.abs().max())


def relative_rms(found, expected) -> float:
    return ((found.double() - expected).square().mean().sqrt() / expected.std()).item()


@needs_compiler
@pytest.mark.parametrize("sizes", [(2, 40, 4, 48), (3, 75, 5, 32), (1, 21, 3, 16)])
def test_bfloat16_is_rounded_no_more_than_in_pytorch(sizes):
    """Once without tile registers; with them, the factors of products too, as PyTorch does with every operation."""
    grad, qkv, *mixings = some_heads(*sizes)
    grad, given = grad.bfloat16(), (qkv.bfloat16(), *mixings)
    expected = heads._read_in_blocks(*doubles(*given)), *heads._backward_in_blocks(*doubles(grad, *given))
    found = heads.read_heads(*given), *heads.read_heads_backward(grad, *given)
    assert heads._native_agrees(torch.bfloat16)
    in_pytorch = heads._read_in_blocks(*given), *heads._backward_in_blocks(grad, *given)
    for one, other, like, peer in zip(found, expected, (given[0], *given), in_pytorch, strict=True):
        assert one.dtype == like.dtype
        assert relative_rms(one, other) < min(4e-3, relative_rms(peer, other))
        if not HAS_TILES:
            assert ((one - other).abs() <= 2**-8 * other.abs() + 1e-4 * other.std()).all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(dtype):
    grad, *given = some_heads(5, 50, 4, 48)
    grad, given[0] = grad.to(dtype), given[0].to(dtype)
    torch.set_num_threads(1)
    expected = heads.read_heads(*given), *heads.read_heads_backward(grad, *given)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        found = heads.read_heads(*given), *heads.read_heads_backward(grad, *given)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), threads
    torch.set_num_threads(16)  # more than images: an image's rows are shared out
    found = [heads.read_heads_backward(grad, *given) for _ in range(3)]
    assert all(torch.equal(one, other) for again in found for one, other in zip(again, found[0], strict=True))
    assert torch.equal(heads.read_heads(*given), expected[0])


@needs_compiler
def test_a_broken_image_affects_itself_only():
    _, qkv, *mixings = some_heads(3, 20, 4, 16)
    expected = heads.read_heads(qkv, *mixings)
    qkv[1, 3, 7] = float("nan")
    found = heads.read_heads(qkv, *mixings)
    assert found[1].isnan().any()
    assert torch.equal(found[::2], expected[::2])


@needs_compiler
@pytest.mark.parametrize("has_gelu", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_layers_and_their_gradients_are_those_of_pytorch_in_float64(has_gelu, kept):
    torch.manual_seed(2)
    B, N, D, H, eps = 3, 77, 80, 112, 1e-6  # 5 vectors of columns: a strip of three and one of two
    x, grad, rows = torch.randn(B, N, D), torch.randn(B, N, D), 2 * torch.randn(B, N, H)
    keep = torch.tensor([0.0, 1.25, 1.0]).view(B, 1, 1) if kept else None
    norm_w, norm_b, first = torch.randn(D), torch.randn(D), (torch.randn(H, D), torch.randn(H))
    last = torch.randn(D, H), torch.randn(D), torch.randn(D)

    def everything(x, grad, rows, keep, norm_w, norm_b, first, last):
        dtype = x.dtype
        out, mean, rstd = layers.norm_linear(x, norm_w, norm_b, *first, eps, dtype)
        found = [out, layers.linear_add(x, rows, *last, keep, has_gelu=has_gelu)]
        given = grad, rows, x, mean, rstd, norm_w, norm_b, first[0], eps
        for train in (False, True):
            grad_x, grads = layers.norm_linear_backward(*given, train)
            found += [grad_x, *grads]
            given_last = grad, rows, *last, keep, dtype
            grad_rows, grads = layers.linear_add_backward(*given_last, has_gelu=has_gelu, train=train)
            found += [grad_rows, *grads]
        return found

    expected = everything(*doubles(x, grad, rows, keep, norm_w, norm_b), doubles(*first), doubles(*last))
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        found = everything(x, grad, rows, keep, norm_w, norm_b, first, last)
        assert len(found) == len(expected) == 13
        for one, other in zip(found, expected, strict=True):
            assert relative_error(one, other) < 2e-5


@needs_compiler
def test_a_weight_in_another_order_is_left_to_pytorch():
    x, weight = torch.randn(2, 5, 32), torch.randn(32, 48).t()
    assert native.supports_layer(x, weight.contiguous(), torch.float32)
    assert not native.supports_layer(x, weight, torch.float32)
    norm_w = torch.randn(64)[::2]  # strided, which is copied
    for order in (weight, weight.contiguous()):
        out, *_ = layers.norm_linear(x, norm_w, torch.zeros(32), order, torch.zeros(48), 1e-6, x.dtype)
        assert relative_error(out, F.linear(F.layer_norm(x, (32,), norm_w, None, 1e-6), weight)) < 1e-5


@needs_compiler
def test_gelu_is_exact_around_zero_and_far_from_it():
    hidden = torch.tensor(
        [0.0, -0.0, 1e-30, -1e-30, 9e-7, -2e-6, 1e-3, 5.0, -5.0, 14.0, -14.0, 40.0, -40.0, 0.5, -0.5, 1.0]
    )
    hidden, one = hidden.view(1, 1, 16), torch.eye(16)
    for index in range(16):
        grad = torch.zeros(1, 1, 16)
        grad[..., index] = 1.0
        found, read = native.linear_add_backward(grad, one, torch.ones(16), None, hidden)
        expected = torch.ops.aten.gelu_backward(grad.double(), hidden.double())
        assert (found - expected).abs().max() < 1e-6
        assert ((read - F.gelu(hidden.double())).abs() <= 1e-7 * hidden.abs().clamp(min=1.0)).all()


@needs_compiler
def test_a_step_is_that_of_the_reference_and_gives_the_same_bits_however_little_is_saved():
    images = some_images(CONFIG, 6).float()
    plain = wild_model(CONFIG).float()
    plain.set_backend("reference")
    expected, expected_grads = step(plain, images)
    logits, all_grads = step(wild_model(CONFIG).float(), images)
    assert relative_error(logits, expected) < 1e-5
    for name, grad in expected_grads.items():
        if not name.endswith((".proj_l.bias", ".k.bias", ".qkv.bias")):
            assert (all_grads[name] - grad).norm() <= 1e-3 * grad.norm(), name
    for change in (CaiT.set_small_memory, CaiT.set_grad_checkpointing, lambda model: None):
        model = wild_model(CONFIG).float()
        change(model)
        got, grads = step(model, images)
        assert torch.equal(got, logits)
        assert all(torch.equal(grads[name], grad) for name, grad in all_grads.items())


def test_unsupported_sizes_types_and_devices_use_pytorch():
    for sizes in ((2, 20, 3, 10), (2, 20, 17, 16)):
        grad, *given = some_heads(*sizes)
        assert not native.supports_heads(given[0], sizes[2])
        heads.read_heads_backward(grad, *given)
    qkv, weight = torch.randn(1, 4, 3 * 64), torch.randn(64, 64)
    for changed in (qkv.double(), qkv.half(), qkv.to("meta")):
        assert not native.supports_heads(changed, 4)
        assert not native.supports_layer(changed, weight.to(changed), changed.dtype)
    assert not native.supports_layer(qkv, weight, torch.bfloat16)
    assert not native.supports_layer(qkv, weight[:, :40], torch.float32)
    assert not native.supports_layer(qkv[:0], weight, torch.float32)


def test_pytorch_computes_the_same_if_the_code_is_disabled(tmp_path):
    """In a process of its own: this one has loaded the code already."""
    code = (
        "import torch\n"
        "from tests.backends.test_native_step import CONFIG, native, some_images, step, wild_model\n"
        "assert native.library() is None\n"
        f"torch.save(step(wild_model(CONFIG).float(), some_images(CONFIG, 2).float()), {str(tmp_path / 'step')!r})\n"
    )
    environment = os.environ | {"DEEPCAIT_NATIVE": "0"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    expected, expected_grads = torch.load(tmp_path / "step")
    logits, grads = step(wild_model(CONFIG).float(), some_images(CONFIG, 2).float())
    assert relative_error(logits, expected) < 1e-5
    for name, grad in expected_grads.items():
        if not name.endswith((".proj_l.bias", ".k.bias", ".qkv.bias")):
            assert (grads[name] - grad).norm() <= 1e-3 * grad.norm(), name


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_missing_or_broken_compiler_is_no_error(tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library.__wrapped__() is None


def heads_agree(dtype: torch.dtype = torch.float32) -> bool:
    return heads._native_agrees.__wrapped__(dtype)


def compiled_again(tmp_path, monkeypatch, *flags) -> ctypes.CDLL:
    monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:], *flags))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return native._declared(ctypes.CDLL(str(native.compiled())))


@needs_compiler
@pytest.mark.parametrize(
    ("file", "old", "new", "agrees"),
    [
        ("heads.cpp", "mixing.after[a * A + b]", "mixing.after[b * A + a]", heads_agree),
        pytest.param(
            "heads.cpp", "k + 1 < K ? load", "k + 2 < K ? load", functools.partial(heads_agree, torch.bfloat16),
            marks=pytest.mark.skipif(not HAS_TILES, reason="no tile registers"),
        ),
        ("layers.cpp", "shift - load(normal", "shift + load(normal", layers._native_agrees.__wrapped__),
        ("layers.cpp", "grad * gamma[o]", "grad", layers._native_agrees.__wrapped__),
        ("layers.cpp", "fused(value, grad, along[i])", "value", layers._native_agrees.__wrapped__),
    ],
)  # fmt: skip
def test_code_that_computes_something_else_is_not_used(tmp_path, monkeypatch, file, old, new, agrees):
    copied = tmp_path / "deepcait"
    for source in (*native._SOURCES, *native.HEADERS):
        text = source.read_text(encoding="utf-8")
        assert source.name != file or old in text
        to = copied / source.parent.name / source.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text.replace(old, new) if source.name == file else text, encoding="utf-8")
    monkeypatch.setattr(native, "_SOURCES", tuple(copied / "backends" / Path(s).name for s in native._SOURCES))
    code = compiled_again(tmp_path, monkeypatch)
    monkeypatch.setattr(native, "library", lambda: code)
    assert not agrees()


@needs_compiler
@pytest.mark.skipif("avx2" not in processor_flags(), reason="no AVX2")
def test_processors_without_avx512_get_code_too(tmp_path, monkeypatch):
    code = compiled_again(tmp_path, monkeypatch, "-march=x86-64-v3")
    monkeypatch.setattr(native, "library", lambda: code)
    assert heads_agree()
    assert heads_agree(torch.bfloat16)
    assert layers._native_agrees.__wrapped__()
    assert code.heads_items(1, 20, 4, 8, 1)
