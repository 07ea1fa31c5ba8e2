"""Every form in which Python can hold an image gives the same pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from deepcait.data import ImageOptions
from deepcait.data.inputs import image_list, to_image
from deepcait.errors import ConfigError, ImageError


@pytest.fixture(name="pixels_HWC")
def pixels_of_an_image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def test_every_form_gives_the_same_pixels(tmp_path, pixels_HWC):
    path = tmp_path / "a.png"
    Image.fromarray(pixels_HWC).save(path)
    content = path.read_bytes()
    forms = [
        *(path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), Image.open(path)),
        *(pixels_HWC, pixels_HWC[::-1][::-1], np.dstack([pixels_HWC, np.full((9, 7), 255, np.uint8)])),
        *(torch.from_numpy(pixels_HWC).movedim(-1, 0), torch.from_numpy(pixels_HWC).movedim(-1, 0).contiguous()),
    ]
    for form in forms:
        assert image_list(form) == [form] if not isinstance(form, np.ndarray | torch.Tensor) else True
        image = to_image(form)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels_HWC), type(form)
    with open(path, "rb") as file:
        assert np.array_equal(np.asarray(to_image(file)), pixels_HWC)


def test_grey_pixels(pixels_HWC):
    grey_HW = pixels_HWC[..., 0]
    for form in (grey_HW, grey_HW[..., None], torch.from_numpy(grey_HW.copy()), torch.from_numpy(grey_HW.copy())[None]):
        assert np.array_equal(np.asarray(to_image(form)), np.stack([grey_HW] * 3, -1))
    deep_HW = grey_HW.astype(np.uint16) * 16
    assert np.asarray(to_image(deep_HW, options=ImageOptions(max_value=4080))).max() == grey_HW.max()


def test_batches_and_lists_are_several(pixels_HWC):
    several = np.stack([pixels_HWC, pixels_HWC])
    assert len(image_list(several)) == len(image_list(torch.from_numpy(several))) == 2
    assert image_list(np.array(["a.png", "b.png"])) == ["a.png", "b.png"]
    assert len(image_list(pixels_HWC)) == len(image_list(torch.zeros(3, 4, 4))) == 1
    assert image_list(name for name in ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    "form",
    [
        np.zeros((3, 8, 8), np.uint8),  # channels first
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((3, 8, 8), np.float32),
        torch.zeros(8, 8, 3),
        torch.zeros(8, 8, 3, dtype=torch.uint8),  # channels last
    ],
    ids=lambda form: f"{form.dtype} {tuple(form.shape)}",
)
def test_pixels_that_could_mean_something_else_are_refused(form):
    with pytest.raises(ConfigError, match=r"expected pixels, red first.*; got \w+ of \("):
        to_image(form)


def test_floats_from_0_to_1_are_the_same_pixels(pixels_HWC):
    for kind in (np.float16, np.float32, np.float64):
        assert np.array_equal(np.asarray(to_image((pixels_HWC / 255).astype(kind))), pixels_HWC), kind
    tensor_CHW = torch.from_numpy(pixels_HWC).movedim(-1, 0) / 255
    assert np.array_equal(np.asarray(to_image(tensor_CHW)), pixels_HWC)
    assert np.array_equal(
        np.asarray(to_image(tensor_CHW.bfloat16().float())), np.asarray(to_image(tensor_CHW.bfloat16()))
    )


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, float("nan"), float("inf")])
def test_floats_of_another_range_are_refused(value):
    with pytest.raises(ConfigError, match="expected floats from 0 to 1, got") as caught:
        to_image(np.full((8, 8, 3), value, np.float32))
    assert "255" in caught.value.remedy


def test_limits_and_mistakes(tmp_path, pixels_HWC):
    path = tmp_path / "a.png"
    Image.fromarray(pixels_HWC).save(path)
    small = ImageOptions(max_bytes=20)
    for form in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with pytest.raises(ImageError, match="at most 20 bytes"):
            to_image(form, options=small)
    with open(path, encoding="latin-1") as text, pytest.raises(ConfigError, match="binary mode, got text"):
        to_image(text)
    with pytest.raises(ConfigError, match=r"expected a path, bytes, a file .* got int"):
        to_image(7)
