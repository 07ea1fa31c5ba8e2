"""Losses: the formulas of their docstrings written by hand in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F

from deepcait.training.losses import cross_entropy, distillation

B, K = 6, 9


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (3 * torch.randn(B, K, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = torch.rand(B, K, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), targets / targets.sum(1, keepdim=True), teacher


def softmax(rows: torch.Tensor) -> torch.Tensor:
    return rows.exp() / rows.exp().sum(1, keepdim=True)


def by_hand(logits, targets, teacher, kind: str, alpha: float, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient as derived on paper."""
    p = softmax(logits)
    label = -(targets * p.log()).sum() / B
    label_grad = (p - targets) / B
    if kind == "hard":
        chosen = torch.zeros(B, K, dtype=torch.float64)
        for row in range(B):
            chosen[row, max(range(K), key=lambda k, row=row: teacher[row, k])] = 1.0
        term, grad = -(chosen * p.log()).sum() / B, (p - chosen) / B
    else:
        q, p_tau = softmax(teacher / tau), softmax(logits / tau)
        term = tau**2 * (q * (q.log() - p_tau.log())).sum() / B
        grad = tau * (p_tau - q) / B
    return (1 - alpha) * label + alpha * term, (1 - alpha) * label_grad + alpha * grad


@pytest.mark.parametrize(("kind", "tau"), [("hard", 1.0), ("hard", 3.0), ("soft", 1.0), ("soft", 3.0)])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_distillation_equals_the_formula(batch, kind, tau, alpha):
    logits, targets, teacher = batch
    loss = distillation(logits, targets, teacher, kind=kind, alpha=alpha, tau=tau)
    loss.backward()
    with torch.no_grad():
        wanted, wanted_grad = by_hand(logits, targets, teacher, kind, alpha, tau)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    assert (logits.grad - wanted_grad).abs().max() < 1e-12
    single = distillation(logits.float(), targets.float(), teacher.float(), kind=kind, alpha=alpha, tau=tau)
    assert single.item() == pytest.approx(wanted.item(), abs=1e-6 * max(1.0, wanted.item()))


def test_alpha_zero_is_cross_entropy_and_alpha_one_ignores_the_label(batch):
    logits, targets, teacher = batch
    assert torch.equal(
        distillation(logits, targets, teacher, kind="hard", alpha=0.0, tau=1.0), cross_entropy(logits, targets)
    )
    others = [distillation(logits, t, teacher, kind="soft", alpha=1.0, tau=2.0) for t in (targets, targets.flip(1))]
    assert others[0] == others[1]


def test_hard_distillation_is_cross_entropy_with_the_mean_of_both_targets(batch):
    """Linear in the target (PAPER.md 3.3): the two readings of the one-head form are one."""
    logits, targets, teacher = batch
    mean = (targets + F.one_hot(teacher.argmax(1), K)) / 2
    ours = distillation(logits, targets, teacher, kind="hard", alpha=0.5, tau=1.0)
    assert ours.item() == pytest.approx(cross_entropy(logits, mean).item(), abs=1e-12)


def test_cross_entropy_equals_timm(batch):
    logits, targets, _ = batch
    assert cross_entropy(logits, targets).item() == pytest.approx(SoftTargetCrossEntropy()(logits, targets).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_weights(batch, dtype):
    logits, targets, teacher = batch
    weights = torch.linspace(0.2, 2.0, K)
    log_p = softmax(logits.detach()).log()
    wanted = -(weights.double() * targets * log_p).sum() / B
    got = cross_entropy(logits.to(dtype), targets.to(dtype), weights)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    taught = distillation(logits, targets, teacher, kind="hard", alpha=0.25, tau=1.0, class_weights_K=weights)
    unweighted = F.cross_entropy(logits, teacher.argmax(1))  # the teacher's term carries no weights
    assert taught.item() == pytest.approx(0.75 * wanted.item() + 0.25 * unweighted.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_computed_in_float32(batch, dtype):
    logits, targets, teacher = (tensor.detach() for tensor in batch)
    narrow, wide = logits.to(dtype), logits.to(dtype).float()
    assert cross_entropy(narrow, targets.float()).dtype == torch.float32
    assert torch.equal(cross_entropy(narrow, targets.float()), cross_entropy(wide, targets.float()))
    for kind in ("hard", "soft"):
        how = {"kind": kind, "alpha": 0.5, "tau": 3.0}
        got = distillation(narrow, targets.float(), teacher.to(dtype), **how)
        assert got.dtype == torch.float32
        assert torch.equal(got, distillation(wide, targets.float(), teacher.to(dtype).float(), **how))
