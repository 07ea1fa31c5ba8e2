"""Weights fitted to other channels, patches and depths start as the function that they were, and it is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import deepcait
from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.errors import WeightsError
from deepcait.model import CaiT
from deepcait.weights.adapt import build_loaded, load_into
from deepcait.weights.artefact import save_artefact
from deepcait.weights.registry import for_channels, pretrained_cfg_of
from deepcait.weights.reshape import change_channels, resize_patches
from deepcait.weights.spec import resolve


@pytest.fixture
def saved(tiny, tmp_path):
    cfg = pretrained_cfg_of(tiny().config)
    return save_artefact(tmp_path / "m", tiny(), preprocessing=cfg, classes=["a", "b", "c", "d", "e"])


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def run(model: CaiT, images_BCHW: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(images_BCHW)


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.std()


def test_a_grey_picture_gives_what_it_gave_in_colour(saved):
    """Through the whole way: pixels, normalisation, network."""
    pixels = torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    grey = Image.fromarray(pixels.numpy())
    found = resolve(saved, in_chans=1)
    assert str(found.report) == "kept 78 tensors, changed channels 3 -> 1"
    assert found.pretrained_cfg["input_size"] == (1, 32, 32)
    expected = deepcait.load(saved)
    colour_logits = expected.logits(expected.preprocessing(grey)[None])
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    assert preprocessing.channels == 1
    assert_close(run(found.model, preprocessing(grey)[None]), colour_logits, 1e-4)
    # The normalisation is part of it: without, the logits are others.
    plain, _ = build_loaded(found.model.config, expected.model.state_dict())
    assert (run(plain, preprocessing(grey)[None]) - colour_logits).abs().max() > 0.01 * colour_logits.std()


def test_three_equal_channels_give_what_one_gave(tiny):
    source = tiny(in_chans=1)
    model, report = build_loaded(source.config.replace(in_chans=3), source.state_dict())
    assert report.channels == (1, 3)
    seen = images(2, 1, 32, 32)
    assert_close(run(model, seen.expand(-1, 3, -1, -1)), run(source, seen))


def test_a_fourth_channel_starts_without_a_say_and_learns(tiny):
    source = tiny()
    model, report = build_loaded(source.config.replace(in_chans=4), source.state_dict())
    assert report.channels == (3, 4)
    seen = images(2, 4, 32, 32)
    assert_close(run(model, seen), run(source, seen[:, :3]))
    model(seen).sum().backward()
    assert model.patch_embed.proj.weight.grad[:, 3].abs().max() > 0
    back, report = build_loaded(source.config, model.state_dict())
    assert report.channels == (4, 3)
    assert torch.equal(back.patch_embed.proj.weight, source.patch_embed.proj.weight)


def test_means_and_deviations_follow_the_channels():
    cfg = {"mean": (0.1, 0.2, 0.6), "std": (0.2, 0.2, 0.5)}
    assert for_channels(cfg, 3) == cfg
    assert for_channels(cfg, 1) == {"mean": (pytest.approx(0.3),), "std": (pytest.approx(0.3),)}
    assert for_channels(cfg, 5)["mean"][:3] == cfg["mean"]
    assert for_channels({"mean": (0.5,), "std": (0.25,)}, 2)["std"] == (0.25, 0.25)


def enlarge_each_patch(images_BCHW: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Enlarge every patch on its own, bilinearly: what resampled patches are made for."""
    batch, chans, height, width = images_BCHW.shape
    rows, cols = height // old, width // old
    patches = images_BCHW.reshape(batch, chans, rows, old, cols, old).permute(0, 2, 4, 1, 3, 5)
    large = F.interpolate(patches.reshape(-1, chans, old, old), size=new, mode="bilinear", align_corners=False)
    large = large.reshape(batch, rows, cols, chans, new, new).permute(0, 3, 1, 4, 2, 5)
    return large.reshape(batch, chans, rows * new, cols * new)


@pytest.mark.parametrize(("old", "new"), [(16, 8), (8, 16), (8, 4), (8, 12), (12, 8)])
def test_resampled_patches_see_enlarged_pictures_as_they_are(tiny, old, new):
    source = tiny(patch_size=old, img_size=4 * old)
    config = source.config.replace(patch_size=new, img_size=4 * new)
    model, report = build_loaded(config, source.state_dict())
    assert (report.patch, report.resized) == ((old, new), None)
    assert f"resampled patches {old} px -> {new} px" in str(report)
    small, large = (source, model) if old < new else (model, source)
    seen = images(2, 3, *small.config.img_size)
    enlarged = enlarge_each_patch(seen, small.config.patch_size, large.config.patch_size)
    assert_close(run(large, enlarged), run(small, seen))


def test_smaller_patches_in_the_same_image_have_a_finer_grid(saved):
    found = resolve(saved, patch_size=4)
    assert found.model.config.grid == (8, 8)
    assert str(found.report) == "kept 78 tensors, resized pos_embed 4x4 -> 8x8, resampled patches 8 px -> 4 px"
    assert found.report.patch == (8, 4)
    assert run(found.model, images(1, 3, 32, 32)).isfinite().all()


