"""The paper's residual rules: how each starts, and against a formula or a neighbour that it equals."""

from __future__ import annotations

import pytest
import torch

from deepcait.model.ablation import AblatedCaiT
from deepcait.model.alternatives import RESIDUALS, SCALAR_RULES, AblationConfig
from tests.model.wild import ablated, relative_error, some_images, tiny_config


def raw(**options) -> AblatedCaiT:
    """A small network with alternatives and its own initial values, in training mode."""
    torch.manual_seed(0)
    return AblatedCaiT(AblationConfig(**vars(tiny_config(depth=3, embed_dim=96)), **options))


def branches_are_silent(model: AblatedCaiT) -> bool:
    """Whether every block of the patch stage is the identity."""
    tokens = torch.randn(2, 5, model.config.embed_dim)
    return all(torch.equal(block(tokens), tokens) for block in model.blocks)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_rezero_starts_as_the_identity(pre_norm):
    model = raw(residual="rezero", pre_norm=pre_norm)
    assert branches_are_silent(model)
    cls, patches = torch.randn(2, 1, 96), torch.randn(2, 4, 96)
    assert all(torch.equal(block(cls, patches), cls) for block in model.blocks_token_only)
    # The class stage's numbers move at the first step; what is behind them, patches and all, does not yet.
    model(some_images(model.config, dtype=torch.float32)).square().sum().backward()
    assert all(block.gamma_1.grad.abs() > 0 for block in model.blocks_token_only)
    assert not model.blocks_token_only[0].mlp.fc2.weight.grad.any()
    assert not model.pos_embed.grad.any()


def test_the_others_do_not_start_as_the_identity():
    silent = {rule: branches_are_silent(raw(residual=rule)) for rule in RESIDUALS}
    assert silent == {rule: rule in ("rezero", "fixup") for rule in RESIDUALS}


@pytest.mark.parametrize("init", [0.1, 1e-5, 1.0, 0.0])
@pytest.mark.parametrize(("rule", "shape"), [("layerscale", (96,)), ("scalar", (1,))])
def test_layerscale_and_scalar_start_at_any_value(rule, shape, init):
    model = raw(residual=rule).config.replace(layer_scale_init=init)
    for block in (*AblatedCaiT(model).blocks, *AblatedCaiT(model).blocks_token_only):
        for gamma in (block.gamma_1, block.gamma_2):
            assert tuple(gamma.shape) == shape
            assert (gamma == torch.tensor(init)).all()


def test_a_scalar_equals_a_vector_of_equal_values():
    scalar = ablated(residual="scalar")
    vector = ablated()
    state = {n: t.expand(24).clone() if "gamma" in n else t for n, t in scalar.state_dict().items()}
    vector.load_state_dict(state)
    images = some_images(scalar.config)
    assert relative_error(scalar(images), vector(images)) < 1e-12


def test_skipinit_starts_at_one_over_the_root_of_its_branches():
    model = raw(residual="skipinit")  # 3 patch blocks and 2 class blocks of 2 branches
    for block in (*model.blocks, *model.blocks_token_only):
        assert block.gamma_2.item() == pytest.approx(10**-0.5)


def test_no_rule_equals_scalars_of_one():
    scalar, none = ablated(residual="scalar"), ablated(residual="none")
    state = {n: torch.ones_like(t) if "gamma" in n else t for n, t in scalar.state_dict().items()}
    scalar.load_state_dict(state)
    none.load_state_dict({n: t for n, t in state.items() if "gamma" not in n})
    images = some_images(none.config)
    assert relative_error(none(images), scalar(images)) < 1e-12
    assert not any("gamma" in name for name in none.state_dict())


@pytest.mark.parametrize("cls_depth", [1, 2, 3])
def test_fixup_starts_as_its_paper_says(cls_depth):
    """The last layer of a branch and the classifier 0, layers before it He-normal by L^(-1/(2m-2)), multipliers 1."""
    torch.manual_seed(0)
    config = tiny_config(depth=3, embed_dim=96, cls_depth=cls_depth)
    model = AblatedCaiT(AblationConfig(**vars(config), residual="fixup"))
    L, m = 2 * 3 + 2 * cls_depth, 2
    he = (2 / 96) ** 0.5
    expected = he * L ** (-1 / (2 * m - 2))
    for block in model.blocks:
        for weight in (*block.attn.qkv.weight.chunk(3), block.mlp.fc1.weight):
            assert weight.std().item() == pytest.approx(expected, rel=0.03)
    for block in model.blocks_token_only:
        for layer in (block.attn.q, block.attn.k, block.attn.v, block.mlp.fc1):
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
    for block in (*model.blocks, *model.blocks_token_only):
        assert not block.attn.proj.weight.any()
        assert not block.mlp.fc2.weight.any()
        assert (block.gamma_1 == 1).all()
        assert (block.gamma_2 == 1).all()
    assert not model.head.weight.any()
    assert model.patch_embed.proj.weight.any()
    assert not model(some_images(config, dtype=torch.float32)).any()


def test_tfixup_starts_as_its_paper_says():
    """Xavier-uniform; values, outputs and MLPs by 0.67 N^(-1/4); queries and keys not scaled; no multipliers."""
    model = raw(residual="tfixup")
    N = 3 + 2
    scale = 0.67 * N**-0.25
    square, wide = (6 / (96 + 96)) ** 0.5, (6 / (96 + 384)) ** 0.5  # Xavier's bounds
    for block in (*model.blocks, *model.blocks_token_only):
        attn, mlp = block.attn, block.mlp
        q, k, v = attn.qkv.weight.chunk(3) if hasattr(attn, "qkv") else (attn.q.weight, attn.k.weight, attn.v.weight)
        expected = [(q, square), (k, square), (v, square * scale), (attn.proj.weight, square * scale)]
        expected += [(mlp.fc1.weight, wide * scale), (mlp.fc2.weight, wide * scale)]
        for weight, bound in expected:
            assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not any("gamma" in name for name in model.state_dict())
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("rule", SCALAR_RULES)
def test_without_norms_there_is_none_in_a_branch(rule):
    model = ablated(residual=rule, pre_norm=False)
    assert [name for name in model.state_dict() if "norm" in name] == ["norm.weight", "norm.bias"]
    # By hand, the first block: x + a attention(x), then + b mlp(.).
    block, x = model.blocks[0], torch.randn(2, 5, 24, dtype=torch.float64)
    y = x + block.gamma_1 * block.attn(x)
    assert relative_error(block(x), y + block.gamma_2 * block.mlp(y)) < 1e-12
