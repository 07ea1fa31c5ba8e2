"""The paper's alternatives: each one against another implementation, a formula, or a property that only it has."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from deepcait.errors import ConfigError
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.ablation import AblatedCaiT, PartlyTalkingHeadsAttention
from deepcait.model.alternatives import (
    CLASS_TOKENS,
    DROP_PATH_SHAPES,
    RESIDUALS,
    TALKING_HEADS,
    AblationConfig,
    apply_overrides,
)
from deepcait.model.attention import TalkingHeadsAttention
from deepcait.model.networks import build_model, config_of, named_config
from tests.model.wild import ablated, relative_error, some_images, tiny_config, wild_state

OTHERS = {
    "residual": RESIDUALS,
    "pre_norm": (True, False),
    "class_token": CLASS_TOKENS,
    "class_mlp": (True, False),
    "talking_heads": TALKING_HEADS,
    "drop_path_shape": DROP_PATH_SHAPES,
}


# -- the paper's own options ------------------------------------------------------------------------------------------


def test_with_the_papers_own_options_it_is_cait_bit_for_bit():
    config = tiny_config(drop_path_rate=0.3)
    torch.manual_seed(3)
    cait = CaiT(config)
    torch.manual_seed(3)
    other = AblatedCaiT(AblationConfig(**vars(config)))
    state, other_state = cait.state_dict(), other.state_dict()
    assert list(state) == list(other_state)
    assert all(torch.equal(state[name], other_state[name]) for name in state), "another draw"
    wild = wild_state(cait, 0)
    images = some_images(config, 4, dtype=torch.float32)
    for model in (cait, other):
        model.load_state_dict(wild)
        model.set_backend("reference")  # the lean path has whole branches as operators, which round otherwise
    for mode in (True, False):
        answers = []
        for model in (cait.train(mode), other.train(mode)):
            torch.manual_seed(7)  # of drop-path
            answers.append(model(images))
        assert torch.equal(*answers)
    for method in ("forward_features", "class_attention", "forward_intermediates"):
        mine, theirs = (getattr(model, method)(images) for model in (other, cait))
        mine, theirs = (x[0] if isinstance(x, tuple) else x for x in (mine, theirs))
        assert torch.equal(mine, theirs), method


def test_no_option_given_is_a_plain_cait():
    config = tiny_config()
    assert apply_overrides(config, {}) is config
    assert apply_overrides(config, dict.fromkeys(OTHERS)) is config
    assert apply_overrides(config, {"residual": "layerscale", "talking_heads": "both"}) == config
    changed = apply_overrides(config, {"residual": "none"})
    assert isinstance(changed, AblationConfig)
    assert type(apply_overrides(changed, {"residual": "layerscale"})) is CaiTConfig
    assert type(build_model(config)) is CaiT
    assert type(build_model(changed)) is AblatedCaiT
    assert config_of(vars(changed)) == changed
    assert config_of(vars(config)) == config


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in OTHERS.items() for v in vs[1:]])
def test_every_option_matters(name, value):
    """A network that ignored an option would pass many tests: logits, tensors, draws or rates must differ."""
    options = {name: value}
    config = tiny_config(depth=3, drop_path_rate=0.5)
    torch.manual_seed(1)
    plain = CaiT(config)
    torch.manual_seed(1)
    other = build_model(apply_overrides(config, options))
    same_tensors = {n: t.shape for n, t in plain.state_dict().items()} == {
        n: t.shape for n, t in other.state_dict().items()
    }
    same_values = same_tensors and all(torch.equal(t, other.state_dict()[n]) for n, t in plain.state_dict().items())
    rates = [block.drop_path_rate for block in other.blocks]
    assert not same_values or rates != [0.5] * 3


COMBINATIONS = list(itertools.product(RESIDUALS, (True, False), CLASS_TOKENS, (True, False), TALKING_HEADS))


@pytest.mark.parametrize("residual", RESIDUALS)
def test_every_combination_counts_its_parameters_and_trains_them_all(residual):
    images = some_images(tiny_config(), dtype=torch.float32)
    for rule, pre_norm, class_token, class_mlp, talking in COMBINATIONS:
        if rule != residual:
            continue
        options = {"residual": rule, "pre_norm": pre_norm, "class_token": class_token}
        wanted = options | {"class_mlp": class_mlp, "talking_heads": talking, "insert_at": 1}
        config = apply_overrides(tiny_config(), wanted)
        model = build_model(config).train()
        assert config.num_params() == sum(p.numel() for p in model.parameters()), config
        logits = model(images)
        assert logits.shape == (2, 7)
        logits.sum().backward()
        # A parameter without a gradient would stop several processes.
        assert [name for name, p in model.named_parameters() if p.grad is None] == [], config


@pytest.mark.parametrize("options", [{}, {"class_token": "inserted", "insert_at": 1}, {"class_token": "average"}])
@pytest.mark.parametrize("talking", TALKING_HEADS)
def test_multiply_adds_are_those_that_are_counted(options, talking):
    from torch.utils.flop_counter import FlopCounterMode

    config = AblationConfig(**vars(tiny_config()), talking_heads=talking, **options)
    model = AblatedCaiT(config)
    # Plain products: the counter then sees every one of them.
    model.set_backend("reference")
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(some_images(config, 1, dtype=torch.float32))
    assert counter.get_total_flops() / 2 == config.macs()


# -- the class token --------------------------------------------------------------------------------------------------


def timm_vit(model: AblatedCaiT, **how) -> VisionTransformer:
    """timm's ViT with the same weights; positions for patches only, as CaiT has them."""
    config = model.config
    vit = VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        no_embed_class=True,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        **how,
    ).double()
    names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    vit.load_state_dict(state)
    return vit.eval()


