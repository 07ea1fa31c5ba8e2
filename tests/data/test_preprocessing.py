"""Preprocessing: bitwise timm's evaluation transform, and its words."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from deepcait.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deepcait.errors import ConfigError

transforms_factory = pytest.importorskip("timm.data.transforms_factory")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    # Products of integers: the same on every version of every library.
    rows, columns, channels = np.mgrid[0:height, 0:width, 0:3]
    pixels = (rows * 37 + columns * 101 + channels * 59 + rows * columns * (7 + seed)) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def timm_transform(preprocessing: Preprocessing):
    cfg = preprocessing.to_pretrained_cfg()
    return transforms_factory.create_transform(
        tuple(cfg["input_size"]),
        is_training=False,
        interpolation=cfg["interpolation"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        crop_pct=cfg["crop_pct"],
        crop_mode=cfg["crop_mode"],
    )


def random_cases(num_cases: int, square: bool) -> list[tuple]:
    rng = random.Random(num_cases)
    cases = []
    for _ in range(num_cases):
        height = rng.choice([32, 33, 224, 97])
        width = height if square else height + rng.choice([-16, 1, 40, 131])
        image = (rng.randrange(1, 500), rng.randrange(20, 500))
        cases.append((image, (height, width), rng.choice([1.0, 0.875, 0.9, 0.95])))
    return cases


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("square", [True, False])
def test_bitwise_equal_to_timm(square, interpolation):
    for (width, height), img_size, crop_ratio in random_cases(40, square):
        if max(width, height) > 32 * min(width, height):
            continue
        preprocessing = Preprocessing(img_size, interpolation=interpolation, crop_ratio=crop_ratio)
        image = noise(width, height)
        ours, theirs = preprocessing(image), timm_transform(preprocessing)(image)
        assert ours.dtype == torch.float32
        assert ours.is_contiguous()
        assert torch.equal(ours, theirs), (width, height, img_size, crop_ratio)


@pytest.mark.parametrize("img_size", [(224, 224), (384, 384), (448, 448), (224, 320)])
def test_bitwise_equal_to_timm_at_the_sizes_of_the_paper(img_size):
    preprocessing = Preprocessing(img_size)
    for image in (noise(500, 375), noise(224, 224), noise(333, 501)):
        assert torch.equal(preprocessing(image), timm_transform(preprocessing)(image))


def test_the_comparison_bites():
    image = noise(300, 200)
    theirs = timm_transform(Preprocessing((64, 64)))(image)
    for other in (
        Preprocessing((64, 64), interpolation="bilinear"),
        Preprocessing((64, 64), crop_ratio=0.95),
        Preprocessing((64, 64), mean=(0.5, 0.5, 0.5)),
    ):
        assert not torch.equal(other(image), theirs)


def test_golden_tensors():
    hashes = {}
    for name, image, preprocessing in (
        ("same size", noise(32, 32), Preprocessing((32, 32))),
        ("crop only", noise(40, 32), Preprocessing((32, 32))),
        ("down", noise(100, 75), Preprocessing((32, 32))),
        ("up", noise(20, 31), Preprocessing((48, 48), crop_ratio=0.875)),
        ("wide", noise(100, 75), Preprocessing((32, 64))),
        ("grey", noise(50, 50), Preprocessing((32, 32), mean=(0.5,), std=(0.25,))),
    ):
        # Pixels before normalising: integers, so no float rounding of a platform enters.
        pixels = preprocessing.frame(image).tobytes()
        hashes[name] = hashlib.sha256(pixels).hexdigest()[:12]
    assert hashes == GOLDEN


GOLDEN = {
    "same size": "03cfa2bc3af2",
    "crop only": "2b4db3a5d8a0",
    "down": "a63cf7b22543",
    "up": "187503f8e6a3",
    "wide": "43526aa7ee0d",
    "grey": "39cadfcaa291",
}


def test_values_are_normalised():
    white = Image.new("RGB", (50, 40), "white")
    tensor = Preprocessing((32, 32))(white)
    expected = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(tensor, expected.view(3, 1, 1).expand(3, 32, 32))


def test_extreme_aspect_costs_bounded_memory_and_keeps_the_centre():
    for length in (200_000, 200_001):
        needle = Image.new("RGB", (length, 2))
        needle.paste((255, 255, 255), (length // 2, 0, length, 2))
        pixels = np.asarray(Preprocessing((224, 224)).frame(needle)).astype(int)
        assert pixels.shape == (224, 224, 3)
        # The step lies in the middle: half a source pixel, 56 px, off where the length is odd.
        step = 112 - (56 if length % 2 else 0)
        assert abs(int((pixels[0, :, 0] > 127).argmax()) - step) <= 1
    assert Preprocessing((16, 160))(Image.new("RGB", (3, 40_000))).shape == (3, 16, 160)
    assert Preprocessing((160, 16))(Image.new("RGB", (40_000, 1))).shape == (3, 160, 16)
    longest = noise(32 * 20, 20)
    preprocessing = Preprocessing((24, 24))
    assert torch.equal(preprocessing(longest), timm_transform(preprocessing)(longest)), "cut too early"


def test_channels():
    grey = Preprocessing((8, 8), mean=(0.5,), std=(0.5,))
    assert grey.channels == 1
    assert grey(noise(20, 20)).shape == (1, 8, 8)
    four = Preprocessing((8, 8), mean=(0.5,) * 4, std=(0.5,) * 4)
    assert four.channels == 4
    with pytest.raises(ConfigError, match="channels"):
        four(noise(20, 20))
    assert Preprocessing((8, 8))(noise(20, 20).convert("L")).shape == (3, 8, 8)


def test_round_trip_through_json():
    preprocessing = Preprocessing((224, 320), (0.1, 0.2, 0.3), (1, 2, 3), "bilinear", 0.9)
    cfg = json.loads(json.dumps(preprocessing.to_pretrained_cfg()))
    assert Preprocessing.from_pretrained_cfg(cfg) == preprocessing
    assert hash(Preprocessing.from_pretrained_cfg(cfg)) == hash(preprocessing)
    assert cfg["input_size"] == [3, 224, 320]
    assert cfg["crop_pct"] == 0.9


def test_reads_the_configuration_of_a_timm_model():
    timm = pytest.importorskip("timm")
    cfg = timm.get_pretrained_cfg("cait_xxs24_224").to_dict()
    assert Preprocessing.from_pretrained_cfg(cfg) == Preprocessing((224, 224))
    assert Preprocessing.from_pretrained_cfg({"input_size": (3, 224, 224)}).crop_ratio == 0.875


def test_one_readable_line():
    assert str(Preprocessing((224, 384))) == (
        "224 x 384 px, bicubic, crop ratio 1, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("img_size", (224,)),
        ("img_size", (0, 224)),
        ("img_size", (224.0, 224)),
        ("img_size", 224),
        ("mean", ()),
        ("mean", (0.5, 0.5)),
        ("mean", "abc"),
        ("mean", (float("nan"),) * 3),
        ("std", (0.0, 1.0, 1.0)),
        ("interpolation", "random"),
        ("interpolation", ["bicubic"]),
        ("crop_ratio", 0.0),
        ("crop_ratio", 0.001),
        ("crop_ratio", 1.1),
        ("crop_ratio", "1"),
    ],
)
def test_values_that_do_not_fit(field, value):
    with pytest.raises(ConfigError, match="expected"):
        Preprocessing(**{"img_size": (224, 224), field: value})


@pytest.mark.parametrize(
    "cfg",
    [
        {},
        {"input_size": [224, 224]},
        {"input_size": [1, 224, 224]},
        {"input_size": [3, 224, 224], "crop_mode": "squash"},
        {"input_size": [3, 224, 224], "mean": None},
    ],
)
def test_configurations_that_do_not_fit(cfg):
    with pytest.raises(ConfigError):
        Preprocessing.from_pretrained_cfg(cfg)
