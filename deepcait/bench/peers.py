"""Parameters and multiply-adds of CaiT and of the models that the paper compares with, counted alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deepcait.model import CaiT, variant_config
from deepcait.weights.published import published


@dataclass(frozen=True)
class Baseline:
    """A model of timm that the paper compares with, trained on ImageNet-1k alone.

    Args:
        name: timm's name, with the tag of the weights.
        img_size: image side in pixels for which the accuracies are reported.
        reported: top-1 accuracy reported by its authors, a fraction; None if no source was read.
        reported_by: the source of `reported`.
        top1: top-1 accuracy of the same weights at the same size in timm's results/results-imagenet.csv.
    """

    name: str
    img_size: int
    reported: float | None = None
    reported_by: str | None = None
    top1: float | None = None


BASELINES = (
    Baseline("dm_nfnet_f6.dm_in1k", 576, 0.865, "Brock et al. 2021, arXiv:2102.06171, F6 with SAM", 0.86362),
    Baseline("tf_efficientnet_b7.aa_in1k", 600, 0.843, "CaiT paper, table of transfer results", 0.84414),
    Baseline("deit_base_distilled_patch16_384.fb_in1k", 384, top1=0.85426),
    Baseline("deit_base_patch16_384.fb_in1k", 384, 0.831, "CaiT paper, table of transfer results", 0.83106),
    # CaiT's teacher; timm evaluates it at 288 px.
    Baseline("regnety_160.deit_in1k", 224, 0.829, "DeiT README"),
)
COMPARED = ("cait_m48_448", "cait_m36_384", "cait_s36_384", "cait_s24_384", "cait_s24_224")


def compare_peers() -> list[dict[str, str | int | float | None]]:
    """Count CaiT models and baselines on the meta device: no weights, no arithmetic, no download.

    Returns:
        One row per model: name, params, gmacs (10^9 multiply-adds of one image), img_size, reported and
        reported_by (the authors' top-1), top1 (re-evaluated by timm), family ("cait" or "baseline").
    """
    rows = []
    for name in COMPARED:
        config = variant_config(name)
        with torch.device("meta"):
            model = CaiT(config)
        accuracy = published(name)
        known = {
            "reported": accuracy["top1_distilled"],
            "reported_by": "CaiT paper, with distillation",
            "top1": accuracy["top1"],
        }
        rows.append(_row(name, model, int(name.rpartition("_")[2]), "cait", **known))
    for baseline in BASELINES:
        known = {"reported": baseline.reported, "reported_by": baseline.reported_by, "top1": baseline.top1}
        rows.append(_row(baseline.name, build_baseline(baseline), baseline.img_size, "baseline", **known))
    return rows


def build_baseline(baseline: Baseline) -> nn.Module:
    """Build a baseline through timm on the meta device, attention as plain matrix products."""
    import timm

    with _plain_attention(), torch.device("meta"):
        return timm.create_model(baseline.name, pretrained=False)


def count_macs(model: nn.Module, img_size: int, in_chans: int = 3) -> int:
    """Count the multiply-adds of one image in matrix products and convolutions.

    The counter does not count inside fused attention, so build the model without it.

    Args:
        model: on the meta device.
        img_size: side of the image in pixels.
    """
    images_BCHW = torch.empty(1, in_chans, img_size, img_size, device="meta")
    # Without gradients, PyTorch fuses linear layers into operators that the counter may not know.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images_BCHW)
    return counter.get_total_flops() // 2


def _row(name: str, model: nn.Module, img_size: int, family: str, **known: str | float | None) -> dict:
    params = sum(parameter.numel() for parameter in model.parameters())
    gmacs = count_macs(model, img_size) / 1e9
    return {"name": name, "params": params, "gmacs": gmacs, "img_size": img_size, "family": family, **known}


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let timm build attention from plain matrix products; a model keeps this after it is built."""
    from timm.layers import config, set_fused_attn

    before = config._USE_FUSED_ATTN
    set_fused_attn(False)
    try:
        yield
    finally:
        config._USE_FUSED_ATTN = before