def test_the_same_patches_are_the_same_bits(tiny):
    weight, bias = tiny().patch_embed.proj.weight, tiny().patch_embed.proj.bias
    assert resize_patches(weight, 8) is weight
    assert change_channels(weight, bias, 3) == (weight, bias)


@pytest.mark.parametrize("depths", [{"depth": 5}, {"cls_depth": 4}, {"depth": 12, "cls_depth": 3}])
def test_a_deeper_model_starts_as_the_shallow_one(tiny, depths):
    source = tiny()
    added = sum(depths.values()) - sum(getattr(source.config, key) for key in depths)
    seen = images(2, 3, 32, 32)
    model, report = build_loaded(source.config.replace(**depths), source.state_dict())
    assert report.num_new_blocks == added
    assert f"added {added} blocks" in str(report)
    assert report.num_kept == len(source.state_dict())
    assert_close(run(model, seen), run(source, seen), 1e-4)
    for name, parameter in model.named_parameters():
        assert not parameter.is_meta, name
    model(seen).square().sum().backward()
    last = model.blocks[-1] if "depth" in depths else model.blocks_token_only[-1]
    assert last.gamma_1.grad.abs().max() > 0
    assert 0.01 < last.mlp.fc1.weight.std() < 0.03
    # With a LayerScale of 0 the two are the same function, bit for bit.
    exact, _ = build_loaded(model.config, source.state_dict())
    with torch.no_grad():
        for stage in ("blocks", "blocks_token_only"):
            for block in getattr(exact, stage)[len(getattr(source, stage)) :]:
                block.gamma_1.zero_()
                block.gamma_2.zero_()
    assert torch.equal(run(exact, seen), run(source, seen))


def test_new_blocks_with_the_large_layer_scale_would_change_the_function(tiny):
    source = tiny()
    model, _ = build_loaded(source.config.replace(depth=5), source.state_dict())
    with torch.no_grad():
        for block in model.blocks[2:]:
            block.gamma_1.fill_(1.0)
            block.gamma_2.fill_(1.0)
    seen = images(2, 3, 32, 32)
    assert (run(model, seen) - run(source, seen)).abs().max() > 1e-3 * run(source, seen).std()


def test_a_shallower_model_is_still_an_error(tiny):
    with pytest.raises(WeightsError, match=r"blocks\.1\..* unexpected"):
        build_loaded(tiny().config.replace(depth=1), tiny().state_dict())


def test_an_existing_model_takes_them_too(tiny):
    target = tiny(1, depth=3, in_chans=1, patch_size=4)
    report = load_into(target, tiny().state_dict(), stored_grid=(4, 4))
    assert (report.patch, report.channels, report.num_new_blocks) == ((8, 4), (3, 1), 1)
    assert torch.equal(target.blocks[1].attn.qkv.weight, tiny().blocks[1].attn.qkv.weight)
    assert target.blocks[2].gamma_1.abs().max() <= 1e-6 * 1.001


def test_half_precision_and_double_stay_what_they_are(tiny):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        weight = tiny().patch_embed.proj.weight.to(dtype)
        assert resize_patches(weight, 4).dtype == dtype
        assert change_channels(weight, tiny().patch_embed.proj.bias.to(dtype), 1)[0].dtype == dtype
    assert np.isfinite(resize_patches(tiny().patch_embed.proj.weight, 16).detach().numpy()).all()


def test_training_starts_from_them_and_says_what_became_of_them(tiny, tmp_path, capsys):
    """Grey pictures, smaller patches and more blocks, in one command."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(4):
            noise = torch.randint(0, 256, (40, 40), dtype=torch.uint8).numpy()
            Image.fromarray(noise).save(tmp_path / "photos" / name / f"{index}.png")
    save_file(tiny().state_dict(), tmp_path / "w.safetensors")
    words = ["shape.in_chans=1", "shape.patch_size=4", "shape.depth=3", "epochs=1", "global_batch_size=4"]
    words += ["data.num_workers=0", "ema.decay=0", "img_size=32"]
    run = tmp_path / "run"
    command = ["train", "--data", str(tmp_path / "photos"), "--out", str(run), "--recipe", "finetune"]
    assert main([*command, "--model", str(tmp_path / "w.safetensors"), "--set", *words]) == 0
    printed = capsys.readouterr().out
    for part in ("changed channels 3 -> 1", "resampled patches 8 px -> 4 px", "added 1 blocks", "head 5 -> 2"):
        assert part in printed
    config = resolve(run).model.config
    assert (config.in_chans, config.patch_size, config.depth, config.num_classes) == (1, 4, 3, 2)
    assert main(["predict", str(run), str(tmp_path / "photos")]) == 0
    capsys.readouterr()
