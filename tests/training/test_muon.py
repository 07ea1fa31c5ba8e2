"""Muon's update without bf16 instructions: the same rounding, faster products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deepcait.training import muon
from deepcait.training.muon import ProductsInFp32
from deepcait.training.optimizer import build_optimizer, num_states
from deepcait.training.settings import Optimizer


class _Products(TorchDispatchMode):
    """Notes the types of the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "addmm" in str(func) or "baddbmm" in str(func):
            self.dtypes.add(args[1].dtype)
        return func(*args, **(kwargs or {}))


def _matrices(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    *batch, m, n = shape
    return torch.randn(*batch, m, m).bfloat16(), torch.randn(*batch, m, n).bfloat16(), torch.randn(shape).bfloat16()


@pytest.mark.parametrize(("product", "shape"), [(torch.addmm, (24, 40)), (torch.baddbmm, (3, 24, 40))])
def test_products_are_exact_but_for_one_rounding(product, shape) -> None:
    left, right, added = _matrices(*shape)
    exact = (2 * added.double() + 0.5 * left.double() @ right.double()).bfloat16()
    with ProductsInFp32():
        result = product(added, left, right, beta=2.0, alpha=0.5)
        out = torch.empty_like(added)
        product(added, left, right, beta=2.0, alpha=0.5, out=out)
    assert result.dtype == torch.bfloat16
    assert out.equal(result)
    # An fp32 sum lies next to the limit between two bf16 numbers now and then.
    assert (result != exact).float().mean() < 0.01
    torch.testing.assert_close(result, exact, rtol=2**-7, atol=1e-6)


def test_an_output_that_is_also_an_input() -> None:
    left, right, added = _matrices(24, 40)
    with ProductsInFp32():
        expected = torch.addmm(added, left, right)
        torch.addmm(added, left, right, out=added)
    assert added.equal(expected)


def test_other_types_and_functions_are_left_alone() -> None:
    left, right, added = (matrix.double() for matrix in _matrices(8, 8))
    with ProductsInFp32():
        assert torch.addmm(added, left, right).equal(added.addmm(left, right))
        assert (left.bfloat16() @ right.bfloat16()).dtype == torch.bfloat16


def _stepped(weights: Tensor, gradient: Tensor, name: str = "timm:nmuon") -> tuple[Tensor, set[torch.dtype]]:
    parameter = nn.Parameter(weights.clone())
    optimizer = build_optimizer([{"params": [parameter]}], Optimizer(name=name, lr=0.1, weight_decay=0.0))
    parameter.grad = gradient.clone()
    with _Products() as seen:
        optimizer.step()
    return parameter.detach(), seen.dtypes


@pytest.mark.parametrize("name", ["timm:nmuon", "timm:muon", "timm:adamuon"])
@pytest.mark.parametrize("able", [True, False])
def test_muon_takes_fp32_where_bf16_is_emulated(monkeypatch, name, able) -> None:
    monkeypatch.setattr(muon, "has_bf16", lambda device: able)
    _, dtypes = _stepped(torch.randn(16, 24), torch.randn(16, 24), name)
    assert dtypes == {torch.bfloat16 if able else torch.float32}


def test_both_ways_agree_up_to_rounding(monkeypatch) -> None:
    torch.manual_seed(0)
    weights, gradient = torch.randn(32, 48), torch.randn(32, 48)
    monkeypatch.setattr(muon, "has_bf16", lambda device: True)
    expected, _ = _stepped(weights, gradient)
    monkeypatch.setattr(muon, "has_bf16", lambda device: False)
    found, _ = _stepped(weights, gradient)
    assert not found.equal(weights)
    # An update's norm is that of about 32 orthonormal rows.
    distance = (found - expected).norm() / (expected - weights).norm()
    assert distance < 0.02


def test_only_muon_is_wrapped(monkeypatch) -> None:
    monkeypatch.setattr(muon, "has_bf16", lambda device: False)
    parameter = nn.Parameter(torch.zeros(4, 4))
    adam = torch.optim.AdamW([parameter])
    step = adam.step
    assert muon.with_fast_products(adam) is adam
    assert adam.step == step
    assert num_states(Optimizer(name="timm:nmuon")) == 1
