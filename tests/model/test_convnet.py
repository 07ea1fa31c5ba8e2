"""The convolutional teacher: its counts, its form, and that it can't be taken for a CaiT."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from deepcait.errors import ConfigError, ShapeError
from deepcait.model.convnet import BatchNorm, ConvConfig, ConvNet
from deepcait.model.networks import TEACHERS, build_model, config_of, is_model_name, named_config
from deepcait.model.variants import variant_names

_SMALL = {"widths": (8, 12, 16), "img_size": (24, 40), "num_classes": 3}


@pytest.mark.parametrize("config", [ConvConfig(), ConvConfig(**_SMALL), ConvConfig(**_SMALL, quick=True)])
def test_counts(config):
    net = ConvNet(config).eval()
    assert config.num_params() == sum(p.numel() for p in net.parameters())
    with FlopCounterMode(display=False) as counter:
        logits = net(torch.randn(1, 3, *config.img_size))
    assert counter.get_total_flops() / 2 == config.macs()
    assert logits.shape == (1, config.num_classes)
    assert config_of(vars(config)) == config


def test_the_one_that_travels_is_small_enough():
    assert 1e6 < TEACHERS["convnet_32"].num_params() < 3e6


def test_its_function_by_hand():
    net = ConvNet(ConvConfig(widths=(8, 12, 16))).double().eval()
    for stage in net.stages:
        for norm in (stage.norm1, stage.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    x = images = torch.randn(2, 3, 32, 32).double()

    def normed(norm, maps):
        shift, scale = norm.running_mean[:, None, None], norm.running_var[:, None, None].add(1e-5).rsqrt()
        return F.gelu((maps - shift) * scale)

    x = F.gelu(F.conv2d(x, net.stem.weight, net.stem.bias))
    for stage in net.stages:
        x = normed(stage.norm1, F.max_pool2d(F.conv2d(x, stage.conv1.weight, padding=1), 2))
        x = x + normed(stage.norm2, F.conv2d(x, stage.conv2.weight, padding=1))
    assert torch.allclose(net(images), x.flatten(2).amax(-1) @ net.head.weight.T / 9, atol=1e-12)


def test_the_quick_ones_function_by_hand():
    net = ConvNet(ConvConfig(widths=(8, 12, 16), quick=True)).double().train()
    for stage in net.stages:
        for norm in (stage.norm1, stage.norm2):
            norm.bias.data.normal_(std=0.1)
    images = torch.randn(4, 3, 32, 32).double()

    def normed(norm, maps):
        var, mean = torch.var_mean(maps, (0, 2, 3), correction=0)
        maps = (maps - mean[:, None, None]) * var[:, None, None].add(1e-5).rsqrt()
        return F.gelu(maps + 8 * norm.bias[:, None, None])

    x = F.gelu(F.conv2d(images, net.stem.weight, net.stem.bias))
    for stage in net.stages:
        x = normed(stage.norm1, F.max_pool2d(F.conv2d(x, stage.conv1.weight, padding=1), 2))
        x = normed(stage.norm2, F.conv2d(x, stage.conv2.weight, padding=1))
    assert torch.allclose(net(images), x.flatten(2).amax(-1) @ net.head.weight.T / 9, atol=1e-12)


def test_the_quick_one_starts_whitened_and_as_the_identity():
    net = ConvNet(ConvConfig(quick=True))
    filters = net.stem.weight[:12].flatten(1).double()
    assert torch.equal(net.stem.weight[12:], -net.stem.weight[:12])
    products = filters @ filters.T
    assert torch.allclose(products, products.diag().diag(), atol=1e-4 * float(products.max()))
    # Patches as those that the deviations are of come out with a variance of 1, or below where noise would be raised.
    grey, finest = filters[0].norm() * 3.53, filters[11].norm() * 0.027
    assert grey == pytest.approx(1.0, abs=1e-3)
    assert 0.5 < finest < 1.0
    maps = torch.randn(2, 256, 5, 5)
    assert torch.equal(net.stages[2].conv2(maps), maps)
    trained = [name for name, _ in net.named_parameters()]
    assert "stem.bias" in trained
    assert not {"stem.weight", "stages.0.norm1.weight"} & set(trained)


def test_a_network_of_version_0_1_is_what_it_was():
    """Its state and its configuration, as they were saved: without `quick`."""
    fields = {"widths": [8, 12, 16], "img_size": [32, 32], "in_chans": 3, "num_classes": 10}
    net, quick = ConvNet(config_of(fields)), ConvNet(ConvConfig(widths=(8, 12, 16), quick=True))
    assert not net.config.quick
    assert named_config("convnet_32") == ConvConfig()
    assert net.stages[0].norm1.weight.requires_grad
    assert net.state_dict().keys() == quick.state_dict().keys()


def test_its_norm_is_torchs_in_training_and_after():
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm2d(4)
    for _ in range(3):
        maps = torch.randn(5, 4, 6, 6) * 3 + 1
        assert torch.equal(ours(maps), theirs(maps))
    assert torch.equal(ours.eval()(maps), theirs.eval()(maps))


def test_the_smallest_and_the_usual_one():
    smallest = ConvNet(ConvConfig(widths=(1, 1, 1), in_chans=1, num_classes=1, img_size=24))
    assert smallest(torch.randn(2, 1, 24, 24)).shape == (2, 1)
    assert ConvConfig().widths == (64, 256, 256)


def test_every_tensor_of_its_state_is_a_number_with_a_point():
    state = ConvNet(ConvConfig()).state_dict()
    assert all(tensor.is_floating_point() for tensor in state.values())
    assert "stages.0.norm1.running_mean" in state


def test_it_is_a_name_but_no_model_of_the_paper():
    assert is_model_name("convnet_32")
    assert not is_model_name("convnet_33")
    assert "convnet_32" not in variant_names()
    assert isinstance(build_model(named_config("convnet_32")), ConvNet)


def test_mistakes():
    net = ConvNet(ConvConfig(widths=(8, 8, 8)))
    with pytest.raises(ShapeError):
        net(torch.randn(1, 3, 16, 16))
    with pytest.raises(ConfigError, match="drop_path_rate"):
        ConvConfig().replace(drop_path_rate=0.1)
    for wrong in ({"img_size": 16}, {"widths": (8, 8)}, {"num_classes": 0}, {"quick": True, "in_chans": 1}):
        with pytest.raises(ConfigError):
            ConvConfig(**wrong)
    with pytest.raises(ConfigError, match="expected 'max', got 'avg'"):
        net.reset_classifier(3, "avg")
    assert net.num_classes == 10
    net.reset_classifier(3, global_pool="max")
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)
