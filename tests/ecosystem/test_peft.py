"""PEFT's LoRA on our network and on timm's, with the same adapters: the same logits and gradients."""

from __future__ import annotations

import pytest
import torch

from tests.model.wild import relative_error, some_images, timm_twin, tiny_config, wild_model

peft = pytest.importorskip("peft")

CONFIG = tiny_config(depth=2)
# timm's class attention has the same layer names, its attention of patches too.
TARGETS = ["qkv", "proj", "fc1", "fc2", "q", "k", "v"]
# PEFT matches the end of a name: proj is the projection of the patches, a convolution, too.
ONLY_LINEAR = rf".*blocks.*\.({'|'.join(TARGETS)})"


def with_lora(model, targets=ONLY_LINEAR, seed: int = 0):
    """A model with adapters of order 1 on the targets; equal models get equal adapters."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, lora_dropout=0.0)
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(wrapped.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.2
    return wrapped


def adapters(wrapped) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in wrapped.named_parameters() if "lora_" in name}


@pytest.fixture
def images():
    return some_images(CONFIG, 4, dtype=torch.float32)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("target", [ONLY_LINEAR, *(rf".*blocks.*\.{name}" for name in TARGETS)], ids=["all", *TARGETS])
def test_the_same_logits_and_gradients_as_on_timms_network(images, training, target):
    model = wild_model(CONFIG, dtype=torch.float32)
    twin = timm_twin(model)
    plain = model(images).detach()
    ours, theirs = (with_lora(net, target).train(training) for net in (model, twin))
    logits, expected = ours(images), theirs(images)
    assert relative_error(logits.detach(), expected.detach()) < 1e-5
    assert relative_error(logits.detach(), plain) > 1e-2  # the adapters do something
    for value in (logits, expected):
        value.square().sum().backward()
    grads, expected_grads = adapters(ours), adapters(theirs)
    assert grads.keys() == expected_grads.keys()
    for name, parameter in grads.items():
        wanted = expected_grads[name].grad
        assert (parameter.grad - wanted).norm() <= 1e-3 * wanted.norm(), name
    assert [name for name, p in ours.named_parameters() if p.grad is not None and "lora_" not in name] == []


def test_every_adapter_moves(images):
    wrapped = with_lora(wild_model(CONFIG, dtype=torch.float32)).train()
    before = {name: p.detach().clone() for name, p in adapters(wrapped).items()}
    assert len(before) == 2 * (4 * CONFIG.depth + 6 * CONFIG.cls_depth)
    optimizer = torch.optim.AdamW(adapters(wrapped).values(), lr=1e-2)
    wrapped(images).square().sum().backward()
    optimizer.step()
    assert [name for name, p in adapters(wrapped).items() if torch.equal(p, before[name])] == []


@torch.no_grad()
def test_merge_unmerge_save_and_load(images, tmp_path):
    wrapped = with_lora(wild_model(CONFIG, dtype=torch.float32)).eval()
    expected = wrapped(images)
    wrapped.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(wild_model(CONFIG, dtype=torch.float32), tmp_path).eval()
    assert torch.equal(loaded(images), expected)
    wrapped.merge_adapter()
    assert relative_error(wrapped(images), expected) < 1e-5
    wrapped.unmerge_adapter()
    assert relative_error(wrapped(images), expected) < 1e-5
    merged = loaded.merge_and_unload()
    assert relative_error(merged(images), expected) < 1e-5
    assert merged.describe_backend() == "lean (auto)"


def test_adapters_are_not_folded_but_merged_ones_are(images):
    from deepcait.errors import ConfigError
    from deepcait.inference.fold import fold

    wrapped = with_lora(wild_model(CONFIG, dtype=torch.float32)).eval()
    for model in (wrapped, wrapped.get_base_model()):
        with pytest.raises(ConfigError, match="fold"):
            fold(model)
    expected = wrapped(images).detach()
    assert relative_error(fold(wrapped.merge_and_unload())(images).detach(), expected) < 1e-5
