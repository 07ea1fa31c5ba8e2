"""Networks beside the plain CaiT on disk: saved with their options, loaded again, and never mistaken by timm."""

from __future__ import annotations

import json

import pytest
import timm
import torch

import deepcait
from deepcait.data import Preprocessing
from deepcait.errors import ConfigError, WeightsError
from deepcait.model.ablation import AblatedCaiT
from deepcait.model.alternatives import apply_overrides
from deepcait.model.convnet import ConvConfig, ConvNet
from deepcait.model.networks import build_model
from deepcait.weights import describe, resolve, save_artefact
from deepcait.weights.timm_layout import require_known_to_timm
from tests.model.wild import some_images, tiny_config, wild_state

OPTIONS = [
    {"residual": "fixup", "pre_norm": False},
    {"residual": "none", "class_token": "inserted", "insert_at": 1, "talking_heads": "none"},
    {"class_token": "average", "talking_heads": "after"},
    {"residual": "scalar", "class_mlp": False},
]


def saved(folder, options):
    model = build_model(apply_overrides(tiny_config(), options)).eval()
    model.load_state_dict(wild_state(model, 0))
    save_artefact(folder, model, preprocessing={}, classes=list("abcdefg"))
    return model


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_saved_and_loaded_with_its_options(tmp_path, options):
    model = saved(tmp_path / "m", options)
    section = json.loads((tmp_path / "m" / "config.json").read_text())["deepcait"]
    assert section["ablation"] == options
    found = deepcait.load(tmp_path / "m")
    assert isinstance(found.model, AblatedCaiT)
    assert found.model.config == model.config
    images = some_images(model.config, dtype=torch.float32)
    assert torch.equal(found.logits(images), model(images))
    again = deepcait.load(found.save(tmp_path / "n"))
    assert torch.equal(again.logits(images), model(images))
    facts = describe(tmp_path / "m")
    assert facts["name"] is None
    assert facts["params"] == sum(p.numel() for p in model.parameters())
    assert facts["config"]["residual"] == model.config.residual


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fitted_to_other_images_and_classes(tmp_path, options):
    saved(tmp_path / "m", options)
    found = resolve(tmp_path / "m", img_size=64, classes=["x", "y"])
    assert found.model.config.options == apply_overrides(tiny_config(), options).options
    assert found.model(torch.randn(1, 3, 64, 64)).shape == (1, 2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_timm_builds_nothing_around_the_weights(tmp_path, options):
    model = saved(tmp_path / "m", options)
    description = json.loads((tmp_path / "m" / "config.json").read_text())
    assert "timm does not have this network" in description["deepcait_only"]
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    with pytest.raises(ConfigError, match="timm does not have this network"):
        require_known_to_timm(model.config)


def test_what_only_training_sees_stays_known_to_timm(tmp_path):
    model = saved(tmp_path / "m", {"drop_path_shape": "linear"})
    require_known_to_timm(model.config)
    peer = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    images = some_images(model.config, dtype=torch.float32)
    assert torch.allclose(peer(images), model(images), atol=1e-4)
    assert resolve(tmp_path / "m").model.config == model.config


def test_alternatives_laid_over_trained_weights_must_fit_them(tmp_path):
    saved(tmp_path / "m", {})
    linear = resolve(tmp_path / "m", ablation={"drop_path_shape": "linear"}).model
    assert linear.config.drop_path_shape == "linear"
    with pytest.raises(WeightsError, match="gamma_1"):
        resolve(tmp_path / "m", ablation={"residual": "none"})


def test_a_random_start_with_alternatives_and_an_unknown_one():
    found = resolve("cait_nano_32", start="random", ablation={"residual": "rezero"}, depth=2, classes=["x", "y"])
    assert isinstance(found.model, AblatedCaiT)
    assert (found.model.config.depth, found.name, found.model.num_classes) == (2, None, 2)
    with pytest.raises(ConfigError, match="residuals"):
        resolve("cait_nano_32", start="random", ablation={"residuals": "none"})


def test_an_unknown_option_on_disk_is_an_error(tmp_path):
    saved(tmp_path / "m", OPTIONS[0])
    path = tmp_path / "m" / "config.json"
    content = json.loads(path.read_text())
    content["deepcait"]["ablation"]["wings"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="wings"):
        deepcait.load(tmp_path / "m")


def test_the_teacher_on_disk(tmp_path):
    net = ConvNet(ConvConfig(widths=(8, 8, 8), num_classes=3)).eval()
    for stage in net.stages:
        stage.norm1.running_mean.normal_()
    classifier = deepcait.Classifier(net, classes=["a", "b", "c"], preprocessing=Preprocessing((32, 32)))
    found = deepcait.load(classifier.save(tmp_path / "t"))
    images = torch.randn(2, 3, 32, 32)
    assert isinstance(found.model, ConvNet)
    assert torch.equal(found.logits(images), net(images))
    assert found.classes == ["a", "b", "c"]
    assert describe(tmp_path / "t")["params"] == net.config.num_params()
    other = resolve(tmp_path / "t", classes=["x", "y"]).model
    assert other(images).shape == (2, 2)
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path / 't'}", pretrained=True)


def test_the_teachers_name_needs_training():
    with pytest.raises(ConfigError, match="teacher_32"):
        resolve("convnet_32")
    assert isinstance(resolve("convnet_32", start="random", classes=["x", "y"]).model, ConvNet)
    assert describe("convnet_32")["params"] == ConvConfig().num_params()
