"""The folded model is the same function: gammas of order 1, random head mixing, any size."""

from __future__ import annotations

import pytest
import torch

from deepcait.errors import ConfigError
from deepcait.inference.fold import fold
from tests.inference.tiny import scrambled

SIZES = [
    {"embed_dim": 48, "depth": 3, "num_heads": 4, "img_size": 48, "patch_size": 8},
    {"embed_dim": 32, "depth": 1, "num_heads": 1, "img_size": (32, 64), "patch_size": 8, "cls_depth": 1},
    {"embed_dim": 64, "depth": 2, "num_heads": 8, "img_size": 32, "patch_size": 4, "in_chans": 1},
]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_same_logits_and_maps(sizes):
    model = scrambled(**sizes)
    config = model.config
    images_BCHW = torch.randn(3, config.in_chans, *config.img_size)
    with torch.no_grad():
        expected_BK, folded = model(images_BCHW), fold(model)
        assert (folded(images_BCHW) - expected_BK).abs().max() < 1e-5 * expected_BK.std()
        maps = model.class_attention(images_BCHW)
        torch.testing.assert_close(folded.class_attention(images_BCHW), maps, rtol=1e-4, atol=1e-6)
        # The test can fail: every parameter but those that have no effect decides the logits.
        model.blocks[0].gamma_2.mul_(1.01)
        assert (fold(model)(images_BCHW) - expected_BK).abs().max() > 1e-4 * expected_BK.std()


def test_training_is_refused():
    with pytest.raises(ConfigError, match="can't be trained"):
        fold(scrambled(**SIZES[0])).train()
