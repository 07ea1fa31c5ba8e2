"""Any classifier that offers what `Network` lists can be trained, and no other network pretends to be a CaiT."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from deepcait.errors import ConfigError
from deepcait.model.convnet import ConvConfig, ConvNet
from deepcait.model.networks import build_model, require_cait
from deepcait.training.journal import read_metrics
from deepcait.training.settings import Average, Optimizer
from tests.training.tiny import K, section, tiny_model, tiny_recipe, train


@dataclass(frozen=True)
class OwnConfig:
    img_size: tuple[int, int] = (16, 16)
    in_chans: int = 3
    num_classes: int = K
    depth: int = 1

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def num_params(self) -> int:
        return 0

    def macs(self) -> int:
        return 0


class Own(nn.Module):
    """Neither a CaiT nor a network of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.num_classes, self.pretrained_cfg = OwnConfig(), K, {}
        self.body = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, K)

    def forward(self, images_BCHW):
        return self.head(self.body(images_BCHW).relu().mean((2, 3)))

    def reset_classifier(self, num_classes, global_pool=None):
        self.head, self.num_classes = nn.Linear(8, num_classes), num_classes

    def no_weight_decay(self):
        return set()

    def set_grad_checkpointing(self, enable=True):
        self.checkpoints = enable


def test_a_network_of_ones_own_is_trained_and_resumed(tmp_path):
    recipe = tiny_recipe(epochs=6, ema=Average(decay=0.9), optimizer=Optimizer(lr=1e-2, lr_batch=0, layer_decay=0.5))
    torch.manual_seed(0)
    model = Own()
    before = model.body.weight.detach().clone()
    train(tmp_path, recipe, model=model)
    losses = [row["loss"] for row in read_metrics(tmp_path) if row["kind"] == "train"]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert not torch.equal(model.body.weight, before)
    resumed = Own()
    train(tmp_path, section(recipe, "compute", memory="normal"), model=resumed)
    assert torch.equal(resumed.body.weight, model.body.weight)


def test_a_teacher_is_no_cait():
    teacher = build_model(ConvConfig(widths=(8, 8, 8)))
    assert isinstance(teacher, ConvNet)
    assert not hasattr(teacher, "class_attention")
    assert not hasattr(teacher.config, "grid")
    with pytest.raises(ConfigError, match="ConvNet has no class attention"):
        require_cait(teacher)
    model = tiny_model()
    assert require_cait(model) is model
