"""What timm's own tests check of a model (its tests/test_models.py), on ours in place of timm's."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from timm.models import FeatureInfo
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from deepcait import create_model
from deepcait.errors import ConfigError
from tests.model.wild import relative_error, some_images, timm_twin, tiny_config, wild_model

NAMES = ["cait_xxs24_224", "cait_nano_32"]
# The sizes of the ten released models are timm's; two blocks show the interface as well as 24.
SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 4}


def small(name: str, **settings):
    return create_model(name, **SMALL | settings)


def images_for(model, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *model.default_cfg["input_size"], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_default_cfg_and_head_sizes(name):
    """test_model_default_cfgs_non_std."""
    model = small(name).eval()
    assert model.default_cfg is model.pretrained_cfg
    assert model.num_features == model.head_hidden_size == 48
    state, cfg = model.state_dict(), model.default_cfg
    assert cfg["num_classes"] == model.num_classes
    assert f"{cfg['classifier']}.weight" in state
    assert f"{cfg['first_conv']}.weight" in state
    images = images_for(model)
    tokens = model.forward_features(images)
    pre_logits = model.forward_head(tokens, pre_logits=True)
    assert tokens.shape == (2, 1 + model.config.num_patches, 48)
    assert pre_logits.shape == (2, 48)
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(images), pre_logits)
    assert small(name, num_classes=0).eval()(images).shape == (2, 48)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient(name):
    """test_model_backward."""
    model = small(name, num_classes=42).train()
    logits = model(images_for(model))
    logits.mean().backward()
    assert logits.shape == (2, 42)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_the_names_are_those_of_timms_model():
    """Every public attribute that timm's model and its tools use; not timm's own options (dropout, pooling)."""
    ours, theirs = create_model("cait_xxs24_224"), timm.create_model("cait_xxs24_224")
    assert ours.feature_info == theirs.feature_info
    for name in ("num_classes", "num_features", "head_hidden_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.no_weight_decay() == theirs.no_weight_decay()
    for key in ("input_size", "interpolation", "crop_pct", "mean", "std", "num_classes", "classifier", "first_conv"):
        assert ours.default_cfg[key] == theirs.default_cfg[key], key


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_forward_intermediates(name):
    """test_model_forward_intermediates."""
    model = small(name).eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    assert (info.channels(), info.module_name()) == ([48] * 4, [f"blocks.{i}" for i in range(4)])
    images = images_for(model)
    tokens, maps = model.forward_intermediates(images, output_fmt="NCHW")
    rows, columns = (side // info.reduction()[0] for side in images.shape[-2:])
    assert [m.shape for m in maps] == [(2, 48, rows, columns)] * 4
    torch.testing.assert_close(tokens, model.forward_features(images))
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(images)[0], tokens)


@pytest.mark.parametrize(("out_indices", "blocks"), [(1, [3]), (3, [1, 2, 3]), ([0, -2], [0, 2])])
@torch.no_grad()
def test_features_only(out_indices, blocks):
    """test_model_forward_features and test_model_forward_intermediates_features, by timm's own FeatureGetterNet."""
    whole = small("cait_nano_32").eval()
    images = images_for(whole)
    expected = whole.forward_intermediates(images, blocks, norm=False, intermediates_only=True)
    getter = create_model("cait_nano_32", features_only=True, out_indices=out_indices, **SMALL).eval()
    getter.model.load_state_dict(whole.state_dict(), strict=False)
    assert getter.feature_info.module_name() == [f"blocks.{i}" for i in blocks]
    assert getter.feature_info.channels() == [48] * len(blocks)
    for got, wanted in zip(getter(images), expected, strict=True):
        assert torch.equal(got, wanted)
    assert len(getter.model.blocks) == max(blocks) + 1  # the rest is pruned
    assert getter.default_cfg == whole.default_cfg
    with pytest.raises(ConfigError, match="feature_cls"):
        create_model("cait_nano_32", features_only=True, feature_cls="hook")


@torch.no_grad()
def test_features_equal_those_of_timm():
    model = wild_model(tiny_config(depth=4))
    twin, images = timm_twin(model), some_images(model.config)
    options = {"indices": [0, -1], "norm": False, "intermediates_only": True}
    for got, wanted in zip(
        model.forward_intermediates(images, **options), twin.forward_intermediates(images, **options), strict=True
    ):
        assert relative_error(got, wanted) < 1e-12


def traced(model, train: bool):
    """The whole model as a graph of torch.fx, by torchvision's feature extraction, as timm traces it."""
    tracer = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    nodes = {"train_return_nodes": [train_nodes[-1]], "eval_return_nodes": [eval_nodes[-1]]}
    return create_feature_extractor(model, **nodes, tracer_kwargs=tracer).train(train)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_forward_fx(name):
    """test_model_forward_fx: the graph gives the same logits, to the last bit of the reference."""
    model = small(name).eval()
    model.set_backend("reference")
    images = images_for(model)
    (logits,) = traced(model, train=False)(images).values()
    assert torch.equal(logits, model(images))


@pytest.mark.parametrize("name", NAMES)
def test_backward_fx(name):
    """test_model_backward_fx, with stochastic depth: a traced model draws at every call."""
    model = traced(small(name, num_classes=42, drop_path_rate=0.5).train(), train=True)
    images = images_for(small(name))
    (logits,) = model(images).values()
    logits.mean().backward()
    assert logits.shape == (2, 42)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert len({next(iter(model(images).values())).sum().item() for _ in range(4)}) > 1


def test_torch_fx_traces_the_model():
    model = wild_model(tiny_config())
    images = some_images(model.config)
    graph = torch.fx.symbolic_trace(model)
    assert relative_error(graph(images), model(images)) < 1e-12
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    assert called == leaves  # every layer is called, none is read