@pytest.mark.parametrize(("residual", "init"), [("none", None), ("layerscale", 1.0)])
def test_inserted_at_the_first_block_it_is_a_vision_transformer(residual, init):
    model = ablated(residual=residual, class_token="inserted", talking_heads="none")
    images = some_images(model.config)
    vit = timm_vit(model, class_token=True, init_values=init)
    assert relative_error(model(images), vit(images)) < 1e-10
    assert relative_error(model.forward_features(images), vit.forward_features(images)) < 1e-10


def test_average_pooling_is_that_of_a_vision_transformer_without_class_token():
    model = ablated(residual="none", class_token="average", talking_heads="none")
    images = some_images(model.config)
    vit = timm_vit(model, class_token=False, global_pool="avg", fc_norm=False)
    assert relative_error(model(images), vit(images)) < 1e-10
    assert "cls_token" not in model.state_dict()
    features = model.forward_features(images)
    assert relative_error(model(images), model.head(features.mean(1))) < 1e-12


@pytest.mark.parametrize("insert_at", [0, 1, 2])
def test_late_insertion_leaves_the_blocks_before_it_to_the_patches(insert_at):
    """By hand: patches alone, then the token in front of them; at 0 it is the early token."""
    model = ablated(class_token="inserted", insert_at=insert_at)
    images = some_images(model.config)
    tokens = model.patch_embed(images) + model.pos_embed
    for block in model.blocks[:insert_at]:
        tokens = block(tokens)
    tokens = torch.cat((model.cls_token.expand(2, -1, -1), tokens), dim=1)
    for block in model.blocks[insert_at:]:
        tokens = block(tokens)
    assert relative_error(model(images), model.head(model.norm(tokens)[:, 0])) < 1e-12
    other = ablated(class_token="inserted", insert_at=(insert_at + 1) % 3)
    assert relative_error(model(images), other(images)) > 1e-3
    early = ablated(class_token="inserted")
    assert (relative_error(model(images), early(images)) == 0) == (insert_at == 0)


@pytest.mark.parametrize("cls_depth", [1, 2, 3])
def test_a_class_stage_of_other_lengths(cls_depth):
    model = ablated(config=tiny_config(cls_depth=cls_depth), residual="none")
    assert model.class_attention(some_images(model.config)).shape == (2, cls_depth, 3, 17)


def test_class_attention_without_mlp():
    """The class token only reads: one addition a block; the patches are what they were."""
    model = ablated(class_mlp=False)
    assert not any(".mlp." in name or "norm2" in name for name in model.state_dict() if "token_only" in name)
    block = model.blocks_token_only[0]
    cls, patches = torch.randn(2, 1, 24).double(), torch.randn(2, 4, 24).double()
    read = block.attn(block.norm1(torch.cat((cls, patches), 1)))
    assert relative_error(block(cls, patches), cls + block.gamma_1 * read) < 1e-12


@pytest.mark.parametrize("class_token", ["inserted", "average"])
def test_what_needs_a_class_stage_says_so(class_token):
    model = ablated(class_token=class_token)
    for method in (model.class_attention, model.forward_intermediates):
        with pytest.raises(ConfigError, match="class stage"):
            method(some_images(model.config))


