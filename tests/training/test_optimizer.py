"""Groups, rates and the optimizer: timm's split, exact rates after a real step, a state that survives a trip."""

from __future__ import annotations

import pytest
import torch
from timm.optim import param_groups_weight_decay

from deepcait.training.optimizer import (
    build_optimizer,
    class_weights,
    freeze,
    grad_norm,
    layer_of,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
    set_lr,
)
from deepcait.training.settings import Optimizer
from tests.training.tiny import K, tiny_model


def give_gradients(model, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def names_by(groups: list[dict], decayed: bool) -> set[str]:
    return {name for group in groups for name in group["names"] if bool(group["weight_decay"]) == decayed}


def test_the_split_is_that_of_timm():
    model = tiny_model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    theirs = param_groups_weight_decay(model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay())
    ours = parameter_groups(model, Optimizer(weight_decay=0.05))
    for decayed in (False, True):
        [peer] = [group for group in theirs if bool(group["weight_decay"]) == decayed]
        assert names_by(ours, decayed) == {names[parameter] for parameter in peer["params"]}


def test_exactly_vectors_biases_class_token_and_positions_are_not_decayed():
    model = tiny_model()
    groups = parameter_groups(model, Optimizer(weight_decay=0.05))
    undecayed = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
    }
    assert names_by(groups, False) == undecayed
    assert "blocks.0.gamma_1" in undecayed
    assert {"blocks.0.attn.proj_l.weight", "head.weight", "patch_embed.proj.weight"} <= names_by(groups, True)
    every = [name for group in groups for name in group["names"]]
    assert sorted(every) == sorted(name for name, _ in model.named_parameters())  # each once


def test_layers():
    depth = 5
    assert [layer_of(name, depth) for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")] == [0, 0, 0]
    assert [layer_of(f"blocks.{i}.attn.qkv.weight", depth) for i in range(5)] == [1, 2, 3, 4, 5]
    tops = ("blocks_token_only.0.gamma_1", "blocks_token_only.1.mlp.fc1.bias", "norm.weight", "head.bias")
    assert [layer_of(name, depth) for name in tops] == [6, 6, 6, 6]


def test_rates_of_layer_decay_after_a_real_step():
    """SGD without momentum: what a parameter moved is its rate times its gradient."""
    model = tiny_model(depth=3)
    settings = Optimizer(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, layer_decay=0.7)
    optimizer = build_optimizer(parameter_groups(model, settings), settings)
    give_gradients(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    set_lr(optimizer, 0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        wanted = 0.1 * 0.7 ** (4 - layer_of(name, 3))
        rate = ((before[name] - parameter.detach()) / parameter.grad).flatten()
        assert rate.mean().item() == pytest.approx(wanted, rel=1e-9), name
    assert {round(g["lr"], 12) for g in optimizer.param_groups} == {round(0.1 * 0.7**k, 12) for k in range(5)}


def test_only_the_head_moves_while_it_warms_up():
    model = tiny_model()
    settings = Optimizer(weight_decay=0.05)
    optimizer = build_optimizer(parameter_groups(model, settings), settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        give_gradients(model)
        set_lr(optimizer, 0.1, head_only=True)
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.weight", "head.bias"}
    set_lr(optimizer, 0.1)
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_freezing():
    model = tiny_model()

    def trainable(train: str) -> set[str]:
        freeze(model, train)
        return {name for name, p in model.named_parameters() if p.requires_grad}

    every = {name for name, _ in model.named_parameters()}
    assert trainable("head") == {"head.weight", "head.bias"}
    attention = trainable("attention")
    assert attention == {name for name in every if ".attn." in name or name.startswith("head.")}
    assert {"blocks.1.attn.proj_w.bias", "blocks_token_only.0.attn.q.weight"} <= attention
    assert {name for g in parameter_groups(model, Optimizer()) for name in g["names"]} == attention
    assert trainable("all") == every


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_fused_step_equals_the_plain_one(dtype, name):
    settings = Optimizer(name=name, lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-7, momentum=0.8)
    ours, theirs = tiny_model(dtype), tiny_model(dtype)
    fused = build_optimizer(parameter_groups(ours, settings), settings)
    groups = [
        {"params": [p], "weight_decay": 0.1 if p.ndim > 1 and n not in ("pos_embed", "cls_token") else 0.0}
        for n, p in theirs.named_parameters()
    ]
    if name == "adamw":
        plain = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-7, foreach=False, fused=False)
    else:
        plain = torch.optim.SGD(groups, lr=0.01, momentum=0.8, nesterov=True, foreach=False, fused=False)
    for step in range(4):
        give_gradients(ours, step), give_gradients(theirs, step)
        set_lr(fused, 0.01)
        fused.step(), plain.step()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), key


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_state_survives_a_trip(name):
    settings = Optimizer(name=name, lr=0.01, layer_decay=0.8)

    def start():
        model = tiny_model(torch.float32)
        return model, build_optimizer(parameter_groups(model, settings), settings)

    model, optimizer = start()
    for step in range(3):
        give_gradients(model, step)
        optimizer.step()
    tensors = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
    kinds = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}[name]
    assert {key.rpartition("/")[2] for key in tensors} == kinds
    assert len(tensors) == len(kinds) * len(list(model.parameters()))
    other, resumed = start()
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(resumed, tensors)
    for net, moves in ((model, optimizer), (other, resumed)):
        give_gradients(net, 9)
        moves.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_norm_of_all_gradients():
    model = tiny_model()
    give_gradients(model)
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert grad_norm(list(model.parameters())).item() == pytest.approx(wanted.item(), rel=1e-12)
    model.head.bias.grad[2] = float("inf")
    assert not grad_norm(list(model.parameters())).isfinite()


def test_class_weights_have_mean_one_over_the_samples():
    labels = [0] * 30 + [1] * 10 + [5] * 2
    weights = class_weights(labels, K)
    assert weights.dtype == torch.float32
    assert weights[labels].double().mean().item() == pytest.approx(1.0)
    assert weights[0] * 30 == pytest.approx(weights[5] * 2)
    assert weights[[2, 3, 4, 6]].tolist() == [0, 0, 0, 0]
