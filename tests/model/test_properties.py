"""What follows from the mathematics, whatever the weights: invariants of the blocks and of the whole network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deepcait.errors import ConfigError, ShapeError
from deepcait.model import CaiT, variant_config
from deepcait.model.block import drop_path
from deepcait.model.embedding import resize_pos_embed
from deepcait.model.variants import near_names
from tests.model.wild import relative_error, some_images, tiny_config, wild_model

CONFIG = tiny_config(img_size=(16, 40))


@pytest.fixture
def model() -> CaiT:
    return wild_model(CONFIG)


@pytest.fixture
def images():
    return some_images(CONFIG)


# -- blocks -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_gamma_zero_makes_every_block_the_identity(model):
    tokens, cls = torch.randn(2, 10, 24).double(), torch.randn(2, 1, 24).double()
    for block in [*model.blocks, *model.blocks_token_only]:
        block.gamma_1.zero_()
        block.gamma_2.zero_()
    for block in model.blocks:
        assert torch.equal(block(tokens), tokens)
    for block in model.blocks_token_only:
        assert torch.equal(block(cls, tokens), cls)


@torch.no_grad()
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_permuting_patches_with_their_positions_leaves_the_logits(seed):
    model, images = wild_model(CONFIG), some_images(CONFIG)
    expected = model(images)
    order = torch.randperm(CONFIG.num_patches, generator=torch.Generator().manual_seed(seed))
    squares = F.unfold(images, CONFIG.patch_size, stride=CONFIG.patch_size)  # (B, C P P, N), row-major
    shuffled = F.fold(squares[:, :, order], CONFIG.img_size, CONFIG.patch_size, stride=CONFIG.patch_size)
    assert torch.equal(F.unfold(shuffled, CONFIG.patch_size, stride=CONFIG.patch_size), squares[:, :, order])
    model.pos_embed.copy_(model.pos_embed[:, order])
    assert relative_error(model(shuffled), expected) < 1e-12


@torch.no_grad()
def test_positions_alone_do_matter(model, images):
    expected = model(images)
    model.pos_embed.copy_(model.pos_embed.flip(1))
    assert relative_error(model(images), expected) > 1e-2


@torch.no_grad()
def test_images_of_a_batch_do_not_touch_each_other(model, images):
    alone = torch.cat([model(image[None]) for image in images])
    assert relative_error(model(images), alone) < 1e-12


# -- attention --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_attention_rows_sum_to_one(model, images):
    tokens = torch.randn(2, 10, 24).double()
    for block in model.blocks:
        out, weights, mixed = block.attn.attend(tokens)
        assert weights.shape == mixed.shape == (2, 3, 10, 10)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 10).double(), rtol=0, atol=1e-12)
        assert mixed.min() < 0  # after the second mixing these are no distributions any more
        assert torch.equal(block.attn(tokens), out)
    maps = model.class_attention(images)
    assert maps.min() >= 0
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 3).double(), rtol=0, atol=1e-12)


@torch.no_grad()
def test_class_attention_equals_the_softmax_by_hand(images):
    model = wild_model(CONFIG.replace(cls_depth=3))
    patches = model.forward_intermediates(images, 1, norm=False, output_fmt="NLC", intermediates_only=True)[0]
    maps = model.class_attention(images)
    assert maps.shape == (2, 3, 3, 1 + CONFIG.num_patches)  # images, blocks, heads, tokens
    cls = model.cls_token.expand(2, 1, 24)
    for layer, block in enumerate(model.blocks_token_only):
        u = block.norm1(torch.cat((cls, patches), 1))
        attn = block.attn
        q = F.linear(u[:, 0], attn.q.weight, attn.q.bias).unflatten(-1, (3, 8))
        k = F.linear(u, attn.k.weight, attn.k.bias).unflatten(-1, (3, 8))
        by_hand = (torch.einsum("bae,btae->bat", q, k) / 8**0.5).softmax(-1)
        torch.testing.assert_close(maps[:, layer], by_hand, rtol=1e-10, atol=1e-14)
        cls = block(cls, patches)


def test_biases_that_the_softmax_cancels_have_no_gradient(model, images):
    model(images).square().sum().backward()
    for block in model.blocks:
        attn = block.attn
        key_third = attn.qkv.bias.grad.chunk(3)[1]
        assert attn.proj_l.bias.grad.abs().max() < 1e-12 * attn.proj_l.weight.grad.abs().max()
        assert key_third.abs().max() < 1e-12 * attn.qkv.bias.grad.abs().max()
        assert attn.proj_w.bias.grad.abs().min() > 0  # this one counts: it adds a sum over the values
    for block in model.blocks_token_only:
        assert block.attn.k.bias.grad.abs().max() < 1e-12 * block.attn.q.bias.grad.abs().max()
    assert all(parameter.grad is not None for parameter in model.parameters())


# -- the two stages ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_class_stage_leaves_the_patch_tokens(model, images):
    last = model.forward_intermediates(images, 1, norm=False, output_fmt="NLC", intermediates_only=True)[0]
    tokens = model.forward_features(images)
    assert torch.equal(tokens[:, 1:], model.norm(last))
    for block in model.blocks_token_only:  # nothing there reaches the patches
        block.gamma_1.mul_(3)
        block.attn.v.weight.mul_(-2)
    changed = model.forward_features(images)
    assert torch.equal(changed[:, 1:], tokens[:, 1:])
    assert not torch.equal(changed[:, 0], tokens[:, 0])


@torch.no_grad()
def test_normalising_the_class_token_alone_is_enough(model, images):
    assert relative_error(model(images), model.forward_head(model.forward_features(images))) < 1e-12


@torch.no_grad()
def test_no_classes_gives_features(images):
    model = wild_model(CONFIG)
    features = CaiT(CONFIG.replace(num_classes=0)).double().eval()
    features.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    assert features(images).shape == (2, 24)
    assert relative_error(features(images), expected) < 1e-12
    assert relative_error(model.get_classifier()(features(images)), model(images)) < 1e-12


# -- positions on another grid ----------------------------------------------------------------------------------------

grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(old=grids, new=grids)
@settings(max_examples=40)
def test_resized_positions_equal_interpolation_by_hand(old, new):
    pos = torch.randn(1, old[0] * old[1], 3, generator=torch.Generator().manual_seed(old[0] * 10 + old[1]))
    got = resize_pos_embed(pos, old, new)
    if old == new:
        assert torch.equal(got, pos)
    for channel in range(3):
        field = pos[0, :, channel].reshape(1, 1, *old)
        by_hand = F.interpolate(field, size=new, mode="bicubic", align_corners=False)
        torch.testing.assert_close(got[0, :, channel].reshape(new), by_hand[0, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_resizing_keeps_dtype_and_the_same_grid_keeps_the_bits(dtype):
    pos = torch.randn(1, 24, 5).to(dtype)
    assert torch.equal(resize_pos_embed(pos, (4, 6), (4, 6)), pos)
    resized = resize_pos_embed(pos, (4, 6), (8, 3))
    assert (resized.dtype, resized.shape) == (dtype, (1, 24, 5))
    assert not torch.equal(resized, pos)  # as many patches, yet another grid


def test_resizing_turns_no_picture():
    """A field that varies along rows only varies along rows only on any other grid, and a constant one stays."""
    rows = torch.arange(4.0).repeat_interleave(6).reshape(1, 24, 1)
    resized = resize_pos_embed(rows, (4, 6), (7, 5)).reshape(7, 5)
    torch.testing.assert_close(resized, resized[:, :1].expand(7, 5))
    assert (resized[1:, 0] > resized[:-1, 0]).all()
    torch.testing.assert_close(resize_pos_embed(torch.ones(1, 24, 2), (4, 6), (3, 9)), torch.ones(1, 27, 2))


# -- stochastic depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
def test_drop_path_is_unbiased(rate):
    """The mean over n images lies within 5 of its standard deviations, sqrt(rate / (1 - rate) / n), of the branch."""
    n = 100_000
    kept = drop_path(torch.ones(n, 2, 3), rate, training=True)
    assert abs(kept.double().mean() - 1.0) < 5 * (rate / (1 - rate) / n) ** 0.5
    assert abs((kept[:, 0, 0] == 0).double().mean() - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
    assert (kept == kept[:, :1, :1]).all()  # one draw an image
    torch.testing.assert_close(kept.max().item(), 1 / (1 - rate))


def test_drop_path_is_off_in_eval_and_at_rate_zero():
    branch = torch.randn(8, 2, 3)
    assert drop_path(branch, 0.9, training=False) is branch
    assert drop_path(branch, 0.0, training=True) is branch


@torch.no_grad()
def test_each_image_drops_each_branch_for_itself():
    block = wild_model(tiny_config(drop_path_rate=0.5)).train().blocks[0]
    tokens = torch.randn(1, 10, 24).double().expand(64, -1, -1)
    with_attention = tokens + block._drop_path(block.gamma_1 * block.attn(block.norm1(tokens)))
    outcomes = with_attention.flatten(1).unique(dim=0)
    assert len(outcomes) == 2  # dropped or doubled, and nothing between
    assert (outcomes - tokens[0].flatten()).abs().amax(1).min() == 0
    # Two branches that draw independently: four outcomes; one draw for both would give two.
    assert len(block(tokens).flatten(1).round(decimals=9).unique(dim=0)) == 4
    assert len(block.eval()(tokens).flatten(1).round(decimals=9).unique(dim=0)) == 1


@torch.no_grad()
def test_the_class_stage_drops_nothing():
    model = wild_model(tiny_config(drop_path_rate=0.9))
    cls, patches = torch.randn(16, 1, 24).double(), torch.randn(16, 10, 24).double()
    for block in model.blocks_token_only:
        assert torch.equal(block.train()(cls, patches), block.eval()(cls, patches))


# -- the head ---------------------------------------------------------------------------------------------------------


def test_reset_classifier(model, images):
    keys = list(model.state_dict())
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(11)
    assert (model(images).shape, model.num_classes, model.config.num_classes) == ((2, 11), 11, 11)
    assert list(model.state_dict()) == keys
    assert model.head.weight.dtype == torch.float64
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert (model.head.bias == 0).all()
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert (model.num_classes, model.num_features) == (0, 24)
    assert relative_error(model(images), features) < 1e-12
    model.reset_classifier(3, global_pool="token")
    assert model(images).shape == (2, 3)
    assert sum(p.numel() for p in model.parameters()) == model.config.num_params()
    with pytest.raises(ConfigError, match="expected 'token', got 'avg'"):
        model.reset_classifier(3, global_pool="avg")


def test_weight_decay_skips_names_that_exist(model):
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}
    assert model.no_weight_decay() <= set(dict(model.named_parameters()))


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 40, 16), (2, 3, 16, 16), (2, 1, 16, 40), (3, 16, 40), (2, 3, 17, 40)])
@pytest.mark.parametrize("method", ["forward", "forward_features", "forward_intermediates", "class_attention"])
def test_images_of_another_shape_are_refused(model, shape, method):
    with pytest.raises(ShapeError, match=r"expected \(B, 3, 16, 40\), got") as caught:
        getattr(model, method)(torch.zeros(shape).double())
    assert str(tuple(shape)) in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img_size": 33}, r"img_size \(33, 33\): .* multiples of the patch size \(8\)"),
        ({"img_size": (32, 20)}, r"img_size \(32, 20\)"),
        ({"img_size": 0}, "img_size"),
        ({"img_size": (32, 32, 3)}, "img_size"),
        ({"num_heads": 5}, r"num_heads \(5\) does not divide embed_dim \(24\)"),
        ({"embed_dim": 0}, "embed_dim: expected a positive integer, got 0"),
        ({"depth": 2.5}, "depth: expected a positive integer, got 2.5"),
        ({"in_chans": -1}, "in_chans"),
        ({"num_classes": -1}, "num_classes"),
        ({"cls_depth": 0}, "cls_depth"),
        ({"drop_path_rate": 1.0}, r"probability in \[0, 1\), got 1.0"),
        ({"drop_path_rate": 10**400}, "drop_path_rate"),
        ({"layer_scale_init": 1e39}, r"layer_scale_init: expected a number of float32, got 1e\+39"),
        ({"layer_scale_init": 10**400}, "layer_scale_init"),
        ({"layer_scale_init": float("nan")}, "layer_scale_init"),
        ({"mlp_ratio": 1e30}, r"mlp_ratio: expected a positive number, got 1e\+30"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio"),
        ({"num_classes": 10**30}, "num_classes"),
        ({"img_size": 8**200}, "img_size"),
    ],
)
def test_what_no_network_can_be_built_from_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        tiny_config(**changes)
    assert caught.value.remedy


def test_an_unknown_name_comes_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"'cait_xxs24_244'.*Did you mean .*cait_xxs24_224"):
        variant_config("cait_xxs24_244")
    for unknown in ("resnet50", None, 24, ["cait_xxs24_224"]):
        with pytest.raises(ConfigError, match="deepcait models"):
            variant_config(unknown)


def test_names_that_begin_with_what_was_given_come_first():
    of_size = [f"cait_xxs24_{side}" for side in (224, 384, 448)]
    assert near_names("cait_xxs24") == of_size
    assert near_names("cait_xs24_38")[0] == "cait_xs24_384"
    assert near_names("") == near_names("zebra") == []
    with pytest.raises(ConfigError, match=" or ".join(of_size)):
        variant_config("cait_xxs24")


def test_an_unknown_override_comes_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"'img_sise'.*Did you mean 'img_size'"):
        variant_config("cait_s24_224").replace(img_sise=384)
    with pytest.raises(ConfigError, match=r"The fields are embed_dim, depth"):
        tiny_config().replace(zzz=1)


@pytest.mark.parametrize("indices", [0, 3, -1, [2], [-3], [], [0, 5], [0.5], "last"], ids=str)
def test_blocks_that_are_not_there_are_refused(model, images, indices):
    with pytest.raises(ConfigError, match="indices=.*: the model has 2 patch blocks"):
        model.forward_intermediates(images, indices)


def test_an_unknown_format_is_refused(model, images):
    with pytest.raises(ConfigError, match="expected 'NCHW' or 'NLC', got 'NHWC'"):
        model.forward_intermediates(images, output_fmt="NHWC")