@pytest.mark.parametrize("class_token", CLASS_TOKENS)
def test_a_new_head_and_checkpointing(class_token):
    model = ablated(class_token=class_token).train()
    images = some_images(model.config)
    before = list(model.state_dict())
    kept = model(images)
    model.set_grad_checkpointing()
    assert relative_error(model(images), kept) < 1e-12
    model.reset_classifier(4)
    assert model(images).shape == (2, 4)
    with pytest.raises(ConfigError, match="num_classes"):
        model.reset_classifier(-1)
    assert list(model.state_dict()) == before


# -- talking heads, drop-path -----------------------------------------------------------------------------------------


def test_no_talking_heads_equals_plain_multi_head_attention():
    attention = PartlyTalkingHeadsAttention(24, 3, before=False, after=False).double()
    tokens = torch.randn(2, 5, 24).double()
    plain = nn.MultiheadAttention(24, 3, batch_first=True).double()
    state = {"in_proj_weight": attention.qkv.weight, "in_proj_bias": attention.qkv.bias}
    state |= {"out_proj.weight": attention.proj.weight, "out_proj.bias": attention.proj.bias}
    plain.load_state_dict(state)
    assert relative_error(attention(tokens), plain(tokens, tokens, tokens)[0]) < 1e-12
    q, k, v = (x.reshape(2, 5, 3, 8).transpose(1, 2) for x in attention.qkv(tokens).chunk(3, -1))
    read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert relative_error(attention(tokens), attention.proj(read)) < 1e-12


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (False, False)])
def test_talking_at_one_place_equals_talking_at_both_with_nothing_said_at_the_other(before, after):
    attention = PartlyTalkingHeadsAttention(24, 3, before=before, after=after).double()
    attention.load_state_dict({n: torch.randn_like(t) * 0.3 for n, t in attention.state_dict().items()})
    both = TalkingHeadsAttention(24, 3).double()
    silence = {f"{name}.weight": torch.eye(3) for name in ("proj_l", "proj_w")}
    silence |= {f"{name}.bias": torch.zeros(3) for name in ("proj_l", "proj_w")}
    both.load_state_dict(silence | attention.state_dict())
    tokens = torch.randn(2, 5, 24).double()
    assert relative_error(attention(tokens), both(tokens)) < 1e-12


def test_linear_drop_path_rises_to_the_rate_and_halves_it_on_average():
    config = AblationConfig(**vars(tiny_config(depth=5, drop_path_rate=0.2)), drop_path_shape="linear")
    rates = [block.drop_path_rate for block in AblatedCaiT(config).blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert sum(rates) / 5 == pytest.approx(0.1)
    assert [b.drop_path_rate for b in build_model(tiny_config(depth=5, drop_path_rate=0.1)).blocks] == [0.1] * 5


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 24])
def test_any_number_of_heads_that_divides_the_width(heads):
    model = build_model(apply_overrides(tiny_config(num_heads=heads), {"talking_heads": "none"}))
    assert model(some_images(model.config, dtype=torch.float32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("residual", "resnet"), ("class_token", "late"), ("talking_heads", "all"), ("drop_path_shape", "step")]
    + [("insert_at", 3), ("insert_at", -1), ("insert_at", 1.0), ("insert_at", True), ("residuals", "none")],
)
def test_what_no_model_can_be_built_from(name, value):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(tiny_config(depth=3), {name: value})
    assert caught.value.remedy


def test_an_insertion_after_the_last_block_is_reported_where_it_could_be():
    with pytest.raises(ConfigError, match="a block of the patch stage, 0 to 2, got 3"):
        apply_overrides(tiny_config(depth=3), {"insert_at": 3})


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, True),
        ({"drop_path_shape": "linear"}, True),
        ({"drop_path_shape": "linear", "insert_at": 1}, True),
        ({"drop_path_shape": "linear", "class_token": "inserted", "insert_at": 1}, False),
    ],
)
def test_what_only_training_sees_leaves_a_plain_cait(options, same):
    config = AblationConfig(**vars(tiny_config(depth=3)), **options)
    assert config.same_at_inference is same


def test_another_network_has_none_of_them():
    with pytest.raises(ConfigError, match=r"ablation.residual: only a CaiT"):
        apply_overrides(named_config("convnet_32"), {"residual": "none"})
