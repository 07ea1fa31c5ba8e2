"""Frozen blocks, learning rates by name, dropout before the head, losses by their formulas, optimizers of timm."""

from __future__ import annotations

import math

import pytest
import torch

from deepcait.errors import ConfigError, Stopped
from deepcait.training.losses import build_loss
from deepcait.training.optimizer import freeze, layer_of, optimizer_tensors, parameter_groups
from deepcait.training.recipe import load_recipe
from deepcait.training.settings import Optimizer
from deepcait.training.start import start_model
from deepcait.training.trainer import Trainer
from tests.training.tiny import Pixels, section, tiny_job, tiny_model, tiny_recipe, train

NO_GRADIENT = ".attn.proj_l.bias"


def moved(recipe, tmp_path) -> set[str]:
    """Names of the parameters that a training changes.

    The bias before the softmax has no gradient by mathematics, and is left out.
    """
    model = tiny_model(torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(tmp_path / "run", recipe, model=model)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    return {name for name in changed if not name.endswith(NO_GRADIENT)}


def test_the_embedding_and_the_first_blocks_stay(tmp_path):
    names = [name for name, _ in tiny_model().named_parameters() if not name.endswith(NO_GRADIENT)]
    assert {name.split(".")[1] for name in names if name.startswith("blocks.")} == {"0", "1"}
    found = moved(tiny_recipe(freeze_blocks=1), tmp_path)
    embedding = ("cls_token", "pos_embed", "patch_embed.")
    assert found == {name for name in names if not name.startswith((*embedding, "blocks.0."))}


def test_the_class_stage_and_the_head_never_count_as_blocks():
    model = tiny_model()
    freeze(model, "all", num_blocks=2)
    left = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert left == {"blocks_token_only", "norm", "head"}
    with pytest.raises(ConfigError, match="at most 2, the number of blocks, got 3"):
        freeze(model, "all", num_blocks=3)
    freeze(model, "all")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_blocks_and_patterns_add_up():
    model = tiny_model()
    freeze(model, "all", ["blocks.1.attn.*"], 1)
    for name, parameter in model.named_parameters():
        frozen = layer_of(name, 2) <= 1 or name.startswith("blocks.1.attn.")
        assert parameter.requires_grad is not frozen, name


def scales(*factors: str, layer_decay: float = 1.0) -> dict[str, float]:
    groups = parameter_groups(tiny_model(), Optimizer(lr_factors=factors, layer_decay=layer_decay))
    return {name: group["lr_scale"] for group in groups for name in group["names"]}


def test_the_first_factor_that_matches_counts_and_multiplies_the_layers():
    plain = scales()
    assert set(plain.values()) == {1.0}
    found = scales("blocks.0.attn.*=0.5", "blocks.0.*=0.1", "head.*=10", "*.gamma_1=0")
    for name, scale in found.items():
        expected = 1.0
        if name.startswith("blocks.0."):
            expected = 0.5 if name.startswith("blocks.0.attn.") else 0.1
        elif name.startswith("head."):
            expected = 10.0
        elif name.endswith(".gamma_1"):
            expected = 0.0
        assert scale == expected, name
    decayed, both = scales(layer_decay=0.5), scales("blocks.*=0.1", layer_decay=0.5)
    for name, scale in both.items():
        assert scale == pytest.approx(decayed[name] * (0.1 if name.startswith("blocks.") else 1.0))


def test_a_factor_of_0_stops_what_it_names(tmp_path):
    recipe = section(tiny_recipe(), "optimizer", lr_factors=("blocks.1.*=0",), weight_decay=0.0)
    found = moved(recipe, tmp_path)
    names = {name for name, _ in tiny_model().named_parameters() if not name.endswith(NO_GRADIENT)}
    assert names - found == {name for name in names if name.startswith("blocks.1.")}


def test_a_factor_scales_the_first_step_of_sgd(tmp_path):
    """Plain SGD moves by rate times gradient, so that the factor is the ratio of the moves."""
    moves = {}
    for factor in (1, 0.25):
        how = {"lr": 1e-2, "lr_batch": 0, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0}
        optimizer = Optimizer(name="sgd", lr_factors=(f"head.*={factor}",), **how)
        recipe = tiny_recipe(epochs=1, optimizer=optimizer)
        model = tiny_model(torch.float32)
        before = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
        train(tmp_path / str(factor), recipe, model=model, samples=Pixels(8))
        moves[factor] = {name: p.detach().double() - before[name] for name, p in model.named_parameters()}
    for name in ("head.weight", "head.bias"):
        assert torch.allclose(moves[0.25][name], 0.25 * moves[1][name], atol=1e-6)
        assert moves[1][name].abs().max() > 1e-5
    assert torch.equal(moves[0.25]["norm.weight"], moves[1]["norm.weight"])


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_dropout_before_the_head_is_that_share_while_training_only(rate):
    model = tiny_model(drop_rate=rate)
    tokens_BTD = torch.ones(400, 1, model.num_features, dtype=torch.float64)
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    model.train().forward_head(tokens_BTD)
    model.eval().forward_head(tokens_BTD)
    assert torch.equal(model.forward_head(tokens_BTD, pre_logits=True), tokens_BTD[:, 0])
    trained_BD, evaluated_BD = seen[:2]
    assert torch.equal(evaluated_BD, tokens_BTD[:, 0])
    # What stays is scaled up, so that the mean stays.
    assert set(trained_BD.unique().tolist()) <= {0.0, 1 / (1 - rate)}
    assert (trained_BD == 0).double().mean().item() == pytest.approx(rate, abs=0.02)


def test_dropout_of_the_recipe_is_the_models():
    recipe = load_recipe("finetune", ["model=builtin:nano", "drop_rate=0.3"])
    assert start_model(recipe, ["cat", "owl"]).model.config.drop_rate == 0.3
    for wrong in ("1.5", "-0.1"):
        with pytest.raises(ConfigError, match="drop_rate"):
            start_model(load_recipe("finetune", ["model=builtin:nano", f"drop_rate={wrong}"]), ["cat", "owl"])


# -- losses -----------------------------------------------------------------------------------------------------------


def some_batch() -> tuple[list[list[float]], list[list[float]]]:
    """Logits and mixed targets of three images and four classes, as plain numbers."""
    logits = [[1.5, -0.3, 0.2, -2.0], [0.0, 4.0, -1.0, 0.5], [-0.7, -0.7, 3.0, 1.0]]
    targets = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.3, 0.7, 0.0], [0.1, 0.0, 0.0, 0.9]]
    return logits, targets


