"""A small CaiT in which every parameter decides: gammas of order 1, random head mixing."""

from __future__ import annotations

import torch

from deepcait.model import CaiT, CaiTConfig

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}


def scrambled(num_classes: int = 7, **sizes) -> CaiT:
    torch.manual_seed(3)
    model = CaiT(CaiTConfig(num_classes=num_classes, layer_scale_init=1.0, **(sizes or SIZES))).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.5, 0.5) if p.ndim == 1 else p.normal_(0.0, 0.3)
    return model


def spread_of_difference(got_BK: torch.Tensor, expected_BK: torch.Tensor) -> float:
    """Largest difference in units of the expected logits' spread."""
    return ((got_BK - expected_BK).abs().max() / expected_BK.std()).item()
