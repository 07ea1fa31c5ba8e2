"""Numbers that must never move: sizes, names, initial values, costs (PAPER.md 1.6, 1.9, 2.1, 7.1)."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepcait.errors import ConfigError
from deepcait.model import VARIANTS, CaiT, variant_config
from deepcait.model.variants import RESOLUTIONS, variant_names
from tests.model.wild import tiny_config

# PAPER.md 1.9, at 224, 384 and 448.
NUM_PARAMS = {
    "xxs24": (11_956_264, 12_029_224, 12_069_160),
    "xxs36": (17_299_720, 17_372_680, 17_412_616),
    "xs24": (26_560_648, 26_670_088, 26_729_992),
    "xs36": (38_557_432, 38_666_872, 38_726_776),
    "s24": (46_916_200, 47_062_120, 47_141_992),
    "s36": (68_220_712, 68_366_632, 68_446_504),
    "s48": (89_525_224, 89_671_144, 89_751_016),
    "m24": (185_850_088, 186_141_928, 186_301_672),
    "m36": (270_929_512, 271_221_352, 271_381_096),
    "m48": (356_008_936, 356_300_776, 356_460_520),
}

# PAPER.md 2.1: reported FLOPs (multiply-adds) in units of 1e9.
REPORTED_GMACS = {
    "xxs24": {224: 2.5, 384: 9.5},
    "xxs36": {224: 3.8, 384: 14.2},
    "xs24": {224: 5.4, 384: 19.3},
    "xs36": {224: 8.1, 384: 28.8},
    "s24": {224: 9.4, 384: 32.2},
    "s36": {224: 13.9, 384: 48.0},
    "s48": {224: 18.6, 384: 63.8},
    "m24": {224: 36.0, 384: 116.1},
    "m36": {224: 53.7, 384: 173.3, 448: 247.8},
    "m48": {448: 329.6},
}

# PAPER.md 2.1: width, patch blocks, heads, drop-path rate, initial LayerScale value (XXS36: the code's, see below).
DESIGN = {
    "xxs24": (192, 24, 4, 0.05, 1e-5),
    "xxs36": (192, 36, 4, 0.1, 1e-5),
    "xs24": (288, 24, 6, 0.05, 1e-5),
    "xs36": (288, 36, 6, 0.1, 1e-6),
    "s24": (384, 24, 8, 0.1, 1e-5),
    "s36": (384, 36, 8, 0.2, 1e-6),
    "s48": (384, 48, 8, 0.3, 1e-6),
    "m24": (768, 24, 16, 0.2, 1e-5),
    "m36": (768, 36, 16, 0.3, 1e-6),
    "m48": (768, 48, 16, 0.4, 1e-6),
}

NUM_TENSORS = {24: 476, 36: 692, 48: 908}

TIMM_NAMES = [
    "cait_xxs24_224",
    "cait_xxs24_384",
    "cait_xxs36_224",
    "cait_xxs36_384",
    "cait_xs24_384",
    "cait_s24_224",
    "cait_s24_384",
    "cait_s36_384",
    "cait_m36_384",
    "cait_m48_448",
]


def meta_model(config) -> CaiT:
    with torch.device("meta"):
        return CaiT(config)


def shapes(model) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_every_variant_has_golden_numbers():
    assert set(NUM_PARAMS) == set(REPORTED_GMACS) == set(DESIGN) == set(VARIANTS)
    names = [f"cait_{size}_{side}" for size in NUM_PARAMS for side in RESOLUTIONS]
    assert variant_names() == [*names, "cait_nano_32"]
    assert len(names) == 30


@pytest.mark.parametrize("size", NUM_PARAMS)
@pytest.mark.parametrize(("side", "column"), [(224, 0), (384, 1), (448, 2)])
def test_number_of_parameters(size, side, column):
    config = variant_config(f"cait_{size}_{side}")
    model = meta_model(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_params() == NUM_PARAMS[size][column]
    assert len(model.state_dict()) == NUM_TENSORS[config.depth]
    assert not list(model.buffers())


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 0},
        {"in_chans": 4, "img_size": (16, 40)},
        {"cls_depth": 1, "depth": 5},
        {"mlp_ratio": 3.0, "num_heads": 8},
    ],
)
def test_number_of_parameters_of_other_shapes(changes):
    config = tiny_config(**changes)
    assert sum(p.numel() for p in CaiT(config).parameters()) == config.num_params()


@pytest.mark.parametrize("size", DESIGN)
def test_design_of_the_variants(size):
    config = variant_config(f"cait_{size}_224")
    width, depth, heads, drop_path_rate, init = DESIGN[size]
    assert (config.embed_dim, config.depth, config.num_heads) == (width, depth, heads)
    assert (config.drop_path_rate, config.layer_scale_init) == (drop_path_rate, init)
    assert (config.patch_size, config.cls_depth, config.mlp_ratio, config.embed_dim // config.num_heads) == (
        16,
        2,
        4,
        48,
    )


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_keys_order_and_shapes_are_timms(name):
    assert shapes(meta_model(variant_config(name))) == shapes(timm.create_model(name, device="meta"))


def test_timm_has_no_other_cait():
    assert set(timm.list_models("cait_*")) == set(TIMM_NAMES)


# -- initial values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", DESIGN)
def test_layer_scale_and_drop_path_in_both_stages(size):
    """As deep as the variant, but narrow: what counts here is depth."""
    _, _, _, drop_path_rate, init = DESIGN[size]
    model = CaiT(VARIANTS[size].replace(embed_dim=8, num_heads=2, img_size=16, num_classes=3))
    for block in [*model.blocks, *model.blocks_token_only]:
        torch.testing.assert_close(block.gamma_1, torch.full((8,), init), rtol=1e-6, atol=0)
        torch.testing.assert_close(block.gamma_2, torch.full((8,), init), rtol=1e-6, atol=0)
    assert [block.drop_path_rate for block in model.blocks] == [drop_path_rate] * len(model.blocks)
    assert not any(hasattr(block, "drop_path_rate") for block in model.blocks_token_only)


@pytest.mark.parametrize(("depth", "init"), [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (48, 1e-6)])
def test_layer_scale_goes_by_the_depth_of_the_patch_stage(depth, init):
    assert tiny_config(depth=depth, cls_depth=8).layer_scale_init == init


def test_both_layer_scale_values_of_xxs36_are_reachable():
    released = variant_config("cait_xxs36_224")
    assert released.layer_scale_init == 1e-5
    assert released.replace(layer_scale_init=1e-6).layer_scale_init == 1e-6
    assert released.replace(layer_scale_init=None).layer_scale_init == 1e-6
    # Another depth takes the rule's value along, and leaves an exception as it is.
    assert released.replace(depth=18).layer_scale_init == 1e-5
    assert variant_config("cait_xxs24_224").replace(depth=36).layer_scale_init == 1e-6
    narrow = released.replace(layer_scale_init=None, embed_dim=8, num_heads=2, img_size=16)
    assert CaiT(narrow).blocks[0].gamma_1[0].item() == pytest.approx(1e-6)


def test_sizes_that_fit_and_the_nearest_to_one_that_does_not():
    assert tiny_config(img_size=(1, 1), patch_size=1).grid == (1, 1)
    with pytest.raises(ConfigError, match=r"\(30, 17\): .* The nearest valid size is \(32, 16\)"):
        tiny_config(img_size=(30, 17), patch_size=8)
    with pytest.raises(ConfigError, match=r"from 1 to 3, or indices from -3 to 2\."):
        CaiT(tiny_config(depth=3)).forward_intermediates(torch.zeros(1, 3, 32, 32), indices=4)


def test_initial_values():
    model = CaiT(tiny_config(embed_dim=192, num_heads=4, img_size=128, patch_size=8, num_classes=100, depth=1))
    bound = (3 * 8 * 8) ** -0.5
    for name, tensor in model.named_parameters():
        few = tensor.numel() < 1000
        if name.startswith("patch_embed"):
            assert 0.9 * bound < tensor.abs().max() <= bound, name
        elif "gamma" in name or ("norm" in name and name.endswith("weight")):
            assert tensor.unique().tolist() == pytest.approx([0.1 if "gamma" in name else 1.0]), name
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.5 if few else 0.05), name
            assert tensor.mean().abs() < 0.02, name


# -- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "side", "reported"), [(size, side, g) for size, row in REPORTED_GMACS.items() for side, g in row.items()]
)
def test_macs_are_the_reported_flops(size, side, reported):
    assert variant_config(f"cait_{size}_{side}").macs() / 1e9 == pytest.approx(reported, rel=0.015)


@pytest.mark.parametrize(
    "config",
    [
        variant_config("cait_xxs24_224"),
        variant_config("cait_m36_384"),
        variant_config("cait_m48_448"),
        variant_config("cait_nano_32"),
        tiny_config(img_size=(16, 40), in_chans=4, cls_depth=3, mlp_ratio=3.0),
        tiny_config(num_classes=0),
    ],
    ids=["xxs24_224", "m36_384", "m48_448", "nano_32", "tiny", "features"],
)
def test_macs_are_what_a_counter_sees(config):
    """On the meta device, with gradient mode on: without it PyTorch takes fused kernels the counter cannot see."""
    images = torch.empty(1, config.in_chans, *config.img_size, device="meta")
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        meta_model(config)(images)
    assert counter.get_total_flops() == 2 * config.macs()