WEIGHTS = (None, [0.5, 2.0, 1.0, 3.0])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_bce_is_its_formula(weights):
    """Mean over images and classes of -w (y log s(x) + (1 - y) log(1 - s(x))), y = 1 where the target is above 0."""
    logits, targets = some_batch()
    terms = []
    for row, wanted in zip(logits, targets, strict=True):
        for k, (x, target) in enumerate(zip(row, wanted, strict=True)):
            sigmoid = 1 / (1 + math.exp(-x))
            term = -math.log(sigmoid) if target > 0 else -math.log(1 - sigmoid)
            terms.append(term * (weights[k] if weights else 1.0))
    loss = build_loss("bce", torch.tensor(weights) if weights else None)
    found = loss(torch.tensor(logits), torch.tensor(targets), None)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_is_its_formula(gamma, weights):
    """Mean over images of - sum over classes of w y (1 - p)^gamma log p, p the softmax."""
    logits, targets = some_batch()
    total = 0.0
    for row, wanted in zip(logits, targets, strict=True):
        exponentials = [math.exp(x) for x in row]
        for k, target in enumerate(wanted):
            p = exponentials[k] / sum(exponentials)
            total -= (weights[k] if weights else 1.0) * target * (1 - p) ** gamma * math.log(p)
    loss = build_loss(f"focal(gamma={gamma})", torch.tensor(weights) if weights else None)
    found = loss(torch.tensor(logits), torch.tensor(targets), None)
    assert found.item() == pytest.approx(total / len(logits), rel=1e-6)
    if gamma == 0.0 and weights is None:
        assert found.item() == pytest.approx(build_loss("ce")(torch.tensor(logits), torch.tensor(targets), None).item())
    if gamma == 2.0:
        plain = build_loss("focal", torch.tensor(weights) if weights else None)
        assert torch.equal(plain(torch.tensor(logits), torch.tensor(targets), None), found)


@pytest.mark.parametrize("name", ["bce", "focal", "focal(gamma=0.5)"])
def test_losses_stay_finite_with_their_gradients(name):
    for scale in (1.0, 1e4):
        logits_BK = (scale * torch.tensor(some_batch()[0])).requires_grad_()
        found = build_loss(name)(logits_BK, torch.tensor(some_batch()[1]), None)
        found.backward()
        assert found.isfinite()
        assert logits_BK.grad is not None
        assert logits_BK.grad.isfinite().all()


# -- timm's optimizers ------------------------------------------------------------------------------------------------


def stop_after(step: int):
    return lambda event: event.stop() if event.kind == "step" and event.step == step else None


@pytest.mark.parametrize("name", ["lamb", "lion", "nadamw", "adopt", "muon", "nmuon", "adafactorbv", "adan"])
def test_a_run_with_an_optimizer_of_timm_resumes_exactly(tmp_path, name):
    recipe = tiny_recipe(optimizer=Optimizer(name=f"timm:{name}", lr=1e-2, lr_batch=0, weight_decay=0.05))
    whole = train(tmp_path / "whole", recipe)
    for stop in (3, 6):
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(Stopped):
            Trainer(tiny_job(folder, recipe, callbacks=[stop_after(stop)])).fit()
        resumed = Trainer(tiny_job(folder, recipe))
        assert resumed.fit().step == whole.progress.step == 8
        for key, tensor in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[key], tensor), key
        ours, theirs = optimizer_tensors(resumed.optimizer), optimizer_tensors(whole.optimizer)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_lookahead_is_refused_since_a_checkpoint_lacks_its_slow_weights(tmp_path):
    recipe = tiny_recipe(optimizer=Optimizer(name="timm:lookahead_adamw"))
    with pytest.raises(ConfigError, match="lookahead_adamw keeps slow weights"):
        Trainer(tiny_job(tmp_path, recipe))
