"""The network against a slow float64 reference, for the shapes that timm does not have."""

from __future__ import annotations

import pytest
import torch

from deepcait.model import variant_config
from tests.model.reference import cait_logits
from tests.model.wild import relative_error, some_images, timm_twin, tiny_config, wild_model

SHAPES = {
    "tiny": tiny_config(),
    "non-square": tiny_config(img_size=(16, 40)),
    "4 channels": tiny_config(in_chans=4),
    "1 channel, patch 4": tiny_config(in_chans=1, patch_size=4, img_size=(12, 20)),
    "1 class block": tiny_config(cls_depth=1),
    "5 class blocks": tiny_config(cls_depth=5, depth=1),
    "1 head": tiny_config(num_heads=1),
    "narrow mlp": tiny_config(mlp_ratio=1.5),
    "deeper": tiny_config(depth=7),
    "1 patch": tiny_config(img_size=8),
    "nano": variant_config("cait_nano_32").replace(img_size=(8, 16)),
    # XS36, S48 and M24 were never released: XS36 whole but for image and classes, the others but for depth too.
    "xs36": variant_config("cait_xs36_224").replace(img_size=(32, 48), num_classes=10),
    "s48": variant_config("cait_s48_224").replace(img_size=(32, 16), num_classes=10, depth=6),
    "m24": variant_config("cait_m24_224").replace(img_size=32, num_classes=10, depth=3),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_logits_equal_the_reference(config):
    model = wild_model(config)
    images = some_images(config)
    with torch.no_grad():
        expected = torch.from_numpy(cait_logits(model.state_dict(), config, images))
        assert relative_error(model(images), expected) < 1e-9


def test_the_reference_agrees_with_timm():
    """Neither oracle is right because the other says so; but were one wrong, they would differ."""
    model = wild_model(tiny_config(depth=4, img_size=(16, 24)))
    images = some_images(model.config)
    with torch.no_grad():
        expected = timm_twin(model)(images)
    assert relative_error(torch.from_numpy(cait_logits(model.state_dict(), model.config, images)), expected) < 1e-9


def test_single_precision_stays_near_the_reference():
    model = wild_model(SHAPES["xs36"])
    images = some_images(model.config)
    expected = torch.from_numpy(cait_logits(model.state_dict(), model.config, images))
    with torch.no_grad():
        assert relative_error(model.float()(images.float()), expected) < 1e-4
